# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution on a CPU: which voxels meet through which kernel element, and the sum over these pairs.

spconv's own CPU tables hash cells to 32-bit keys and become silently wrong where frames * z * y * x reaches 2^31, which
real sweeps do; these have 64-bit keys. A table lists, per kernel element, pairs (input row, output row); a convolution
gathers the input rows, multiplies them by that element's matrix and adds the products to the output rows.

All levels of a U-Net share one key layout: a cell of level l is named by the key of its first cell at level 0, so that
halving the resolution clears one bit of each field and a step to a neighbour is 2^l times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch

from xmodal_seg.voxels import key_bits, pack_keys, sort_keys, unique_keys

# (dz, dy) of the x-rows of a 3x3x3 kernel that come after the middle one; the others are their mirror images.
LATER_ROWS = ((0, 1), (1, -1), (1, 0), (1, 1))
MIDDLE = 13  # element (1, 1, 1) of a 3x3x3 kernel: each voxel meets itself
GROUP_PAIRS = 2048  # enough to make the cost of a call small, few enough to stay in the cache
NO_KEY = -(1 << 62)  # behind the last key; equal to no key and to no neighbour of one

Pairs = tuple[torch.Tensor, torch.Tensor]  # input rows and output rows, int64, of one kernel element


@dataclass(frozen=True, kw_only=True)
class PairGroup:
    """Pairs of several kernel elements that are gathered and added at once."""

    in_rows: torch.Tensor
    out_rows: torch.Tensor
    parts: tuple[tuple[int, slice], ...]  # kernel element, and which of the pairs are its own


@dataclass(frozen=True, kw_only=True)
class PairTable:
    """The pairs of rows that a convolution joins; no output row occurs twice under one kernel element."""

    pairs: tuple[Pairs, ...]  # by kernel element in conv3d's order: (kz * k + ky) * k + kx
    num_in: int
    num_out: int
    identity: int | None = None  # the element through which each row meets itself, if there is one

    @cached_property
    def groups(self) -> list[PairGroup]:
        """All pairs but those of the identity, which needs no gathering, in groups of about GROUP_PAIRS."""
        batches: list[list[int]] = [[]]
        total = 0
        for element, (rows, _) in enumerate(self.pairs):
            if element != self.identity and len(rows):
                if total + len(rows) > GROUP_PAIRS:
                    batches.append([])
                    total = 0
                batches[-1].append(element)
                total += len(rows)
        return [self._group(elements) for elements in batches if elements]

    @cached_property
    def largest_group(self) -> int:
        """Pairs of the largest group."""
        return max((len(group.in_rows) for group in self.groups), default=0)

    def _group(self, elements: list[int]) -> PairGroup:
        ends = list(accumulate(len(self.pairs[element][0]) for element in elements))
        slices = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        return PairGroup(
            in_rows=torch.cat([self.pairs[element][0] for element in elements]),
            out_rows=torch.cat([self.pairs[element][1] for element in elements]),
            parts=tuple(zip(elements, slices, strict=True)),
        )

    def transposed(self) -> PairTable:
        """Inputs and outputs exchanged: the table of the inverse convolution, and of the gradient."""
        return PairTable(
            pairs=tuple((out_rows, in_rows) for in_rows, out_rows in self.pairs),
            num_in=self.num_out,
            num_out=self.num_in,
            identity=self.identity,
        )


@dataclass(frozen=True, kw_only=True)
class LevelTables:
    """What one resolution level of a U-Net needs."""

    subm: PairTable  # 3x3x3, submanifold: outputs are the inputs' own cells
    down: PairTable | None  # 2x2x2, stride 2, to the next level; None at the last one


