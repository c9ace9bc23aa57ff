# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution on a CPU against dense conv3d, spconv's own tables, and a search in NumPy on a real sweep."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from sparse_grids import conv3d_weight, from_dense, random_voxels, to_dense
from torch.nn import functional as F  # noqa: N812

from xmodal_seg.models.neighbour_tables import GROUP_PAIRS, LevelTables, PairTable, build_level_tables, sparse_conv
from xmodal_seg.voxels import Voxels, voxelize

SHAPE, EVEN_SHAPE = (5, 7, 11), (6, 8, 12)  # cells; a grid of odd size is as if it had one cell more


def tables_of(coords: torch.Tensor, *, shape: tuple[int, int, int] = SHAPE, num_levels: int = 2) -> list[LevelTables]:
    return build_level_tables(coords, spatial_shape=shape, num_frames=2, num_levels=num_levels)


def down_table(tables: list[LevelTables]) -> PairTable:
    assert tables[0].down is not None
    return tables[0].down


def coarse(coords: torch.Tensor) -> torch.Tensor:
    return torch.unique(coords // torch.tensor([1, 2, 2, 2]), dim=0)


def random_leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def assert_same_with_gradients(results: tuple[torch.Tensor, torch.Tensor], leaves: tuple[torch.Tensor, ...]) -> None:
    torch.testing.assert_close(*results)
    grad_out = torch.randn_like(results[0])
    gradients = [torch.autograd.grad(result, leaves, grad_out) for result in results]
    for ours, dense in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, dense)


def test_submanifold_convolution_is_conv3d_at_the_voxels() -> None:
    coords = random_voxels(SHAPE)
    feats, weight = random_leaf(len(coords), 3), random_leaf(4, 3, 3, 3, 3)
    ours = sparse_conv(feats, weight, tables_of(coords)[0].subm)
    dense = F.conv3d(to_dense(coords, feats, shape=SHAPE), conv3d_weight(weight), padding=1)
    assert_same_with_gradients((ours, from_dense(dense, coords)), (feats, weight))


def test_convolution_down_is_conv3d_of_stride_two() -> None:
    coords = random_voxels(SHAPE)
    feats, weight = random_leaf(len(coords), 3), random_leaf(4, 2, 2, 2, 3)
    ours = sparse_conv(feats, weight, down_table(tables_of(coords)))
    dense = F.conv3d(to_dense(coords, feats, shape=EVEN_SHAPE), conv3d_weight(weight), stride=2)
    assert_same_with_gradients((ours, from_dense(dense, coarse(coords))), (feats, weight))


def test_convolution_up_is_the_transposed_conv3d_at_the_voxels() -> None:
    coords = random_voxels(SHAPE)
    blocks = coarse(coords)
    feats, weight = random_leaf(len(blocks), 4), random_leaf(3, 2, 2, 2, 4)
    ours = sparse_conv(feats, weight, down_table(tables_of(coords)).transposed())
    dense = F.conv_transpose3d(to_dense(blocks, feats, shape=(3, 4, 6)), weight.movedim(-1, 0), stride=2)
    assert_same_with_gradients((ours, from_dense(dense, coords)), (feats, weight))


def test_many_pairs_make_several_groups() -> None:
    shape = (9, 20, 21)
    coords = random_voxels(shape, share=0.9)
    table = tables_of(coords, shape=shape)[0].subm
    assert len(table.pairs[0][0]) > GROUP_PAIRS
    assert [element for group in table.groups for element, _ in group.parts] == [*range(13), *range(14, 27)]
    feats, weight = random_leaf(len(coords), 2), random_leaf(2, 3, 3, 3, 2)
    dense = F.conv3d(to_dense(coords, feats, shape=shape), conv3d_weight(weight), padding=1)
    assert_same_with_gradients((sparse_conv(feats, weight, table), from_dense(dense, coords)), (feats, weight))


def test_lonely_voxels_meet_only_themselves() -> None:
    coords = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [1, 4, 6, 10]], dtype=torch.int32)
    tables = tables_of(coords, num_levels=4)
    assert [[len(rows) for rows, _ in level.subm.pairs] for level in tables[:3]] == [[0] * 13 + [3] + [0] * 13] * 3
    # After three halvings frame 1 is a single block and its neighbour: (0, 0, 0) and (0, 0, 1).
    assert [len(rows) for rows, _ in tables[3].subm.pairs] == [0] * 12 + [1, 3, 1] + [0] * 12
    feats, weight = random_leaf(3, 2), random_leaf(4, 3, 3, 3, 2)
    torch.testing.assert_close(sparse_conv(feats, weight, tables[0].subm), feats @ weight[:, 1, 1, 1].t())


