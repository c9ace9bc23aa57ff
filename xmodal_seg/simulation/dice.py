# SPDX-License-Identifier: Apache-2.0
"""Random streams by name: the same seed and name give the same draws everywhere, whatever else was drawn before."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")
DECIMALS = 4  # draws are rounded, so that an ulp of difference between machines cannot grow into another layout


def generator(*key: int | str) -> np.random.Generator:
    """A PCG64 generator for `key`; words are hashed with CRC-32, which no Python or platform setting changes."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else int(part) & 0xFFFFFFFF for part in key]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


class Dice:
    """Draws for the layout of the world: only uniform ones, which are exact on every machine."""

    def __init__(self, *key: int | str) -> None:
        self._generator = generator(*key)

    def uniform(self, low: float, high: float) -> float:
        return round(low + (high - low) * float(self._generator.random()), DECIMALS)

    def between(self, limits: tuple[float, float]) -> float:
        return self.uniform(limits[0], limits[1])

    def integer(self, low: int, high: int) -> int:
        """A whole number in [low, high)."""
        return low + int(float(self._generator.random()) * (high - low))

    def chance(self, probability: float) -> bool:
        return float(self._generator.random()) < probability

    def choice(self, options: Sequence[Item], weights: Sequence[float] | None = None) -> Item:
        if weights is None:
            return options[self.integer(0, len(options))]
        target = float(self._generator.random()) * sum(weights)
        for option, weight in zip(options, weights, strict=True):
            target -= weight
            if target < 0:
                return option
        return options[-1]

    def array(self, *shape: int) -> NDArray[np.float64]:
        """Draws in [0, 1)."""
        return self._generator.random(shape)
