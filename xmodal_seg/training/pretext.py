# SPDX-License-Identifier: Apache-2.0
"""What a stand-in image backbone is pre-trained on: geometry, reflectance and borders of simulated views, no class.

One linear layer reads all targets from the features of a cell, so that what they know can be read linearly; the two
lights of a view must lead to the same features, and neighbouring cells are close where they show the same object.
"""

from __future__ import annotations

from typing import cast

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from xmodal_seg.config import Settings
from xmodal_seg.training.pretext_batches import PretextBatch

WIDTHS = {"depth": 1, "normal": 3, "albedo": 3, "height": 1, "edge": 1, "roughness": 1, "extent": 2}
HEIGHT_UNIT_M = 0.15  # a curb; heights are compared as asinh(height / unit)
EMBEDDING = 32
NEIGHBOURS = ((0, 1), (1, 0), (2, 2), (2, -2), (0, 3), (3, 0), (0, 8), (6, 0))  # (down, right) in cells


class ObjectiveWeights(Settings):
    """Weight of each term of the loss; 0 leaves it out."""

    depth: float = Field(default=1.0, ge=0, description="|log depth|, scaled to one focal length")
    normal: float = Field(default=1.0, ge=0, description="1 - cosine")
    albedo: float = Field(default=2.0, ge=0, description="difference of the square roots: the image without its light")
    height: float = Field(default=0.7, ge=0, description="above the road, asinh scale")
    edge: float = Field(default=0.5, ge=0, description="cross-entropy: does another object or strip begin here?")
    roughness: float = Field(default=2.0, ge=0, description="spread of the normals around: leaves against walls")
    extent: float = Field(default=0.3, ge=0, description="log of top and width of the object a cell belongs to")
    affinity: float = Field(
        default=0.5, ge=0, description="instance-contrastive: same object or not, near cells, both lights"
    )
    agreement: float = Field(default=0.1, ge=0, description="squared difference of the features under the two lights")


class PretextHeads(nn.Module):
    """Features (I, D, h, w) of cells -> each target (I, C, h, w), and a unit embedding (I, EMBEDDING, h, w)."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.dense = nn.Conv2d(width, sum(WIDTHS.values()), 1)
        self.embedding = nn.Conv2d(width, EMBEDDING, 1, bias=False)
        self.scale = nn.Parameter(torch.tensor(8.0))
        self.bias = nn.Parameter(torch.tensor(-4.0))

    def targets(self, feats: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = self.dense(feats).split(list(WIDTHS.values()), dim=1)
        return dict(zip(WIDTHS, parts, strict=True))

    def embed(self, feats: torch.Tensor) -> torch.Tensor:
        return functional.normalize(self.embedding(feats), dim=1)


def pretext_losses(
    feats: torch.Tensor, heads: PretextHeads, batch: PretextBatch, weights: ObjectiveWeights
) -> dict[str, torch.Tensor]:
    """Unweighted terms of the loss from features (2 V, D, h, w): the V views under one light, then under the other."""
    predicted = heads.targets(feats)
    valid, objects = torch.cat([batch.depth > 0] * 2), torch.cat([batch.extent.sum(1, keepdim=True) > 0] * 2)
    both = {name: torch.cat([target] * 2) for name, target in dense_targets(batch).items()}
    losses = {
        name: _mean((predicted[name] - both[name]).abs(), objects if name == "extent" else valid)
        for name in ("depth", "albedo", "height", "roughness", "extent")
    }
    cosine = functional.cosine_similarity(predicted["normal"], both["normal"], dim=1, eps=1e-6)
    losses["normal"] = _mean(1 - cosine[:, None], valid)
    losses["edge"] = functional.binary_cross_entropy_with_logits(predicted["edge"], both["edge"])
    losses["affinity"] = affinity_loss(heads, feats, batch.piece)
    losses["agreement"] = agreement_loss(feats)
    return {name: losses[name] for name in ObjectiveWeights.model_fields if getattr(weights, name) > 0}


def weighted_sum(losses: dict[str, torch.Tensor], weights: ObjectiveWeights) -> torch.Tensor:
    return cast(torch.Tensor, sum(getattr(weights, name) * loss for name, loss in losses.items()))


def dense_targets(batch: PretextBatch) -> dict[str, torch.Tensor]:
    """Targets (V, C, h, w) on the scales they are compared on."""
    return {
        "depth": torch.log(batch.depth.clamp(min=0.3)),
        "normal": batch.normal,
        "albedo": batch.albedo,
        "height": torch.asinh(batch.height / HEIGHT_UNIT_M),
        "edge": edges(batch.piece).float(),
        "roughness": batch.roughness,
        "extent": torch.log1p(batch.extent),
    }


def edges(piece: torch.Tensor) -> torch.Tensor:
    """(V, 1, h, w) bool of pieces (V, 1, h, w): the cell to the right or below belongs to another one."""
    right, below = torch.zeros_like(piece, dtype=torch.bool), torch.zeros_like(piece, dtype=torch.bool)
    right[..., :-1] = piece[..., 1:] != piece[..., :-1]
    below[..., :-1, :] = piece[..., 1:, :] != piece[..., :-1, :]
    return right | below


def affinity_loss(heads: PretextHeads, feats: torch.Tensor, piece: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of 'these two cells show the same piece' over near pairs within a light and across the two.

    feats (2 V, D, h, w), piece (V, 1, h, w). Both answers weigh the same, whichever is rarer.
    """
    first, second = heads.embed(feats).chunk(2)
    shown = piece[:, 0]
    h, w = shown.shape[1:]
    terms = []
    for down, right in ((down, right) for down, right in NEIGHBOURS if down < h and abs(right) < w):
        here, there = _shifted(shown, down, right)
        same, known = (here == there).float(), (here >= 0) | (there >= 0)
        for one, other in ((first, first), (second, second), (first, second)):
            a, b = _shifted(one, down, right)[0], _shifted(other, down, right)[1]
            logits = heads.scale * (a * b).sum(1) + heads.bias
            share = (same * known).sum() / known.sum().clamp(min=1)
            balance = torch.where(same > 0, 0.5 / share.clamp(min=0.05), 0.5 / (1 - share).clamp(min=0.05))
            loss = functional.binary_cross_entropy_with_logits(logits, same, weight=balance, reduction="none")
            terms.append(_mean(loss, known))
    return torch.stack(terms).mean()


def _shifted(grid: torch.Tensor, down: int, right: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two equal views of a grid (..., h, w) whose cells lie (down, right) apart."""
    h, w = grid.shape[-2:]
    here = grid[..., : h - down, max(0, -right) : w - max(0, right)]
    there = grid[..., down:, max(0, right) : w - max(0, -right)]
    return here, there


def agreement_loss(feats: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of the features (2 V, D, h, w) under the two lights, in units of each channel's variance.

    The variance is held fixed, so shrinking it does not pay; the dense targets keep the features from becoming one.
    """
    variance = feats.detach().float().var(dim=(0, 2, 3)) + 1e-4
    first, second = feats.float().chunk(2)
    return ((first - second).square().mean(dim=(0, 2, 3)) / (2 * variance)).mean()


def _mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of values over the cells of mask and all channels; 0 where there is none."""
    mask = mask.expand_as(values).to(values.dtype)
    return (values * mask).sum() / mask.sum().clamp(min=1)
