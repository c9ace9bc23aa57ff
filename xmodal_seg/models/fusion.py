# SPDX-License-Identifier: Apache-2.0
"""Fusion: the 2D and 3D features of each visible point become one feature."""

from __future__ import annotations

import torch
from torch import nn

from xmodal_seg.config import FusionSettings

XMUDA_WIDTH = 64


class PointBatchNorm(nn.BatchNorm1d):
    """BatchNorm1d over points that says in words what a training batch of one point lacks."""

    def forward(self, feats: torch.Tensor) -> torch.Tensor:
        """(P, D) -> (P, D). Raises ValueError in training for P = 1, whose variance is undefined."""
        if self.training and feats.shape[0] == 1:
            raise ValueError(
                "training needs at least 2 points that a camera sees in a batch to normalise over, got 1; "
                "use larger batches or skip this one"
            )
        return super().forward(feats)


class Fusion(nn.Module):
    """(P, D) 2D features and (P, C) 3D features -> (P, out_channels).

    kind:
        mlp: the paper's. 3D features projected to D by a linear layer, concatenated, two hidden layers, each
            Linear + BN + GELU + dropout.
        vanilla: the paper's ablation. The same projection and concatenation, then one Linear(hidden) + ReLU.
        xmuda: xMUDA's. Concatenation without projection, then Linear(64) + ReLU.
    """

    def __init__(self, *, settings: FusionSettings, channels_2d: int, channels_3d: int) -> None:
        super().__init__()
        assert settings.kind != "none"
        self.detach_3d = settings.detach_3d
        self.project_3d: nn.Module = nn.Identity()
        channels = channels_2d + channels_3d
        if settings.kind != "xmuda":
            self.project_3d = nn.Linear(channels_3d, channels_2d)
            channels = 2 * channels_2d
        if settings.kind == "mlp":
            self.out_channels = settings.hidden
            self.mix = nn.Sequential(
                *_hidden_layer(channels, settings.hidden, dropout=settings.dropout),
                *_hidden_layer(settings.hidden, settings.hidden, dropout=settings.dropout),
            )
        else:
            self.out_channels = XMUDA_WIDTH if settings.kind == "xmuda" else settings.hidden
            self.mix = nn.Sequential(nn.Linear(channels, self.out_channels), nn.ReLU())

    def forward(self, feats_2d: torch.Tensor, feats_3d: torch.Tensor) -> torch.Tensor:
        """(P, D), (P, C) of the same points -> (P, out_channels); `detach_3d` keeps gradients out of the 3D net."""
        if self.detach_3d:
            feats_3d = feats_3d.detach()
        projected = self.project_3d(feats_3d)
        # Under autocast of the type that the next layer takes: joined with float32 it would all become float32.
        return self.mix(torch.cat([feats_2d.to(projected.dtype), projected], dim=1))


def _hidden_layer(channels_in: int, channels_out: int, *, dropout: float) -> list[nn.Module]:
    return [nn.Linear(channels_in, channels_out), PointBatchNorm(channels_out), nn.GELU(), nn.Dropout(dropout)]