@pytest.mark.parametrize("num_levels", [1, 2, 4])
def test_voxels_in_any_order_give_the_same_pairs(num_levels: int) -> None:
    coords = random_voxels(SHAPE)
    order = torch.randperm(len(coords))
    in_order, shuffled = tables_of(coords, num_levels=num_levels), tables_of(coords[order], num_levels=num_levels)
    place = order.argsort()  # where row i of `coords` now stands
    for level, (one, other) in enumerate(zip(in_order, shuffled, strict=True)):
        names = place if level == 0 else torch.arange(one.subm.num_in)
        assert pair_sets(other.subm) == pair_sets(one.subm, in_names=names, out_names=names)
        assert (one.down is None) == (other.down is None) == (level == num_levels - 1)
        if one.down is not None and other.down is not None:
            assert pair_sets(other.down) == pair_sets(one.down, in_names=names)


def test_a_voxel_that_stands_twice_is_named() -> None:
    coords = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 1]], dtype=torch.int32)
    with pytest.raises(ValueError, match="expected each voxel once, but rows 0 and 2 are the same"):
        tables_of(coords)


def test_tables_are_spconvs_own_below_its_bound() -> None:
    ops = pytest.importorskip("spconv.pytorch.ops")
    algorithm = pytest.importorskip("spconv.core").ConvAlgo.Native
    coords = random_voxels(EVEN_SHAPE)
    tables = tables_of(coords, shape=EVEN_SHAPE)
    ones, zeros = [1] * 3, [0] * 3
    _, subm, num_subm = ops.get_indice_pairs(
        coords, 2, list(EVEN_SHAPE), algorithm, [3] * 3, ones, ones, ones, zeros, subm=True
    )
    blocks, down, num_down = ops.get_indice_pairs(
        coords, 2, list(EVEN_SHAPE), algorithm, [2] * 3, [2] * 3, zeros, ones, zeros
    )
    # spconv lists half of the submanifold pairs; the other half has inputs and outputs exchanged.
    ours = pair_sets(tables[0].subm)
    for element in range(13):
        pairs = subm[:, element, : num_subm[element]].tolist()
        assert ours[element] == set(zip(*pairs, strict=True))
        assert ours[26 - element] == set(zip(*reversed(pairs), strict=True))
    # Its blocks stand in another order.
    rank = torch.tensor(sorted(range(len(blocks)), key=blocks.tolist().__getitem__)).argsort()
    for element, pairs_of_element in enumerate(pair_sets(down_table(tables))):
        in_rows, out_rows = down[:, element, : num_down[element]].long()
        assert pairs_of_element == set(zip(in_rows.tolist(), rank[out_rows].tolist(), strict=True))


@pytest.mark.real_data
@pytest.mark.parametrize("num_frames", [1, 8])
def test_tables_of_a_real_sweep_at_5_cm(real_data: Path, num_frames: int) -> None:
    voxels = sweep_voxels(real_data, num_frames=num_frames)
    assert num_frames * np.prod(voxels.spatial_shape, dtype=np.float64) > 2**31, "more than 32-bit keys can hold"
    tables = build_level_tables(voxels.coords, spatial_shape=voxels.spatial_shape, num_frames=num_frames, num_levels=7)
    cells = voxels.coords.numpy().astype(np.int64)
    for level in tables:
        assert level.subm.num_in == level.subm.num_out == len(cells)
        for ours, reference in zip(level.subm.pairs, numpy_neighbours(cells), strict=True):
            assert_same_pairs(ours, reference)
        if level.down is not None:
            blocks, block_of_cell = numpy_blocks(cells)
            for element, ours in enumerate(level.down.pairs):
                rows = np.flatnonzero(cells[:, 1:] % 2 @ [4, 2, 1] == element)
                assert_same_pairs(ours, (rows, block_of_cell[rows]))
            assert level.down.num_out == len(blocks)
            cells = blocks
    assert len(cells) > 500


