# SPDX-License-Identifier: Apache-2.0
"""Points -> unique voxels with mean features, and back; the only place that knows the voxel size.

A cell is [frame, z, y, x]. It is sorted, compared and looked up as one int64 key: the four numbers in bit fields, so
that the order of the keys is the order of the rows. 32 bits would not do: a full sweep at 5 cm spans 2.5 * 2^31 cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

MAX_CELLS = 32768  # per axis; three such axes leave 15 bits of a key for the frame
KEY_BITS = 63


@dataclass(frozen=True, kw_only=True)
class Voxels:
    """The occupied cells of a batch of frames, sorted by [frame, z, y, x]."""

    coords: torch.Tensor  # (V, 4) int32 contiguous [frame, z, y, x], each row once
    feats: torch.Tensor  # (V, C) mean over the points of the voxel
    point_to_voxel: torch.Tensor  # (P',) int64 row of coords, for each kept point
    kept: torch.Tensor  # (P,) bool: the point lies inside the cube; P' of them
    spatial_shape: tuple[int, int, int]  # (z, y, x) cells that hold every voxel


def voxelize(
    points: torch.Tensor,
    frame_index: torch.Tensor,
    feats: torch.Tensor | None,
    *,
    voxel_size: float,
    max_cells: int,
    offset: torch.Tensor | None = None,
) -> Voxels:
    """Cut `points` (P, 3) float32 m [x, y, z] into cubes of `voxel_size` m and average `feats` (P, C) in each.

    Without `feats` every voxel has the single feature 1, the mean of a constant.

    cell = floor((point - minimum of its frame, per axis) / voxel_size + offset): xMUDA's grid at test time, where the
    offset is zero. `offset` (frames, 3) [x, y, z] in cells is training's random shift. Points outside the cube
    [0, max_cells)^3 drop. `frame_index` (P,) int64 need not be sorted. Points must be finite. The cells are computed in
    float64, which is exact for float32 metres.

    Raises ValueError for a wrong shape or type, a negative frame index, a voxel_size that is not positive and a
    max_cells outside 1..32768.
    """
    _check(points, frame_index, feats, voxel_size=voxel_size, max_cells=max_cells)
    num_frames = _count_frames(frame_index, offset)
    shifts = [None] * 3 if offset is None else list(offset.to(points.device, torch.float64).unbind(dim=1))
    cells = [  # axis by axis: the work of one stays in the cache
        _real_cells(points[:, axis], frame_index, voxel_size=voxel_size, num_frames=num_frames, offset=shifts[axis])
        for axis in (2, 1, 0)
    ]
    kept = torch.ones(len(points), dtype=torch.bool, device=points.device)
    if not _all_inside(cells, max_cells):
        kept = _inside(cells, max_cells)
        cells, frame_index = [column[kept] for column in cells], frame_index[kept]
        feats = None if feats is None else feats[kept]
    columns = [column.int() for column in cells]  # nothing is negative any more: cutting off the fraction is the floor
    spatial_shape = _extent(columns[0]), _extent(columns[1]), _extent(columns[2])
    bits = key_bits(spatial_shape, num_frames=num_frames)
    packed = pack_keys(columns, bits[1:]) if num_frames == 1 else pack_keys((frame_index, *columns), bits)
    keys, point_to_voxel, num_points = unique_keys(packed)
    return Voxels(
        coords=unpack_keys(keys, bits),
        feats=points.new_ones(len(keys), 1) if feats is None else _mean(feats, point_to_voxel, num_points),
        point_to_voxel=point_to_voxel,
        kept=kept,
        spatial_shape=spatial_shape,
    )


def gather_to_points(voxel_values: torch.Tensor, point_to_voxel: torch.Tensor) -> torch.Tensor:
    """The value of its voxel for each point: (V, ...) and (P,) -> (P, ...)."""
    return voxel_values.index_select(0, point_to_voxel)


def key_bits(spatial_shape: Sequence[int], *, num_frames: int) -> tuple[int, int, int]:
    """Bits of the z, y and x field of a key. Raises ValueError where frame and cell together exceed 63 bits."""
    z, y, x = (int(size).bit_length() for size in spatial_shape)
    if num_frames.bit_length() + z + y + x > KEY_BITS:
        raise ValueError(
            f"voxels: {num_frames} frames of {' x '.join(map(str, spatial_shape))} cells do not fit into 64-bit keys"
        )
    return z, y, x


def pack_keys(columns: Sequence[torch.Tensor], bits: Sequence[int]) -> torch.Tensor:
    """(V,) int64 keys of the columns frame, z, y, x; increasing as the rows [frame, z, y, x] are.

    `bits` are those of the columns after the first. In a single frame, which is 0, that column may be left out.
    """
    keys = columns[0].long()
    for column, width in zip(columns[1:], bits, strict=True):
        keys = (keys << width).add_(column.long())  # types alike: half the time of adding int32 to int64
    return keys


def unpack_keys(keys: torch.Tensor, bits: tuple[int, int, int]) -> torch.Tensor:
    """(V, 4) int32 contiguous rows [frame, z, y, x] of `keys`."""
    z_bits, y_bits, x_bits = bits
    rows = torch.empty(len(keys), 4, dtype=torch.int32, device=keys.device)
    rows[:, 3] = keys & ((1 << x_bits) - 1)
    rest = keys >> x_bits
    for column, width in ((2, y_bits), (1, z_bits)):
        rows[:, column] = rest & ((1 << width) - 1)
        rest >>= width
    rows[:, 0] = rest
    return rows


def unique_keys(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sorted unique non-negative int64 `keys`, the row of each key among them, and how often each occurs."""
    sorted_keys, order = sort_keys(keys)
    if keys.device.type == "cpu" and len(keys):
        unique, sorted_rows, counts = map(torch.from_numpy, _runs(sorted_keys.numpy()))
    else:
        unique, sorted_rows, counts = torch.unique_consecutive(sorted_keys, return_inverse=True, return_counts=True)
    return unique, torch.empty_like(order).scatter_(0, order, sorted_rows), counts


