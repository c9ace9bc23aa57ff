# SPDX-License-Identifier: Apache-2.0
"""Photometric features of an image that tell night from day, whatever camera took it.

An automatic exposure brings night pictures near the brightness of day ones, so most features do not ask how bright a
picture is but how its light is spread: by night it comes from small lamps in a dark, noisy, colourless field; by day
from large surfaces and the sky. The image is strided, never area-resampled, so that a decoded 1600x900 picture costs
about a millisecond.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

FEATURES = (
    "level_p10",  # log2 of linear luminance that 10 % of the pixels stay below
    "level_p50",
    "level_p90",
    "dark_share",  # of pixels with luminance below 0.02
    "bright_share",  # of pixels with luminance above 0.2
    "saturated_share",  # square root
    "lamp_ratio",  # log2 of the peak (PEAK_SHARE) over the median
    "coverage",  # log2 of the mean over the peak: 0 where all is equally bright
    "bright_area",  # log2 of what the brightest tenth of the blocks has as mean luminance
    "dark_area",  # log2 of what the darkest tenth of the blocks has as mean luminance
    "lamp_extent",  # log2 of mean over peak in the blocks that hold the brightest pixels: low for lamps, 0 for a sky
    "detail_share",  # of blocks with structure
    "dark_detail",  # of the darker half of the blocks, those with structure
    "noise",  # log2 of the Laplacian in flat dark blocks
    "chroma",  # mean difference of the largest and smallest channel, over the level
    "warmth",  # red minus blue of the brightest tenth, over their level
    "sky_ratio",  # log2 of the mean luminance of the upper third over that of the lower third
)
TARGET_HEIGHT = 160  # px after striding, at most
BLOCK = 8  # px of the strided image
MIN_SIZE = 16  # px
PEAK_SHARE = 0.998  # the lamps of a dark street fill no more than a few thousandths of its picture
DARK_LEVEL, BRIGHT_LEVEL, SATURATED_LEVEL = 0.02, 0.20, 0.955  # linear luminance
LEVEL_FLOOR = 2.0**-11
DETAIL = 2.5  # standard deviation of a block with structure, of 255
FLAT = 6.0  # largest standard deviation of a block in which noise is measured, of 255


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What is measured in one image."""

    features: NDArray[np.float64]  # (F,) in the order of FEATURES
    mean_level: float  # linear luminance, 0 to 1
    peak_level: float  # the PEAK_SHARE percentile of it
    saturated_share: float
    detail_share: float
    sharpness: float  # 90th percentile of the blocks' standard deviation, of 255
    fingerprint: int  # equal for equal pictures


def image_facts(image: NDArray[np.uint8]) -> ImageFacts:
    """Measure an (H, W, 3) uint8 RGB image of any size from MIN_SIZE px on. Raises ValueError for anything else."""
    small = strided(image)
    grey = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)
    shares = cv2.calcHist([grey], [0], None, [256], [0, 256]).ravel().astype(np.float64) / grey.size
    levels = _Levels(shares)
    blocks = _Blocks(grey)
    features = np.array(
        [
            *(_log(levels.percentile(share)) for share in (0.10, 0.50, 0.90)),
            levels.share_below(DARK_LEVEL),
            1.0 - levels.share_below(BRIGHT_LEVEL),
            np.sqrt(max(0.0, 1.0 - levels.share_below(SATURATED_LEVEL))),
            _log(levels.percentile(PEAK_SHARE)) - _log(levels.percentile(0.50)),
            _log(levels.mean) - _log(levels.percentile(PEAK_SHARE)),
            *(_log(float(level)) for level in np.quantile(blocks.level, (0.9, 0.1))),
            blocks.lamp_extent(levels.percentile(PEAK_SHARE)),
            blocks.detail_share,
            blocks.dark_detail,
            np.log2(blocks.noise + 0.1),
            *_colour(small),
            blocks.sky_ratio,
        ]
    )
    return ImageFacts(
        features=features,
        mean_level=levels.mean,
        peak_level=levels.percentile(PEAK_SHARE),
        saturated_share=max(0.0, 1.0 - levels.share_below(SATURATED_LEVEL)),
        detail_share=blocks.detail_share,
        sharpness=float(np.quantile(blocks.deviation, 0.9)),
        fingerprint=hash(grey.tobytes()),
    )


