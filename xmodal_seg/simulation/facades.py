# SPDX-License-Identifier: Apache-2.0
"""Windows of a facade by formula: which part of a wall is glass, frame or curtain. Camera and LiDAR share it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.simulation import noise
from xmodal_seg.simulation.buildings import FLOOR_M
from xmodal_seg.simulation.materials import Material
from xmodal_seg.simulation.scene import Hits, Scene

FRAME_M = 0.07


@dataclass(frozen=True, kw_only=True)
class Panes:
    """Where N points of a wall lie in its grid of windows."""

    glass: NDArray[np.bool_]  # (N,)
    frame: NDArray[np.bool_]  # (N,)
    window: NDArray[np.float32]  # (N,) a number in [0, 1) for each window
    rows: NDArray[np.float32]  # (N, 8) style of the facade, see library._catalogue


def panes(
    tex: NDArray[np.float32], style: NDArray[np.int32], instance: NDArray[np.int32], styles: NDArray[np.float32]
) -> Panes:
    """The windows at texture coordinates (N, 2) m along the wall and up."""
    rows = styles[style]
    across, up = tex[:, 0] / rows[:, 0], tex[:, 1] / np.float32(FLOOR_M)
    column, floor = np.floor(across), np.floor(up)
    across, up = across - column - np.float32(0.5), up - floor
    beside = np.abs(across) * rows[:, 0]  # m from the middle of the window
    above = (up - rows[:, 3]) * np.float32(FLOOR_M)
    half, high = rows[:, 1] * rows[:, 0] / 2, rows[:, 2] * np.float32(FLOOR_M)
    inside = (beside < half) & (above > 0) & (above < high) & (floor >= 0)
    edge = (beside > half - FRAME_M) | (above < FRAME_M) | (above > high - FRAME_M)
    bar = (beside < FRAME_M / 2) & (rows[:, 6] > 0)
    frame = inside & (edge | bar)
    window = noise.hashed(instance, column.astype(np.int32) + 100, floor.astype(np.int32))
    return Panes(glass=inside & ~frame, frame=frame, window=window, rows=rows)


def glass(
    scene: Scene, hits: Hits, met: NDArray[np.int64], material: NDArray[np.uint8], styles: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Which of the hits `met` (of `material`) lie on window panes of facades."""
    wall = np.flatnonzero(material == Material.FACADE)
    face, bary = hits.face[met[wall]], hits.bary[met[wall]]
    tex = interpolated(scene.look_up("tex", face), bary)
    found = panes(tex, scene.look_up("style", face), scene.look_up("instance", face), styles)
    return wall[found.glass]


def interpolated(corners: NDArray[np.float32], bary: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, 3, k) values at the corners, (N, 2) barycentric weights -> (N, k)."""
    u, v = bary[:, :1], bary[:, 1:]
    return (1 - u - v) * corners[:, 0] + u * corners[:, 1] + v * corners[:, 2]
