# SPDX-License-Identifier: Apache-2.0
"""Points to voxels and back, against plain Python on a few points."""

from collections import defaultdict
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
import pytest
import torch

from xmodal_seg.voxels import (
    Voxels,
    gather_to_points,
    key_bits,
    pack_keys,
    sort_keys,
    unique_keys,
    unpack_keys,
    voxelize,
)

SIZE_M = 0.05


def cloud(num_points: int = 301, num_frames: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points of unsorted frames, dense enough that many share a voxel, and two features."""
    generator = torch.Generator().manual_seed(seed)
    points = (torch.rand(num_points, 3, generator=generator) - 0.4) * torch.tensor([0.6, 0.4, 0.2])
    frame_index = torch.randint(0, num_frames, (num_points,), generator=generator)
    return points, frame_index, torch.rand(num_points, 2, generator=generator)


def exact_cells(points: torch.Tensor, frame_index: torch.Tensor) -> list[tuple[int, ...]]:
    """[frame, z, y, x] of each point in rational arithmetic."""
    exact = [[Fraction(value) for value in row] for row in points.tolist()]
    frames = frame_index.tolist()
    lowest = {
        frame: [min(row[axis] for row, other in zip(exact, frames, strict=True) if other == frame) for axis in range(3)]
        for frame in set(frames)
    }
    size = Fraction(SIZE_M)
    return [
        (frame, *(floor((row[axis] - lowest[frame][axis]) / size) for axis in (2, 1, 0)))
        for row, frame in zip(exact, frames, strict=True)
    ]


def cells_of_points(voxels: Voxels) -> list[tuple[int, ...]]:
    return [tuple(row) for row in gather_to_points(voxels.coords, voxels.point_to_voxel).tolist()]


def test_voxels_are_sorted_unique_contiguous_int32_and_fit_their_shape() -> None:
    points, frame_index, feats = cloud()
    voxels = voxelize(points, frame_index, feats, voxel_size=SIZE_M, max_cells=4096)
    rows = [tuple(row) for row in voxels.coords.tolist()]
    assert rows == sorted(set(rows))
    assert len(rows) < len(points)
    assert voxels.coords.dtype == torch.int32
    assert voxels.coords.is_contiguous()
    assert voxels.point_to_voxel.dtype == torch.int64
    assert voxels.spatial_shape == tuple((voxels.coords[:, 1:].amax(dim=0) + 1).tolist())


def test_every_point_finds_its_own_cell_again() -> None:
    points, frame_index, feats = cloud()
    voxels = voxelize(points, frame_index, feats, voxel_size=SIZE_M, max_cells=4096)
    assert voxels.kept.all()
    assert cells_of_points(voxels) == exact_cells(points, frame_index)
    assert set(voxels.point_to_voxel.tolist()) == set(range(len(voxels.coords)))


def test_cells_are_exact_far_from_the_sensor() -> None:
    points = (torch.rand(400, 3, generator=torch.Generator().manual_seed(1)) - 0.5) * 200
    grid = torch.arange(400)[:, None] * torch.tensor([[SIZE_M, -SIZE_M, SIZE_M]])  # on the borders of cells
    points = torch.cat([points, points[:1].floor() + grid])
    frame_index = torch.zeros(800, dtype=torch.int64)
    voxels = voxelize(points, frame_index, torch.ones(800, 1), voxel_size=SIZE_M, max_cells=8192)
    assert cells_of_points(voxels) == exact_cells(points, frame_index)


def test_features_of_a_voxel_are_the_mean_of_its_points() -> None:
    points, frame_index, feats = cloud()
    voxels = voxelize(points, frame_index, feats, voxel_size=SIZE_M, max_cells=4096)
    members: dict[tuple[int, ...], list[list[float]]] = defaultdict(list)
    for cell, row in zip(exact_cells(points, frame_index), feats.tolist(), strict=True):
        members[cell].append(row)
    assert max(map(len, members.values())) > 2
    expected = [np.mean(members[cell], axis=0) for cell in sorted(members)]
    np.testing.assert_allclose(voxels.feats.numpy(), expected, rtol=1e-6)


def test_without_features_every_voxel_has_a_one() -> None:
    points, frame_index, _ = cloud()
    ones = torch.ones(len(points), 1)
    voxels = voxelize(points, frame_index, None, voxel_size=SIZE_M, max_cells=8)
    same = voxelize(points, frame_index, ones, voxel_size=SIZE_M, max_cells=8)
    assert not bool(voxels.kept.all())
    assert torch.equal(voxels.feats, same.feats)
    assert torch.equal(voxels.coords, same.coords)


def test_points_outside_the_cube_drop() -> None:
    points, frame_index, feats = cloud()
    voxels = voxelize(points, frame_index, feats, voxel_size=SIZE_M, max_cells=9)
    cells = exact_cells(points, frame_index)
    inside = [max(cell[1:]) < 9 for cell in cells]
    assert voxels.kept.tolist() == inside
    assert 0 < sum(inside) < len(points)
    assert cells_of_points(voxels) == [cell for cell, keep in zip(cells, inside, strict=True) if keep]
    assert max(voxels.spatial_shape) <= 9


def test_a_point_absurdly_far_away_drops() -> None:
    points = torch.tensor([[0.0, 0, 0], [3e30, 0, 0], [1.0, 1, 1]])
    voxels = voxelize(points, torch.zeros(3, dtype=torch.int64), torch.ones(3, 1), voxel_size=SIZE_M, max_cells=4096)
    assert voxels.kept.tolist() == [True, False, True]


def test_an_offset_moves_each_frame_and_drops_what_it_pushes_out() -> None:
    points, frame_index, feats = cloud()
    plain = voxelize(points, frame_index, feats, voxel_size=SIZE_M, max_cells=64)
    offset = torch.tensor([[5, 0, 1], [0, 0, 0], [-1, 0, 0]])
    moved = voxelize(points, frame_index, feats, voxel_size=SIZE_M, max_cells=64, offset=offset)
    before = gather_to_points(plain.coords, plain.point_to_voxel)
    after = before + torch.cat([torch.zeros(3, 1), offset.flip(1)], dim=1).int()[before[:, 0].long()]
    assert torch.equal(moved.kept, after.amin(dim=1) >= 0)
    assert not moved.kept.all()
    assert cells_of_points(moved) == [tuple(row) for row in after[moved.kept].tolist()]


def test_an_offset_of_part_of_a_cell_moves_the_borders() -> None:
    points = torch.tensor([[0.0, 0, 0], [0.03, 0, 0]])
    frame_index, feats = torch.zeros(2, dtype=torch.int64), torch.ones(2, 1)
    whole = voxelize(points, frame_index, feats, voxel_size=SIZE_M, max_cells=8)
    half = voxelize(points, frame_index, feats, voxel_size=SIZE_M, max_cells=8, offset=torch.tensor([[0.5, 0, 0]]))
    assert len(whole.coords) == 1
    assert half.coords.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1]]


def test_a_batch_is_its_frames_one_by_one() -> None:
    points, frame_index, feats = cloud()
    together = voxelize(points, frame_index, feats, voxel_size=SIZE_M, max_cells=9)
    for frame in range(3):
        mine = frame_index == frame
        alone = voxelize(points[mine], frame_index[mine] * 0, feats[mine], voxel_size=SIZE_M, max_cells=9)
        rows = together.coords[:, 0] == frame
        assert torch.equal(together.coords[rows, 1:], alone.coords[:, 1:])
        assert torch.equal(together.feats[rows], alone.feats)
        assert torch.equal(together.kept[mine], alone.kept)


def test_the_order_of_the_points_does_not_matter() -> None:
    points, frame_index, feats = cloud()
    order = torch.randperm(len(points))
    first = voxelize(points, frame_index, feats, voxel_size=SIZE_M, max_cells=4096)
    second = voxelize(points[order], frame_index[order], feats[order], voxel_size=SIZE_M, max_cells=4096)
    assert torch.equal(first.coords, second.coords)
    assert torch.equal(first.point_to_voxel[order], second.point_to_voxel)
    torch.testing.assert_close(first.feats, second.feats)


def test_no_points_make_no_voxels() -> None:
    empty = voxelize(
        torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2), voxel_size=SIZE_M, max_cells=8
    )
    assert empty.coords.shape == (0, 4)
    assert empty.feats.shape == (0, 2)
    assert empty.kept.shape == empty.point_to_voxel.shape == (0,)
    assert empty.spatial_shape == (1, 1, 1)


def test_a_frame_without_points_is_fine() -> None:
    points, _, feats = cloud(num_points=7)
    for frame in (0, 1):
        voxels = voxelize(
            points, torch.full((7,), frame), feats, voxel_size=SIZE_M, max_cells=4096, offset=torch.zeros(2, 3)
        )
        assert set(voxels.coords[:, 0].tolist()) == {frame}


def test_values_are_gathered_per_point() -> None:
    values = torch.arange(6.0).reshape(3, 2)
    assert gather_to_points(values, torch.tensor([2, 0, 2])).tolist() == [[4, 5], [0, 1], [4, 5]]


def test_keys_hold_their_cells_and_sort_like_them() -> None:
    generator = torch.Generator().manual_seed(3)
    limits = (24, 32768, 4096, 17)
    rows = torch.stack([torch.randint(0, limit, (97,), generator=generator) for limit in limits], dim=1).int()
    bits = key_bits(limits[1:], num_frames=limits[0])
    keys = pack_keys(rows.unbind(dim=1), bits)
    assert torch.equal(unpack_keys(keys, bits), rows)
    of_frame_0 = rows[:, 1:].unbind(dim=1)
    assert torch.equal(pack_keys(of_frame_0, bits[1:]), pack_keys((torch.zeros(97), *of_frame_0), bits))
    in_order = sorted(range(97), key=rows.tolist().__getitem__)
    assert torch.equal(keys.argsort(), torch.tensor(in_order))


@pytest.mark.parametrize("limit", [1 << 20, 1 << 62])  # with and without room for the index in a key
def test_sorting_and_uniting_keys(limit: int) -> None:
    keys = torch.randint(0, limit, (200,), generator=torch.Generator().manual_seed(0))
    keys = torch.cat([keys, keys[:50], torch.tensor([0, limit - 1])])
    sorted_keys, order = sort_keys(keys)
    expected = torch.sort(keys, stable=True)
    assert torch.equal(sorted_keys, expected.values)
    assert torch.equal(order, expected.indices)
    unique, rows, counts = unique_keys(keys)
    expected_unique = torch.unique(keys, return_inverse=True, return_counts=True)
    for result, reference in zip((unique, rows, counts), expected_unique, strict=True):
        assert torch.equal(result, reference)


@pytest.mark.real_data
def test_a_real_sweep_keeps_every_point_and_its_cell(real_data: Any) -> None:
    sweep = np.fromfile(next((real_data / "nuscenes_sample").glob("*LIDAR_TOP*.bin")), np.float32).reshape(-1, 5)
    points = torch.from_numpy(sweep[:, :3].copy())
    voxels = voxelize(
        points, torch.zeros(len(points), dtype=torch.int64), torch.ones(len(points), 1), voxel_size=0.05, max_cells=4096
    )
    assert voxels.kept.all()
    metres = points.double().numpy()
    cells = np.floor((metres - metres.min(axis=0)) / 0.05).astype(np.int64)
    np.testing.assert_array_equal(gather_to_points(voxels.coords, voxels.point_to_voxel).numpy()[:, :0:-1], cells)
    assert len(voxels.coords) == len(np.unique(cells, axis=0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": torch.zeros(5, 4)}, r"points: expected \(P, 3\) float32"),
        ({"points": torch.zeros(5, 3, dtype=torch.float64)}, "points: .*float64"),
        ({"frame_index": torch.zeros(4, dtype=torch.int64)}, r"frame_index: expected \(5,\) int64"),
        ({"frame_index": torch.zeros(5, dtype=torch.int32)}, "frame_index: .*int32"),
        ({"frame_index": torch.tensor([0, 0, -1, 0, 0])}, "frame_index: expected no negative index, got -1"),
        ({"feats": torch.zeros(5)}, r"feats: expected \(5, C\) float"),
        ({"feats": torch.zeros(5, 1, dtype=torch.int64)}, "feats: .*int64"),
        ({"voxel_size": 0.0}, "voxel_size: expected a positive edge in m, got 0.0"),
        ({"max_cells": 0}, "max_cells: expected 1 to 32768, got 0"),
        ({"offset": torch.zeros(1, 2)}, r"offset: expected \(1, 3\)"),
        ({"frame_index": torch.tensor([0, 1, 0, 0, 1]), "offset": torch.zeros(1, 3)}, r"offset: expected \(2, 3\)"),
    ],
)
def test_wrong_input_is_named(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "points": torch.zeros(5, 3),
        "frame_index": torch.zeros(5, dtype=torch.int64),
        "feats": torch.ones(5, 1),
        "voxel_size": SIZE_M,
        "max_cells": 16,
    }
    with pytest.raises(ValueError, match=message):
        voxelize(**{**good, **change})


def test_too_many_cells_for_a_key_are_refused() -> None:
    with pytest.raises(ValueError, match="40000 frames of 32768 x 32768 x 32768 cells do not fit"):
        key_bits((32768, 32768, 32768), num_frames=40000)
