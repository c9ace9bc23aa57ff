# SPDX-License-Identifier: Apache-2.0
"""What went wrong lately, by source: in the diagnostics for a few seconds, in the log now and then; no ROS import."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal

ProblemLevel = Literal["WARN", "ERROR"]
_MEMORY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The newest of a source. Times are seconds on a steady clock."""

    sentence: str
    level: ProblemLevel
    seen_s: float
    logged_s: float


class Problems:
    """Thread-safe memory of the newest problem of each source."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_source: dict[str, Problem] = {}

    def note(self, source: str, sentence: str, *, now_s: float, level: ProblemLevel) -> bool:
        """True if the log shall say it too: the first time, and then not more often than every five seconds."""
        with self._lock:
            before = self._by_source.get(source)
            due = before is None or now_s - before.logged_s >= _MEMORY_S
            logged_s = now_s if due or before is None else before.logged_s
            self._by_source[source] = Problem(sentence=sentence, level=level, seen_s=now_s, logged_s=logged_s)
            return due

    def recent(self, now_s: float) -> dict[str, Problem]:
        """Those of the last five seconds; the others are forgotten."""
        with self._lock:
            fresh = {source: each for source, each in self._by_source.items() if now_s - each.seen_s <= _MEMORY_S}
            self._by_source = fresh
            return dict(fresh)
