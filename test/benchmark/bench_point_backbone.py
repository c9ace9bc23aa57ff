# SPDX-License-Identifier: Apache-2.0
"""The 3D network on a CPU, with our neighbour tables beside spconv's: `python test/benchmark/bench_point_backbone.py`.

Synthetic sweeps, and real ones where XMODAL_SEG_DATA names them; spconv is left out where its 32-bit keys overflow.
Default network (2.7 million parameters), voxels of 5 cm. Every number is the best of several wall times in ms; ours and
spconv's alternate, so that both see the same machine. Each number of threads has a process of its own, since spconv and
torch read it once; on a busy machine two threads wait for each other, and only one thread gives steady numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from xmodal_seg.config import PointBackboneSettings
from xmodal_seg.models.point_backbone import PointBackbone, SpconvGrid, TableGrid
from xmodal_seg.voxels import voxelize

VOXEL_SIZE_M = 0.05
SPCONV_BOUND = 2**31


def run(*, repeats: int = 5) -> list[dict[str, Any]]:
    """One row per cloud, with the number of threads that this process has."""
    backbone = PointBackbone(settings=PointBackboneSettings()).eval()
    use_native(backbone)
    return [measure(backbone, name, points, repeats=repeats) for name, points in clouds().items()]


def measure(backbone: PointBackbone, name: str, points: torch.Tensor, *, repeats: int) -> dict[str, Any]:
    """Best times in ms; spconv's columns are NaN for a sweep beyond its bound."""
    zeros, ones = torch.zeros(len(points), dtype=torch.int64), torch.ones(len(points), 1)
    make_voxels = partial(voxelize, points, zeros, ones, voxel_size=VOXEL_SIZE_M, max_cells=4096)
    voxels = make_voxels()
    sizes: dict[str, Any] = {"spatial_shape": voxels.spatial_shape, "num_frames": 1, "num_levels": backbone.num_levels}

    def forward(grid: type[TableGrid] | type[SpconvGrid]) -> torch.Tensor:
        return backbone.run(grid(voxels.coords, **sizes), voxels.feats)

    def train_step(grid: type[TableGrid] | type[SpconvGrid]) -> None:
        backbone.zero_grad()
        forward(grid).square().mean().backward()

    grids: list[type[TableGrid] | type[SpconvGrid]] = [TableGrid]
    cells = float(np.prod(voxels.spatial_shape, dtype=np.float64))
    if cells < SPCONV_BOUND:
        grids.append(SpconvGrid)
    with torch.no_grad():
        check_same(*(forward(grid) for grid in grids))
        (voxelise_ms,) = best_ms([make_voxels], repeats=3 * repeats)
        (tables_ms,) = best_ms([lambda: TableGrid(voxels.coords, **sizes)], repeats=repeats)
        forward_ms = best_ms([partial(forward, grid) for grid in grids], repeats=repeats)
    backbone.train()
    train_ms = best_ms([partial(train_step, grid) for grid in grids], repeats=max(repeats // 2, 1))
    backbone.eval()
    return {
        "cloud": name,
        "points": len(points),
        "voxels": len(voxels.coords),
        "cells / 2^31": cells / SPCONV_BOUND,
        "threads": torch.get_num_threads(),
        "voxelise": voxelise_ms,
        "tables": tables_ms,
        **beside_spconv("forward", forward_ms),
        **beside_spconv("train step", train_ms),
    }


def beside_spconv(name: str, times_ms: list[float]) -> dict[str, float]:
    """Our time (tables included), spconv's, and spconv's as a multiple of ours."""
    ours, spconv = times_ms[0], times_ms[1] if len(times_ms) > 1 else float("nan")
    return {name: ours, f"{name} spconv": spconv, f"{name} ratio": spconv / ours}


def best_ms(functions: list[Callable[[], Any]], *, repeats: int) -> list[float]:
    """The shortest time of each function; they take turns."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for function, mine in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if repeat > 0:  # the first turn warms up
                mine.append((time.perf_counter() - start) * 1e3)
    return [min(mine) for mine in times]


def check_same(ours: torch.Tensor, spconvs: torch.Tensor | None = None) -> None:
    """A time means nothing where the results differ."""
    if spconvs is not None:
        torch.testing.assert_close(ours, spconvs, rtol=1e-3, atol=1e-4)


def use_native(backbone: PointBackbone) -> None:
    """spconv's only algorithm for a CPU."""
    from spconv.core import ConvAlgo

    for module in backbone.modules():
        if hasattr(module, "algo"):
            module.algo = ConvAlgo.Native


def clouds() -> dict[str, torch.Tensor]:
    """(P, 3) m each, by name."""
    found = {
        "synthetic 5k": ring_cloud(num_beams=16, num_columns=312),
        "synthetic 120k": ring_cloud(num_beams=64, num_columns=1875),
    }
    folder = os.environ.get("XMODAL_SEG_DATA")
    if folder:
        nuscenes = read_points(next(Path(folder, "nuscenes_sample").glob("*LIDAR_TOP*.bin")), num_columns=5)
        found["nuScenes"] = nuscenes
        found["nuScenes < 60 m"] = nuscenes[nuscenes[:, :2].norm(dim=1) < 60]
        found["KITTI"] = read_points(next(Path(folder, "kitti_object").rglob("*.bin")), num_columns=4)
    return found


def read_points(path: Path, *, num_columns: int) -> torch.Tensor:
    return torch.from_numpy(np.fromfile(path, np.float32).reshape(-1, num_columns)[:, :3].copy())


def ring_cloud(*, num_beams: int, num_columns: int, height_m: float = 1.8) -> torch.Tensor:
    """A spinning LiDAR between the walls of a street 24 m wide and 80 m long, with 2 cm of noise."""
    generator = torch.Generator().manual_seed(0)
    down = torch.linspace(-0.05, 0.43, num_beams)[:, None]  # rad below the horizon
    azimuth = torch.linspace(-torch.pi, torch.pi, num_columns + 1)[:-1]
    to_walls = torch.minimum(40 / azimuth.cos().abs(), 12 / azimuth.sin().abs())  # m on the ground
    to_ground = torch.where(down > 0, height_m / down.clamp_min(1e-6).tan(), torch.inf)
    distance = torch.minimum(to_walls, to_ground) + 0.02 * torch.randn(num_beams, num_columns, generator=generator)
    points = torch.stack([distance * azimuth.cos(), distance * azimuth.sin(), -distance * down.tan()], dim=-1)
    return points.reshape(-1, 3).contiguous()


def print_rows(rows: list[dict[str, Any]]) -> None:
    table = Table(title="3D network on a CPU, ms")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "cloud" else "right")
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=200).print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="measure in this process and print JSON")
    arguments = parser.parse_args(argv)
    if arguments.json:
        print(json.dumps(run(repeats=arguments.repeats)))
        return 0
    rows: list[dict[str, Any]] = []
    for threads in arguments.threads:
        command = [sys.executable, __file__, "--json", "--repeats", str(arguments.repeats)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        rows += json.loads(result.stdout.splitlines()[-1])
    print_rows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
