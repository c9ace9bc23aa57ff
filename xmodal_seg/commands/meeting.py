# SPDX-License-Identifier: Apache-2.0
"""Nodes in processes of their own: whether they have found one another, and whether a playback has ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from xmodal_seg.commands.processes import Child, check_running

if TYPE_CHECKING:
    from xmodal_seg.nodes.recorder import Recorder

_PATIENCE_S = (60.0, 120.0, 300.0)  # the last for a large model on a slow disk

ResultT = TypeVar("ResultT")


class NotMetError(ValueError):
    """Processes that were started together did not find one another."""


def until_they_meet(attempt: Callable[[float], ResultT]) -> ResultT:
    """`attempt(s)` with 60, 120 and 300 seconds of patience, while it raises NotMetError; each failure is printed.

    Fast DDS 3.2 locks itself up now and then while participants connect over TCP (docs/architecture.md).
    """
    for patience_s in _PATIENCE_S[:-1]:
        try:
            return attempt(patience_s)
        except NotMetError as error:
            print(f"the nodes did not find one another, so they are started again: {error}", file=sys.stderr)
    return attempt(_PATIENCE_S[-1])


def until_heard(recorder: Recorder, nodes: Sequence[Child], *, patience_s: float) -> Iterator[None]:
    """Until what the first of `nodes` says comes to `recorder`; yields all the time. NotMetError if it never does."""
    end_s = time.monotonic() + patience_s
    while not recorder.hears_the_node:
        if time.monotonic() > end_s:
            raise NotMetError(f"nothing was heard of {nodes[0].name} in {patience_s:g} s")
        yield
        recorder.spin_once(0.05)
        check_running(nodes)


def playback_has_ended(player: Child) -> bool:
    """Whether all was played; NotMetError if nobody listened, ValueError with the end of its log if it failed."""
    from xmodal_seg.nodes.playback import NOBODY_LISTENED

    code = player.exit_code()
    if code == NOBODY_LISTENED:
        raise NotMetError(player.last_lines(1))
    if code:
        check_running([player])
    return code is not None
