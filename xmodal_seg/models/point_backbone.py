# SPDX-License-Identifier: Apache-2.0
"""The 3D network: SparseConvNet's U-Net on spconv; the only importer of spconv.

Weights are those of spconv modules, (C_out, k, k, k, C_in) on every device, so one state dict serves everywhere.
On a GPU spconv convolves (implicit GEMM; it takes 64-bit keys by itself where 32 bits do not do). On a CPU its keys
have 32 bits, too few for a real sweep, and `neighbour_tables` convolves with the same weights.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, Protocol

import torch
from torch import nn

from xmodal_seg.config import PointBackboneSettings
from xmodal_seg.models.neighbour_tables import build_level_tables, sparse_conv

Kind = Literal["subm", "down", "up"]  # 3x3x3 within a level; 2x2x2 from level to level + 1; back from level + 1


class Grid(Protocol):
    """The voxels of one batch at all levels, and a way to convolve over them."""

    def convolve(self, conv: Any, kind: Kind, level: int, feats: torch.Tensor) -> torch.Tensor:
        """Features on the output voxels of the spconv module `conv`, given those on its input voxels."""
        ...


class PointBackbone(nn.Module):
    """U-Net over voxels: 3x3x3 submanifold convolutions, 2x2x2 ones down and up, batch norm and ReLU before each.

    Level i has (i + 1) * base_channels channels. With the default settings it is xMUDA's `scn_unet`, that is
    SparseConvNet's UNet without residual blocks: 2,688,656 parameters in 78 tensors. Always in float32, autocast or
    not: spconv would take float16 whatever autocast asks for.

    Raises ImportError when spconv is not installed.
    """

    def __init__(self, *, settings: PointBackboneSettings) -> None:
        super().__init__()
        spconv = _import_spconv()
        widths = [settings.base_channels * (level + 1) for level in range(settings.num_levels)]
        self.in_channels = settings.in_channels
        self.out_channels = settings.base_channels
        self.num_levels = settings.num_levels

        def subm(level: int, num_channels: int) -> nn.Module:
            conv = spconv.SubMConv3d(num_channels, widths[level], 3, padding=1, bias=False, indice_key=f"subm{level}")
            return NormReluConv(conv, kind="subm", num_channels=num_channels, settings=settings)

        def block(level: int, num_channels: int) -> nn.ModuleList:
            repeats = [subm(level, widths[level]) for _ in range(settings.block_reps - 1)]
            return nn.ModuleList([subm(level, num_channels), *repeats])

        def down(level: int) -> nn.Module:
            conv = spconv.SparseConv3d(widths[level], widths[level + 1], 2, 2, bias=False, indice_key=f"down{level}")
            return NormReluConv(conv, kind="down", num_channels=widths[level], settings=settings)

        def up(level: int) -> nn.Module:
            conv = spconv.SparseInverseConv3d(
                widths[level + 1], widths[level], 2, bias=False, indice_key=f"down{level}"
            )
            return NormReluConv(conv, kind="up", num_channels=widths[level + 1], settings=settings)

        steps = range(settings.num_levels - 1)
        self.stem = spconv.SubMConv3d(self.in_channels, widths[0], 3, padding=1, bias=False, indice_key="subm0")
        self.encoder = nn.ModuleList(block(level, width) for level, width in enumerate(widths))
        self.down = nn.ModuleList(down(level) for level in steps)
        self.up = nn.ModuleList(up(level) for level in steps)
        self.decoder = nn.ModuleList(block(level, 2 * widths[level]) for level in steps)
        self.norm = _norm(widths[0], settings)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """SparseConvNet's initialisation: normal(0, sqrt(2 / (C_in * k^3))); spconv's own is 0.41 times as wide."""
        for name, parameter in self.named_parameters():
            if name.endswith("conv.weight") or name == "stem.weight":
                nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.reset_parameters()

    def forward(
        self,
        voxel_coords: torch.Tensor,
        voxel_feats: torch.Tensor,
        *,
        spatial_shape: tuple[int, int, int],
        num_frames: int,
    ) -> torch.Tensor:
        """Features (V, out_channels) float32 of the voxels.

        `voxel_coords` (V, 4) int32 contiguous [frame, z, y, x], in any order; `voxel_feats` (V, in_channels);
        `spatial_shape` (z, y, x) cells hold every voxel. V = 0 gives no rows. Raises ValueError for coordinates of
        another type or layout (spconv reads their raw memory), outside the grid, or twice the same (on a CPU; spconv
        does not notice).
        """
        _check(voxel_coords, voxel_feats, in_channels=self.in_channels)
        if len(voxel_coords) == 0:
            return voxel_feats.new_zeros(0, self.out_channels, dtype=torch.float32)
        _check_inside(voxel_coords, (num_frames, *spatial_shape))
        grid_class = TableGrid if voxel_coords.device.type == "cpu" else SpconvGrid
        grid = grid_class(voxel_coords, spatial_shape=spatial_shape, num_frames=num_frames, num_levels=self.num_levels)
        return self.run(grid, voxel_feats)

    def run(self, grid: Grid, voxel_feats: torch.Tensor) -> torch.Tensor:
        """The network over a given grid."""
        # spconv launches on the current device, whatever its tensors are on.
        with torch.cuda.device_of(voxel_feats), torch.autocast(device_type=voxel_feats.device.type, enabled=False):
            feats = grid.convolve(self.stem, "subm", 0, voxel_feats.float())
            skips = []
            for level in range(self.num_levels):
                feats = _run_block(self.encoder[level], grid, level, feats)
                if level < self.num_levels - 1:
                    skips.append(feats)
                    feats = self.down[level](grid, level, feats)
            for level in reversed(range(self.num_levels - 1)):
                feats = self.up[level](grid, level, feats)
                feats = _run_block(self.decoder[level], grid, level, torch.cat([skips.pop(), feats], dim=1))
            return torch.relu_(self.norm(feats))


class NormReluConv(nn.Module):
    """Batch norm, ReLU and a sparse convolution."""

    def __init__(self, conv: nn.Module, *, kind: Kind, num_channels: int, settings: PointBackboneSettings) -> None:
        super().__init__()
        self.kind = kind
        self.norm = _norm(num_channels, settings)
        self.conv = conv

    def forward(self, grid: Grid, level: int, feats: torch.Tensor) -> torch.Tensor:
        return grid.convolve(self.conv, self.kind, level, torch.relu_(self.norm(feats)))


class TableGrid:
    """The grid of a CPU: our own 64-bit neighbour tables."""

    def __init__(
        self, coords: torch.Tensor, *, spatial_shape: tuple[int, int, int], num_frames: int, num_levels: int
    ) -> None:
        self._levels = build_level_tables(
            coords, spatial_shape=spatial_shape, num_frames=num_frames, num_levels=num_levels
        )

    def convolve(self, conv: Any, kind: Kind, level: int, feats: torch.Tensor) -> torch.Tensor:
        table = self._levels[level].subm if kind == "subm" else self._levels[level].down
        assert table is not None, "the last level has no way down"
        return sparse_conv(feats, conv.weight, table.transposed() if kind == "up" else table)


class SpconvGrid:
    """The grid of a GPU: spconv's own tables, one tensor for each level reached so far."""

    def __init__(
        self, coords: torch.Tensor, *, spatial_shape: tuple[int, int, int], num_frames: int, num_levels: int
    ) -> None:
        spconv = _import_spconv()
        # A strided convolution of spconv drops the last cell of an odd axis; SparseConvNet's cubes are powers of two.
        multiple = 1 << (num_levels - 1)
        shape = [-(-size // multiple) * multiple for size in spatial_shape]
        self._tensors = {0: spconv.SparseConvTensor(coords.new_zeros(len(coords), 0), coords, shape, num_frames)}

    def convolve(self, conv: Any, kind: Kind, level: int, feats: torch.Tensor) -> torch.Tensor:
        source, target = level + (kind == "up"), level + (kind == "down")
        # In eval mode spconv's implicit GEMM forgets the graph, and adaptation trains with frozen batch norms.
        conv.train(torch.is_grad_enabled())
        self._tensors[target] = conv(self._tensors[source].replace_feature(feats))
        return self._tensors[target].features


def _run_block(block: nn.Module, grid: Grid, level: int, feats: torch.Tensor) -> torch.Tensor:
    assert isinstance(block, nn.ModuleList)
    for layer in block:
        feats = layer(grid, level, feats)
    return feats


def _norm(num_channels: int, settings: PointBackboneSettings) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(num_channels, eps=settings.bn_eps, momentum=settings.bn_momentum)


def _import_spconv() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its decorators are of an older torch
            import spconv.pytorch as spconv
    except ImportError as error:
        raise ImportError(
            "the 3D network needs spconv: pip install spconv-cu120 (Python 3.10 and 3.11) or spconv-cu126 (Python 3.12 "
            "and newer), on a machine without a GPU as well; on ARM build it from source, see docs/ros_installation.md "
            f"({error})"
        ) from error
    return spconv


def _check(coords: torch.Tensor, feats: torch.Tensor, *, in_channels: int) -> None:
    if coords.ndim != 2 or coords.shape[1] != 4 or coords.dtype != torch.int32 or not coords.is_contiguous():
        layout = "contiguous" if coords.is_contiguous() else "not contiguous"
        raise ValueError(
            f"voxel_coords: expected contiguous (V, 4) int32, got {layout} {tuple(coords.shape)} {coords.dtype}"
        )
    if feats.shape != (len(coords), in_channels):
        raise ValueError(f"voxel_feats: expected ({len(coords)}, {in_channels}), got {tuple(feats.shape)}")
    if feats.device != coords.device:
        raise ValueError(f"voxel_feats: expected on {coords.device} as voxel_coords, got on {feats.device}")


def _check_inside(coords: torch.Tensor, sizes: tuple[int, int, int, int]) -> None:
    columns = coords.t().contiguous()  # reductions over rows of four are slow
    lowest, highest = columns.amin(dim=1).tolist(), columns.amax(dim=1).tolist()
    if min(lowest) < 0 or any(high >= size for high, size in zip(highest, sizes, strict=True)):
        raise ValueError(f"voxel_coords: expected [frame, z, y, x] within {list(sizes)}, got {lowest} to {highest}")
