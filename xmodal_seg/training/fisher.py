# SPDX-License-Identifier: Apache-2.0
"""How much Fisher information each module of a tuned image backbone has about the task.

The empirical diagonal, frame by frame, summed over the parameters of a module m (after CrossEarth-Gate, 2511.20302):

    S_m = 1/M sum_j sum_{theta in m} (d log P(Y_j | X_j) / d theta)^2

log P is the mean over the labelled points that a camera sees, added up over the 2D and the fused main head, through
which alone the image backbone acts. Frames are taken one by one: the square of a batch's gradient is another thing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from xmodal_seg.losses import segmentation_losses
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.models.tuning.selection import ModuleKey
from xmodal_seg.models.tuning.tuned_vit import TunedViT
from xmodal_seg.structures import Head, Predictions
from xmodal_seg.training.steps import predict
from xmodal_seg.training.streams import DomainBatch

IMAGE_HEADS: tuple[Head, ...] = ("2d", "fused")
Labels = Callable[[Predictions, DomainBatch], Mapping[Head, torch.Tensor]]


def ground_truth(predictions: Predictions, data: DomainBatch) -> dict[Head, torch.Tensor]:
    """The frame's own labels; ValueError where it has none."""
    if data.batch.labels is None:
        raise ValueError("fisher: expected labelled frames, got a frame without labels")
    return dict.fromkeys(predictions.main, data.batch.labels)


def own_labels(predictions: Predictions, data: DomainBatch) -> dict[Head, torch.Tensor]:
    """Pseudo-labels: the most probable class of the ensemble, one for all heads."""
    return dict.fromkeys(predictions.main, predictions.ensemble().detach().argmax(dim=1))


def sampled_labels(generator: torch.Generator) -> Labels:
    """Labels drawn from each head's own probabilities: the Fisher information itself needs no other."""

    def draw(predictions: Predictions, data: DomainBatch) -> dict[Head, torch.Tensor]:
        return {
            head: torch.multinomial(logits.detach().float().softmax(dim=1).cpu(), 1, generator=generator)[:, 0].to(
                logits.device
            )
            for head, logits in predictions.main.items()
        }

    return draw


def frame_information(
    model: SegmentationModel,
    data: DomainBatch,
    *,
    labels: Labels,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> torch.Tensor:
    """(modules,) float64 squared gradients of one frame's log-likelihood, in the order of `modules_by_key`.

    The model must be in eval mode, with all modules on. Raises ValueError for a frame of several (a batch).
    """
    assert isinstance(model.image_backbone, TunedViT)
    if data.batch.num_frames != 1:
        raise ValueError(f"fisher: expected frames one by one, got {data.batch.num_frames} at once")
    modules = [list(module.parameters()) for module in model.image_backbone.modules_by_key().values()]
    with autocast():
        predictions = predict(model, data)
        likelihood = log_likelihood(predictions, labels(predictions, data))
    parameters = [parameter for module in modules for parameter in module]
    gradients = iter(torch.autograd.grad(likelihood, parameters, allow_unused=True, materialize_grads=True))
    return torch.stack([sum_of_squares([next(gradients) for _ in module]) for module in modules]).cpu()


def log_likelihood(predictions: Predictions, labels: Mapping[Head, torch.Tensor]) -> torch.Tensor:
    """() log P of the labels: the mean over the labelled points in view, summed over the heads on image features."""
    losses = segmentation_losses(predictions, labels)
    return -torch.stack([losses[head].mean() for head in IMAGE_HEADS if head in losses]).sum()


def sum_of_squares(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """() float64."""
    return torch.stack([gradient.double().square().sum() for gradient in gradients]).sum()


def mean_information(keys: Sequence[ModuleKey], by_frame: torch.Tensor) -> dict[ModuleKey, float]:
    """The mean over the frames of (frames, modules), summed exactly: the order of the frames does not matter."""
    columns = by_frame.t().tolist()
    return {key: math.fsum(column) / len(column) for key, column in zip(keys, columns, strict=True)}
