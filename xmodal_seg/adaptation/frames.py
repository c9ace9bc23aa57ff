# SPDX-License-Identifier: Apache-2.0
"""Frames to learn from: all voxels, some points with their 2D features, and what the reference says about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.func import functional_call

from xmodal_seg.adaptation.light import FrameLight, camera_guidance
from xmodal_seg.inference import SeenFrame
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.structures import NO_CAMERA, Batch, Head, Predictions

BLIND_SHARE = 4  # at most one point in this many is one that no camera sees


@dataclass(frozen=True, kw_only=True)
class Bin:
    """What is learned together: one bank under one condition."""

    bank: str
    condition: str

    def __str__(self) -> str:
        return self.bank if self.bank == self.condition else f"{self.bank}-{self.condition}"


@dataclass(frozen=True, kw_only=True)
class SampledFrame:
    """A frame as the losses see it, before the reference has spoken."""

    bin: Bin
    stamp_ns: int
    batch: Batch  # all voxels of the frame, P sampled points, no images
    feats_2d: torch.Tensor  # (Pv, D) float16 of the sampled points that a trusted camera sees
    guidance: torch.Tensor  # (P,) float32 lambda

    def to(self, device: torch.device | str) -> SampledFrame:
        """The same frame with every tensor on `device`."""
        return replace(
            self,
            batch=self.batch.to(device),
            feats_2d=self.feats_2d.to(device),
            guidance=self.guidance.to(device),
        )


@dataclass(frozen=True, kw_only=True)
class ReferredFrame:
    """A sampled frame and the logits of the frozen reference on it."""

    sample: SampledFrame
    reference: dict[Head, torch.Tensor]  # (P, K) float32 of each main head
    class_counts: torch.Tensor  # (K,) points by the reference's label

    def to(self, device: torch.device | str) -> ReferredFrame:
        """The same frame with every tensor on `device`, but the counts, which stay where they are."""
        reference = {head: logits.to(device) for head, logits in self.reference.items()}
        return replace(self, sample=self.sample.to(device), reference=reference)


def sample_frame(
    seen: SeenFrame,
    *,
    bin: Bin,
    light: FrameLight,
    stamp_ns: int,
    num_points: int,
    min_guidance: float,
    generator: torch.Generator,
) -> SampledFrame:
    """Draw `num_points` points of a frame, at most a quarter of which no trusted camera sees.

    Args:
        seen: what the served model was given.
        bin: the bank that served and the condition.
        light: a camera without lambda is not trusted, its points count as unseen.
        stamp_ns: of the sweep.
        num_points: fewer where the frame has fewer.
        min_guidance: least lambda.
        generator: of a CPU, draws the points.
    """
    batch = seen.batch
    trusted = torch.tensor([*light.healthy, False], device=batch.image_index.device)[batch.image_index]
    visible, blind = trusted.nonzero().squeeze(1), (~trusted).nonzero().squeeze(1)
    num_blind = min(len(blind), num_points // BLIND_SHARE)
    rows = torch.cat([_draw(visible, num_points - num_blind, generator), _draw(blind, num_blind, generator)])
    image_index = torch.where(trusted[rows], batch.image_index[rows], NO_CAMERA)
    return SampledFrame(
        bin=bin,
        stamp_ns=stamp_ns,
        batch=_keep_points(batch, rows, image_index),
        feats_2d=_feats_of(seen, rows[trusted[rows]]).half(),
        guidance=camera_guidance(image_index, light, minimum=min_guidance),
    )


def predict(model: SegmentationModel, values: Mapping[str, torch.Tensor], frame: SampledFrame) -> Predictions:
    """The model with `values` in place of its own tensors of these names; no image backbone runs, nothing is changed.

    The model is in eval mode, so this is the forward pass that serves: fixed batch-norm statistics, no dropout.
    """
    assert not model.training
    feats_2d = frame.feats_2d.float()
    return functional_call(model, dict(values), (frame.batch,), {"feats_2d": feats_2d})


def referred(model: SegmentationModel, values: Mapping[str, torch.Tensor], frame: SampledFrame) -> ReferredFrame:
    """Let the reference speak once, when the frame is kept."""
    with torch.no_grad():
        predictions = predict(model, values, frame)
        labels = predictions.ensemble().argmax(dim=1)
    num_classes = model.settings.num_classes
    return ReferredFrame(
        sample=frame,
        reference=dict(predictions.main),
        class_counts=torch.bincount(labels.cpu(), minlength=num_classes),
    )


def reference_predictions(frame: ReferredFrame, *, ensemble_heads: Sequence[Head]) -> Predictions:
    """What the reference said, in the form in which models speak."""
    return Predictions(
        main=frame.reference,
        mimic={},
        ensemble_heads=tuple(ensemble_heads),
        visible=frame.sample.batch.visible,
    )


def _draw(rows: torch.Tensor, number: int, generator: torch.Generator) -> torch.Tensor:
    if len(rows) <= number:
        return rows
    return rows[torch.randperm(len(rows), generator=generator)[:number].to(rows.device)]


def _keep_points(batch: Batch, rows: torch.Tensor, image_index: torch.Tensor) -> Batch:
    """The sampled points with all voxels: the 3D net still sees the whole frame."""
    return replace(
        batch,
        images=batch.images.new_zeros(0, 3, 1, 1),
        point_to_voxel=batch.point_to_voxel[rows],
        uv=batch.uv[rows],
        image_index=image_index,
        point_index=batch.point_index[rows],
        frame_index=batch.frame_index[rows],
        labels=None if batch.labels is None else batch.labels[rows],
    )


def _feats_of(seen: SeenFrame, rows: torch.Tensor) -> torch.Tensor:
    """(R, D) 2D features of these points of the batch, all of them visible."""
    row_of_point = seen.batch.visible.cumsum(dim=0) - 1
    return seen.feats_2d[row_of_point[rows]]
