# SPDX-License-Identifier: Apache-2.0
"""The losses, in torch only: segmentation, cross-modal agreement (align and guide) and pseudo-labels.

Every loss is a sum over points and the weight to divide it by, so that several processes can divide by their common
weight. All is computed in float32 whatever the model ran in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from xmodal_seg.labels import IGNORE_INDEX
from xmodal_seg.structures import Head, Predictions


@dataclass(frozen=True, kw_only=True)
class PointSum:
    """A loss summed over points, and what makes it a mean."""

    value: torch.Tensor  # () float32, differentiable
    weight: torch.Tensor  # () float32: the number of points, or the sum of their class weights

    def mean(self, *, total_weight: torch.Tensor | None = None) -> torch.Tensor:
        """() value / weight; 0 where there is no point. `total_weight`: that of all processes together."""
        weight = self.weight if total_weight is None else total_weight
        return self.value / torch.where(weight > 0, weight, torch.ones_like(weight))


@dataclass(frozen=True, kw_only=True)
class MimicTerm:
    """weight * KL(P_main of `teacher` || P_mimic of `student`); the teacher gets no gradient."""

    teacher: Head
    student: Head
    weight: float | torch.Tensor = 1.0  # or (P,), a weight for each point

    @property
    def name(self) -> str:
        return f"{self.student}_from_{self.teacher}"

    @property
    def is_zero(self) -> bool:
        """Nothing to compute. A weight per point is never taken for zero: looking would wait for the GPU."""
        return not isinstance(self.weight, torch.Tensor) and self.weight == 0


def paper_terms(guidance: float | torch.Tensor) -> tuple[MimicTerm, ...]:
    """L_align + L_guide of Modality Guidance (eq. 2 and 3).

    L_align = KL(fused || 3D mimicry), L_guide = lambda KL(2D || fused mimicry) + (1 - lambda) KL(3D || fused mimicry)
    with lambda = `guidance` in [0, 1], one number or one for each point (P,).
    """
    if not isinstance(guidance, torch.Tensor) and not 0 <= guidance <= 1:
        raise ValueError(f"guidance: expected lambda in [0, 1], got {guidance}")
    return (
        MimicTerm(teacher="fused", student="3d"),
        MimicTerm(teacher="2d", student="fused", weight=guidance),
        MimicTerm(teacher="3d", student="fused", weight=1 - guidance),
    )


def mimic_losses(predictions: Predictions, terms: Sequence[MimicTerm]) -> dict[str, PointSum]:
    """By term name: the weighted KL summed over the points that a camera sees, and their number.

    Terms of weight zero are skipped. 2D and fused logits mean nothing where no camera looks, so such points count in
    no term.

    Raises:
        ValueError: a term whose main or mimicry head the model lacks, or a weight per point of the wrong length.
    """
    visible = predictions.visible
    count = visible.sum().float()
    losses: dict[str, PointSum] = {}
    for term in terms:
        if term.is_zero:
            continue
        divergence = kl_divergence(*_teacher_and_student(predictions, term))
        if isinstance(term.weight, torch.Tensor) and term.weight.shape != divergence.shape:
            raise ValueError(
                f"weight of {term.name}: expected one per point, ({divergence.shape[0]},), "
                f"got {tuple(term.weight.shape)}"
            )
        weighted = torch.where(visible, divergence * term.weight, torch.zeros_like(divergence))
        losses[term.name] = PointSum(value=weighted.sum(), weight=count)
    return losses


def kl_divergence(teacher_logits: torch.Tensor, student_logits: torch.Tensor) -> torch.Tensor:
    """(P, K), (P, K) -> (P,) float32 sum_k P_teacher log(P_teacher / P_student), temperature 1, teacher detached."""
    # Class by class (K, P): softmax over a short last axis is about eight times slower on a CPU.
    teacher = teacher_logits.detach().float().t().contiguous().log_softmax(dim=0)
    student = student_logits.float().t().contiguous().log_softmax(dim=0)
    return functional.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=0)


def segmentation_losses(
    predictions: Predictions,
    labels: torch.Tensor | Mapping[Head, torch.Tensor],
    *,
    class_weights: torch.Tensor | None = None,
) -> dict[str, PointSum]:
    """Cross-entropy of every main head, by head name; ground truth and pseudo-labels alike.

    Args:
        predictions: of P points.
        labels: (P,) int64 train ids for all heads, or one such tensor for each head; IGNORE_INDEX counts nowhere.
        class_weights: (K,); the mean is then over the weights of the labelled points, as PyTorch's cross_entropy.

    Returns:
        For each main head the sum over labelled points; for 2D and fused heads only those that a camera sees.
    """
    losses: dict[str, PointSum] = {}
    for head, logits in predictions.main.items():
        of_head = labels[head] if isinstance(labels, Mapping) else labels
        if of_head.shape != logits.shape[:1]:
            raise ValueError(f"labels: expected ({logits.shape[0]},), one per point, got {tuple(of_head.shape)}")
        seen = of_head if head == "3d" else of_head.masked_fill(~predictions.visible, IGNORE_INDEX)
        losses[head] = _cross_entropy(logits, seen, class_weights)
    return losses


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, class_weights: torch.Tensor | None) -> PointSum:
    by_class = logits.float().t().contiguous()[None]  # (1, K, P); see kl_divergence
    value = functional.cross_entropy(
        by_class, labels[None], weight=class_weights, ignore_index=IGNORE_INDEX, reduction="sum"
    )
    labelled = labels != IGNORE_INDEX
    if class_weights is None:
        return PointSum(value=value, weight=labelled.sum().float())
    return PointSum(value=value, weight=torch.where(labelled, class_weights[labels.clamp(min=0)], 0.0).sum())


def _teacher_and_student(predictions: Predictions, term: MimicTerm) -> tuple[torch.Tensor, torch.Tensor]:
    pair: tuple[Head, Head] = (term.student, term.teacher)
    if term.teacher not in predictions.main or pair not in predictions.mimic:
        raise ValueError(
            f"loss term {term.name}: the model has the main heads {', '.join(predictions.main)} and the (student, "
            f"teacher) mimicry heads {', '.join(map(str, predictions.mimic)) or 'none'}"
        )
    return predictions.main[term.teacher], predictions.mimic[pair]
