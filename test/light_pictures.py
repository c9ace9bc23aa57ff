# SPDX-License-Identifier: Apache-2.0
"""Made pictures of day and night for the tests of the lighting estimate: a street in daylight, lamps in the dark."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def day_picture(seed: int = 0, *, size: tuple[int, int] = (181, 323)) -> NDArray[np.uint8]:
    """A bright, bluish sky over textured ground."""
    draw = np.random.default_rng(seed)
    height, width = size
    image = np.empty((height, width, 3))
    image[: height // 3] = (165, 190, 225)
    image[height // 3 :] = 110 + 22 * smooth_noise(draw, (height - height // 3, width))[..., None]
    return _photographed(image, draw, deviation=1.0)


def night_picture(seed: int = 0, *, size: tuple[int, int] = (181, 323)) -> NDArray[np.uint8]:
    """A dark, noisy field with a few warm lamps and a lit road below."""
    draw = np.random.default_rng(seed)
    height, width = size
    image = np.full((height, width, 3), 7.0)
    image[2 * height // 3 :] = (34, 27, 17)
    for _ in range(9):
        centre = int(draw.integers(width)), int(draw.integers(height // 4, 2 * height // 3))
        cv2.circle(image, centre, 2, (255, 225, 160), -1)
    return _photographed(image, draw, deviation=3.0)


def smooth_noise(draw: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float64]:
    noise = cv2.GaussianBlur(draw.standard_normal(size), (0, 0), 1.5)
    return np.asarray(noise / noise.std())


def _photographed(image: NDArray[np.float64], draw: np.random.Generator, *, deviation: float) -> NDArray[np.uint8]:
    return np.clip(image + draw.normal(0, deviation, image.shape), 0, 255).astype(np.uint8)
