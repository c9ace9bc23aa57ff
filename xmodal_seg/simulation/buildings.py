# SPDX-License-Identifier: Apache-2.0
"""Buildings: walls with a window style, roof, plinth, doors, balconies, shop signs.

Origin on the ground in the middle of the front; x along the street, the front faces -y, the depth goes to +y.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from xmodal_seg.simulation.dice import Dice
from xmodal_seg.simulation.materials import Material
from xmodal_seg.simulation.meshes import Colour, Mesh, box, concatenate, quads, triangles
from xmodal_seg.simulation.raw_classes import RawClass

FLOOR_M = 3.1
SINK_M = 1.2  # walls reach this far below the ground, so that no slope opens a gap under them
STONE: Colour = (0.30, 0.29, 0.27)


@dataclass(frozen=True, kw_only=True)
class BuildingPlan:
    """Everything that shapes one building."""

    width: float
    depth: float
    floors: int
    gabled: bool
    shop: bool
    balconies: bool
    style: int  # row of the facade catalogue
    facade: Colour
    roof: Colour
    seed: int

    @property
    def height(self) -> float:
        return self.floors * FLOOR_M + 0.4


def building(plan: BuildingPlan) -> Mesh:
    dice = Dice(plan.seed, "building")
    parts = [_walls(plan), _gable_roof(plan) if plan.gabled else _flat_roof(plan), _plinth(plan), _door(plan, dice)]
    if plan.balconies:
        parts += _balconies(plan, dice)
    if plan.shop:
        parts.append(_shop_sign(plan, dice))
    return concatenate(parts)


def _walls(plan: BuildingPlan) -> Mesh:
    w, d, h = plan.width / 2, plan.depth, plan.height
    foot = [(-w, 0), (w, 0), (w, d), (-w, d)]
    four, tex = [], []
    for (x0, y0), (x1, y1) in zip(foot, foot[1:] + foot[:1], strict=True):
        length = abs(x1 - x0) + abs(y1 - y0)
        four.append([(x0, y0, -SINK_M), (x1, y1, -SINK_M), (x1, y1, h), (x0, y0, h)])
        tex.append([(0, -SINK_M), (length, -SINK_M), (length, h), (0, h)])
    look: dict[str, Any] = {"colour": plan.facade, "material": Material.FACADE, "raw_class": RawClass.BUILDING}
    return quads(np.array(four), tex=np.array(tex), style=plan.style, **look)


def _flat_roof(plan: BuildingPlan) -> Mesh:
    look: dict[str, Any] = {"material": Material.ROOF, "raw_class": RawClass.BUILDING, "colour": plan.roof}
    slab = box((plan.width - 0.1, plan.depth - 0.1, 0.1), centre=(0, plan.depth / 2, plan.height), **look)
    cornice = box(
        (plan.width + 0.5, 0.35, 0.35),
        centre=(0, 0.02, plan.height - 0.1),
        colour=STONE,
        material=Material.CONCRETE,
        raw_class=RawClass.BUILDING,
    )
    return concatenate([slab, cornice])


def _gable_roof(plan: BuildingPlan) -> Mesh:
    """Two slopes with the ridge along the street, and the two gable ends."""
    w, d, h = plan.width / 2, plan.depth, plan.height
    ridge, over = h + 0.36 * d, 0.45
    slopes = [
        [
            (-w - over, -over, h - 0.25),
            (w + over, -over, h - 0.25),
            (w + over, d / 2, ridge),
            (-w - over, d / 2, ridge),
        ],
        [
            (w + over, d + over, h - 0.25),
            (-w - over, d + over, h - 0.25),
            (-w - over, d / 2, ridge),
            (w + over, d / 2, ridge),
        ],
    ]
    gables = np.array([[(-w, d, h), (-w, 0, h), (-w, d / 2, ridge)], [(w, 0, h), (w, d, h), (w, d / 2, ridge)]])
    roof = quads(np.array(slopes), colour=plan.roof, material=Material.ROOF, raw_class=RawClass.BUILDING)
    ends = triangles(gables, colour=plan.facade, material=Material.CONCRETE, raw_class=RawClass.BUILDING)
    chimney = box(
        (0.7, 0.7, 2.0),
        centre=(0.3 * plan.width, 0.4 * d, ridge - 0.2),
        colour=(0.22, 0.10, 0.07),
        material=Material.BRICK,
        raw_class=RawClass.BUILDING,
    )
    return concatenate([roof, ends, chimney])


def _plinth(plan: BuildingPlan) -> Mesh:
    return box(
        (plan.width + 0.12, 0.14, 0.55 + SINK_M),
        centre=(0, -0.02, 0.275 - SINK_M / 2),
        colour=STONE,
        material=Material.CONCRETE,
        raw_class=RawClass.BUILDING,
    )


def _door(plan: BuildingPlan, dice: Dice) -> Mesh:
    colour = dice.choice(((0.18, 0.07, 0.03), (0.03, 0.09, 0.05), (0.05, 0.05, 0.07), (0.35, 0.33, 0.30)))
    x = dice.uniform(-0.35, 0.35) * plan.width
    look: dict[str, Any] = {"raw_class": RawClass.BUILDING}
    leaf = box(
        (1.2, 0.10, 2.3 + SINK_M), centre=(x, -0.06, 1.15 - SINK_M / 2), colour=colour, material=Material.PAINT, **look
    )
    lintel = box((1.6, 0.5, 0.12), centre=(x, -0.2, 2.45), colour=STONE, material=Material.CONCRETE, **look)
    return concatenate([leaf, lintel])


def _balconies(plan: BuildingPlan, dice: Dice) -> list[Mesh]:
    parts = []
    xs = [-0.28 * plan.width, 0.28 * plan.width] if plan.width > 9 else [0.0]
    for floor in range(1, plan.floors):
        for x in xs:
            if dice.chance(0.75):
                centre = (x, -0.6, floor * FLOOR_M + 0.08)
                slab = box(
                    (2.8, 1.2, 0.16),
                    centre=centre,
                    colour=STONE,
                    material=Material.CONCRETE,
                    raw_class=RawClass.BUILDING,
                )
                rail = box(
                    (2.8, 0.06, 0.85),
                    centre=(x, -1.17, floor * FLOOR_M + 0.55),
                    colour=(0.25, 0.26, 0.27),
                    material=Material.METAL,
                    raw_class=RawClass.BUILDING,
                )
                parts += [slab, rail]
    return parts


def _shop_sign(plan: BuildingPlan, dice: Dice) -> Mesh:
    colour = dice.choice(((0.5, 0.05, 0.04), (0.04, 0.2, 0.45), (0.7, 0.5, 0.05), (0.05, 0.3, 0.12), (0.6, 0.6, 0.58)))
    width = dice.uniform(0.45, 0.85) * plan.width
    board = box(
        (width, 0.18, 0.7),
        centre=(0, -0.10, FLOOR_M - 0.05),
        colour=colour,
        material=Material.LIT_SIGN,
        raw_class=RawClass.BUILDING,
    )
    awning = quads(
        np.array(
            [[(-width / 2, -1.3, 2.45), (width / 2, -1.3, 2.45), (width / 2, -0.05, 2.75), (-width / 2, -0.05, 2.75)]]
        ),
        colour=tuple(0.6 * channel for channel in colour),  # type: ignore[arg-type]
        material=Material.CLOTH,
        raw_class=RawClass.BUILDING,
    )
    return concatenate([board, awning])
