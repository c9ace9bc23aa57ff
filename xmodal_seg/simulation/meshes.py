# SPDX-License-Identifier: Apache-2.0
"""Triangles with what a sensor needs to know about them, and the primitives every object is put together from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xmodal_seg.simulation.materials import Material
from xmodal_seg.simulation.raw_classes import RawClass

Vector = Sequence[float] | NDArray[np.floating]
Colour = tuple[float, float, float]  # linear reflectance in [0, 1]
BOX_QUADS = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (1, 5, 7, 3), (0, 2, 6, 4))


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """A soup of F triangles; corners are stored per triangle, so meshes concatenate and cut without an index."""

    corners: NDArray[np.float32]  # (F, 3, 3) m
    normals: NDArray[np.float32]  # (F, 3, 3) unit, per corner
    tex: NDArray[np.float32]  # (F, 3, 2) m along the surface, for procedural texture
    colour: NDArray[np.float32]  # (F, 3) linear reflectance
    material: NDArray[np.uint8]  # (F,) Material
    raw_class: NDArray[np.uint8]  # (F,) RawClass
    instance: NDArray[np.int32]  # (F,) 0 for things that are not counted
    style: NDArray[np.int32]  # (F,) free number for the texture: facade style, phase

    @property
    def num_faces(self) -> int:
        return self.corners.shape[0]

    def placed(self, *, yaw: float = 0.0, position: Vector = (0.0, 0.0, 0.0), scale: float = 1.0) -> Mesh:
        """Scaled, turned by `yaw` rad about z, then moved."""
        rotation = yaw_matrix(yaw)
        corners = turned(self.corners, scale * rotation) + np.asarray(position, np.float32)
        return replace(self, corners=corners, normals=turned(self.normals, rotation))

    def moved(self, offset: Vector) -> Mesh:
        return replace(self, corners=self.corners + np.asarray(offset, np.float32))

    def tagged(self, *, instance: int) -> Mesh:
        return replace(self, instance=np.full(self.num_faces, instance, np.int32))

    def styled(self, style: int) -> Mesh:
        return replace(self, style=np.full(self.num_faces, style, np.int32))

    def painted(self, colour: Colour, *, material: Material = Material.CAR_PAINT) -> Mesh:
        """The faces of `material` get another colour."""
        mask = (self.material == material)[:, None]
        return replace(self, colour=np.where(mask, np.asarray(colour, np.float32), self.colour))


def turned(vectors: NDArray[np.float32], rotation: NDArray[np.floating]) -> NDArray[np.float32]:
    """`rotation` (3, 3) applied to vectors (..., 3); forty times faster than `@ rotation.T`, which BLAS copies."""
    return vectors @ np.ascontiguousarray(rotation.T, np.float32)


def yaw_matrix(yaw: float) -> NDArray[np.float64]:
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def offset(point: Vector, x: float, y: float, z: float) -> NDArray[np.float64]:
    return np.asarray(point, float) + np.array([x, y, z])


def concatenate(meshes: Iterable[Mesh]) -> Mesh:
    parts = [mesh for mesh in meshes if mesh.num_faces]
    if not parts:
        return triangles(np.zeros((0, 3, 3)), colour=(0, 0, 0), material=Material.PAINT, raw_class=RawClass.NOTHING)
    return Mesh(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def triangles(
    corners: ArrayLike,
    *,
    colour: Colour | NDArray[np.floating],
    material: Material,
    raw_class: RawClass,
    normals: ArrayLike | None = None,
    tex: ArrayLike | None = None,
    style: int = 0,
) -> Mesh:
    """Triangles (F, 3, 3) of one material; flat normals and wall-like texture coordinates unless given."""
    corners = np.asarray(corners, np.float32).reshape(-1, 3, 3)
    F = len(corners)
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    if normals is None:
        normals = np.repeat(flat[:, None], 3, axis=1)
    return Mesh(
        corners=corners,
        normals=np.asarray(normals, np.float32),
        tex=_planar_tex(corners, flat) if tex is None else np.asarray(tex, np.float32).reshape(F, 3, 2),
        colour=np.broadcast_to(np.asarray(colour, np.float32), (F, 3)).copy(),
        material=np.full(F, material, np.uint8),
        raw_class=np.full(F, raw_class, np.uint8),
        instance=np.zeros(F, np.int32),
        style=np.full(F, style, np.int32),
    )


def _planar_tex(corners: NDArray[np.float32], flat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Coordinates in the plane of each face: (x, y) where it lies, (along, height) where it stands."""
    standing = (np.abs(flat[:, 2]) < 0.7)[:, None]
    along_y = (np.abs(flat[:, 0]) > np.abs(flat[:, 1]))[:, None]
    first = np.where(standing & along_y, corners[..., 1], corners[..., 0])
    second = np.where(standing, corners[..., 2], corners[..., 1])
    return np.stack([first, second], axis=-1)


