# SPDX-License-Identifier: Apache-2.0
"""Labelling a drive frame by frame, in order and without drops, and scoring it against its ground truth.

The result depends on the frames, the weights and the mode alone: nothing is measured in wall time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.inference import LabelledFrame, Segmenter
from xmodal_seg.lighting import CameraLighting
from xmodal_seg.metrics import ConfusionMatrix
from xmodal_seg.structures import Frame

MINUTE_NS = 60_000_000_000


@dataclass(frozen=True, kw_only=True)
class FrameLight:
    """What is estimated about the light of a frame; None where no camera is sure."""

    guidance: float | None = None  # lambda
    condition: str | None = None
    confidence: float | None = None
    cameras: tuple[CameraLighting, ...] = ()


class Mode(Protocol):
    """Decides, frame by frame, which weights speak.

    `choose` is called before a frame is labelled and may switch or install banks of the segmenter; `observe` after it,
    for modes that learn, with what the model saw where `keeps` asks for it. `facts` goes into the results: counters
    and settings, as JSON holds them.
    """

    @property
    def keeps(self) -> bool: ...

    def choose(self, frame: Frame, light: FrameLight) -> Frame: ...

    def observe(self, frame: Frame, labelled: LabelledFrame, light: FrameLight) -> None: ...

    def facts(self) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class FrameScore:
    """One labelled frame compared with its ground truth."""

    number: int
    stamp_ns: int
    minute: int  # since the first frame, in the time of the bag
    condition: str | None  # the true one where the bag states it, else the estimated one
    light: FrameLight
    bank: str
    model_version: str
    confusion: ConfusionMatrix  # empty for a frame without ground truth
    times_ms: dict[str, float]

    @property
    def num_scored(self) -> int:
        """Points with ground truth."""
        return int(self.confusion.counts.sum())


@dataclass(frozen=True, kw_only=True)
class ScoredFrame:
    """A score with what it was made from."""

    score: FrameScore
    frame: Frame
    labels: NDArray[np.uint8]  # (N,) as labelled


def evaluate(
    frames: Iterable[Frame],
    *,
    segmenter: Segmenter,
    mode: Mode,
    light_of: Callable[[Frame], FrameLight],
    condition_at: Callable[[int], str | None],
) -> Iterator[ScoredFrame]:
    """Label and score every frame, in order.

    Args:
        light_of: the estimate of a frame's light.
        condition_at: stamp in ns -> the true condition, None where it is not known.
    """
    start_ns: int | None = None
    for number, frame in enumerate(frames):
        start_ns = frame.stamp_ns if start_ns is None else start_ns
        light = light_of(frame)
        seen = mode.choose(frame, light)
        labelled = segmenter.predict(seen, keep=mode.keeps)
        score = FrameScore(
            number=number,
            stamp_ns=frame.stamp_ns,
            minute=(frame.stamp_ns - start_ns) // MINUTE_NS,
            condition=condition_at(frame.stamp_ns) or light.condition,
            light=light,
            bank=labelled.bank,
            model_version=labelled.model_version,
            confusion=compare(frame, labelled.labels, num_classes=segmenter.label_space.num_classes),
            times_ms=labelled.times_ms,
        )
        mode.observe(seen, labelled, light)
        yield ScoredFrame(score=score, frame=frame, labels=labelled.labels)


def compare(frame: Frame, labels: NDArray[np.uint8], *, num_classes: int) -> ConfusionMatrix:
    """The frame's ground truth against `labels`; nothing is counted for a frame without ground truth.

    Raises ValueError for a true label that is none of the classes.
    """
    confusion = ConfusionMatrix(num_classes=num_classes)
    if frame.labels is not None:
        largest = int(frame.labels.max(initial=-1))
        if largest >= num_classes:
            raise ValueError(
                f"ground truth of the sweep at {frame.stamp_ns / 1e9:.3f} s: expected train ids below {num_classes}, "
                f"got {largest}"
            )
        confusion.update(frame.labels, labels)
    return confusion


def total(scores: Iterable[FrameScore], *, num_classes: int) -> ConfusionMatrix:
    """The points of all scores together."""
    confusion = ConfusionMatrix(num_classes=num_classes)
    for score in scores:
        confusion.counts += score.confusion.counts
    return confusion


def by_condition(scores: Sequence[FrameScore]) -> dict[str, list[FrameScore]]:
    """Scores by condition, in order of appearance; those without one under `unknown`."""
    groups: dict[str, list[FrameScore]] = {}
    for score in scores:
        groups.setdefault(score.condition or "unknown", []).append(score)
    return groups


def by_minute(scores: Sequence[FrameScore]) -> dict[int, list[FrameScore]]:
    """Scores by minute since the first frame, in order; minutes without a frame are left out."""
    groups: dict[int, list[FrameScore]] = {}
    for score in sorted(scores, key=lambda score: score.minute):
        groups.setdefault(score.minute, []).append(score)
    return groups


def worst_minute(scores: Sequence[FrameScore], *, num_classes: int) -> int | None:
    """The minute of the lowest mIoU, the first of several; None without ground truth."""
    means = {minute: total(group, num_classes=num_classes).mean_iou() for minute, group in by_minute(scores).items()}
    scored = {minute: mean for minute, mean in means.items() if not np.isnan(mean)}
    return min(scored, key=lambda minute: scored[minute]) if scored else None


class WorstFrames:
    """Keeps the frames of the lowest mIoU, at most `number`, no two of them within `apart_s` of each other."""

    def __init__(self, *, number: int = 3, apart_s: float = 10.0) -> None:
        self._number = number
        self._apart_ns = round(apart_s * 1e9)
        self._kept: list[ScoredFrame] = []

    def add(self, scored: ScoredFrame) -> None:
        if scored.score.num_scored == 0:
            return
        near = [kept for kept in self._kept if abs(kept.score.stamp_ns - scored.score.stamp_ns) < self._apart_ns]
        if any(_mean_iou(kept) <= _mean_iou(scored) for kept in near):
            return
        self._kept = [kept for kept in self._kept if kept not in near]
        self._kept = sorted([*self._kept, scored], key=_mean_iou)[: self._number]

    @property
    def frames(self) -> tuple[ScoredFrame, ...]:
        """The worst first."""
        return tuple(self._kept)


def _mean_iou(scored: ScoredFrame) -> float:
    return scored.score.confusion.mean_iou()
