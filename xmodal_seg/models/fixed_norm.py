# SPDX-License-Identifier: Apache-2.0
"""Standardisation by statistics that never change: the same function in training and after it, in every domain."""

from __future__ import annotations

import torch
from torch import nn

_EPS = 1e-5


class FixedNorm(nn.Module):
    """(P, D) -> (P, D): each channel less its mean, over its standard deviation; the identity until they are set."""

    mean: torch.Tensor
    variance: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def set_statistics(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """(D,) mean and variance of the features, once, before anything learns from what comes out."""
        self.mean.copy_(mean)
        self.variance.copy_(variance)

    def forward(self, feats: torch.Tensor) -> torch.Tensor:
        return (feats - self.mean) * torch.rsqrt(self.variance + _EPS)
