# SPDX-License-Identifier: Apache-2.0
"""The line a street follows. Points on it are (s, d, h): m along it, m to the left of it, m above the road."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xmodal_seg.simulation.dice import Dice
from xmodal_seg.simulation.places import Place

STEP_M = 0.5
LEAD_M = 300.0  # the line is known this far before s = 0


class Street:
    """A winding, hilly line that never turns back; its radius stays above 120 m, so wide strips do not fold."""

    def __init__(self, place: Place, seed: int, length: float) -> None:
        dice = Dice(seed, place.model_seed, "street")
        self._s = np.arange(-LEAD_M, length + LEAD_M, STEP_M)
        heading = _waves(self._s, dice, place.bend, lengths=(320.0, 900.0), steepest=1 / 120)
        self._heading = heading
        self._z = _waves(self._s, dice, place.hill, lengths=(260.0, 700.0), steepest=0.035)
        x, y = _integral(np.cos(heading)), _integral(np.sin(heading))
        start = np.interp(0.0, self._s, x), np.interp(0.0, self._s, y)
        self._x, self._y = x - start[0], y - start[1]

    def heading(self, s: ArrayLike) -> NDArray[np.float64]:
        return np.interp(np.asarray(s, float), self._s, self._heading)

    def slope(self, s: ArrayLike) -> NDArray[np.float64]:
        """Pitch of the road in rad, upwards positive."""
        s = np.asarray(s, float)
        return np.arctan(np.interp(s + 1, self._s, self._z) - np.interp(s - 1, self._s, self._z)) / 2

    def point(self, s: ArrayLike, d: ArrayLike = 0.0, h: ArrayLike = 0.0) -> NDArray[np.float64]:
        """World points (..., 3) m of (s, d, h)."""
        s, d, h = np.broadcast_arrays(np.asarray(s, float), np.asarray(d, float), np.asarray(h, float))
        heading = self.heading(s)
        x = np.interp(s, self._s, self._x) - d * np.sin(heading)
        y = np.interp(s, self._s, self._y) + d * np.cos(heading)
        return np.stack([x, y, np.interp(s, self._s, self._z) + h], axis=-1)


def _waves(
    s: NDArray[np.float64], dice: Dice, height: float, *, lengths: tuple[float, float], steepest: float
) -> NDArray[np.float64]:
    """A sum of three sines that stays within `height` and changes by at most `steepest` per m."""
    total = np.zeros_like(s)
    for _ in range(3):
        length, phase = dice.between(lengths), dice.uniform(0, 2 * np.pi)
        amplitude = min(height, steepest * length / (2 * np.pi)) / 3
        total += amplitude * np.sin(2 * np.pi * s / length + phase)
    return total


def _integral(values: NDArray[np.float64]) -> NDArray[np.float64]:
    middle = (values[1:] + values[:-1]) / 2 * STEP_M
    return np.concatenate([[0.0], np.cumsum(middle)])
