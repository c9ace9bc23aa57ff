# SPDX-License-Identifier: Apache-2.0
"""Tables of noise that repeat without a seam: looked up, never drawn again, which makes texture cheap."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.simulation.dice import generator

SIZE = 512
GAUSS_SIZE = 1 << 21


@lru_cache(maxsize=1)
def smooth() -> NDArray[np.float32]:
    """(SIZE, SIZE) several octaves in about [-1, 1]."""
    total = np.zeros((SIZE, SIZE))
    for octave, weight in ((8, 0.30), (16, 0.25), (32, 0.20), (64, 0.15), (128, 0.15), (256, 0.20)):
        total += weight * _stretched(generator("smooth noise", octave).random((octave, octave)) * 2 - 1)
    return (total / np.abs(total).max() * 1.6).clip(-1, 1).astype(np.float32)


def _stretched(lattice: NDArray[np.float64]) -> NDArray[np.float64]:
    """A periodic lattice drawn out to SIZE x SIZE by bilinear interpolation."""
    n = len(lattice)
    at = np.arange(SIZE) * (n / SIZE)
    low = at.astype(int)
    share = at - low
    rows = lattice[low] * (1 - share)[:, None] + lattice[(low + 1) % n] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, (low + 1) % n] * share


def at(u: NDArray[np.floating], v: NDArray[np.floating], per_m: float) -> NDArray[np.float32]:
    """Smooth noise at (u, v) m with `per_m` texels a metre."""
    row = (u * np.float32(per_m)).astype(np.int32) & (SIZE - 1)
    column = (v * np.float32(per_m)).astype(np.int32) & (SIZE - 1)
    return smooth().ravel()[row * SIZE + column]


def hashed(*values: NDArray[np.integer]) -> NDArray[np.float32]:
    """A number in [0, 1) for each combination of whole numbers."""
    mixed = np.uint32(2166136261)
    for value in values:
        mixed = (mixed ^ value.astype(np.uint32)) * np.uint32(16777619)
        mixed = mixed ^ (mixed >> np.uint32(13))
        mixed = mixed * np.uint32(2654435769)
    return ((mixed >> np.uint32(8)).astype(np.float32)) * np.float32(2.0**-24)


@lru_cache(maxsize=1)
def _gauss() -> NDArray[np.float32]:
    return generator("gaussian noise").standard_normal(GAUSS_SIZE, dtype=np.float32)


def gaussian(number: int, draw: np.random.Generator) -> NDArray[np.float32]:
    """`number` standard normal values: a stretch of a fixed table from a drawn place, far cheaper than new draws."""
    table = _gauss()
    start = int(draw.integers(0, GAUSS_SIZE))
    if start + number <= GAUSS_SIZE:
        return table[start : start + number]
    return np.take(table, np.arange(start, start + number), mode="wrap")
