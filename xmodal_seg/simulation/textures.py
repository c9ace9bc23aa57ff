# SPDX-License-Identifier: Apache-2.0
"""Procedural texture: turns the flat colour of each hit into what the material looks like there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.simulation import facades, noise
from xmodal_seg.simulation.materials import Material

WARM_WINDOW = np.array([1.0, 0.74, 0.42], np.float32)
COOL_WINDOW = np.array([0.85, 0.92, 1.0], np.float32)
WINDOW_GLOW = 0.035  # radiance of a lit window; a street lamp on the road gives about 0.01


@dataclass(frozen=True, kw_only=True)
class Patch:
    """N hits of one material."""

    albedo: NDArray[np.float32]  # (N, 3), changed in place
    tex: NDArray[np.float32]  # (N, 2) m
    point: NDArray[np.float32]  # (N, 3) m
    distance: NDArray[np.float32]  # (N,) m from the camera
    instance: NDArray[np.int32]  # (N,)
    style: NDArray[np.int32]  # (N,)
    facade_styles: NDArray[np.float32]
    contrast: float
    texel: float  # m that a pixel covers at 1 m

    def detail(self, size: float) -> NDArray[np.float32]:
        """(N,) 1 where detail of `size` m is larger than a pixel, fading to 0 where it is not."""
        return np.float32(size) / (np.float32(size) + self.distance * np.float32(self.texel))

    def scale(self, factor: NDArray[np.float32]) -> None:
        np.multiply(self.albedo, factor[:, None], out=self.albedo)


def _asphalt(p: Patch) -> None:
    u, v = p.tex[:, 0], p.tex[:, 1]
    fine = noise.at(u, v, 45.0) * p.detail(0.03)
    stains = noise.at(u * np.float32(0.35), v, 9.0)
    patches = noise.at(u, v, 1.7)
    c = np.float32(p.contrast)
    p.scale(1 + c * (np.float32(0.30) * fine + np.float32(0.10) * stains + np.float32(0.12) * patches))


def _paving(p: Patch) -> None:
    u, v = p.tex[:, 0] * np.float32(1.6), p.tex[:, 1] * np.float32(1.6)
    row, column = np.floor(u), np.floor(v)
    joint = (np.minimum(u - row, v - column) < 0.06) * p.detail(0.04)
    tint = noise.hashed(row.astype(np.int32), column.astype(np.int32)) - np.float32(0.5)
    fine = noise.at(p.tex[:, 0], p.tex[:, 1], 30.0) * p.detail(0.04)
    c = np.float32(p.contrast)
    p.scale((1 + c * (np.float32(0.16) * tint + np.float32(0.14) * fine)) * (1 - np.float32(0.45) * joint))


def _grass(p: Patch) -> None:
    u, v = p.tex[:, 0], p.tex[:, 1]
    blades = noise.at(u, v, 60.0) * p.detail(0.03)
    tufts = noise.at(u, v, 7.0)
    dry = np.clip(noise.at(u, v, 1.3) + np.float32(0.15), 0, 1)[:, None]
    c = np.float32(p.contrast)
    p.scale(1 + c * (np.float32(0.45) * blades + np.float32(0.28) * tufts))
    p.albedo[:] = p.albedo * (1 - np.float32(0.5) * dry) + dry * np.array([0.10, 0.075, 0.035], np.float32)


def _rough(p: Patch) -> None:
    """Soil, concrete, bark, plain paint: some stains."""
    u, v = p.tex[:, 0], p.tex[:, 1]
    c = np.float32(p.contrast)
    p.scale(1 + c * (np.float32(0.10) * noise.at(u, v, 6.0) + np.float32(0.15) * noise.at(u, v, 40.0) * p.detail(0.04)))


def _brick(p: Patch) -> None:
    _bricks(p, np.arange(len(p.tex)))


def _bricks(p: Patch, at: NDArray[np.int64]) -> None:
    row = np.floor(p.tex[at, 1] / np.float32(0.12))
    along = p.tex[at, 0] / np.float32(0.32) + np.float32(0.5) * (row % 2)
    column = np.floor(along)
    joint = ((along - column < 0.07) | (p.tex[at, 1] / np.float32(0.12) - row < 0.16)) * p.detail(0.03)[at]
    tint = noise.hashed(row.astype(np.int32), column.astype(np.int32)) - np.float32(0.5)
    factor = 1 + np.float32(p.contrast) * np.float32(0.35) * tint * p.detail(0.12)[at]
    p.albedo[at] = p.albedo[at] * factor[:, None] * (1 - joint[:, None]) + np.float32(0.32) * joint[:, None]


def _roof(p: Patch) -> None:
    rows = p.tex[:, 1] / np.float32(0.35)
    shade = (rows - np.floor(rows)) * p.detail(0.15)
    p.scale(np.float32(1.1) - np.float32(0.35) * shade)


def _leaves(p: Patch) -> None:
    u, v = p.point[:, 0] + np.float32(0.7) * p.point[:, 2], p.point[:, 1] - np.float32(0.6) * p.point[:, 2]
    clumps, single = noise.at(u, v, 8.0) * p.detail(0.2), noise.at(u, v, 40.0) * p.detail(0.05)
    p.scale(np.maximum(1 + np.float32(0.75) * clumps + np.float32(0.35) * single, 0.15))


def _shade(p: Patch) -> None:
    """Dark in the middle, the plain ground at the rim."""
    rim = np.maximum(np.abs(p.tex[:, 0]), np.abs(p.tex[:, 1])) ** 2
    _asphalt(p)
    p.scale(np.float32(0.30) + np.float32(0.70) * np.clip(rim, 0, 1))


def _facade(p: Patch) -> None:
    found = facades.panes(p.tex, p.style, p.instance, p.facade_styles)
    wall = ~(found.glass | found.frame)
    bricks = np.flatnonzero(wall & (found.rows[:, 4] == 1))
    if len(bricks):
        _bricks(p, bricks)
    panels = np.flatnonzero(wall & (found.rows[:, 4] == 2))
    seam = (p.tex[panels, 1] % np.float32(3.1) < 0.06) * p.detail(0.05)[panels]
    p.albedo[panels] *= (1 - np.float32(0.4) * seam)[:, None]
    stains = 1 + np.float32(0.09 * p.contrast) * noise.at(p.tex[:, 0], p.tex[:, 1] * np.float32(0.4), 5.0)
    p.albedo[wall] *= stains[wall][:, None]
    p.albedo[found.frame] = found.rows[found.frame, 5][:, None]
    curtain = found.glass & (found.window < found.rows[:, 7])
    p.albedo[found.glass] = np.float32(0.025)
    p.albedo[curtain] = (0.16 + 0.2 * found.window[curtain])[:, None]


_TEXTURES: dict[Material, Callable[[Patch], None]] = {
    Material.ASPHALT: _asphalt,
    Material.MARKING: _rough,
    Material.PAVING: _paving,
    Material.CONCRETE: _rough,
    Material.GRASS: _grass,
    Material.SOIL: _rough,
    Material.FACADE: _facade,
    Material.BRICK: _brick,
    Material.ROOF: _roof,
    Material.LEAVES: _leaves,
    Material.BARK: _rough,
    Material.SHADE: _shade,
}


def groups(material: NDArray[np.uint8]) -> dict[Material, NDArray[np.int64]]:
    """Indices of the hits of each material that occurs."""
    order = np.argsort(material, kind="stable")
    bounds = np.searchsorted(material[order], np.arange(len(Material) + 1))
    return {m: order[bounds[m] : bounds[m + 1]] for m in Material if bounds[m + 1] > bounds[m]}


def textured(
    albedo: NDArray[np.float32],
    by_material: dict[Material, NDArray[np.int64]],
    *,
    tex: NDArray[np.float32],
    point: NDArray[np.float32],
    distance: NDArray[np.float32],
    instance: NDArray[np.int32],
    style: NDArray[np.int32],
    facade_styles: NDArray[np.float32],
    contrast: float,
    texel: float,
) -> NDArray[np.float32]:
    """(N, 3) reflectance with texture."""
    result = albedo.copy()
    for material, at in by_material.items():
        if material in _TEXTURES:
            patch = Patch(
                albedo=albedo[at],
                tex=tex[at],
                point=point[at],
                distance=distance[at],
                instance=instance[at],
                style=style[at],
                facade_styles=facade_styles,
                contrast=contrast,
                texel=texel,
            )
            _TEXTURES[material](patch)
            result[at] = patch.albedo
    return np.clip(result, 0.0, 1.0, out=result)