def build_level_tables(
    coords: torch.Tensor, *, spatial_shape: Sequence[int], num_frames: int, num_levels: int
) -> list[LevelTables]:
    """Tables of all levels for voxels `coords` (V, 4) int [frame, z, y, x] in any order.

    Rows of level 0 are rows of `coords`; further levels have increasing cells. Raises ValueError where a voxel occurs
    twice. A grid of an odd size is as if it had one more cell: no voxel falls out at its end.
    """
    margin = 1 << (num_levels - 1)  # a neighbour outside the grid must have a key that no voxel has
    bits = key_bits([-(-size // margin) * margin + margin for size in spatial_shape], num_frames=num_frames)
    keys = pack_keys(coords.t().contiguous().unbind(), bits)
    order = None
    if not bool((keys[1:] > keys[:-1]).all()):  # voxelize leaves them sorted
        keys, order = sort_keys(keys)
        _check_no_repeats(keys, order)
    levels = []
    for level in range(num_levels):
        subm = submanifold_table(keys, bits, level=level)
        down = None
        if level < num_levels - 1:
            down, keys = downsample_table(keys, bits, level=level)
        levels.append(LevelTables(subm=subm, down=down))
    if order is not None:
        levels[0] = _renamed(levels[0], order)
    return levels


def submanifold_table(keys: torch.Tensor, bits: tuple[int, int, int], *, level: int) -> PairTable:
    """3x3x3 neighbours among the cells of increasing `keys`.

    One search finds the first of three x-neighbours; the other two can only be the next rows. Half of the rows of the
    kernel are searched: if b is the neighbour of a to the right, a is the neighbour of b to the left.
    """
    _, y_bits, x_bits = bits
    keys_and_end = torch.cat([keys, keys.new_full((1,), NO_KEY)])
    rows = torch.arange(len(keys))
    later = [_matching(keys_and_end, rows + 1, keys + (1 << level))]
    for dz, dy in LATER_ROWS:
        wanted = keys + (((dz << (y_bits + x_bits)) + (dy << x_bits) - 1) << level)
        candidates = torch.searchsorted(keys, wanted)
        for _ in range(3):
            in_rows, out_rows = _matching(keys_and_end, candidates, wanted)
            later.append((in_rows, out_rows))
            candidates[out_rows] += 1
            wanted += 1 << level
    earlier = [(out_rows, in_rows) for in_rows, out_rows in reversed(later)]
    return PairTable(pairs=(*earlier, (rows, rows), *later), num_in=len(keys), num_out=len(keys), identity=MIDDLE)


def downsample_table(keys: torch.Tensor, bits: tuple[int, int, int], *, level: int) -> tuple[PairTable, torch.Tensor]:
    """Each cell and the 2x2x2 block it lies in, and the increasing keys of the blocks."""
    _, y_bits, x_bits = bits
    shifts = [level, x_bits + level, y_bits + x_bits + level]  # of the bit that says which half, for x, y and z
    block_keys, block_rows, _ = unique_keys(keys & ~sum(1 << shift for shift in shifts))
    x, y, z = (keys >> shift & 1 for shift in shifts)
    elements = z * 4 + y * 2 + x
    pairs = []
    for element in range(8):
        rows = (elements == element).nonzero().squeeze(1)
        pairs.append((rows, block_rows.index_select(0, rows)))
    return PairTable(pairs=tuple(pairs), num_in=len(keys), num_out=len(block_keys)), block_keys


def sparse_conv(feats: torch.Tensor, weight: torch.Tensor, table: PairTable) -> torch.Tensor:
    """out[o] = sum over the pairs (i, o) of all kernel elements e of weight[:, e] @ feats[i].

    `feats` (num_in, C_in), `weight` (C_out, k, k, k, C_in) as spconv stores it; returns (num_out, C_out).
    Differentiable once in both.
    """
    out: torch.Tensor = _SparseConv.apply(feats, weight, table)
    return out


class _SparseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feats: torch.Tensor, weight: torch.Tensor, table: PairTable) -> torch.Tensor:
        ctx.save_for_backward(feats, weight)
        ctx.table = table
        kernel = weight.flatten(1, 3).unbind(1)  # k^3 matrices (C_out, C_in)
        if table.identity is None:
            out = feats.new_zeros(table.num_out, len(weight))
        else:
            out = feats @ kernel[table.identity].t()
        inputs, products = _buffer(table, feats), _buffer(table, out)
        for group in table.groups:
            num = len(group.in_rows)
            torch.index_select(feats, 0, group.in_rows, out=inputs[:num])
            for element, part in group.parts:
                torch.mm(inputs[part], kernel[element].t(), out=products[part])
            out.index_add_(0, group.out_rows, products[:num])
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        feats, weight = ctx.saved_tensors
        table: PairTable = ctx.table
        grad_feats, grad_weight = torch.zeros_like(feats), torch.zeros_like(weight)
        kernel, grad_kernel = weight.flatten(1, 3).unbind(1), grad_weight.flatten(1, 3).unbind(1)
        if table.identity is not None:
            torch.mm(grad_out, kernel[table.identity], out=grad_feats)
            torch.mm(grad_out.t(), feats, out=grad_kernel[table.identity])
        inputs, grads = _buffer(table, feats), _buffer(table, grad_out)
        for group in table.groups:
            num = len(group.in_rows)
            torch.index_select(feats, 0, group.in_rows, out=inputs[:num])
            torch.index_select(grad_out, 0, group.out_rows, out=grads[:num])
            for element, part in group.parts:
                torch.mm(grads[part].t(), inputs[part], out=grad_kernel[element])
                torch.mm(grads[part], kernel[element], out=inputs[part])
            grad_feats.index_add_(0, group.in_rows, inputs[:num])
        return grad_feats, grad_weight, None


def _buffer(table: PairTable, like: torch.Tensor) -> torch.Tensor:
    """Room for one group; a small buffer that stays in the cache is several times faster than one for all pairs."""
    return like.new_empty(table.largest_group, like.shape[1])


def _matching(keys: torch.Tensor, candidates: torch.Tensor, wanted: torch.Tensor) -> Pairs:
    """The candidate rows whose key is the wanted one, and where in the list they stand."""
    positions = (keys.index_select(0, candidates) == wanted).nonzero().squeeze(1)
    return candidates.index_select(0, positions), positions


def _renamed(level: LevelTables, order: torch.Tensor) -> LevelTables:
    """The same tables for voxels that stand in another order: row i becomes row order[i]."""
    subm = tuple((order[in_rows], order[out_rows]) for in_rows, out_rows in level.subm.pairs)
    if level.down is None:
        return LevelTables(subm=replace(level.subm, pairs=subm), down=None)
    down = tuple((order[in_rows], out_rows) for in_rows, out_rows in level.down.pairs)
    return LevelTables(subm=replace(level.subm, pairs=subm), down=replace(level.down, pairs=down))


def _check_no_repeats(sorted_keys: torch.Tensor, order: torch.Tensor) -> None:
    repeats = (sorted_keys[1:] == sorted_keys[:-1]).nonzero().squeeze(1)
    if len(repeats):
        first, second = order[repeats[0]].item(), order[repeats[0] + 1].item()
        raise ValueError(
            f"voxel_coords: expected each voxel once, but rows {first} and {second} are the same "
            "(average duplicates first, as voxelize does)"
        )
