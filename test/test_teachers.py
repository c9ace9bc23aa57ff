# SPDX-License-Identifier: Apache-2.0
"""Who is right where two heads differ."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import make_frame, tiny_settings

from xmodal_seg.labels import IGNORE_INDEX
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.training.streams import DomainBatch, InputSettings, make_batch
from xmodal_seg.training.teachers import HeadComparison, compare_with_student

CPU = torch.device("cpu")


def logits_saying(classes: list[int], sureness: list[float]) -> torch.Tensor:
    """(P, 3) logits: `sureness` at the class that is said, zero elsewhere."""
    logits = torch.zeros(len(classes), 3)
    logits[torch.arange(len(classes)), torch.tensor(classes)] = torch.tensor(sureness)
    return logits


def test_points_are_counted_where_the_heads_differ() -> None:
    comparison = HeadComparison(num_classes=3)
    labels = torch.tensor([0, 0, 1, 1, 2, IGNORE_INDEX])
    teacher = logits_saying([0, 0, 1, 2, 1, 0], [3.0, 9.0, 1.0, 1.0, 1.0, 1.0])
    student = logits_saying([0, 1, 2, 1, 0, 1], [3.0, 1.0, 9.0, 9.0, 1.0, 1.0])
    comparison.update(labels, teacher, student)
    assert comparison.num_points == 5
    assert comparison.num_differ == 4
    assert comparison.num_teacher_right == 2
    assert comparison.num_student_right == 1
    assert comparison.teacher.accuracy() == pytest.approx(60.0)
    assert comparison.student.accuracy() == pytest.approx(40.0)
    assert comparison.average.accuracy() == pytest.approx(60.0)  # the surer one of each pair, points 0, 1 and 3


def test_only_labelled_points_in_view_count_and_batches_add_up() -> None:
    torch.manual_seed(3)
    model = SegmentationModel(settings=tiny_settings()).train()
    inputs = InputSettings.of(model)
    batches = [make_batch([make_frame(num_points=points)], [0], inputs=inputs) for points in (157, 211)]
    seen = sum(
        int((data.batch.visible & (data.batch.labels >= 0)).sum()) for data in batches if data.batch.labels is not None
    )
    comparisons = compare_with_student(model, batches, device=CPU)
    assert list(comparisons) == ["2d", "3d"]
    for comparison in comparisons.values():
        assert 0 < comparison.num_points == seen < sum(data.batch.num_points for data in batches)
        right = comparison.num_teacher_right + comparison.num_student_right
        assert right <= comparison.num_differ <= seen
    once = compare_with_student(model, batches[:1], device=CPU)["2d"]
    again = compare_with_student(model, batches[1:], device=CPU)["2d"]
    assert once.num_differ + again.num_differ == comparisons["2d"].num_differ


def without_labels(data: DomainBatch) -> DomainBatch:
    return replace(data, batch=replace(data.batch, labels=None))


def test_what_cannot_be_compared_is_said() -> None:
    torch.manual_seed(3)
    model = SegmentationModel(settings=tiny_settings())
    data = make_batch([make_frame()], [0], inputs=InputSettings.of(model))
    with pytest.raises(ValueError, match="expected labelled frames"):
        compare_with_student(model, [without_labels(data)], device=CPU)
    fused_only = SegmentationModel(
        settings=tiny_settings(heads={"main": ["fused"], "mimic": [], "ensemble": ["fused"]})
    )
    with pytest.raises(ValueError, match="expected the main head 'fused' and others"):
        compare_with_student(fused_only, [data], device=CPU)
