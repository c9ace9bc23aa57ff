# SPDX-License-Identifier: Apache-2.0
"""The three types of modules. Each starts as the identity: what it adds comes out of weights that are zero at first.

While `active` is False a module adds nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class TuningModule(nn.Module):
    """Base: something added to the tokens of a block, or nothing while it is not active."""

    active = True


class LowRank(TuningModule):
    """Spatial: W_q + B_q A_q and W_v + B_v A_v of an attention; its key stays as it is.

    A is drawn as in a linear layer, B is zero. `peft` would adapt a fused projection as a whole, the key with it.
    """

    def __init__(self, *, width: int, query_channels: int, value_channels: int, rank: int) -> None:
        super().__init__()
        self.query_down = nn.Linear(width, rank, bias=False)
        self.query_up = _zeros(rank, query_channels, bias=False)
        self.value_down = nn.Linear(width, rank, bias=False)
        self.value_up = _zeros(rank, value_channels, bias=False)

    @classmethod
    def attached_to(cls, attention: Any, *, rank: int) -> LowRank:
        """For timm's attention with a fused projection `qkv`, or with `q_proj` and `v_proj`; it acts by their hooks."""
        # Bound methods, unlike closures, follow the module into a deep copy.
        if attention.qkv is not None:
            width, channels = attention.qkv.in_features, attention.qkv.out_features // 3
            module = cls(width=width, query_channels=channels, value_channels=channels, rank=rank)
            attention.qkv.register_forward_hook(module.add_to_fused)
            return module
        query, value = attention.q_proj, attention.v_proj
        module = cls(
            width=query.in_features, query_channels=query.out_features, value_channels=value.out_features, rank=rank
        )
        query.register_forward_hook(module.add_to_query)
        value.register_forward_hook(module.add_to_value)
        return module

    def add_to_fused(self, _: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        """Forward hook: (I, T, D) -> output (I, T, 3 C) with query and value changed."""
        if not self.active:
            return output
        query, key, value = output.chunk(3, dim=-1)
        return torch.cat([self.add_to_query(_, inputs, query), key, self.add_to_value(_, inputs, value)], dim=-1)

    def add_to_query(self, _: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        """Forward hook: (I, T, D) -> (I, T, C)."""
        return output + self.query_up(self.query_down(inputs[0])) if self.active else output

    def add_to_value(self, _: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        """Forward hook: (I, T, D) -> (I, T, C)."""
        return output + self.value_up(self.value_down(inputs[0])) if self.active else output

    def query_update(self) -> torch.Tensor:
        """(C, D) B_q A_q."""
        return self.query_up.weight @ self.query_down.weight

    def value_update(self) -> torch.Tensor:
        """(C, D) B_v A_v."""
        return self.value_up.weight @ self.value_down.weight


class Bottleneck(TuningModule):
    """Semantic: D -> width -> D with a GELU between, beside a block's MLP and on the same normed tokens."""

    def __init__(self, *, width: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden)
        self.up = _zeros(hidden, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., D) to be added."""
        return self.up(functional.gelu(self.down(tokens)))


class FrequencyBands(TuningModule):
    """Frequency: a bottleneck each on the low, the high and all spatial frequencies of the patch tokens.

    A router gives every token a weight for each of the three. Earth-Adapter's idea (Hu et al., AAAI 2026) on a grid of
    any size, with a round low-pass.
    """

    bands = ("low", "high", "all")

    def __init__(self, *, width: int, hidden: int, low_pass: float) -> None:
        super().__init__()
        self.low_pass = low_pass
        self.bottlenecks = nn.ModuleList(Bottleneck(width=width, hidden=hidden) for _ in self.bands)
        self.router = nn.Linear(width, len(self.bands))

    def forward(self, patches: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """(I, h w, D) patch tokens row by row -> (I, h w, D) to be added to them.

        Filters and projections commute, so the few projected channels are filtered in place of all D, and the three
        ways up are one product.
        """
        bottlenecks = [each for each in self.bottlenecks if isinstance(each, Bottleneck)]  # all of them, by type
        low, high, whole = (each.down for each in bottlenecks)
        projected = functional.linear(patches, torch.cat([low.weight, high.weight]))
        below_low, below_high = low_frequencies(projected, grid, share=self.low_pass).chunk(2, dim=-1)
        above_high = projected.chunk(2, dim=-1)[1] - below_high
        hidden = torch.stack([below_low + low.bias, above_high + high.bias, whole(patches)], dim=-2)
        weights = self.router(patches).softmax(dim=-1)
        weighted = functional.gelu(hidden) * weights[..., None]
        up = torch.cat([each.up.weight for each in bottlenecks], dim=1)
        bias = torch.stack([each.up.bias for each in bottlenecks])
        return functional.linear(weighted.flatten(-2), up) + weights @ bias


def low_frequencies(patches: torch.Tensor, grid: tuple[int, int], *, share: float) -> torch.Tensor:
    """(I, h w, D) -> (I, h w, D) float32: only frequencies of at most `share` times half a cycle per token."""
    height, width = grid
    with torch.autocast(device_type=patches.device.type, enabled=False):  # there is no FFT in 16 bits
        image = patches.float().unflatten(1, grid)
        rows = torch.fft.fftfreq(height, device=patches.device)
        columns = torch.fft.rfftfreq(width, device=patches.device)
        is_low = torch.hypot(rows[:, None], columns[None]) <= 0.5 * share
        spectrum = torch.fft.rfft2(image, dim=(1, 2)) * is_low[..., None]
        return torch.fft.irfft2(spectrum, s=grid, dim=(1, 2)).flatten(1, 2)


def _zeros(in_channels: int, out_channels: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer that gives zeros."""
    layer = nn.Linear(in_channels, out_channels, bias=bias)
    nn.init.zeros_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