def quads(
    corners: ArrayLike,
    *,
    colour: Colour,
    material: Material,
    raw_class: RawClass,
    tex: ArrayLike | None = None,
    style: int = 0,
) -> Mesh:
    """Quadrilaterals (Q, 4, 3), corners counter-clockwise seen from outside."""
    split = _split(np.asarray(corners, np.float32).reshape(-1, 4, 3))
    tex = None if tex is None else _split(np.asarray(tex, np.float32).reshape(-1, 4, 2))
    return triangles(split, colour=colour, material=material, raw_class=raw_class, tex=tex, style=style)


def _split(four: NDArray[np.float32]) -> NDArray[np.float32]:
    return four[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3, four.shape[-1])


def box(
    size: Vector,
    *,
    centre: Vector = (0.0, 0.0, 0.0),
    colour: Colour,
    material: Material,
    raw_class: RawClass,
    taper: float = 1.0,
    style: int = 0,
) -> Mesh:
    """An axis-aligned box; `taper` scales its top in x and y."""
    unit = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    unit[unit[:, 2] > 0, :2] *= taper
    corners = unit * np.asarray(size, float) + np.asarray(centre, float)
    return quads(corners[np.array(BOX_QUADS)], colour=colour, material=material, raw_class=raw_class, style=style)