def strided(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Every n-th row and column, so that at most TARGET_HEIGHT rows are left; (h, w, 3)."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < MIN_SIZE:
        raise ValueError(
            f"image: expected (H, W, 3) uint8 RGB with H, W >= {MIN_SIZE}, got {image.shape} {image.dtype}"
        )
    step = -(-image.shape[0] // TARGET_HEIGHT)
    step = max(1, min(step, image.shape[1] // MIN_SIZE))
    return np.ascontiguousarray(image[step // 2 :: step, step // 2 :: step])


class _Levels:
    """Percentiles and shares of linear luminance from a histogram of grey values."""

    def __init__(self, shares: NDArray[np.float64]) -> None:
        self._cumulative = np.cumsum(shares)
        self.mean = float(shares @ linear_light())

    def percentile(self, share: float) -> float:
        return float(linear_light()[min(255, int(np.searchsorted(self._cumulative, share)))])

    def share_below(self, level: float) -> float:
        grey = int(np.searchsorted(linear_light(), level))
        return float(self._cumulative[grey - 1]) if grey > 0 else 0.0


class _Blocks:
    """Level, structure and noise of blocks of BLOCK px."""

    def __init__(self, grey: NDArray[np.uint8]) -> None:
        rows, columns = grey.shape[0] // BLOCK, grey.shape[1] // BLOCK
        size = (columns, rows)
        values = grey.astype(np.float32)
        mean = cv2.resize(values, size, interpolation=cv2.INTER_AREA)
        square = cv2.resize(values * values, size, interpolation=cv2.INTER_AREA)
        self.deviation = np.sqrt(np.maximum(square - mean * mean, 0.0))
        self.level = linear_light()[np.clip(mean, 0, 255).astype(np.uint8)]  # of mean grey, not mean of level
        structured = self.deviation > DETAIL
        darker = mean <= np.median(mean)
        self.detail_share = float(structured.mean())
        self.dark_detail = float(structured[darker].mean())
        rough = cv2.resize(np.abs(cv2.Laplacian(values, cv2.CV_32F)), size, interpolation=cv2.INTER_AREA)
        flat_dark = darker & (self.deviation < FLAT)
        self.noise = float(np.median(rough[flat_dark])) if flat_dark.any() else float(rough.min())
        whole = grey[: rows * BLOCK, : columns * BLOCK]
        tallest = whole.reshape(rows, BLOCK, columns * BLOCK).max(axis=1)  # long axis last: five times faster
        self._peak = linear_light()[tallest.reshape(rows, columns, BLOCK).max(axis=2)]
        third = max(1, rows // 3)
        self.sky_ratio = _log(float(self.level[:third].mean())) - _log(float(self.level[-third:].mean()))

    def lamp_extent(self, bright: float) -> float:
        """Mean level over peak of the blocks whose peak reaches `bright`."""
        shown = self._peak >= min(bright, float(self._peak.max()))
        return float(np.mean(np.log2(self.level[shown] + LEVEL_FLOOR) - np.log2(self._peak[shown] + LEVEL_FLOOR)))


def _colour(small: NDArray[np.uint8]) -> tuple[float, float]:
    """Chroma of all pixels and warmth of the brightest tenth, from every second pixel of every second row."""
    red, green, blue = (np.ascontiguousarray(small[::2, ::2, i]).ravel().astype(np.float32) for i in range(3))
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    chroma = float(((high - low) / (high + 24.0)).mean())
    brightest = high >= np.partition(high, high.size * 9 // 10)[high.size * 9 // 10]
    red_level, blue_level = float(red[brightest].mean()), float(blue[brightest].mean())
    return chroma, (red_level - blue_level) / (float(high[brightest].mean()) + 24.0)


@lru_cache(maxsize=1)
def linear_light() -> NDArray[np.float64]:
    """(256,) linear light of sRGB values (IEC 61966-2-1)."""
    encoded = np.arange(256) / 255.0
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def _log(level: float) -> float:
    return float(np.log2(level + LEVEL_FLOOR))
