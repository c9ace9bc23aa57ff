# SPDX-License-Identifier: Apache-2.0
"""The two halves of a training step. Each returns its loss; the trainer does backward, and one optimiser step for both.

Total loss (Modality Guidance, eq. 5 and stage 2):
    sum over heads CE(source labels) + lambda_source (L_align + L_guide)(source)
    + lambda_target (L_align + L_guide)(target) + lambda_pl * sum over heads CE(pseudo-labels)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from xmodal_seg.losses import PointSum, mimic_losses, segmentation_losses
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.structures import Predictions
from xmodal_seg.training.recipe_settings import LossSettings
from xmodal_seg.training.streams import DomainBatch

Reduce = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one half of a step gives. With several processes, losses are this process's share of the common mean."""

    loss: torch.Tensor  # () differentiable
    terms: dict[str, torch.Tensor]  # name -> () detached, before its lambda
    num_points: int


@dataclass(frozen=True, kw_only=True)
class _Weighted:
    name: str
    factor: float
    points: PointSum


def predict(model: SegmentationModel, data: DomainBatch) -> Predictions:
    """Run the model, with stored image features where the batch brings them."""
    if data.feature_map is None:
        return model(data.batch)
    return model(data.batch, feats_2d=model.image_feats(data.batch, feature_map=data.feature_map.float()))


def source_step(
    model: SegmentationModel,
    data: DomainBatch,
    *,
    losses: LossSettings,
    class_weights: torch.Tensor | None = None,
    sum_over_processes: Reduce | None = None,
) -> StepResult:
    """Supervised loss of every main head, plus lambda_source times the cross-modal terms.

    Raises ValueError for a batch without labels.
    """
    if data.batch.labels is None:
        raise ValueError("source step: expected labelled frames, got a batch without labels")
    predictions = predict(model, data)
    supervised = segmentation_losses(predictions, data.batch.labels, class_weights=class_weights)
    weighted = [_Weighted(name=f"seg_{head}", factor=1.0, points=points) for head, points in supervised.items()]
    weighted += _cross_modal(predictions, losses, losses.lambda_source)
    return _result(weighted, data, prefix="source", sum_over_processes=sum_over_processes)


def target_step(
    model: SegmentationModel,
    data: DomainBatch,
    *,
    losses: LossSettings,
    sum_over_processes: Reduce | None = None,
) -> StepResult:
    """lambda_target times the cross-modal terms, plus lambda_pl times the pseudo-label loss, which has no weights.

    Raises ValueError where pseudo-labels are asked for and absent.
    """
    if losses.lambda_pl > 0 and data.pseudo_labels is None:
        raise ValueError("target step: losses.lambda_pl > 0, but the batch has no pseudo-labels")
    predictions = predict(model, data)
    weighted = _cross_modal(predictions, losses, losses.lambda_target)
    if losses.lambda_pl > 0 and data.pseudo_labels is not None:
        taught = segmentation_losses(predictions, data.pseudo_labels)
        weighted += [_Weighted(name=f"pl_{h}", factor=losses.lambda_pl, points=points) for h, points in taught.items()]
    return _result(weighted, data, prefix="target", sum_over_processes=sum_over_processes)


def _cross_modal(predictions: Predictions, losses: LossSettings, factor: float) -> list[_Weighted]:
    if factor == 0:
        return []
    terms = mimic_losses(predictions, losses.mimic_terms())
    return [_Weighted(name=f"mimic_{name}", factor=factor, points=points) for name, points in terms.items()]


def _result(
    weighted: list[_Weighted], data: DomainBatch, *, prefix: str, sum_over_processes: Reduce | None
) -> StepResult:
    """Divide every term by its weight over all processes, and add up."""
    if not weighted:
        raise ValueError(f"{prefix} step: the recipe leaves no loss term to compute")
    totals = torch.stack([term.points.weight for term in weighted])
    if sum_over_processes is not None:
        totals = sum_over_processes(totals)
    means = [term.points.mean(total_weight=total) for term, total in zip(weighted, totals, strict=True)]
    loss = torch.stack([term.factor * mean for term, mean in zip(weighted, means, strict=True)]).sum()
    terms = {f"{prefix}/{term.name}": mean.detach() for term, mean in zip(weighted, means, strict=True)}
    return StepResult(loss=loss, terms=terms, num_points=data.batch.num_points)
