# SPDX-License-Identifier: Apache-2.0
"""From light to a JPEG: rain in the air, lens, automatic exposure, sensor noise, tone curve, compression."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from xmodal_seg.simulation import noise
from xmodal_seg.simulation.weather import Weather

MIDDLE_GREY = 0.19  # linear grey that full daylight is exposed to
DAY_LEVEL = 0.20  # mean light of a street by day
DARK_EXPONENT = 0.52  # how much darker than that a darker scene is shown: cameras run out of gain
MAX_GAIN = 60.0
BLOOM_LEVEL = 1.2
READ_NOISE = 1.6e-4  # light that equals the noise of an unlit pixel, one standard deviation
SHOT_NOISE = 3.0e-5  # variance per light
LUT_SIZE = 4096
STREAK_LENGTH_PX = 0.05  # of the image height


def exposure(radiance: NDArray[np.float32]) -> float:
    """Gain of the automatic exposure: brings the middle of the scene near MIDDLE_GREY, darker scenes less so."""
    luma = radiance[::7] @ np.array([0.25, 0.6, 0.15], np.float32)
    level = float(np.minimum(luma, 6 * np.median(luma) + 1e-9).mean()) + 1e-9
    target = MIDDLE_GREY * min(1.15, (level / DAY_LEVEL) ** DARK_EXPONENT)
    return min(target / level, MAX_GAIN)


def develop(
    radiance: NDArray[np.float32],
    image_size: tuple[int, int],
    *,
    weather: Weather,
    draw: np.random.Generator,
    gain: float | None = None,
) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB from linear light (H * W, 3); `gain` overrides the automatic exposure."""
    height, width = image_size
    image = radiance.reshape(height, width, 3)
    if weather.rain > 0:
        image = _streaked(image, weather, draw)
    image = np.asarray(cv2.GaussianBlur(image, (3, 3), 0.55), np.float32)  # lens and anti-aliasing
    gain = exposure(image.reshape(-1, 3)) if gain is None else gain
    image = _bloomed(image * np.float32(gain))
    image = _noisy(image, gain, draw)
    return _toned(image)


def _streaked(image: NDArray[np.float32], weather: Weather, draw: np.random.Generator) -> NDArray[np.float32]:
    """Falling drops blur into short bright lines of the colour of the surroundings."""
    height, width = image.shape[:2]
    number = int(min(0.006, 0.0002 * weather.rain**0.8) * height * width)
    mask = np.zeros((height, width), np.float32)
    x, y = draw.integers(0, width, number), draw.integers(0, height, number)
    mask[y, x] = draw.random(number, np.float32)
    length = max(3, int(STREAK_LENGTH_PX * height)) | 1
    kernel = np.zeros((length, length), np.float32)
    cv2.line(kernel, (length // 2 - 1, 0), (length // 2 + 1, length - 1), 1.0)
    mask = np.minimum(cv2.filter2D(mask, -1, kernel) * np.float32(0.55), 0.7)[..., None]
    around = cv2.resize(cv2.resize(image, (8, 6), interpolation=cv2.INTER_AREA), (width, height))
    return image * (1 - mask) + mask * around * np.float32(1.15)


def _bloomed(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Light scattered in the lens around what is too bright."""
    bright = np.minimum(image - np.float32(BLOOM_LEVEL), 25.0)
    if bright.max() <= 0:
        return image
    height, width = image.shape[:2]
    small = cv2.resize(np.maximum(bright, 0), (max(1, width // 4), max(1, height // 4)), interpolation=cv2.INTER_AREA)
    halo = 0.6 * cv2.GaussianBlur(small, (0, 0), 1.2) + 0.4 * cv2.GaussianBlur(small, (0, 0), max(2.0, height / 60))
    return image + np.float32(0.5) * cv2.resize(halo, (width, height))


def _noisy(image: NDArray[np.float32], gain: float, draw: np.random.Generator) -> NDArray[np.float32]:
    """Shot and read noise, larger the more the light had to be amplified."""
    read, shot = np.float32((gain * READ_NOISE) ** 2), np.float32(gain * SHOT_NOISE)
    deviation = np.sqrt(read + shot * image)
    grain = noise.gaussian(image.size, draw).reshape(image.shape)
    return image + deviation * grain


@lru_cache(maxsize=1)
def _tone_curve() -> NDArray[np.uint8]:
    """(LUT_SIZE,) linear light in [0, 2) -> sRGB with a soft shoulder."""
    x = np.arange(LUT_SIZE) * (2.0 / LUT_SIZE)
    x = np.where(x < 0.7, x, 0.7 + 0.3 * (1 - np.exp(-(x - 0.7) / 0.3)))
    encoded = np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)
    return np.round(255 * np.clip(encoded, 0, 1)).astype(np.uint8)


def _toned(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    level = np.clip(image * np.float32(LUT_SIZE / 2), 0, LUT_SIZE - 1).astype(np.int16)
    return _tone_curve()[level]


def encode(image: NDArray[np.uint8], quality: int) -> bytes:
    """JPEG of an (H, W, 3) RGB image."""
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return data.tobytes()


def decode(data: bytes) -> NDArray[np.uint8]:
    """(H, W, 3) RGB. Raises ValueError for bytes that are no image."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"expected a JPEG or PNG image, got {len(data)} bytes that are neither")
    return np.ascontiguousarray(image[..., ::-1])
