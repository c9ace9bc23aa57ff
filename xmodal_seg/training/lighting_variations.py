# SPDX-License-Identifier: Apache-2.0
"""A picture as other cameras would have sent it, and as a broken one would."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from xmodal_seg.simulation import imaging
from xmodal_seg.simulation.dice import Dice

FAILURES = ("black", "over-exposed", "blocked")
HEIGHTS = (96, 144, 160, 240, 300)


def varied(image: NDArray[np.uint8], dice: Dice, draw: np.random.Generator) -> NDArray[np.uint8]:
    """Another part, size, tone, colour, noise, captions and compression; nothing that changes the hour of the day."""
    image = _resized(_cropped(image, dice), dice)
    values = _recoloured(_retoned(image.astype(np.float32) / 255.0, dice), dice)
    if dice.chance(0.25):
        values = np.asarray(cv2.GaussianBlur(values, (0, 0), dice.uniform(0.5, 1.6)), np.float32)
    elif dice.chance(0.4):  # sharpening, and the fine texture that simulated surfaces lack
        grain = draw.standard_normal((*values.shape[:2], 1), np.float32)
        speckle = 1 + np.float32(dice.uniform(0.0, 0.25)) * grain
        smooth = np.asarray(cv2.GaussianBlur(values, (0, 0), 1.5), np.float32)
        values = (values + np.float32(dice.uniform(0.3, 1.5)) * (values - smooth)) * speckle
    if dice.chance(0.3):
        values = values + np.float32(dice.uniform(0.003, 0.03)) * draw.standard_normal(values.shape, np.float32)
    out = np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)
    if dice.chance(0.25):
        out = _captioned(out, dice)
    return imaging.decode(imaging.encode(out, round(dice.uniform(20, 95))))


def failed(kind: str, image: NDArray[np.uint8], draw: np.random.Generator) -> NDArray[np.uint8]:
    """`image` through a camera with the failure `kind` of FAILURES."""
    values = image.astype(np.float32)
    if kind == "black":
        values = draw.uniform(0, 5) + draw.uniform(0.2, 1.5) * draw.standard_normal(values.shape, np.float32)
    elif kind == "over-exposed":
        linear = (values / 255.0) ** 2.2
        gain = draw.uniform(1.5, 6.0) / (np.median(linear) + 1e-4)  # more than half of the picture burns out
        values = 255 * (linear * np.float32(gain)) ** (1 / 2.2)
    else:  # something close and out of focus before the lens
        veil = np.float32(draw.uniform(15, 160)) * draw.uniform(0.7, 1.3, 3).astype(np.float32)
        smooth = cv2.GaussianBlur(values, (0, 0), image.shape[0] / 4)
        values = 0.85 * veil + 0.15 * smooth + draw.standard_normal(values.shape, np.float32)
    return np.clip(values, 0, 255).astype(np.uint8)


def _cropped(image: NDArray[np.uint8], dice: Dice) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    top = round(height * dice.uniform(0.2, 0.4)) if dice.chance(0.35) else 0
    rows = max(48, round((height - top) * dice.uniform(0.75, 1.0)))
    columns = round(width * dice.uniform(0.65, 1.0))
    left = round((width - columns) * dice.uniform(0, 1))
    return image[top : top + rows, left : left + columns]


def _resized(image: NDArray[np.uint8], dice: Dice) -> NDArray[np.uint8]:
    height = dice.choice(HEIGHTS)
    width = max(64, round(image.shape[1] * height / image.shape[0]))
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _retoned(values: NDArray[np.float32], dice: Dice) -> NDArray[np.float32]:
    """Gain, gamma, steepness and a raised or a lowered black, as cameras and their makers like it.

    Many burn out skies and lamps, and drown shadows, that the simulated camera still renders.
    """
    gain = 2.0 ** (dice.uniform(0.2, 1.0) if dice.chance(0.3) else dice.uniform(-0.4, 0.4))
    if dice.chance(0.3):  # shadows that drown
        crushed = np.float32(dice.uniform(0.0, 0.12))
        values = np.maximum(values - crushed, 0) / (1 - crushed)
    values = np.minimum(values * np.float32(gain), 1.0) ** np.float32(dice.uniform(0.75, 1.35))
    if dice.chance(0.4):  # a steep middle
        share = np.float32(dice.uniform(0.2, 1.0))
        values = share * values * values * (3 - 2 * values) + (1 - share) * values
    if dice.chance(0.3):
        pedestal = np.float32(dice.uniform(0.0, 0.08))
        values = pedestal + (1 - pedestal) * values
    return values


def _recoloured(values: NDArray[np.float32], dice: Dice) -> NDArray[np.float32]:
    balance = np.array([2.0 ** dice.uniform(-0.2, 0.2) for _ in range(3)], np.float32)
    grey = values.mean(axis=2, keepdims=True)
    saturation = 0.0 if dice.chance(0.12) else dice.uniform(0.4, 1.3)
    return (grey + np.float32(saturation) * (values - grey)) * (balance if saturation > 0 else 1)


def _captioned(image: NDArray[np.uint8], dice: Dice) -> NDArray[np.uint8]:
    """A strip with the name and the time, as public cameras write it, or letterbox bars."""
    out = image.copy()
    height = max(6, round(out.shape[0] * dice.uniform(0.03, 0.09)))
    at_top = dice.chance(0.5)
    rows = slice(0, height) if at_top else slice(-height, None)
    if dice.chance(0.6):
        out[rows] = 0 if dice.chance(0.6) else 255
    ink = (255, 255, 255) if out[rows].mean() < 128 else (0, 0, 0)
    base = height - 2 if at_top else out.shape[0] - 2
    cv2.putText(out, "2024-03-17 21:40:07", (3, base), cv2.FONT_HERSHEY_SIMPLEX, height / 30, ink, 1)
    return out