def _runs(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """torch.unique_consecutive with rows and counts in half its time; at least one value."""
    is_first = np.empty(len(values), dtype=np.bool_)
    is_first[0] = True
    np.not_equal(values[1:], values[:-1], out=is_first[1:])
    first = np.flatnonzero(is_first)
    rows = np.cumsum(is_first, dtype=np.int64)
    rows -= 1
    return values[first], rows, np.diff(first, append=len(values))


def sort_keys(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Non-negative int64 `keys` sorted, and the permutation that sorts them (equal keys stay in order).

    On CPU the index rides in the free low bits where there is room, and NumPy sorts: a third of the time of torch.sort.
    """
    index_bits = len(keys).bit_length()
    if keys.device.type != "cpu" or len(keys) == 0 or int(keys.amax()).bit_length() + index_bits > KEY_BITS:
        sorted_keys, order = torch.sort(keys, stable=True)
        return sorted_keys, order
    packed = (keys << index_bits).add_(torch.arange(len(keys)))
    packed.numpy().sort()
    return packed >> index_bits, packed & ((1 << index_bits) - 1)


def _mean(feats: torch.Tensor, point_to_voxel: torch.Tensor, num_points: torch.Tensor) -> torch.Tensor:
    """(V, C) mean of `feats` (P, C) over the points of each voxel."""
    sums = feats.new_zeros(len(num_points), feats.shape[1]).index_add_(0, point_to_voxel, feats)
    return sums.div_(num_points[:, None])


def _real_cells(
    positions: torch.Tensor,
    frame_index: torch.Tensor,
    *,
    voxel_size: float,
    num_frames: int,
    offset: torch.Tensor | None,
) -> torch.Tensor:
    """(P,) float64: positions along one axis in cells, not yet floored; `offset` (frames,) for this axis."""
    cells = positions.double()
    if num_frames == 1:
        minimum = cells.amin(dim=0, keepdim=True) if len(cells) else cells
    else:
        minimum = cells.new_full((num_frames,), torch.inf).scatter_reduce_(0, frame_index, cells, "amin")
    cells.sub_(_per_point(minimum, frame_index)).div_(voxel_size)
    return cells if offset is None else cells.add_(_per_point(offset, frame_index))


def _per_point(values: torch.Tensor, frame_index: torch.Tensor) -> torch.Tensor:
    """(frames,) -> (P,), or the single value of a single frame as it is."""
    return values if len(values) <= 1 else values.index_select(0, frame_index)


def _all_inside(cells: Sequence[torch.Tensor], max_cells: int) -> bool:
    """Nearly always nothing is outside, and two reductions are cheaper than two comparisons per point."""
    return all(len(column) == 0 or bool(column.amin() >= 0 and column.amax() < max_cells) for column in cells)


def _inside(cells: Sequence[torch.Tensor], max_cells: int) -> torch.Tensor:
    """(P,) bool: 0 <= cell < max_cells on every axis."""
    first, second, third = ((column >= 0) & (column < max_cells) for column in cells)
    return first & second & third


def _extent(column: torch.Tensor) -> int:
    return int(column.amax()) + 1 if len(column) else 1


def _count_frames(frame_index: torch.Tensor, offset: torch.Tensor | None) -> int:
    first, last = map(int, torch.aminmax(frame_index)) if len(frame_index) else (0, 0)
    if first < 0:
        raise ValueError(f"frame_index: expected no negative index, got {first}")
    num_frames = last + 1
    if offset is None:
        return num_frames
    if offset.ndim != 2 or offset.shape[1] != 3 or len(offset) < num_frames:
        raise ValueError(f"offset: expected ({num_frames}, 3), one row per frame, got {tuple(offset.shape)}")
    return len(offset)


def _check(
    points: torch.Tensor, frame_index: torch.Tensor, feats: torch.Tensor | None, *, voxel_size: float, max_cells: int
) -> None:
    if points.ndim != 2 or points.shape[1] != 3 or points.dtype != torch.float32:
        raise ValueError(f"points: expected (P, 3) float32, got {tuple(points.shape)} {points.dtype}")
    if frame_index.shape != points.shape[:1] or frame_index.dtype != torch.int64:
        raise ValueError(
            f"frame_index: expected ({len(points)},) int64, got {tuple(frame_index.shape)} {frame_index.dtype}"
        )
    if feats is not None and (feats.ndim != 2 or len(feats) != len(points) or not feats.is_floating_point()):
        raise ValueError(f"feats: expected ({len(points)}, C) float, got {tuple(feats.shape)} {feats.dtype}")
    if not voxel_size > 0:
        raise ValueError(f"voxel_size: expected a positive edge in m, got {voxel_size}")
    if not 1 <= max_cells <= MAX_CELLS:
        raise ValueError(f"max_cells: expected 1 to {MAX_CELLS}, got {max_cells}")
