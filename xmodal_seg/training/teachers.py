# SPDX-License-Identifier: Apache-2.0
"""What one head could teach another: who is right where the two differ, counted where labels are known.

Guidance pulls the features of a student head towards what a teacher head says. It has something to give where the
teacher is right and the student is not, and takes where it is the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext

import torch

from xmodal_seg.metrics import ConfusionMatrix
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.structures import Head
from xmodal_seg.training.evaluation import Autocast
from xmodal_seg.training.steps import predict
from xmodal_seg.training.streams import DomainBatch


class HeadComparison:
    """Two heads on the same labelled points, and the mean of their probabilities as a third."""

    def __init__(self, *, num_classes: int) -> None:
        self.teacher, self.student, self.average = (ConfusionMatrix(num_classes=num_classes) for _ in range(3))
        self.num_points = self.num_differ = self.num_teacher_right = self.num_student_right = 0

    def update(self, labels: torch.Tensor, teacher_logits: torch.Tensor, student_logits: torch.Tensor) -> None:
        """Add points: (P,) train ids, of which those outside [0, K) count nowhere, and twice (P, K) logits."""
        known = (labels >= 0) & (labels < self.teacher.num_classes)
        labels = labels[known]
        teacher, student = (logits[known].float().softmax(dim=1) for logits in (teacher_logits, student_logits))
        said_by_teacher, said_by_student = teacher.argmax(dim=1), student.argmax(dim=1)
        differ = said_by_teacher != said_by_student
        self.teacher.update(labels, said_by_teacher)
        self.student.update(labels, said_by_student)
        self.average.update(labels, (teacher + student).argmax(dim=1))
        self.num_points += len(labels)
        self.num_differ += int(differ.sum())
        self.num_teacher_right += int((differ & (said_by_teacher == labels)).sum())
        self.num_student_right += int((differ & (said_by_student == labels)).sum())


def compare_with_student(
    model: SegmentationModel,
    batches: Iterable[DomainBatch],
    *,
    student: Head = "fused",
    device: torch.device,
    autocast: Autocast = nullcontext,
) -> dict[Head, HeadComparison]:
    """By teacher: every other main head of the model against the student, at labelled points that a camera sees.

    The model is left in eval mode. Raises ValueError for a model without the student or any other head, and for
    batches without labels.
    """
    heads = model.settings.heads.main
    teachers = [head for head in heads if head != student]
    if student not in heads or not teachers:
        raise ValueError(f"expected the main head {student!r} and others to compare it with, got {', '.join(heads)}")
    model.eval()
    comparisons = {head: HeadComparison(num_classes=model.settings.num_classes) for head in teachers}
    for data in batches:
        moved = data.to(device)
        if moved.batch.labels is None:
            raise ValueError("expected labelled frames, got a batch without labels")
        with torch.inference_mode(), autocast():
            predictions = predict(model, moved)
        seen = predictions.visible
        labels = moved.batch.labels[seen]
        for head, comparison in comparisons.items():
            comparison.update(labels, predictions.main[head][seen], predictions.main[student][seen])
    return comparisons
