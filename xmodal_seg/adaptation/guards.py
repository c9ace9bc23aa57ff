# SPDX-License-Identifier: Apache-2.0
"""Guards: when the stream is not to be learned from, and for how long after."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.adaptation.agreement import UsualAgreement, head_agreement
from xmodal_seg.adaptation.frames import Bin
from xmodal_seg.adaptation.settings import GuardSettings
from xmodal_seg.structures import Predictions

Reason = Literal[
    "no_camera",
    "low_confidence",
    "desync",
    "clock_jump",
    "condition_change",
    "missed_deadlines",
    "sensors_disagree",
    "parked",
    "settling",
]

_SECTORS = 72
_RANGED_POINTS = 8192  # more would cost milliseconds and move no median
_LATENCIES = 50
_RECOVERED = 0.8  # of the deadline: below, learning goes on
_NS = 10**9


@dataclass(frozen=True, kw_only=True)
class FrameFacts:
    """What the guards look at."""

    stamp_ns: int
    camera_stamps_ns: tuple[int, ...]
    bin: Bin | None  # None: no camera whose light is known
    latency_ms: float | None  # None: not measured
    moved_m: float | None  # since the last frame, by odometry; None: there is none
    ranges_m: NDArray[np.float32]  # (72,) as `sector_ranges` gives them


class Guards:
    """Remembers what is usual. Not thread-safe."""

    def __init__(self, *, settings: GuardSettings) -> None:
        self._settings = settings
        self._last_ns: int | None = None
        self._bin: Bin | None = None
        self._settling = 0
        self._latencies_ms: deque[float] = deque(maxlen=_LATENCIES)
        self._is_late = False
        self._kept: FrameFacts | None = None  # the last frame that was taken to learn from
        self._moved_m = 0.0  # since that frame, by odometry
        self.has_moved = True  # since that frame
        self._agreements: dict[Bin, UsualAgreement] = {}

    def apply(self, settings: GuardSettings) -> None:
        """Other thresholds from now on; what is usual stays known."""
        self._settings = settings

    def check(self, facts: FrameFacts) -> tuple[Reason, ...]:
        """Why this frame is not to be learned from; empty: it is. To be called once for every frame, in order.

        After a fault `settle_frames` good ones must pass. A parked vehicle is no fault: learning goes on
        with the first movement.
        """
        self.has_moved = self._find_movement(facts)
        faults = self._faults(facts)
        self._last_ns = facts.stamp_ns
        if faults:
            self.unsettle()
            return faults
        if self._settling > 0:
            self._settling -= 1
            return ("settling",)
        return ("parked",) if self._is_parked(facts.stamp_ns) else ()

    def unsettle(self) -> None:
        """Let good frames pass before learning goes on."""
        self._settling = self._settings.settle_frames

    def kept(self, facts: FrameFacts) -> None:
        """The frame was taken to learn from: movement counts from here."""
        self._kept = facts
        self._moved_m = 0.0

    def sensors_disagree(self, bin: Bin, predictions: Predictions) -> bool:
        """Whether the 2D and the 3D head agree much less than is usual in this bin; False without a 2D head."""
        agreement = head_agreement(predictions)
        if agreement is None:
            return False
        return self._agreements.setdefault(bin, UsualAgreement()).refuses(agreement, self._settings)

    def lasting_disagreement(self, bin: Bin) -> str:
        """A sentence while the heads have disagreed in most of the newest frames of the bin; '' where they have not."""
        return self._agreements[bin].lasting_fault(self._settings) if bin in self._agreements else ""

    def forget_usual(self) -> None:
        """How far the heads agree from now on is what is usual, in every bin."""
        self._agreements.clear()

    def _faults(self, facts: FrameFacts) -> tuple[Reason, ...]:
        found: list[Reason] = []
        if not facts.camera_stamps_ns:
            found.append("no_camera")
        elif facts.bin is None:
            found.append("low_confidence")
        elif facts.bin != self._bin:
            if self._bin is not None:
                found.append("condition_change")
            self._bin = facts.bin
        if any(abs(stamp - facts.stamp_ns) > self._settings.max_desync_s * _NS for stamp in facts.camera_stamps_ns):
            found.append("desync")
        if self._last_ns is not None and not 0 < facts.stamp_ns - self._last_ns <= self._settings.max_gap_s * _NS:
            found.append("clock_jump")
        if self._is_behind(facts.latency_ms):
            found.append("missed_deadlines")
        return tuple(found)

    def _is_behind(self, latency_ms: float | None) -> bool:
        deadline_ms = self._settings.deadline_ms
        if latency_ms is None or deadline_ms == 0:
            return False
        self._latencies_ms.append(latency_ms)
        p95 = float(np.percentile(self._latencies_ms, 95))
        self._is_late = p95 > (_RECOVERED * deadline_ms if self._is_late else deadline_ms)
        return self._is_late

    def _find_movement(self, facts: FrameFacts) -> bool:
        if facts.moved_m is not None:
            self._moved_m += abs(facts.moved_m)
        if self._kept is None:
            return True
        if facts.moved_m is not None:
            return self._moved_m >= self._settings.min_movement_m
        return range_change(self._kept.ranges_m, facts.ranges_m) >= self._settings.min_range_change

    def _is_parked(self, stamp_ns: int) -> bool:
        if self.has_moved or self._kept is None:
            return False
        return stamp_ns - self._kept.stamp_ns >= self._settings.parked_after_s * _NS


def sector_ranges(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, 3) m -> (72,) m: the median horizontal range of the points in each five degrees; NaN where there is none."""
    some = points[:: max(1, len(points) // _RANGED_POINTS)]
    finite = some[np.isfinite(some).all(axis=1)]
    sector = ((np.arctan2(finite[:, 1], finite[:, 0]) / (2 * np.pi) + 0.5) * _SECTORS).astype(np.int64) % _SECTORS
    distance = np.hypot(finite[:, 0], finite[:, 1])
    order = np.argsort(sector, kind="stable")
    groups = np.split(distance[order], np.searchsorted(sector[order], np.arange(1, _SECTORS)))
    return np.array([np.median(group) if group.size else np.nan for group in groups], dtype=np.float32)


def range_change(before: Sequence[float] | NDArray[np.float32], now: Sequence[float] | NDArray[np.float32]) -> float:
    """Median over the sectors of |now - before| / before; infinite where the two have no sector in common."""
    first, second = np.asarray(before), np.asarray(now)
    both = np.isfinite(first) & np.isfinite(second) & (first > 0)
    return float(np.median(np.abs(second[both] - first[both]) / first[both])) if both.any() else float("inf")
