# SPDX-License-Identifier: Apache-2.0
"""Trees, bushes and hedges: crowns are loose leaf triangles, so that a LiDAR sees into them. Origin at the root."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.simulation.dice import Dice
from xmodal_seg.simulation.materials import Material
from xmodal_seg.simulation.meshes import Colour, Mesh, blob, concatenate, triangles, tube
from xmodal_seg.simulation.raw_classes import RawClass

LEAF_M = 0.30
TreeKind = Literal["broad", "round", "column", "conifer", "palm"]


def crown(
    dice: Dice, centre: NDArray[np.float64], radii: NDArray[np.float64], number: int, size: float, colour: Colour
) -> Mesh:
    """A dense core inside a shell of loose leaves."""
    core = blob(
        np.ones(3),
        colour=tuple(0.6 * channel for channel in colour),  # type: ignore[arg-type]
        material=Material.LEAVES,
        raw_class=RawClass.VEGETATION,
    )
    lumps = 0.72 + 0.34 * _by_direction(core.corners, dice)
    core = replace(core, corners=(centre + core.corners * lumps[..., None] * radii).astype(np.float32))
    return concatenate([core, leaves(dice, centre, radii, number, size, colour)])


def _by_direction(corners: NDArray[np.float32], dice: Dice) -> NDArray[np.float64]:
    """(F, 3) a draw in [-0.5, 0.5] for each corner, the same for corners at the same place."""
    keys = np.round(corners.reshape(-1, 3) * 50).astype(np.int64) @ np.array([1, 1009, 1018081])
    places, inverse = np.unique(keys, return_inverse=True)
    return (dice.array(len(places)) - 0.5)[inverse].reshape(corners.shape[:2])


def leaves(
    dice: Dice, centre: NDArray[np.float64], radii: NDArray[np.float64], number: int, size: float, colour: Colour
) -> Mesh:
    """`number` leaf triangles near the surface of an ellipsoid, lit as if they were its surface."""
    draw = dice.array(number, 12)
    z, turn = 2 * draw[:, 0] - 1, 2 * np.pi * draw[:, 1]
    flat = np.sqrt(1 - z * z)
    outward = np.stack([flat * np.cos(turn), flat * np.sin(turn), z], axis=1)
    depth = 1.04 - 0.34 * draw[:, 2:3]
    middle = centre + outward * radii * depth
    edges = (draw[:, 3:12].reshape(-1, 3, 3) - 0.5) * (2.2 * size)
    edges -= edges.mean(axis=1, keepdims=True)
    normal = outward / radii
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    spread = normal[:, None] + 0.9 * (draw[:, 3:12].reshape(-1, 3, 3) - 0.5)
    spread /= np.linalg.norm(spread, axis=2, keepdims=True)
    # Leaves deep in the crown and at its underside get less light than a convex surface would.
    shade = (0.55 + 0.45 * (1 - draw[:, 2]) ** 0.5) * (0.75 + 0.25 * outward[:, 2])
    tint = 0.8 + 0.4 * draw[:, 3]
    return triangles(
        middle[:, None] + edges,
        normals=spread,
        colour=np.asarray(colour)[None] * (shade * tint)[:, None],
        material=Material.LEAVES,
        raw_class=RawClass.VEGETATION,
    )


def tree(kind: TreeKind, dice: Dice, leaf: Colour, bark: Colour) -> Mesh:
    """One tree of `kind`; height and shape are drawn from `dice`."""
    if kind == "palm":
        return _palm(dice, leaf, bark)
    if kind == "conifer":
        return _conifer(dice, leaf, bark)
    height = dice.uniform(6.0, 11.0) if kind != "round" else dice.uniform(4.0, 6.5)
    trunk_height = dice.uniform(0.28, 0.36) * height
    spread = {"broad": 0.36, "round": 0.34, "column": 0.17}[kind] * height * dice.uniform(0.85, 1.15)
    radius = 0.022 * height
    crown_height = (height - trunk_height) / 2
    parts = [_wood((0, 0, -0.2), (0, 0, trunk_height + 0.6 * crown_height), radius, 0.5 * radius, bark)]
    number = 4 if kind == "broad" else 3
    for i in range(number):
        turn = 2 * np.pi * (i + dice.uniform(0, 0.6)) / number
        reach = 0.42 * spread
        centre = np.array(
            [reach * np.cos(turn), reach * np.sin(turn), trunk_height + crown_height * dice.uniform(0.75, 1.25)]
        )
        parts.append(_wood((0, 0, trunk_height * 0.9), centre, 0.5 * radius, 0.2 * radius, bark))
        radii = np.array([0.68 * spread, 0.68 * spread, 0.72 * crown_height])
        parts.append(crown(dice, centre, radii, 110, LEAF_M, leaf))
    top = np.array([0, 0, trunk_height + 1.25 * crown_height])
    parts.append(crown(dice, top, np.array([0.7 * spread, 0.7 * spread, 0.75 * crown_height]), 110, LEAF_M, leaf))
    return concatenate(parts)


def _wood(start: object, end: object, radius: float, end_radius: float, bark: Colour) -> Mesh:
    return tube(
        np.asarray(start, float),
        np.asarray(end, float),
        radius,
        end_radius,
        sides=6,
        capped=False,
        colour=bark,
        material=Material.BARK,
        raw_class=RawClass.TRUNK,
    )


def _conifer(dice: Dice, leaf: Colour, bark: Colour) -> Mesh:
    height = dice.uniform(7.0, 12.0)
    parts = [_wood((0, 0, -0.2), (0, 0, 0.9 * height), 0.018 * height, 0.03, bark)]
    low = 0.12 * height
    for i in range(5):
        share = i / 5
        radius = 0.22 * height * (1 - share) + 0.15
        centre = np.array([0, 0, low + (height - low) * (share + 0.1)])
        parts.append(crown(dice, centre, np.array([radius, radius, 0.13 * height]), 90 - 10 * i, LEAF_M, leaf))
    return concatenate(parts)


def _palm(dice: Dice, leaf: Colour, bark: Colour) -> Mesh:
    height = dice.uniform(6.0, 10.0)
    lean = np.array([dice.uniform(-0.5, 0.5), dice.uniform(-0.5, 0.5), height])
    parts = [_wood((0, 0, -0.2), lean, 0.17, 0.11, bark)]
    number = 13
    corners = []
    for i in range(number):
        turn = 2 * np.pi * i / number + dice.uniform(0, 0.3)
        out = np.array([np.cos(turn), np.sin(turn), 0.0])
        side = 0.32 * np.array([-np.sin(turn), np.cos(turn), 0.0])
        reach, rise = dice.uniform(1.6, 2.3), dice.uniform(-0.1, 0.7)
        middle = lean + 0.55 * reach * out + (0, 0, rise)
        tip = lean + reach * out + (0, 0, rise - dice.uniform(0.7, 1.3))
        down = np.array([0, 0, -0.14])
        corners += [[lean, middle + side + down, middle], [lean, middle, middle - side + down]]
        corners += [[middle, middle + side + down, tip], [middle, tip, middle - side + down]]
    fronds = triangles(np.array(corners), colour=leaf, material=Material.LEAVES, raw_class=RawClass.VEGETATION)
    return concatenate([*parts, fronds])


def bush(dice: Dice, leaf: Colour) -> Mesh:
    """A round shrub."""
    radius, height = dice.uniform(0.5, 1.1), dice.uniform(0.6, 1.5)
    return crown(dice, np.array([0, 0, 0.45 * height]), np.array([radius, radius, 0.6 * height]), 90, 0.18, leaf)


def hedge(dice: Dice, length: float, leaf: Colour) -> Mesh:
    """A clipped hedge of `length` m along x."""
    height, width = dice.uniform(0.9, 1.7), 0.7
    draw = dice.array(int(45 * length), 12)
    face = np.floor(3 * draw[:, 0]).astype(int)  # 0 and 1: the two long sides, 2: the top
    y = np.where(face == 2, draw[:, 1] - 0.5, np.where(face == 0, -0.5, 0.5)) * width
    z = np.where(face == 2, height, draw[:, 2] * height)
    middle = np.stack([(draw[:, 3] - 0.5) * length, y, z], axis=1)
    normal = np.stack([0 * y, np.where(face == 2, 0, np.sign(y)), np.where(face == 2, 1.0, 0)], axis=1)
    edges = (draw[:, 3:12].reshape(-1, 3, 3) - 0.5) * 0.5
    edges -= edges.mean(axis=1, keepdims=True)
    spread = normal[:, None] + 0.7 * (draw[:, 3:12].reshape(-1, 3, 3) - 0.5)
    spread /= np.linalg.norm(spread, axis=2, keepdims=True)
    shade = (0.65 + 0.35 * z / height) * (0.85 + 0.3 * draw[:, 4])
    return triangles(
        middle[:, None] + edges,
        normals=spread,
        colour=np.asarray(leaf)[None] * shade[:, None],
        material=Material.LEAVES,
        raw_class=RawClass.VEGETATION,
    )
