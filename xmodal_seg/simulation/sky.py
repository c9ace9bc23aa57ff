# SPDX-License-Identifier: Apache-2.0
"""What a ray that meets nothing sees: the sky, clouds, the sun, and a far skyline."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.simulation import noise
from xmodal_seg.simulation.light import Light

SKYLINE = 0.055  # height of the far hills and roofs, as the sine of their elevation


def radiance(directions: NDArray[np.float32], light: Light) -> NDArray[np.float32]:
    """(N, 3) light from each direction (N, 3), unit vectors."""
    up = np.clip(directions[:, 2], 0.0, 1.0)
    mean = light.sky_light()
    low = (1 - up) ** 4
    clear = low[:, None] * light.horizon().astype(np.float32) + (1 - low)[:, None] * light.zenith().astype(np.float32)
    cover = _clouds(directions, light.cloud)[:, None]
    white = np.float32(1.0) + np.float32(0.35) * up[:, None]
    colour = mean.mean() * ((1 - cover) * clear * np.float32(0.85) + cover * white)
    colour += _glow(directions, light)[:, None] * light.sun_light()
    return _with_skyline(colour, directions, light)


def _clouds(directions: NDArray[np.float32], cover: float) -> NDArray[np.float32]:
    """(N,) how much cloud lies in each direction."""
    if cover >= 0.95:
        return np.full(len(directions), 0.97, np.float32)
    flat = np.maximum(directions[:, 2], 0.0) + np.float32(0.12)
    x, y = directions[:, 0] / flat, directions[:, 1] / flat
    pattern = 0.6 * noise.at(x, y, 28.0) + 0.4 * noise.at(x + 3.1, y, 90.0)
    return np.clip((pattern + np.float32(2.0 * cover - 0.75)) * np.float32(1.6), 0, 1)


def _glow(directions: NDArray[np.float32], light: Light) -> NDArray[np.float32]:
    """(N,) the sun's disc and its halo, as multiples of its light."""
    towards = np.clip(directions @ light.sun_direction(), 0.0, 1.0)
    return np.float32(0.35) * towards**12 + np.where(towards > 0.9996, np.float32(30.0), np.float32(0.0))


def _with_skyline(colour: NDArray[np.float32], directions: NDArray[np.float32], light: Light) -> NDArray[np.float32]:
    azimuth = np.arctan2(directions[:, 1], directions[:, 0])
    height = SKYLINE * (
        0.55 + 0.35 * noise.at(azimuth, azimuth * 0, 60.0) + 0.25 * noise.at(azimuth, azimuth * 0 + 1, 9.0)
    )
    below = np.flatnonzero(directions[:, 2] < height)
    far = light.sky_light() * np.array([0.42, 0.46, 0.50], np.float32)
    colour[below] = far
    return colour
