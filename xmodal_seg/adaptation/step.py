# SPDX-License-Identifier: Apache-2.0
"""The loss of continued adaptation on one frame.

    L = w_a (L_align + L_guide(lambda)) + w_ref sum over main heads KL(reference || adapted) + w_pl CE(pseudo-labels)

The cross-modal terms alone have no fixed point: their teachers move with what they teach. The reference term holds the
main heads, which serve, to what the frozen model says, and nothing else in the loss does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from xmodal_seg.adaptation.frames import ReferredFrame
from xmodal_seg.adaptation.settings import CLOSED_LOOP_BELOW, StepSettings
from xmodal_seg.labels import IGNORE_INDEX
from xmodal_seg.losses import kl_divergence, mimic_losses, paper_terms, segmentation_losses
from xmodal_seg.structures import Head, Predictions

MAX_THRESHOLD = 0.9  # of a pseudo-label's probability

Guidance = Callable[[ReferredFrame], torch.Tensor]  # (P,) lambda of each point


def frame_loss(
    predictions: Predictions,
    frame: ReferredFrame,
    *,
    guidance: torch.Tensor,
    pseudo_labels: torch.Tensor | None,
    settings: StepSettings,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """() differentiable, and its terms by name, () detached and before their weights.

    Args:
        predictions: of the model being adapted.
        frame: with the reference's logits.
        guidance: (P,) lambda of each point.
        pseudo_labels: (P,) train ids, IGNORE_INDEX where none.
        settings: weights; a term of weight 0 is not computed.
    """
    terms: dict[str, tuple[float, torch.Tensor]] = {}
    if settings.cross_modal_weight > 0:
        taught = replace(predictions, main=_teachers(predictions, frame, guidance, settings))
        for name, points in mimic_losses(taught, paper_terms(guidance)).items():
            terms[name] = (settings.cross_modal_weight, points.mean())
    if settings.reference_weight > 0:
        for head in predictions.ensemble_heads:
            terms[f"reference_{head}"] = (settings.reference_weight, _reference_term(predictions, frame, head))
    if settings.pseudo_label_weight > 0 and pseudo_labels is not None:
        served = replace(predictions, main={head: predictions.main[head] for head in predictions.ensemble_heads})
        for name, taught_points in segmentation_losses(served, pseudo_labels).items():
            terms[f"pl_{name}"] = (settings.pseudo_label_weight, taught_points.mean())
    if not terms:
        raise ValueError("adaptation step: every weight of the loss is 0, nothing is left to minimise")
    loss = torch.stack([weight * value for weight, value in terms.values()]).sum()
    return loss, {name: value.detach() for name, (_, value) in terms.items()}


def pseudo_labels(teachers: Sequence[Predictions]) -> list[torch.Tensor]:
    """For each frame (P,) the teacher's labels, IGNORE_INDEX below min(lower median of the class, 0.9).

    The medians are over all points of all frames given, as offline they are over the data set.
    """
    found = [predictions.ensemble().max(dim=1) for predictions in teachers]
    probability = torch.cat([best for best, _ in found])
    labels = torch.cat([train_ids for _, train_ids in found])
    num_classes = teachers[0].ensemble().shape[1]
    thresholds = torch.full((num_classes,), MAX_THRESHOLD, device=probability.device)
    for train_id in labels.unique().tolist():
        thresholds[train_id] = probability[labels == train_id].median().clamp(max=MAX_THRESHOLD)
    kept = torch.where(probability >= thresholds[labels], labels, IGNORE_INDEX)
    return list(kept.split([len(best) for best, _ in found]))


def _teachers(
    predictions: Predictions, frame: ReferredFrame, guidance: torch.Tensor, settings: StepSettings
) -> dict[Head, torch.Tensor]:
    """The main heads as teachers; where the image is hardly trusted, the reference's 3D head in place of the live one.

    Else 3D teaches fused while fused teaches 3D through one shared, moving trunk.
    """
    if settings.reference_weight == 0 or "3d" not in predictions.main:
        return predictions.main
    closed_loop = (guidance < CLOSED_LOOP_BELOW)[:, None]
    anchored = torch.where(closed_loop, frame.reference["3d"], predictions.main["3d"].detach())
    return {**predictions.main, "3d": anchored}


def _reference_term(predictions: Predictions, frame: ReferredFrame, head: Head) -> torch.Tensor:
    """() mean KL over the points about which the head speaks; 0 where there is none."""
    divergence = kl_divergence(frame.reference[head], predictions.main[head])
    if head == "3d":
        return divergence.sum() / max(len(divergence), 1)
    visible = predictions.visible
    return torch.where(visible, divergence, 0.0).sum() / visible.sum().clamp(min=1)