def tube(
    start: Vector,
    end: Vector,
    radius: float,
    end_radius: float | None = None,
    *,
    sides: int = 6,
    capped: bool = True,
    colour: Colour,
    material: Material,
    raw_class: RawClass,
) -> Mesh:
    """A round bar between two points, smooth to the light; `capped` closes both ends."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    axis = (end - start) / np.linalg.norm(end - start)
    helper = np.array([1.0, 0.0, 0.0]) if abs(axis[0]) < 0.8 else np.array([0.0, 1.0, 0.0])
    first = np.cross(axis, helper)
    first /= np.linalg.norm(first)
    angle = np.arange(sides + 1) * (2 * np.pi / sides)
    ring = np.cos(angle)[:, None] * first + np.sin(angle)[:, None] * np.cross(axis, first)
    low = start + radius * ring
    high = end + (radius if end_radius is None else end_radius) * ring
    four = np.stack([low[:-1], low[1:], high[1:], high[:-1]], axis=1)
    round_normals = np.stack([ring[:-1], ring[1:], ring[1:], ring[:-1]], axis=1)
    look: dict[str, Any] = {"colour": colour, "material": material, "raw_class": raw_class}
    side = triangles(_split(four.astype(np.float32)), normals=_split(round_normals.astype(np.float32)), **look)
    if not capped:
        return side
    fan_low = np.stack([np.broadcast_to(start, low[1:].shape), low[1:], low[:-1]], axis=1)
    fan_high = np.stack([np.broadcast_to(end, high[1:].shape), high[:-1], high[1:]], axis=1)
    return concatenate([side, triangles(np.concatenate([fan_low, fan_high]), **look)])


def disc(
    centre: Vector,
    axis: Vector,
    radius: float,
    *,
    sides: int = 10,
    colour: Colour,
    material: Material,
    raw_class: RawClass,
) -> Mesh:
    """A flat polygon facing along `axis`."""
    centre, axis = np.asarray(centre, float), np.asarray(axis, float) / np.linalg.norm(axis)
    helper = np.array([0.0, 0.0, 1.0]) if abs(axis[2]) < 0.8 else np.array([1.0, 0.0, 0.0])
    right = np.cross(helper, axis)
    right /= np.linalg.norm(right)
    angle = np.arange(sides + 1) * (2 * np.pi / sides) + np.pi / sides
    ring = centre + radius * (np.cos(angle)[:, None] * right + np.sin(angle)[:, None] * np.cross(axis, right))
    fan = np.stack([np.broadcast_to(centre, ring[1:].shape), ring[:-1], ring[1:]], axis=1)
    return triangles(fan, colour=colour, material=material, raw_class=raw_class)


def grid(
    points: NDArray[np.floating],
    *,
    colour: Colour,
    material: Material,
    raw_class: RawClass,
    tex: NDArray[np.floating],
    style: int = 0,
) -> Mesh:
    """A sheet over points (rows, columns, 3) with rows along the street and columns to the left; it faces up."""
    four = np.stack([points[:-1, :-1], points[1:, :-1], points[1:, 1:], points[:-1, 1:]], axis=2).reshape(-1, 4, 3)
    four_tex = np.stack([tex[:-1, :-1], tex[1:, :-1], tex[1:, 1:], tex[:-1, 1:]], axis=2).reshape(-1, 4, 2)
    return quads(four, colour=colour, material=material, raw_class=raw_class, tex=four_tex, style=style)


def loft(sections: NDArray[np.floating], *, colour: Colour, material: Material, raw_class: RawClass) -> Mesh:
    """The skin through cross-sections (S, P, 3); faces run section by section, P - 1 quads (2 triangles each) in each.

    Sections go backwards along x and each from right to left over the top, so that the skin faces outwards.
    """
    four = np.stack([sections[:-1, :-1], sections[:-1, 1:], sections[1:, 1:], sections[1:, :-1]], axis=2)
    return quads(four.reshape(-1, 4, 3), colour=colour, material=material, raw_class=raw_class)


def blob(radii: Vector, *, centre: Vector = (0, 0, 0), colour: Colour, material: Material, raw_class: RawClass) -> Mesh:
    """A smooth ellipsoid of 20 x 4 faces."""
    unit = _sphere()
    corners = unit * np.asarray(radii, np.float32) + np.asarray(centre, np.float32)
    normals = unit / np.asarray(radii, np.float32)
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    return triangles(corners, normals=normals, colour=colour, material=material, raw_class=raw_class)


def _sphere() -> NDArray[np.float32]:
    """(80, 3, 3): an icosahedron divided once."""
    a, b, c = np.moveaxis(_icosahedron(), 1, 0)
    ab, bc, ca = (a + b) / 2, (b + c) / 2, (c + a) / 2
    four = np.concatenate([np.stack(t, axis=1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])
    return (four / np.linalg.norm(four, axis=2, keepdims=True)).astype(np.float32)


def _icosahedron() -> NDArray[np.float64]:
    """(20, 3, 3): two caps of five faces around the poles and the band between."""
    turn, level = np.arange(5) * (2 * np.pi / 5), 1 / np.sqrt(5)
    upper = np.stack([2 * level * np.cos(turn), 2 * level * np.sin(turn), np.full(5, level)], axis=1)
    lower = upper @ np.diag([-1.0, -1.0, -1.0])  # opposite corners
    lower = np.roll(lower, -2, axis=0)  # lower[i] lies between upper[i] and upper[i - 1]
    north, south = np.broadcast_to([0.0, 0.0, 1.0], (5, 3)), np.broadcast_to([0.0, 0.0, -1.0], (5, 3))
    after, below_after = np.roll(upper, -1, axis=0), np.roll(lower, -1, axis=0)
    faces = (
        (north, upper, after),
        (upper, lower, below_after),
        (upper, below_after, after),
        (south, below_after, lower),
    )
    return np.concatenate([np.stack(corners, axis=1) for corners in faces])
