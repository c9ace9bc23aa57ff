# SPDX-License-Identifier: Apache-2.0
"""Street furniture: lamps, signs, signals, fences, walls, bins.

Origin on the ground; x along the street, y to the left.
Things with a face (signs, signals) show it towards -x, to a driver who comes along +x.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from xmodal_seg.simulation.dice import Dice
from xmodal_seg.simulation.materials import Material
from xmodal_seg.simulation.meshes import Colour, Mesh, box, concatenate, disc, quads, tube
from xmodal_seg.simulation.raw_classes import RawClass

LAMP_GLOW: Colour = (0.85, 0.85, 0.8)
SignKind = Literal["round", "triangle", "stop", "board", "arrow"]
SIGN_FACES: dict[SignKind, tuple[int, Colour, Colour, float]] = {
    # corners, rim colour, face colour, radius in m
    "round": (16, (0.60, 0.02, 0.02), (0.85, 0.85, 0.83), 0.34),
    "triangle": (3, (0.60, 0.02, 0.02), (0.85, 0.85, 0.83), 0.46),
    "stop": (8, (0.80, 0.80, 0.80), (0.55, 0.02, 0.03), 0.40),
    "board": (4, (0.8, 0.8, 0.8), (0.02, 0.25, 0.10), 0.62),
    "arrow": (16, (0.8, 0.8, 0.8), (0.02, 0.12, 0.50), 0.33),
}


def pole(height: float, radius: float, colour: Colour, *, raw_class: RawClass = RawClass.POLE) -> Mesh:
    look: dict[str, Any] = {"colour": colour, "material": Material.METAL, "raw_class": raw_class}
    return tube((0, 0, -0.1), (0, 0, height), radius, 0.75 * radius, sides=8, **look)


def street_lamp(height: float, reach: float, colour: Colour) -> Mesh:
    """A lamp whose head hangs `reach` m to the left of its pole."""
    look: dict[str, Any] = {"colour": colour, "material": Material.METAL, "raw_class": RawClass.POLE}
    arm = tube((0, 0, height - 0.3), (0, reach, height), 0.05, sides=5, **look)
    head = box((0.28, 0.75, 0.12), centre=(0, reach, height), **look)
    glow = box(
        (0.24, 0.66, 0.05),
        centre=(0, reach, height - 0.08),
        colour=LAMP_GLOW,
        material=Material.STREET_LAMP,
        raw_class=RawClass.POLE,
    )
    return concatenate([pole(height, 0.10, colour), arm, head, glow])


def sign(kind: SignKind, dice: Dice, colour: Colour) -> Mesh:
    """A traffic sign on its own post; its back is bare metal."""
    corners, rim, face, radius = SIGN_FACES[kind]
    height = dice.uniform(2.2, 2.8)
    look: dict[str, Any] = {"material": Material.SIGN, "raw_class": RawClass.SIGN, "sides": corners}
    back = disc((-0.045, 0, height), (1, 0, 0), radius, **(look | {"material": Material.METAL}), colour=(0.3, 0.3, 0.3))
    plate = disc((-0.06, 0, height), (-1, 0, 0), radius, colour=rim, **look)
    inner = disc((-0.065, 0, height), (-1, 0, 0), 0.74 * radius, colour=face, **look)
    return concatenate([pole(height + 0.3, 0.035, colour), back, plate, inner])


def signal(colour: Colour, *, lit: int, reach: float) -> Mesh:
    """A traffic light with an arm over the road, `reach` m to its left; `lit` is 0 red, 1 amber, 2 green."""
    look: dict[str, Any] = {"colour": colour, "material": Material.METAL, "raw_class": RawClass.POLE}
    height = 5.4
    arm = tube((0, 0, height), (0, reach, height + 0.2), 0.06, sides=6, **look)
    heads = [_signal_head(y, z, lit) for y, z in ((0.0, 2.6), (reach, height - 0.35))]
    return concatenate([pole(height + 0.1, 0.10, colour), arm, *heads])


def _signal_head(y: float, z: float, lit: int) -> Mesh:
    dark: Colour = (0.02, 0.02, 0.02)
    case = box(
        (0.22, 0.34, 0.95), centre=(-0.14, y, z), colour=dark, material=Material.PAINT, raw_class=RawClass.SIGNAL
    )
    lamps = []
    for i, colour in enumerate(((0.9, 0.03, 0.02), (0.9, 0.45, 0.02), (0.02, 0.75, 0.25))):
        on = i == lit
        shown = colour if on else tuple(0.08 * channel for channel in colour)
        lamps.append(
            disc(
                (-0.26, y, z + 0.30 - 0.30 * i),
                (-1, 0, 0),
                0.115,
                colour=shown,  # type: ignore[arg-type]
                material=Material.SIGNAL_LAMP if on else Material.PAINT,
                raw_class=RawClass.SIGNAL,
            )
        )
    return concatenate([case, *lamps])


def fence(kind: Literal["rails", "slats", "guard"], length: float, colour: Colour) -> Mesh:
    """A see-through fence of `length` m along x."""
    material = Material.METAL if kind == "guard" else Material.PAINT
    look: dict[str, Any] = {"colour": colour, "material": material, "raw_class": RawClass.FENCE}
    height = 0.75 if kind == "guard" else 1.15
    xs = np.linspace(-length / 2, length / 2, max(2, round(length / 2.2)) + 1)
    parts = [box((0.09, 0.09, height), centre=(x, 0, height / 2), **look) for x in xs]
    bars = {
        "rails": ((0.4, 0.10), (0.75, 0.10), (1.08, 0.10)),
        "slats": ((0.3, 0.07), (1.0, 0.07)),
        "guard": ((0.6, 0.31),),
    }
    parts += [box((length, 0.06, thick), centre=(0, -0.04, z), **look) for z, thick in bars[kind]]
    if kind == "slats":
        xs = np.arange(-length / 2 + 0.12, length / 2, 0.24)
        low, high, half = 0.12, 1.15, 0.07
        slats = [[(x - half, 0, low), (x + half, 0, low), (x + half, 0, high), (x - half, 0, high)] for x in xs]
        parts.append(quads(np.array(slats), **look))
    return concatenate(parts)


def wall(length: float, height: float, colour: Colour, *, brick: bool) -> Mesh:
    """A garden wall with coping, `length` m along x."""
    look: dict[str, Any] = {"raw_class": RawClass.WALL, "material": Material.BRICK if brick else Material.CONCRETE}
    body = box((length, 0.24, height + 0.3), centre=(0, 0, (height - 0.3) / 2), colour=colour, **look)
    coping = box(
        (length, 0.34, 0.08),
        centre=(0, 0, height + 0.04),
        colour=(0.45, 0.44, 0.42),
        material=Material.CONCRETE,
        raw_class=RawClass.WALL,
    )
    return concatenate([body, coping])


def street_object(dice: Dice) -> Mesh:
    """A litter bin, a cabinet, a bench, a bollard, a letter box or a bus shelter."""
    kind = dice.choice(("bin", "cabinet", "bench", "bollard", "post", "shelter"), (3, 2, 2, 3, 1, 1))
    look: dict[str, Any] = {"raw_class": RawClass.STREET_OBJECT}
    if kind == "bin":
        colour = dice.choice(((0.05, 0.12, 0.06), (0.08, 0.08, 0.09), (0.30, 0.12, 0.02)))
        return tube((0, 0, 0), (0, 0, 1.0), 0.26, 0.30, sides=10, colour=colour, material=Material.PAINT, **look)
    if kind == "cabinet":
        size = (dice.uniform(0.7, 1.3), 0.45, dice.uniform(1.0, 1.5))
        return box(size, centre=(0, 0, size[2] / 2), colour=(0.28, 0.30, 0.27), material=Material.PAINT, **look)
    if kind == "bench":
        wood: Colour = (0.22, 0.12, 0.05)
        seat = box((1.6, 0.45, 0.07), centre=(0, 0, 0.45), colour=wood, material=Material.PAINT, **look)
        back = box((1.6, 0.06, 0.40), centre=(0, 0.22, 0.75), colour=wood, material=Material.PAINT, **look)
        legs = [
            box((0.08, 0.4, 0.45), centre=(x, 0, 0.22), colour=(0.05,) * 3, material=Material.METAL, **look)
            for x in (-0.6, 0.6)
        ]
        return concatenate([seat, back, *legs])
    if kind == "bollard":
        return tube((0, 0, 0), (0, 0, 0.95), 0.10, sides=8, colour=(0.10, 0.10, 0.11), material=Material.METAL, **look)
    if kind == "post":
        colour = dice.choice(((0.55, 0.40, 0.02), (0.45, 0.03, 0.03), (0.02, 0.08, 0.35)))
        return box((0.5, 0.45, 1.25), centre=(0, 0, 0.62), colour=colour, material=Material.PAINT, **look)
    return _shelter()


def _shelter() -> Mesh:
    look: dict[str, Any] = {"raw_class": RawClass.STREET_OBJECT}
    metal: Colour = (0.12, 0.13, 0.14)
    posts = [
        box((0.08, 0.08, 2.4), centre=(x, y, 1.2), colour=metal, material=Material.METAL, **look)
        for x in (-1.8, 1.8)
        for y in (-0.55, 0.55)
    ]
    roof = box((4.0, 1.5, 0.10), centre=(0, 0, 2.45), colour=metal, material=Material.METAL, **look)
    back = box((3.6, 0.03, 1.9), centre=(0, 0.55, 1.25), colour=(0.04, 0.05, 0.05), material=Material.GLASS, **look)
    bench = box((2.6, 0.35, 0.06), centre=(0, 0.3, 0.5), colour=(0.2, 0.2, 0.2), material=Material.PAINT, **look)
    return concatenate([*posts, roof, back, bench])
