# SPDX-License-Identifier: Apache-2.0
"""Agreement of the 2D with the 3D head: what is usual in a bin, and how little of it is a fault.

A camera that has turned or a cloud out of order is fine by itself; only together they make no sense. What is usual is
the best level so far: a level that followed every slide would let a lens get dirty, or a mount slip, without end, and
one that gave way after a while would take a turned camera for another street. So whoever drives where the heads agree
less for another reason has to say so; until then nothing is learned there.
"""

from __future__ import annotations

import statistics
from collections import deque

import torch

from xmodal_seg.adaptation.settings import GuardSettings
from xmodal_seg.structures import Predictions

_USUAL_FRAMES = 50  # of which the median is a level: single frames scatter by some percent
_NEWEST_FRAMES = 100  # at ten sweeps a second about a minute, if half of them are refused


def head_agreement(predictions: Predictions) -> float | None:
    """Share of the visible points with the same label by the 2D and the 3D head; None without a head or a point."""
    if "2d" not in predictions.main or "3d" not in predictions.main or not bool(predictions.visible.any()):
        return None
    labels = (predictions.main[head][predictions.visible].argmax(dim=1) for head in ("2d", "3d"))
    return float(torch.eq(*labels).float().mean())


class UsualAgreement:
    """Of one bin. Not thread-safe."""

    def __init__(self) -> None:
        self._level: float | None = None  # the best median of frames that were not refused; None: not known yet
        self._usual: deque[float] = deque(maxlen=_USUAL_FRAMES)
        self._newest: deque[float] = deque(maxlen=_NEWEST_FRAMES)  # the refused ones too

    def refuses(self, agreement: float, settings: GuardSettings) -> bool:
        """Whether the next frame's agreement is too far below what is usual; to be called once for every frame."""
        self._newest.append(agreement)
        if self._is_low(agreement, settings):
            return True
        self._usual.append(agreement)
        if len(self._usual) >= min(settings.min_usual_frames, _USUAL_FRAMES):
            self._level = max(self._level or 0.0, statistics.median(self._usual))
        return False

    def lasting_fault(self, settings: GuardSettings) -> str:
        """A sentence once more than half of the newest frames had to be refused; '' before."""
        low = [agreement for agreement in self._newest if self._is_low(agreement, settings)]
        if self._level is None or len(low) <= _NEWEST_FRAMES // 2:
            return ""
        return (
            f"2D and 3D heads agree on {100 * statistics.median(low):.0f} % of the points, usually on "
            f"{100 * self._level:.0f} %, in most of the last {_NEWEST_FRAMES} frames: a fault of calibration or "
            "sensor; where there is none, enable adaptation again"
        )

    def _is_low(self, agreement: float, settings: GuardSettings) -> bool:
        return self._level is not None and agreement < self._level - settings.max_agreement_drop
