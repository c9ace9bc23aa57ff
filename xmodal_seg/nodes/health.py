# SPDX-License-Identifier: Apache-2.0
"""What the node knows about its own state, and the diagnostic level that follows from it; no ROS import."""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass
from typing import Literal

import numpy as np

from xmodal_seg.nodes.problems import ProblemLevel, Problems
from xmodal_seg.nodes.segmentation_settings import SegmentationNodeSettings

Level = Literal["OK", "WARN", "ERROR", "STALE"]
_WINDOW = 50
_LEAST_SWEEPS = 20  # before a share of them means something
_INPUT_GAP_S = 5.0  # after a pause of the input, its last sweep is no longer waited for
_MANY_JUMPS, _JUMP_MEMORY_S = 5, 5.0  # a bag that loops is longer
_WARN_OLD_STAMPS, _ERROR_OLD_STAMPS = 0.05, 0.9  # share of the sweeps; one sound LiDAR has none
_MOST_LEFT_OUT = 0.9  # share of a sweep's points; organised clouds have NaN where nothing came back


@dataclass(frozen=True, kw_only=True)
class HealthReport:
    """One diagnostic status."""

    level: Level
    message: str
    values: dict[str, str]


class Health:
    """Thread-safe collector: callbacks and the worker write, the diagnostics timer reads.

    Times are seconds on a steady clock, so that a paused or looping bag cannot confuse them.
    """

    def __init__(self, *, now_s: float) -> None:
        self._lock = threading.Lock()
        self._started_s = now_s
        self._last_input_s: float | None = None
        self._last_output_s: float | None = None
        self._waiting_since_s: float | None = None  # arrival of the first sweep after the last that was labelled
        self._frame_ms: deque[float] = deque(maxlen=_WINDOW)
        self._age_ms: deque[float] = deque(maxlen=_WINDOW)
        self._stages_ms: dict[str, float] = {}
        self._counts: Counter[str] = Counter(frames=0, dropped_busy=0)
        self._was_dropped: deque[bool] = deque(maxlen=_WINDOW)  # of the newest sweeps
        self._had_old_stamp: deque[bool] = deque(maxlen=_WINDOW)  # of the newest that came
        self._left_out: deque[float] = deque(maxlen=_WINDOW)  # share of their points, 1 for a sweep without any
        self._jumped_s: deque[float] = deque(maxlen=_MANY_JUMPS)
        self._problems = Problems()

    def input_arrived(self, now_s: float, *, has_old_stamp: bool = False) -> None:
        """A sweep came; one with an old stamp, or the same again, cannot be labelled."""
        with self._lock:
            self._had_old_stamp.append(has_old_stamp)
            paused = self._last_input_s is not None and now_s - self._last_input_s > _INPUT_GAP_S
            if self._waiting_since_s is None or paused:
                self._waiting_since_s = now_s
            self._last_input_s = now_s

    def time_jumped(self, now_s: float) -> None:
        """The stamps of the sweeps, or the clock, went back."""
        with self._lock:
            self._counts["time_jumps"] += 1
            self._jumped_s.append(now_s)

    def count(self, name: str, amount: int = 1) -> None:
        with self._lock:
            self._counts[name] += amount

    def sweeps_dropped(self, amount: int) -> None:
        """Newer sweeps came before these could be labelled."""
        with self._lock:
            self._counts["dropped_busy"] += amount
            self._was_dropped.extend([True] * amount)

    def problem(self, source: str, sentence: str, *, now_s: float, level: ProblemLevel = "ERROR") -> bool:
        """Remember what went wrong for the diagnostics; True if the log shall say it too."""
        return self._problems.note(source, sentence, now_s=now_s, level=level)

    def frame_done(
        self,
        *,
        now_s: float,
        frame_ms: float,
        age_ms: float,
        stages_ms: dict[str, float],
        num_points: int,
        num_left_out: int,
    ) -> None:
        """A sweep was published; of its points, some could not be labelled (not finite, or too far)."""
        with self._lock:
            self._last_output_s, self._waiting_since_s = now_s, None
            self._left_out.append(num_left_out / num_points if num_points else 1.0)
            self._counts["points_left_out"] += num_left_out
            self._frame_ms.append(frame_ms)
            self._age_ms.append(age_ms)
            self._stages_ms = dict(stages_ms)
            self._counts["frames"] += 1
            self._was_dropped.append(False)

    def report(
        self, *, now_s: float, settings: SegmentationNodeSettings, extra: dict[str, str], notes: list[str]
    ) -> HealthReport:
        """The status now; `notes` are lasting warnings (untrained weights)."""
        with self._lock:
            findings = self._findings(now_s, settings)
            findings += [("WARN", note) for note in notes]
            values = self._values(now_s) | extra
        level: Level = max((level for level, _ in findings), key=_severity, default="OK")
        worst = [sentence for finding_level, sentence in findings if finding_level == level]
        return HealthReport(level=level, message="; ".join(worst) or "labelling", values=values)

    def _findings(self, now_s: float, settings: SegmentationNodeSettings) -> list[tuple[Level, str]]:
        findings: list[tuple[Level, str]] = []
        silent_s = now_s - (self._started_s if self._last_input_s is None else self._last_input_s)
        if silent_s > settings.stale_after_s:
            findings.append(("STALE", f"no sweep on {settings.points_topic!r} for {silent_s:.1f} s"))
        elif self._waiting_since_s is not None:
            waited_s = now_s - self._waiting_since_s
            usual_s = float(np.median(self._frame_ms)) / 1e3 if self._frame_ms else 0.0
            if waited_s > settings.stale_after_s + 2 * usual_s:
                findings.append(("ERROR", f"sweeps come, but none has been labelled for {waited_s:.1f} s"))
        limits = (
            ("time per frame", self._frame_ms, settings.warn_frame_time_ms, settings.error_frame_time_ms),
            ("age of the input", self._age_ms, settings.warn_input_age_ms, settings.error_input_age_ms),
        )
        for name, samples, warn_ms, error_ms in limits:
            median_ms = float(np.median(samples)) if samples else 0.0
            if median_ms > warn_ms:
                findings.append(("ERROR" if median_ms > error_ms else "WARN", f"{name} {median_ms:.0f} ms"))
        age_ms = float(np.median(self._age_ms)) if self._age_ms else 0.0
        if age_ms < -settings.warn_input_age_ms:
            ahead = f"stamps are {-age_ms:.0f} ms ahead of this computer's clock"
            findings.append(("ERROR" if age_ms < -settings.error_input_age_ms else "WARN", ahead))
        left_out = float(np.median(self._left_out)) if self._left_out else 0.0
        if left_out > _MOST_LEFT_OUT and settings.point_scope == "all":
            why = "no sweep has any, or they are not finite or too far (metres expected)"
            findings.append(("WARN", f"{100 * left_out:.0f} % of the points are left out: {why}"))
        if len(self._jumped_s) == _MANY_JUMPS and now_s - self._jumped_s[0] <= _JUMP_MEMORY_S:
            findings.append(("WARN", "the stamps of the sweeps keep going back: two publishers on one topic?"))
        why = f"(stamp 0? two publishers on {settings.points_topic!r}?)"
        old = f"came with old or repeated stamps and were dropped {why}"
        busy = "are dropped: they come faster than labels"
        shares = (
            (old, self._had_old_stamp, _WARN_OLD_STAMPS, _ERROR_OLD_STAMPS),
            (busy, self._was_dropped, settings.warn_drop_share, settings.error_drop_share),
        )
        for what, window, warn_share, error_share in shares:
            share = sum(window) / len(window) if len(window) >= _LEAST_SWEEPS else 0.0
            if share > warn_share:
                sentence = f"{100 * share:.0f} % of the sweeps {what}"
                findings.append(("ERROR" if share > error_share else "WARN", sentence))
        recent = self._problems.recent(now_s)
        findings += [(problem.level, f"{source}: {problem.sentence}") for source, problem in recent.items()]
        return findings

    def _values(self, now_s: float) -> dict[str, str]:
        values = {name: str(count) for name, count in sorted(self._counts.items())}
        for name, samples in (("frame_ms", self._frame_ms), ("input_age_ms", self._age_ms)):
            if samples:
                values[f"{name} p50"] = f"{np.percentile(samples, 50):.1f}"
                values[f"{name} p95"] = f"{np.percentile(samples, 95):.1f}"
        values |= {f"stage {name}": f"{value:.1f}" for name, value in self._stages_ms.items()}
        if self._last_output_s is not None:
            values["last output s ago"] = f"{now_s - self._last_output_s:.1f}"
        return values


def _severity(level: Level) -> int:
    return ("OK", "WARN", "STALE", "ERROR").index(level)
