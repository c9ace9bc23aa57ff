# SPDX-License-Identifier: Apache-2.0
"""Confusion matrix against counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from xmodal_seg.labels import IGNORE_INDEX, UNLABELED
from xmodal_seg.metrics import ConfusionMatrix

K = 5


def by_hand(labels: np.ndarray, predicted: np.ndarray) -> list[float]:
    """IoU of each class from sets of points."""
    known = labels >= 0
    ious = []
    for train_id in range(K):
        truth = {int(i) for i in np.flatnonzero(known & (labels == train_id))}
        said = {int(i) for i in np.flatnonzero(known & (predicted == train_id))}
        ious.append(len(truth & said) / len(truth | said) if truth | said else math.nan)
    return ious


@pytest.fixture
def points() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, 4, IGNORE_INDEX], size=301)
    predicted = np.where(rng.random(301) < 0.6, labels.clip(0), rng.choice([0, 1, 2, 4, UNLABELED], size=301))
    return labels, predicted


def test_iou_equals_sets(points: tuple[np.ndarray, np.ndarray]) -> None:
    matrix = ConfusionMatrix(num_classes=K)
    matrix.update(*points)
    np.testing.assert_allclose(matrix.iou(), by_hand(*points))


def test_iou_equals_torchmetrics(points: tuple[np.ndarray, np.ndarray]) -> None:
    classification = pytest.importorskip("torchmetrics.classification", reason="needs the extra 'test'")
    labels, predicted = (torch.from_numpy(values) for values in points)
    answered = predicted < K  # torchmetrics knows no point without an answer
    index = classification.MulticlassJaccardIndex(num_classes=K, average=None, ignore_index=IGNORE_INDEX)
    index.update(predicted[answered], labels[answered])
    matrix = ConfusionMatrix(num_classes=K)
    matrix.update(labels[answered], predicted[answered])
    np.testing.assert_allclose(np.nan_to_num(matrix.iou()), index.compute().numpy(), rtol=1e-6)


def test_updates_add_up_and_torch_equals_numpy(points: tuple[np.ndarray, np.ndarray]) -> None:
    whole, parts = ConfusionMatrix(num_classes=K), ConfusionMatrix(num_classes=K)
    whole.update(*points)
    for part in (slice(0, 100), slice(100, None)):
        parts.update(torch.from_numpy(points[0][part]), torch.from_numpy(points[1][part]))
    assert torch.equal(whole.counts, parts.counts)


def test_absent_class_counts_as_zero_or_not_at_all(points: tuple[np.ndarray, np.ndarray]) -> None:
    matrix = ConfusionMatrix(num_classes=K)
    matrix.update(*points)
    present = [value for value in by_hand(*points) if not math.isnan(value)]
    assert len(present) == 4
    assert matrix.mean_iou() == pytest.approx(100 * sum(present) / 4)
    assert matrix.mean_iou(absent="zero") == pytest.approx(100 * sum(present) / 5)


def test_no_prediction_is_a_miss_and_no_false_alarm() -> None:
    matrix = ConfusionMatrix(num_classes=2)
    matrix.update(np.array([0, 0, 1, 1]), np.array([0, UNLABELED, 1, -1]))
    np.testing.assert_allclose(matrix.iou(), [0.5, 0.5])
    assert matrix.accuracy() == 50.0


def test_nothing_seen_is_nan() -> None:
    matrix = ConfusionMatrix(num_classes=3)
    assert math.isnan(matrix.mean_iou())
    assert math.isnan(matrix.mean_iou(absent="zero"))
    assert math.isnan(matrix.accuracy())


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="as many predictions as labels, got 2 and 3"):
        ConfusionMatrix(num_classes=3).update(np.zeros(3, dtype=int), np.zeros(2, dtype=int))
    with pytest.raises(ValueError, match=r"confusion matrix: expected \(3, 4\), got \(3, 3\)"):
        ConfusionMatrix(num_classes=3, counts=torch.zeros(3, 3, dtype=torch.int64))
