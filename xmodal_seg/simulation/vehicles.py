# SPDX-License-Identifier: Apache-2.0
"""Cars, vans, trucks and buses: lofted bodies with windows, wheels and lamps. Origin on the ground, x forward."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from xmodal_seg.simulation.dice import Dice
from xmodal_seg.simulation.materials import Material
from xmodal_seg.simulation.meshes import Colour, Mesh, box, concatenate, disc, loft, tube
from xmodal_seg.simulation.raw_classes import RawClass

Body = Literal["sedan", "hatchback", "estate", "suv", "van", "pickup"]
Pane = Literal["body", "windscreen", "side", "pillar", "rear"]

GLASS: Colour = (0.03, 0.035, 0.04)
BLACK: Colour = (0.015, 0.015, 0.017)
RIM: Colour = (0.35, 0.36, 0.38)
UNPAINTED: Colour = (0.5, 0.5, 0.5)
CARGO_COLOURS: tuple[Colour, ...] = ((0.75, 0.75, 0.72), (0.5, 0.52, 0.55), (0.55, 0.12, 0.08), (0.1, 0.2, 0.45))


class Station(NamedTuple):
    """A cross-section of the body: lengths relative to length, width and height; `pane` is the skin behind it."""

    x: float
    belt: float
    top: float
    width: float
    top_width: float
    pane: Pane


def _stations(roof_front: float, roof_rear: float, tail: float, base: float, bonnet: float) -> tuple[Station, ...]:
    """The profile of a passenger car: bonnet, windscreen from `base` to `roof_front`, roof, rear window to `tail`."""
    middle = (roof_front + roof_rear) / 2
    boot = bonnet + 0.03
    return (
        Station(0.5, 0.40, 0.43, 0.80, 0.74, "body"),
        Station(0.47, 0.46, bonnet - 0.10, 0.94, 0.84, "body"),
        Station(base, 0.57, bonnet, 1.0, 0.86, "windscreen"),
        Station(roof_front, 0.63, 0.985, 1.0, 0.70, "side"),
        Station(middle + 0.012, 0.64, 1.0, 1.0, 0.72, "pillar"),
        Station(middle - 0.012, 0.64, 1.0, 1.0, 0.72, "side"),
        Station(roof_rear, 0.65, 0.97, 1.0, 0.70, "rear"),
        Station(tail, 0.62, boot, 0.98, 0.84, "body"),
        Station(-0.48, 0.58, boot - 0.02, 0.95, 0.84, "body"),
        Station(-0.5, 0.42, 0.46, 0.86, 0.80, "body"),
    )


BODIES: dict[Body, tuple[Station, ...]] = {
    "sedan": _stations(0.09, -0.22, -0.36, 0.27, 0.64),
    "hatchback": _stations(0.12, -0.36, -0.47, 0.30, 0.62),
    "estate": _stations(0.10, -0.42, -0.48, 0.27, 0.62),
    "suv": _stations(0.14, -0.42, -0.485, 0.28, 0.62),
    "van": _stations(0.30, -0.47, -0.495, 0.42, 0.52),
    "pickup": _stations(0.10, -0.08, -0.11, 0.26, 0.60),
}
SIZES: dict[Body, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    # length, width, height in m
    "sedan": ((4.4, 4.9), (1.76, 1.88), (1.40, 1.50)),
    "hatchback": ((3.7, 4.3), (1.68, 1.80), (1.44, 1.56)),
    "estate": ((4.5, 4.9), (1.76, 1.86), (1.44, 1.54)),
    "suv": ((4.3, 4.9), (1.82, 1.98), (1.62, 1.85)),
    "van": ((4.6, 5.6), (1.88, 2.02), (1.90, 2.40)),
    "pickup": ((5.1, 5.7), (1.90, 2.02), (1.75, 1.90)),
}
# The seven strips of skin from right sill to left sill: which of them are glass behind a station of each kind.
GLASS_STRIPS: dict[Pane, tuple[int, ...]] = {
    "body": (),
    "windscreen": (2, 3, 4),
    "side": (2, 4),
    "pillar": (),
    "rear": (3,),
}


def car(body: Body, dice: Dice) -> Mesh:
    """A passenger car or small van of `body`, its size drawn from `dice`; paint it with `Mesh.painted`."""
    lengths, widths, heights = SIZES[body]
    length, width, height = dice.between(lengths), dice.between(widths), dice.between(heights)
    raw_class = RawClass.VAN if body == "van" else RawClass.CAR
    radius = 0.31 + 0.06 * (height > 1.6)
    skin = _skin(BODIES[body], length, width, height, raw_class)
    wheels = _wheels((0.31 * length, -0.29 * length), width, radius, raw_class)
    lamps = _lamps(length, width, 0.46 * height, raw_class)
    mirrors = [
        box(
            (0.12, 0.16, 0.12),
            centre=(0.22 * length, side * (width / 2 + 0.06), 0.66 * height),
            colour=UNPAINTED,
            material=Material.CAR_PAINT,
            raw_class=raw_class,
        )
        for side in (-1, 1)
    ]
    return concatenate([skin, wheels, lamps, *mirrors])


def _skin(stations: tuple[Station, ...], length: float, width: float, height: float, raw_class: RawClass) -> Mesh:
    low, bulge = 0.17 + 0.03 * (height > 1.6), 0.36
    sections = np.array(
        [
            [
                (s.x * length, sign * w * width / 2, z)
                for sign, w, z in (
                    (-1, 0.92 * s.width, low),
                    (-1, s.width, bulge),
                    (-1, s.width, s.belt * height),
                    (-1, s.top_width, s.top * height),
                    (1, s.top_width, s.top * height),
                    (1, s.width, s.belt * height),
                    (1, s.width, bulge),
                    (1, 0.92 * s.width, low),
                )
            ]
            for s in stations
        ]
    )
    look: dict[str, Any] = {"colour": UNPAINTED, "material": Material.CAR_PAINT, "raw_class": raw_class}
    skin = loft(sections, **look)
    glass = [
        triangle
        for i, station in enumerate(stations[:-1])
        for strip in GLASS_STRIPS[station.pane]
        for triangle in (14 * i + 2 * strip, 14 * i + 2 * strip + 1)
    ]
    skin.material[glass] = Material.GLASS
    skin.colour[glass] = GLASS
    flat = sections * (1.0, 0.0, 1.0)  # a section closed onto the middle of the car
    front, rear = loft(np.stack([flat[0], sections[0]]), **look), loft(np.stack([sections[-1], flat[-1]]), **look)
    floor = box(
        (0.94 * length, 0.86 * width, 0.04),
        centre=(0, 0, low),
        colour=BLACK,
        material=Material.RUBBER,
        raw_class=raw_class,
    )
    return concatenate([skin, front, rear, floor])


def _wheels(axles: tuple[float, ...], width: float, radius: float, raw_class: RawClass) -> Mesh:
    parts = []
    for x in axles:
        for side in (-1, 1):
            outer, inner = side * (width / 2 + 0.012), side * (width / 2 - 0.22)
            parts.append(
                tube(
                    (x, inner, radius),
                    (x, outer, radius),
                    radius,
                    sides=10,
                    capped=False,
                    colour=BLACK,
                    material=Material.RUBBER,
                    raw_class=raw_class,
                )
            )
            for y, size, colour, material in (
                (outer, radius, BLACK, Material.RUBBER),
                (outer + side * 0.004, 0.62 * radius, RIM, Material.METAL),
            ):
                face: dict[str, Any] = {"sides": 10, "colour": colour, "material": material, "raw_class": raw_class}
                parts.append(disc((x, y, radius), (0, side, 0), size, **face))
    return concatenate(parts)


def _lamps(length: float, width: float, height: float, raw_class: RawClass) -> Mesh:
    """Head-lamps, tail-lamps, grille and number plates, a little proud of the body."""
    front, rear = 0.488 * length, -0.497 * length
    parts = []
    for side in (-1, 1):
        for x, colour, material in (
            (front, (0.75, 0.75, 0.72), Material.HEAD_LAMP),
            (rear, (0.45, 0.02, 0.02), Material.TAIL_LAMP),
        ):
            parts.append(
                box(
                    (0.10, 0.20 * width, 0.14),
                    centre=(x, side * 0.36 * width, height - 0.02),
                    colour=colour,
                    material=material,
                    raw_class=raw_class,
                )
            )
    for x in (front + 0.03, rear - 0.02):
        parts.append(
            box(
                (0.04, 0.5, 0.12),
                centre=(x, 0, 0.62 * height),
                colour=(0.7, 0.7, 0.65),
                material=Material.SIGN,
                raw_class=raw_class,
            )
        )
    grille = box(
        (0.08, 0.42 * width, 0.12),
        centre=(front + 0.01, 0, height - 0.04),
        colour=BLACK,
        material=Material.RUBBER,
        raw_class=raw_class,
    )
    return concatenate([*parts, grille])


def truck(dice: Dice) -> Mesh:
    """A lorry: cab, cargo box, frame and six or more wheels."""
    length, width, height = dice.uniform(6.5, 9.5), dice.uniform(2.2, 2.5), dice.uniform(2.8, 3.7)
    cab_length, cab_height = dice.uniform(1.7, 2.2), min(dice.uniform(2.4, 3.0), height)
    nose = length / 2
    cargo_length = length - cab_length - 0.25
    look: dict[str, Any] = {"raw_class": RawClass.TRUCK}
    cab = _big_body(cab_length, width, cab_height, nose - cab_length / 2, 0.45, RawClass.TRUCK, slant=0.12)
    windows = _cab_windows(nose, cab_length, width, cab_height, RawClass.TRUCK)
    cargo = box(
        (cargo_length, width, height - 0.95),
        centre=(-length / 2 + cargo_length / 2, 0, 0.95 + (height - 0.95) / 2),
        colour=dice.choice(CARGO_COLOURS),
        material=Material.PAINT,
        **look,
    )
    frame = box(
        (length - 0.6, 0.7 * width, 0.35), centre=(-0.2, 0, 0.75), colour=BLACK, material=Material.METAL, **look
    )
    axles = (nose - 0.9, -length / 2 + 1.3, -length / 2 + 2.4) if length > 8 else (nose - 0.9, -length / 2 + 1.4)
    wheels = _wheels(axles, width, 0.48, RawClass.TRUCK)
    return concatenate([cab, windows, cargo, frame, wheels, _lamps(length, width, 0.9, RawClass.TRUCK)])


def bus(dice: Dice) -> Mesh:
    """A city bus with a band of windows, doors and a destination board."""
    length, width, height = dice.uniform(10.0, 12.5), dice.uniform(2.45, 2.55), dice.uniform(3.0, 3.4)
    look: dict[str, Any] = {"raw_class": RawClass.BUS}
    body = _big_body(length, width, height, 0.0, 0.3, RawClass.BUS, slant=0.05)
    band_z, band_h = 0.62 * height, 0.30 * height
    num_panes = round(length / 1.5)
    pane = (length - 0.8) / num_panes
    glass: dict[str, Any] = {"colour": GLASS, "material": Material.GLASS, **look}
    panes = [
        box(
            (pane - 0.10, width + 0.03, band_h),
            centre=(-length / 2 + 0.4 + pane * (i + 0.5), 0, band_z),
            **glass,
        )
        for i in range(num_panes)
    ]
    front = box((0.05, 0.86 * width, 0.42 * height), centre=(length / 2 - 0.02, 0, 0.58 * height), **glass)
    rear = box((0.05, 0.7 * width, 0.22 * height), centre=(-length / 2, 0, 0.66 * height), **glass)
    board = box(
        (0.06, 0.7 * width, 0.22),
        centre=(length / 2, 0, 0.90 * height),
        colour=(0.9, 0.55, 0.1),
        material=Material.LIT_SIGN,
        **look,
    )
    doors = [
        box((1.1, 0.05, 0.62 * height), centre=(x, -width / 2 - 0.01, 0.12 * height + 0.31 * height), **glass)
        for x in (length / 2 - 1.0, 0.0)
    ]
    wheels = _wheels((length / 2 - 2.6, -length / 2 + 3.0), width, 0.48, RawClass.BUS)
    return concatenate([body, *panes, front, rear, board, *doors, wheels, _lamps(length, width, 0.75, RawClass.BUS)])


def _big_body(
    length: float, width: float, height: float, x: float, low: float, raw_class: RawClass, *, slant: float
) -> Mesh:
    """A box whose front leans back by `slant` m, closed at both ends."""
    half = width / 2
    ring = [(-half, low), (-half, 0.95 * height), (-0.94 * half, height)]
    ring += [(-y, z) for y, z in reversed(ring)]
    front = [(x + length / 2 - slant * (z / height) ** 2, y, z) for y, z in ring]
    rear = [(x - length / 2, y, z) for y, z in ring]
    sections = np.array([[(p[0], 0, p[2]) for p in front], front, rear, [(p[0], 0, p[2]) for p in rear]])
    return loft(sections, colour=UNPAINTED, material=Material.CAR_PAINT, raw_class=raw_class)


def _cab_windows(nose: float, cab_length: float, width: float, height: float, raw_class: RawClass) -> Mesh:
    look: dict[str, Any] = {"colour": GLASS, "material": Material.GLASS, "raw_class": raw_class}
    screen = box((0.06, 0.86 * width, 0.30 * height), centre=(nose - 0.06, 0, 0.72 * height), **look)
    sides = box(
        (0.5 * cab_length, width + 0.03, 0.26 * height), centre=(nose - 0.38 * cab_length, 0, 0.73 * height), **look
    )
    return concatenate([screen, sides])
