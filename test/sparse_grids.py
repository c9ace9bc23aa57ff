# SPDX-License-Identifier: Apache-2.0
"""Random voxels, and the same as dense grids for conv3d."""

import torch


def random_voxels(
    spatial_shape: tuple[int, int, int], *, num_frames: int = 2, share: float = 0.3, seed: int = 0
) -> torch.Tensor:
    """(V, 4) int32 contiguous, sorted; about `share` of all cells, and the very first and last cell of each frame."""
    generator = torch.Generator().manual_seed(seed)
    occupied = torch.rand(num_frames, *spatial_shape, generator=generator) < share
    occupied[:, 0, 0, 0] = occupied[:, -1, -1, -1] = True
    return occupied.nonzero().int().contiguous()


def to_dense(coords: torch.Tensor, feats: torch.Tensor, *, shape: tuple[int, int, int]) -> torch.Tensor:
    """(V, C) -> (B, C, Z, Y, X), zero where there is no voxel."""
    num_frames = int(coords[:, 0].max()) + 1
    grid = feats.new_zeros(num_frames, *shape, feats.shape[1])
    return grid.index_put(coords.long().unbind(dim=1), feats).movedim(-1, 1)


def from_dense(grid: torch.Tensor, coords: torch.Tensor) -> torch.Tensor:
    """(B, C, Z, Y, X) -> (V, C)."""
    return grid.movedim(1, -1)[coords.long().unbind(dim=1)]


def conv3d_weight(weight: torch.Tensor) -> torch.Tensor:
    """(C_out, k, k, k, C_in) as spconv stores it -> (C_out, C_in, k, k, k)."""
    return weight.movedim(-1, 1)
