# SPDX-License-Identifier: Apache-2.0
"""Scores over the time of a drive, against plain numpy."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import NUM_CLASSES, make_frame

from xmodal_seg.bag_evaluation import (
    FrameLight,
    FrameScore,
    ScoredFrame,
    WorstFrames,
    by_condition,
    by_minute,
    compare,
    evaluate,
    total,
    worst_minute,
)
from xmodal_seg.inference import LabelledFrame
from xmodal_seg.labels import UNLABELED
from xmodal_seg.metrics import ConfusionMatrix
from xmodal_seg.structures import Frame

PERIOD_S = 13
START_NS = 10**12


class FakeSegmenter:
    """Right with a chance that falls from frame to frame; says nothing about one point in nine."""

    label_space = SimpleNamespace(num_classes=NUM_CLASSES)

    def __init__(self) -> None:
        self.bank = "day"
        self.kept: list[bool] = []

    def predict(self, frame: Frame, *, keep: bool) -> LabelledFrame:
        assert not frame.cameras
        self.kept.append(keep)
        number = (frame.stamp_ns - START_NS) // (PERIOD_S * 10**9)
        return LabelledFrame(
            labels=said_of(frame, number),
            probability=np.ones(frame.num_points, np.float32),
            bank=self.bank,
            model_version=f"v{number // 4}",
            num_left_out=0,
            times_ms={"model": 1.0},
        )


def said_of(frame: Frame, number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    labels = np.where(rng.random(frame.num_points) < 0.9 - 0.06 * number, frame.labels, rng.integers(0, NUM_CLASSES))
    labels[::9] = UNLABELED
    return np.where(labels < 0, 0, labels).astype(np.uint8)


class FollowingMode:
    """Writes down what it is asked, changes the bank by condition and leaves out every camera."""

    keeps = True

    def __init__(self, segmenter: FakeSegmenter) -> None:
        self._segmenter = segmenter
        self.calls: list[tuple[str, int]] = []

    def choose(self, frame: Frame, light: FrameLight) -> Frame:
        self.calls.append(("choose", frame.stamp_ns))
        self._segmenter.bank = light.condition or "day"
        return replace(frame, cameras=())

    def observe(self, frame: Frame, labelled: LabelledFrame, light: FrameLight) -> None:
        assert not frame.cameras, "what was labelled is what is observed"
        self.calls.append(("observe", frame.stamp_ns))

    def facts(self) -> dict[str, int]:
        return {}


def drive(number: int = 10) -> list[Frame]:
    return [make_frame(num_points=101 + i, stamp_ns=START_NS + i * PERIOD_S * 10**9, seed=i) for i in range(number)]


def light_of(frame: Frame) -> FrameLight:
    late = frame.stamp_ns > START_NS + 60 * 10**9
    return FrameLight(guidance=0.2 if late else 0.9, condition="night" if late else "day", confidence=0.7)


def run(frames: list[Frame], **changes) -> list[ScoredFrame]:
    segmenter = FakeSegmenter()
    settings = {
        "mode": FollowingMode(segmenter),
        "light_of": light_of,
        "condition_at": lambda stamp_ns: None,
        **changes,
    }
    return list(evaluate(frames, segmenter=segmenter, **settings))


def numpy_miou(truths: list[np.ndarray], said: list[np.ndarray]) -> float:
    truth, predicted = np.concatenate(truths), np.concatenate(said)
    truth, predicted = truth[truth >= 0], predicted[truth >= 0]
    shares = [
        ((truth == k) & (predicted == k)).sum() / ((truth == k) | (predicted == k)).sum()
        for k in range(NUM_CLASSES)
        if ((truth == k) | (predicted == k)).any()
    ]
    return 100 * float(np.mean(shares))


def test_every_frame_is_scored_in_order_with_what_spoke():
    frames = drive()
    segmenter = FakeSegmenter()
    mode = FollowingMode(segmenter)

    scored = list(
        evaluate(frames, segmenter=segmenter, mode=mode, light_of=light_of, condition_at=lambda stamp_ns: "twilight")
    )

    assert [each.score.number for each in scored] == list(range(10))
    assert mode.calls == [(what, frame.stamp_ns) for frame in frames for what in ("choose", "observe")]
    assert segmenter.kept == [True] * 10
    assert [each.score.minute for each in scored] == [i * PERIOD_S // 60 for i in range(10)]
    assert [each.score.bank for each in scored] == ["day"] * 5 + ["night"] * 5
    assert [each.score.model_version for each in scored] == [f"v{i // 4}" for i in range(10)]
    assert {each.score.condition for each in scored} == {"twilight"}
    for number, each in enumerate(scored):
        assert each.frame is frames[number]
        np.testing.assert_array_equal(each.labels, said_of(frames[number], number))
        expected = numpy_miou([frames[number].labels], [said_of(frames[number], number)])
        assert each.score.confusion.mean_iou() == pytest.approx(expected)
        assert each.score.num_scored == (frames[number].labels >= 0).sum()


def test_parts_of_the_drive_add_their_points_up():
    frames = drive()
    scores = [each.score for each in run(frames)]

    def expected(numbers: list[int]) -> float:
        return numpy_miou([frames[i].labels for i in numbers], [said_of(frames[i], i) for i in numbers])

    assert total(scores, num_classes=NUM_CLASSES).mean_iou() == pytest.approx(expected(list(range(10))))
    conditions = by_condition(scores)
    assert {name: [score.number for score in group] for name, group in conditions.items()} == {
        "day": [0, 1, 2, 3, 4],
        "night": [5, 6, 7, 8, 9],
    }
    assert total(conditions["night"], num_classes=NUM_CLASSES).mean_iou() == pytest.approx(expected([5, 6, 7, 8, 9]))
    minutes = by_minute(scores)
    assert {minute: [score.number for score in group] for minute, group in minutes.items()} == {
        0: [0, 1, 2, 3, 4],
        1: [5, 6, 7, 8, 9],
    }
    means = {minute: expected([score.number for score in group]) for minute, group in minutes.items()}
    assert worst_minute(scores, num_classes=NUM_CLASSES) == min(means, key=means.__getitem__) == 1


def test_frames_without_ground_truth_count_as_frames_only():
    frames = [replace(frame, labels=None) if i % 2 else frame for i, frame in enumerate(drive(4))]
    scores = [each.score for each in run([replace(f, labels=f.labels) for f in frames if f.labels is not None])]
    unlabelled = compare(frames[1], np.zeros(frames[1].num_points, np.uint8), num_classes=NUM_CLASSES)

    assert unlabelled.counts.sum() == 0
    assert np.isnan(unlabelled.mean_iou())
    assert len(scores) == 2
    nothing = [replace(score, confusion=unlabelled, condition=None) for score in scores]
    assert worst_minute(nothing, num_classes=NUM_CLASSES) is None
    assert list(by_condition(nothing)) == ["unknown"]


def test_labels_outside_the_classes_are_refused():
    frame = make_frame()
    with pytest.raises(ValueError, match=r"ground truth of the sweep at 0\.000 s: expected train ids below 3, got 4"):
        compare(frame, np.zeros(frame.num_points, np.uint8), num_classes=3)


def scored(time_s: float, right: int) -> ScoredFrame:
    """A frame of 100 points of one class with `right` of them said rightly."""
    confusion = ConfusionMatrix(num_classes=2)
    confusion.update(np.zeros(100, int), np.where(np.arange(100) < right, 0, 255))
    score = FrameScore(
        number=round(time_s),
        stamp_ns=round(time_s * 1e9),
        minute=0,
        condition=None,
        light=FrameLight(),
        bank="day",
        model_version="v",
        confusion=confusion,
        times_ms={},
    )
    return ScoredFrame(score=score, frame=make_frame(num_points=1), labels=np.zeros(1, np.uint8))


def test_the_worst_frames_are_kept_apart():
    worst = WorstFrames(number=3, apart_s=10)
    for time_s, right in ((0, 50), (4, 40), (8, 45), (30, 70), (60, 20), (65, 30), (100, 60), (200, 10)):
        worst.add(scored(time_s, right))
    assert [kept.score.number for kept in worst.frames] == [200, 60, 4]


def test_frames_without_ground_truth_are_never_the_worst():
    worst = WorstFrames()
    empty = scored(0, 0)
    worst.add(replace(empty, score=replace(empty.score, confusion=ConfusionMatrix(num_classes=2))))
    assert worst.frames == ()