@pytest.mark.real_data
@pytest.mark.parametrize("num_frames", [1, 8])
def test_convolution_of_a_real_sweep_at_5_cm(real_data: Path, num_frames: int) -> None:
    voxels = sweep_voxels(real_data, num_frames=num_frames)
    tables = build_level_tables(voxels.coords, spatial_shape=voxels.spatial_shape, num_frames=num_frames, num_levels=1)
    feats, weight = torch.randn(len(voxels.coords), 3), torch.randn(5, 3, 3, 3, 3)
    ours = sparse_conv(feats, weight, tables[0].subm).numpy()
    cells = [tuple(cell) for cell in voxels.coords.tolist()]
    row_of = {cell: row for row, cell in enumerate(cells)}
    matrices, rows = weight.double().numpy(), torch.randperm(len(cells))[:300].tolist()
    num_neighbours = 0
    for row in rows:
        neighbours = list(neighbours_of(cells[row], row_of))
        expected = sum(matrices[:, kz, ky, kx] @ feats[other].double().numpy() for (kz, ky, kx), other in neighbours)
        np.testing.assert_allclose(ours[row], expected, atol=1e-5)
        num_neighbours += len(neighbours) - 1
    assert num_neighbours > 100


def neighbours_of(
    cell: tuple[int, ...], row_of: dict[tuple[int, ...], int]
) -> Iterator[tuple[tuple[int, int, int], int]]:
    """Kernel element (kz, ky, kx) and row of each occupied neighbour, the cell itself among them."""
    frame, z, y, x = cell
    for kz, ky, kx in product(range(3), repeat=3):
        row = row_of.get((frame, z + kz - 1, y + ky - 1, x + kx - 1))
        if row is not None:
            yield (kz, ky, kx), row


def sweep_voxels(real_data: Path, *, num_frames: int) -> Voxels:
    """A full nuScenes sweep at 5 cm, `num_frames` times, each turned a little further about the z axis."""
    path = next((real_data / "nuscenes_sample").glob("*LIDAR_TOP*.bin"))
    sweep = torch.from_numpy(np.fromfile(path, np.float32).reshape(-1, 5)[:, :3].copy())
    copies = []
    for angle in torch.arange(num_frames) * 0.7:
        turn = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0], [0, 0, 1]])
        copies.append(sweep @ turn.t())
    frame_index = torch.arange(num_frames).repeat_interleave(len(sweep))
    points = torch.cat(copies)
    return voxelize(points, frame_index, torch.ones(len(points), 1), voxel_size=0.05, max_cells=8192)


def numpy_keys(cells: np.ndarray) -> np.ndarray:
    """One int64 per cell [frame, z, y, x], with a margin around every frame."""
    z, y, x = cells[:, 1:].max(axis=0) + 3
    return ((cells[:, 0] * z + cells[:, 1] + 1) * y + cells[:, 2] + 1) * x + cells[:, 3] + 1


def numpy_neighbours(cells: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Input and output rows of each of the 27 kernel elements, by intersecting moved and unmoved cells."""
    _, y, x = cells[:, 1:].max(axis=0) + 3
    keys = numpy_keys(cells)
    for dz, dy, dx in product((-1, 0, 1), repeat=3):
        _, out_rows, in_rows = np.intersect1d(
            keys + (dz * y + dy) * x + dx, keys, assume_unique=True, return_indices=True
        )
        yield in_rows, out_rows


def numpy_blocks(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sorted cells of half the resolution, and the row of the block of each cell."""
    halved = cells // [1, 2, 2, 2]
    _, first, block_of_cell = np.unique(numpy_keys(halved), return_index=True, return_inverse=True)
    return halved[first], block_of_cell


def assert_same_pairs(ours: tuple[torch.Tensor, torch.Tensor], reference: tuple[np.ndarray, np.ndarray]) -> None:
    """The same pairs in any order; no output row twice."""
    in_rows, out_rows = (rows.numpy() for rows in ours)
    np.testing.assert_array_equal(np.sort(out_rows), np.sort(reference[1]))
    np.testing.assert_array_equal(in_rows[np.argsort(out_rows)], reference[0][np.argsort(reference[1])])


def pair_sets(
    table: PairTable, *, in_names: torch.Tensor | None = None, out_names: torch.Tensor | None = None
) -> list[set[tuple[int, int]]]:
    """Per kernel element, the set of (input row, output row)."""
    return [
        set(
            zip(
                (in_rows if in_names is None else in_names[in_rows]).tolist(),
                (out_rows if out_names is None else out_names[out_rows]).tolist(),
                strict=True,
            )
        )
        for in_rows, out_rows in table.pairs
    ]
