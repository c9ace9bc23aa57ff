# SPDX-License-Identifier: Apache-2.0
"""The `xmodal-seg` command: one subcommand per module, imported only when it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from xmodal_seg.openmp import sleep_while_waiting


@dataclass(frozen=True)
class Subcommand:
    """A module of this package with `main(argv) -> int`."""

    module: str
    summary: str


SUBCOMMANDS = {
    "demo": Subcommand("demo", "label a bag with the real nodes over DDS and show the result"),
    "label-bag": Subcommand("label_bag", "label a bag offline: every sweep, in order, without ROS"),
    "evaluate-bag": Subcommand("evaluate_bag", "score a model on a bag with ground truth, over the time of the drive"),
    "labelled-frames": Subcommand("labelled_frames", "keep frames with ground truth for the gate of adaptation"),
    "simulate": Subcommand("simulate", "drive through a simulated street and write it as a bag"),
    "calibrate-lighting": Subcommand("calibrate_lighting", "fit the lighting estimator to labelled pictures or bags"),
    "replay-arguments": Subcommand("replay_arguments", "for replay.launch.py: what a bag has for the nodes, as JSON"),
    "info": Subcommand("info", "versions, devices, and what a checkpoint holds"),
}
USAGE_ERROR = 2
INTERRUPTED = 130  # as shells report SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand that `argv` (default: the command line) names; its exit code.

    What a user can get wrong becomes one sentence on stderr and exit code 2.
    """
    sleep_while_waiting()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0 if arguments else USAGE_ERROR
    name, *rest = arguments
    if name not in SUBCOMMANDS:
        print(f"xmodal-seg: no subcommand {name!r}; there are {', '.join(SUBCOMMANDS)}", file=sys.stderr)
        return USAGE_ERROR
    try:
        code: int = import_module(f"{__package__}.{SUBCOMMANDS[name].module}").main(rest)
    except ValueError as error:
        print(f"xmodal-seg {name}: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print(f"xmodal-seg {name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    return code


def _help() -> str:
    width = max(map(len, SUBCOMMANDS))
    lines = [f"  {name:<{width}}  {subcommand.summary}" for name, subcommand in SUBCOMMANDS.items()]
    return "\n".join(
        ["usage: xmodal-seg SUBCOMMAND ...", "", *lines, "", "xmodal-seg SUBCOMMAND --help lists its arguments."]
    )
