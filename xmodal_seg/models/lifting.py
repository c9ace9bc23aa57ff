# SPDX-License-Identifier: Apache-2.0
"""Lifting: the 2D feature of every projected point, without ever building the full-resolution feature map."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

LiftMode = Literal["bilinear", "nearest"]


def lift(
    feature_map: torch.Tensor,
    uv: torch.Tensor,
    image_index: torch.Tensor,
    image_size: tuple[int, int],
    *,
    mode: LiftMode = "bilinear",
) -> torch.Tensor:
    """Sample `feature_map` at the projected points; differentiable with respect to the map.

    The map spans its image edge to edge, so pixel u of an image W px wide lies at column (u + 0.5) * w / W - 0.5 of
    the map. At integer pixels `bilinear` therefore equals
    `F.interpolate(feature_map, image_size, mode="bilinear", align_corners=False)`; positions outside the outermost
    cell centres take the border value.

    Args:
        feature_map: (I, D, h, w), of any floating type; the result has the same type.
        uv: (P, 2) px (u right, v down) in the model-input image; an integer is the centre of a pixel.
        image_index: (P,) int64 row of `feature_map` in [0, I): points that no camera sees must be left out.
        image_size: (H, W) px of the model-input image.
        mode: 'nearest' reads the cell that holds the point, as xMUDA reads the floor pixel (counted from the edge).

    Returns:
        (P, D). The largest temporary is one copy of the map, so 120,000 points at D = 1024 cost their own 0.5 GB only.
    """
    num_channels, map_height, map_width = feature_map.shape[1:]
    height, width = image_size
    columns = (uv[:, 0] + 0.5) * (map_width / width)  # cells from the left edge of the map
    rows = (uv[:, 1] + 0.5) * (map_height / height)
    table = feature_map.permute(0, 2, 3, 1).reshape(-1, num_channels)  # one row per cell
    first_cell = image_index * (map_height * map_width)
    if mode == "nearest":
        column = columns.floor().long().clamp(0, map_width - 1)
        row = rows.floor().long().clamp(0, map_height - 1)
        return table[first_cell + row * map_width + column]
    left, right, right_weight = _neighbours(columns, size=map_width)
    upper, lower, lower_weight = _neighbours(rows, size=map_height)
    cells = first_cell[:, None] + torch.stack(
        [upper * map_width + left, upper * map_width + right, lower * map_width + left, lower * map_width + right],
        dim=1,
    )
    left_weight, upper_weight = 1 - right_weight, 1 - lower_weight
    weights = torch.stack(
        [
            upper_weight * left_weight,
            upper_weight * right_weight,
            lower_weight * left_weight,
            lower_weight * right_weight,
        ],
        dim=1,
    )
    # A weighted sum of four rows per point: on a CPU 3.5 to 8 times as fast as grid_sample at D = 1024, which strides
    # through the map channel by channel; on a GPU its backward pass is deterministic, grid_sample's is not.
    return functional.embedding_bag(cells, table, per_sample_weights=weights.to(table.dtype), mode="sum")


def _neighbours(position: torch.Tensor, *, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(P,) cells from the edge -> the two cell centres around each, and the weight of the second."""
    centred = (position - 0.5).clamp(0, size - 1)
    first = centred.floor()
    second = (first + 1).clamp(max=size - 1)
    return first.long(), second.long(), centred - first
