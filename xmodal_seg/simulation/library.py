# SPDX-License-Identifier: Apache-2.0
"""The object models of a place, built once and placed many times."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.simulation import furniture, people, plants, vehicles
from xmodal_seg.simulation.dice import Dice
from xmodal_seg.simulation.meshes import Colour, Mesh
from xmodal_seg.simulation.palettes import linear
from xmodal_seg.simulation.places import Place

NUM_CARS, NUM_TRUCKS, NUM_BUSES = 14, 4, 2
NUM_PEOPLE, NUM_CYCLISTS = 12, 8
NUM_TREES, NUM_BUSHES, NUM_OBJECTS, NUM_SIGNS = 14, 6, 12, 8
NUM_FACADES = 24


class Library:
    """Templates by kind and number; a template is built when it is first asked for."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._built: dict[tuple[object, ...], Mesh] = {}
        self.facades = facade_catalogue(place)

    def _get(self, key: tuple[object, ...], make: Callable[[], Mesh]) -> Mesh:
        if key not in self._built:
            self._built[key] = make()
        return self._built[key]

    def _dice(self, kind: str, number: int) -> Dice:
        return Dice(self._place.model_seed, kind, number)

    def car(self, number: int) -> Mesh:
        dice = self._dice("car", number)
        bodies = self._place.bodies
        body = dice.choice(list(bodies), list(bodies.values()))
        return self._get(("car", number), lambda: vehicles.car(body, dice))

    def truck(self, number: int) -> Mesh:
        return self._get(("truck", number), lambda: vehicles.truck(self._dice("truck", number)))

    def bus(self, number: int) -> Mesh:
        return self._get(("bus", number), lambda: vehicles.bus(self._dice("bus", number)))

    def pedestrian(self, number: int, stride: int) -> Mesh:
        return self._get(
            ("pedestrian", number, stride), lambda: people.pedestrian(self._outfit("pedestrian", number), stride)
        )

    def cyclist(self, number: int, stride: int) -> Mesh:
        colour = linear(self._dice("bicycle", number).choice(self._place.palette.cars))
        return self._get(
            ("cyclist", number, stride), lambda: people.cyclist(self._outfit("cyclist", number), stride, colour)
        )

    def _outfit(self, kind: str, number: int) -> people.Outfit:
        palette = self._place.palette
        cloths = tuple(linear(code) for code in palette.cloths)
        return people.Outfit(self._dice(kind, number), cloths, tuple(linear(code) for code in palette.skins))

    def two_wheeler(self, number: int) -> Mesh:
        """A parked bicycle (even) or motorcycle (odd)."""
        colour = linear(self._dice("two-wheeler", number).choice(self._place.palette.cars))
        make = people.motorcycle if number % 2 else people.bicycle
        return self._get(("two-wheeler", number), lambda: make(colour))

    def tree(self, number: int) -> Mesh:
        dice = self._dice("tree", number)
        kinds = self._place.trees
        kind = dice.choice(list(kinds), list(kinds.values()))
        leaf = self._leaf(dice)
        return self._get(("tree", number), lambda: plants.tree(kind, dice, leaf, linear(self._place.palette.bark)))

    def bush(self, number: int) -> Mesh:
        dice = self._dice("bush", number)
        return self._get(("bush", number), lambda: plants.bush(dice, self._leaf(dice)))

    def hedge(self, number: int, length: float) -> Mesh:
        dice = self._dice("hedge", number)
        return self._get(("hedge", number, length), lambda: plants.hedge(dice, length, self._leaf(dice)))

    def _leaf(self, dice: Dice) -> Colour:
        return linear(dice.choice(self._place.palette.leaves))

    def street_object(self, number: int) -> Mesh:
        return self._get(("object", number), lambda: furniture.street_object(self._dice("object", number)))

    def sign(self, number: int) -> Mesh:
        dice = self._dice("sign", number)
        kind = dice.choice(list(self._place.signs), list(self._place.signs.values()))
        return self._get(("sign", number), lambda: furniture.sign(kind, dice, linear(self._place.palette.poles)))

    def lamp(self, reach: float) -> Mesh:
        height, colour = self._place.lamp_height, linear(self._place.palette.poles)
        return self._get(("lamp", reach), lambda: furniture.street_lamp(height, reach, colour))

    def signal(self, lit: int, reach: float) -> Mesh:
        colour = linear(self._place.palette.poles)
        return self._get(("signal", lit, reach), lambda: furniture.signal(colour, lit=lit, reach=reach))

    def fence(self, number: int, length: float) -> Mesh:
        dice = self._dice("fence", number)
        kind = dice.choice(list(self._place.fences), list(self._place.fences.values()))
        colour = linear(dice.choice(self._place.palette.fences))
        return self._get(("fence", number, length), lambda: furniture.fence(kind, length, colour))

    def wall(self, number: int, length: float) -> Mesh:
        dice = self._dice("wall", number)
        height, brick = dice.uniform(0.9, 2.0), dice.chance(0.5)
        colour = linear(dice.choice(self._place.palette.walls))
        return self._get(("wall", number, length), lambda: furniture.wall(length, height, colour, brick=brick))


@lru_cache(maxsize=64)
def _catalogue(model_seed: int) -> NDArray[np.float32]:
    rows = []
    for number in range(NUM_FACADES):
        dice = Dice(model_seed, "facade", number)
        rows.append(
            [
                dice.uniform(1.6, 3.6),  # distance of windows, m
                dice.uniform(0.38, 0.72),  # width of a window as a share of that
                dice.uniform(0.40, 0.66),  # height as a share of a floor
                dice.uniform(0.18, 0.30),  # height of the sill as a share of a floor
                float(dice.choice((0, 1, 2), (3, 2, 1))),  # wall: plaster, brick, panels
                dice.choice((0.75, 0.55, 0.12, 0.03)),  # grey of the frames
                float(dice.chance(0.45)),  # a bar in the middle of each window
                dice.uniform(0.25, 0.6),  # share of windows with drawn curtains
            ]
        )
    return np.array(rows, np.float32)


def facade_catalogue(place: Place) -> NDArray[np.float32]:
    """(NUM_FACADES, 8) window styles of a place; the columns are named in `_catalogue`."""
    return _catalogue(place.model_seed)
