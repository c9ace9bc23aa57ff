# SPDX-License-Identifier: Apache-2.0
"""Pedestrians, bicycles with riders and motorcycles. Origin on the ground, x forward."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from xmodal_seg.simulation.dice import Dice
from xmodal_seg.simulation.materials import Material
from xmodal_seg.simulation.meshes import Colour, Mesh, blob, box, concatenate, offset, tube
from xmodal_seg.simulation.raw_classes import RawClass

NUM_STRIDES = 6  # poses of one walking or pedalling cycle
DARK: Colour = (0.02, 0.02, 0.022)
RIM: Colour = (0.30, 0.31, 0.32)


class Outfit:
    """Colours and size of one person, drawn once so that every pose of the stride wears the same."""

    def __init__(self, dice: Dice, cloths: tuple[Colour, ...], skins: tuple[Colour, ...]) -> None:
        self.height = dice.uniform(1.55, 1.90)
        self.girth = dice.uniform(0.9, 1.2)
        self.top = dice.choice(cloths)
        self.trousers = dice.choice(cloths)
        self.skin = dice.choice(skins)
        self.hair = dice.choice(((0.02, 0.015, 0.01), (0.12, 0.07, 0.03), (0.3, 0.22, 0.1), (0.35, 0.35, 0.35)))
        self.bag = dice.chance(0.35)
        self.skirt = dice.chance(0.2)


def pedestrian(outfit: Outfit, stride: int) -> Mesh:
    """A walking person in pose `stride` of NUM_STRIDES."""
    k = outfit.height / 1.75
    swing = 0.5 * np.sin(2 * np.pi * stride / NUM_STRIDES)
    look: dict[str, Any] = {"material": Material.CLOTH, "raw_class": RawClass.PEDESTRIAN}
    parts = []
    for side, angle in ((-1, swing), (1, -swing)):
        parts += _leg(k, side, angle, outfit, look)
        parts += _arm(k, side, -0.7 * angle, outfit, look)
    parts += _torso(k, outfit, look)
    parts += _head((0.02 * k, 0, 1.60 * k), k, outfit, look)
    return concatenate(parts)


def _leg(k: float, side: int, angle: float, outfit: Outfit, look: dict[str, Any]) -> list[Mesh]:
    hip = np.array([0, side * 0.09 * k, 0.90 * k])
    knee = hip + 0.43 * k * np.array([np.sin(angle), 0, -np.cos(angle)])
    shin_angle = angle - 0.5 * max(0.0, -angle) - 0.08
    ankle = knee + 0.42 * k * np.array([np.sin(shin_angle), 0, -np.cos(shin_angle)])
    g = outfit.girth * k
    colour = outfit.trousers
    return [
        tube(hip, knee, 0.085 * g, 0.06 * g, sides=6, capped=False, colour=colour, **look),
        tube(knee, ankle, 0.06 * g, 0.045 * g, sides=6, capped=False, colour=colour, **look),
        box((0.26 * k, 0.09 * k, 0.08 * k), centre=offset(ankle, 0.06 * k, 0, -0.02), colour=DARK, **look),
    ]


def _arm(k: float, side: int, angle: float, outfit: Outfit, look: dict[str, Any]) -> list[Mesh]:
    shoulder = np.array([0, side * 0.20 * k * outfit.girth, 1.40 * k])
    elbow = shoulder + 0.28 * k * np.array([np.sin(angle), 0.10 * side, -np.cos(angle)])
    hand = elbow + 0.27 * k * np.array([np.sin(angle + 0.35), 0, -np.cos(angle + 0.35)])
    return [
        tube(shoulder, elbow, 0.05 * k, 0.042 * k, sides=5, capped=False, colour=outfit.top, **look),
        tube(elbow, hand, 0.042 * k, 0.03 * k, sides=5, colour=outfit.top, **look),
        box((0.08 * k, 0.05 * k, 0.09 * k), centre=hand, colour=outfit.skin, **look),
    ]


def _torso(k: float, outfit: Outfit, look: dict[str, Any]) -> list[Mesh]:
    g = outfit.girth
    parts = [
        blob((0.13 * k * g, 0.20 * k * g, 0.33 * k), centre=(0, 0, 1.18 * k), colour=outfit.top, **look),
        blob((0.12 * k * g, 0.17 * k * g, 0.15 * k), centre=(0, 0, 0.90 * k), colour=outfit.trousers, **look),
    ]
    if outfit.skirt:
        parts.append(
            tube(
                (0, 0, 0.95 * k), (0, 0, 0.5 * k), 0.15 * k, 0.24 * k, sides=8, capped=False, colour=outfit.top, **look
            )
        )
    if outfit.bag:
        parts.append(box((0.16, 0.28, 0.38), centre=(-0.20 * k * g, 0, 1.22 * k), colour=outfit.trousers, **look))
    return parts


def _head(centre: tuple[float, float, float], k: float, outfit: Outfit, look: dict[str, Any]) -> list[Mesh]:
    x, y, z = centre
    return [
        blob((0.095 * k, 0.08 * k, 0.12 * k), centre=centre, colour=outfit.skin, **look),
        blob((0.10 * k, 0.085 * k, 0.10 * k), centre=(x - 0.02 * k, y, z + 0.04 * k), colour=outfit.hair, **look),
        tube(
            (x - 0.02, y, z - 0.18 * k),
            (x, y, z - 0.05 * k),
            0.05 * k,
            sides=5,
            capped=False,
            colour=outfit.skin,
            **look,
        ),
    ]


def bicycle(colour: Colour) -> Mesh:
    """A bicycle without a rider."""
    look: dict[str, Any] = {"material": Material.METAL, "raw_class": RawClass.BICYCLE}
    rear, front = np.array([-0.52, 0, 0.34]), np.array([0.54, 0, 0.34])
    crank, seat, head = np.array([-0.08, 0, 0.30]), np.array([-0.24, 0, 0.86]), np.array([0.38, 0, 0.88])
    bars = [(crank, seat), (crank, head), (seat, head), (rear, crank), (rear, seat), (front, head)]
    frame = [tube(a, b, 0.022, sides=4, capped=False, colour=colour, **look) for a, b in bars]
    handle = tube(offset(head, 0, -0.28, 0.14), offset(head, 0, 0.28, 0.14), 0.018, sides=4, colour=DARK, **look)
    stem = tube(head, offset(head, 0, 0, 0.14), 0.018, sides=4, colour=DARK, **look)
    saddle = box((0.26, 0.14, 0.06), centre=offset(seat, 0, 0, 0.08), colour=DARK, **look)
    return concatenate([*frame, handle, stem, saddle, _ring(rear, 0.33), _ring(front, 0.33)])


def _ring(centre: np.ndarray, radius: float) -> Mesh:
    """A bicycle wheel: rim and a few spokes."""
    look: dict[str, Any] = {"colour": DARK, "material": Material.RUBBER, "raw_class": RawClass.BICYCLE}
    angles = np.arange(13) * (2 * np.pi / 12)
    rim = centre + radius * np.stack([np.cos(angles), 0 * angles, np.sin(angles)], axis=1)
    tyre = [tube(a, b, 0.026, sides=4, capped=False, **look) for a, b in pairwise(rim)]
    spokes = [tube(rim[i], rim[i + 6], 0.006, sides=3, capped=False, **look) for i in (0, 2, 4)]
    return concatenate([*tyre, *spokes])


def cyclist(outfit: Outfit, stride: int, colour: Colour) -> Mesh:
    """A bicycle with its rider, pedals in pose `stride` of NUM_STRIDES."""
    look: dict[str, Any] = {"material": Material.CLOTH, "raw_class": RawClass.RIDER}
    phase = 2 * np.pi * stride / NUM_STRIDES
    hip, shoulder = np.array([-0.20, 0, 0.98]), np.array([0.16, 0, 1.46])
    parts = [
        tube(hip, shoulder, 0.15, 0.17, sides=7, colour=outfit.top, **look),
        *_head((0.28, 0, 1.66), 1.0, outfit, look),
        blob((0.13, 0.10, 0.09), centre=(0.27, 0, 1.74), colour=outfit.trousers, **look),
    ]
    for side in (-1, 1):
        pedal = np.array([-0.08, side * 0.12, 0.30]) + 0.17 * np.array(
            [np.cos(phase + side * np.pi / 2), 0, np.sin(phase + side * np.pi / 2)]
        )
        knee = (hip + pedal) / 2 + np.array([0.24, side * 0.08, 0.06])
        parts += [
            tube(
                offset(hip, 0, side * 0.09, 0), knee, 0.085, 0.06, sides=5, capped=False, colour=outfit.trousers, **look
            ),
            tube(knee, pedal, 0.058, 0.045, sides=5, colour=outfit.trousers, **look),
            box((0.24, 0.09, 0.07), centre=offset(pedal, 0.04, 0, 0), colour=DARK, **look),
            tube(
                offset(shoulder, 0, side * 0.17, -0.04),
                (0.36, side * 0.26, 1.04),
                0.045,
                sides=5,
                colour=outfit.top,
                **look,
            ),
        ]
    return concatenate([bicycle(colour), *parts])


def motorcycle(colour: Colour) -> Mesh:
    """A parked scooter or motorcycle."""
    look: dict[str, Any] = {"raw_class": RawClass.MOTORCYCLE}
    wheels = [
        part
        for x in (-0.62, 0.66)
        for part in (
            tube((x, -0.05, 0.3), (x, 0.05, 0.3), 0.30, sides=14, colour=DARK, material=Material.RUBBER, **look),
            tube((x, -0.055, 0.3), (x, 0.055, 0.3), 0.2, sides=10, colour=RIM, material=Material.METAL, **look),
        )
    ]
    tank = blob((0.34, 0.17, 0.20), centre=(0.12, 0, 0.82), colour=colour, material=Material.CAR_PAINT, **look)
    engine = box((0.55, 0.30, 0.40), centre=(0.02, 0, 0.48), colour=(0.12, 0.12, 0.13), material=Material.METAL, **look)
    seat = box((0.75, 0.26, 0.12), centre=(-0.45, 0, 0.82), colour=DARK, material=Material.RUBBER, **look)
    fork = tube((0.68, 0, 0.3), (0.45, 0, 1.0), 0.06, sides=5, colour=(0.3, 0.3, 0.3), material=Material.METAL, **look)
    handle = tube((0.42, -0.36, 1.05), (0.42, 0.36, 1.05), 0.025, sides=4, colour=DARK, material=Material.METAL, **look)
    lamp = blob((0.09, 0.09, 0.09), centre=(0.55, 0, 0.92), colour=(0.7, 0.7, 0.7), material=Material.HEAD_LAMP, **look)
    return concatenate([*wheels, tank, engine, seat, fork, handle, lamp])
