# SPDX-License-Identifier: Apache-2.0
"""The ground of a block: road with its markings, parking, curb, verge, sidewalk, yard, side road, land behind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.simulation import noise
from xmodal_seg.simulation.dice import Dice
from xmodal_seg.simulation.materials import Material
from xmodal_seg.simulation.meshes import Colour, Mesh, concatenate, grid
from xmodal_seg.simulation.palettes import linear
from xmodal_seg.simulation.places import Place
from xmodal_seg.simulation.plans import (
    BLOCK_M,
    CROSS_HALF_M,
    CROSS_WALK_M,
    BlockPlan,
    Side,
    SideProfile,
)
from xmodal_seg.simulation.raw_classes import RawClass
from xmodal_seg.simulation.street import Street

LAND_M = 95.0  # the land ends this far beside the street
SIDE_ROAD_M = 70.0
MARK_HEIGHT_M = 0.006
MARK_WIDTH_M = 0.14
BASE_HEIGHT_M = -0.10
DASH_M, DASH_EVERY_M = 3.0, 7.5


@dataclass(frozen=True, kw_only=True)
class Surface:
    """What a strip of ground is made of."""

    raw_class: RawClass
    material: Material
    colour: Colour
    bumps: float = 0.0  # m
    step: tuple[float, float] = (5.0, 2.5)  # m along and across


class Ground:
    """Builds the ground of one street's blocks; coordinates relative to `origin` of each block."""

    def __init__(self, place: Place, street: Street, road: float, seed: int) -> None:
        self._place = place
        self._street = street
        self._road = road
        self._surfaces = _surfaces(place, seed)

    def block(self, plan: BlockPlan, origin: NDArray[np.float64]) -> Mesh:
        parts = [self._road_strip(plan.start, plan.start + BLOCK_M, origin), self._base(plan.start, origin)]
        for side, profile in plan.sides.items():
            if plan.crossing:
                parts += self._crossing_side(side, profile, plan.start, origin)
            else:
                parts += self._side(side, profile, plan.start, plan.start + BLOCK_M, origin)
        parts += self._markings(plan, origin)
        return concatenate(parts)

    def surface(self, name: str) -> Surface:
        return self._surfaces[name]

    def _road_strip(self, s0: float, s1: float, origin: NDArray[np.float64]) -> Mesh:
        d = np.linspace(-self._road, self._road, 5)
        return self._sheet("road", _steps(s0, s1, 5.0), d, np.zeros_like(d), origin)

    def _base(self, s0: float, origin: NDArray[np.float64]) -> Mesh:
        """A sheet below everything: no ray falls through the seams between strips of different height."""
        d = np.linspace(-LAND_M, LAND_M, 7)
        return self._sheet("base", _steps(s0, s0 + BLOCK_M, 5.0), d, np.full_like(d, BASE_HEIGHT_M), origin)

    def _side(self, side: Side, profile: SideProfile, s0: float, s1: float, origin: NDArray[np.float64]) -> list[Mesh]:
        """The strips of a plain stretch, outwards."""
        at, high = profile.starts(self._road), profile.curb
        strips = [("sidewalk", at["sidewalk"], at["yard"], high)]
        if profile.parking_width:
            strips.append(("parking", at["parking"], at["curb"], 0.0))
        if profile.verge:
            strips.append(("verge", at["verge"], at["sidewalk"], high))
        if profile.facing == "lot":
            strips += [("parking", at["yard"], at["yard"] + 24.0, high), ("land", at["yard"] + 24.0, LAND_M, high)]
        else:
            strips += [("yard", at["yard"], at["front"] + 6.0, high), ("land", at["front"] + 6.0, LAND_M, high)]
        parts = [self._strip(name, side, s0, s1, inner, outer, h, origin) for name, inner, outer, h in strips]
        return [*parts, self._curb(side, at["curb"], high, s0, s1, origin)]

    def _strip(
        self,
        name: str,
        side: Side,
        s0: float,
        s1: float,
        inner: float,
        outer: float,
        high: float,
        origin: NDArray[np.float64],
    ) -> Mesh:
        surface = self._surfaces[name]
        d = side * _steps(inner, outer, surface.step[1])
        return self._sheet(name, _steps(s0, s1, surface.step[0]), d, np.full_like(d, high), origin)

    def _curb(self, side: Side, d: float, high: float, s0: float, s1: float, origin: NDArray[np.float64]) -> Mesh:
        """The upright face and the top of the kerbstone."""
        return self._sheet(
            "curb", _steps(s0, s1, 5.0), side * np.array([d, d + 0.02, d + 0.15]), np.array([0.0, high, high]), origin
        )

    def _crossing_side(self, side: Side, profile: SideProfile, start: float, origin: NDArray[np.float64]) -> list[Mesh]:
        """Plain strips at both ends, the side road with its sidewalks in the middle."""
        middle, reach = start + BLOCK_M / 2, CROSS_HALF_M + CROSS_WALK_M
        parts = self._side(side, profile, start, middle - reach, origin)
        parts += self._side(side, profile, middle + reach, start + BLOCK_M, origin)
        parts.append(
            self._strip("road", side, middle - CROSS_HALF_M, middle + CROSS_HALF_M, self._road, SIDE_ROAD_M, 0, origin)
        )
        for end in (-1, 1):
            near, far = sorted((middle + end * CROSS_HALF_M, middle + end * reach))
            parts.append(self._strip("sidewalk", side, near, far, self._road + 0.15, SIDE_ROAD_M, profile.curb, origin))
            parts.append(self._curb(side, self._road, profile.curb, near, far, origin))
            parts.append(self._upright(side, middle + end * CROSS_HALF_M, profile.curb, origin))
            parts.append(self._upright(side, middle + end * reach, profile.curb, origin))
        return parts

    def _upright(self, side: Side, s: float, high: float, origin: NDArray[np.float64]) -> Mesh:
        """The kerb along a side road."""
        d = side * _steps(self._road, SIDE_ROAD_M, 10.0)
        points = np.stack([self._street.point(s, d, 0.0), self._street.point(s + 0.02, d, high)]) - origin
        surface = self._surfaces["curb"]
        tex = np.stack([np.stack([d, 0 * d], axis=1), np.stack([d, 0 * d + high], axis=1)])
        return grid(points, tex=tex, colour=surface.colour, material=surface.material, raw_class=surface.raw_class)

    def _sheet(
        self,
        name: str,
        s: NDArray[np.float64],
        d: NDArray[np.float64],
        h: NDArray[np.float64],
        origin: NDArray[np.float64],
    ) -> Mesh:
        surface = self._surfaces[name]
        ss, dd = np.meshgrid(s, d, indexing="ij")
        hh = np.broadcast_to(h, ss.shape) + _bumps(ss, dd, surface.bumps)
        points = self._street.point(ss, dd, hh) - origin
        return grid(
            points,
            tex=np.stack([ss, dd], axis=-1),
            colour=surface.colour,
            material=surface.material,
            raw_class=surface.raw_class,
        )

    def _markings(self, plan: BlockPlan, origin: NDArray[np.float64]) -> list[Mesh]:
        if plan.crossing:
            return self._crossing_marks(plan, origin)
        start, end = plan.start, plan.start + BLOCK_M
        edge = self._road - self._place.shoulder
        parts = [self._stripe("edge_line", start, end, side * edge, MARK_WIDTH_M, origin) for side in (-1, 1)]
        if self._place.lanes > 1 or self._place.palette.centre_line != self._place.palette.edge_line:
            parts += [self._stripe("centre_line", start, end, d, MARK_WIDTH_M, origin) for d in (-0.14, 0.14)]
        else:
            parts += self._dashes("centre_line", start, end, 0.0, origin)
        for lane in range(1, self._place.lanes):
            for side in (-1, 1):
                parts += self._dashes("edge_line", start, end, side * lane * self._place.lane_width, origin)
        for side, profile in plan.sides.items():
            parts += self._bay_marks(side, profile, start, origin)
        return parts

    def _bay_marks(self, side: Side, profile: SideProfile, start: float, origin: NDArray[np.float64]) -> list[Mesh]:
        bay = {"none": 0.0, "parallel": 6.0, "perpendicular": 2.75}[profile.parking]
        if not bay:
            return []
        d = side * (self._road + profile.parking_width / 2)
        return [
            self._stripe("edge_line", start + i * bay, start + i * bay + 0.1, d, 0.9 * profile.parking_width, origin)
            for i in range(int(BLOCK_M / bay) + 1)
        ]

    def _dashes(self, name: str, s0: float, s1: float, d: float, origin: NDArray[np.float64]) -> list[Mesh]:
        starts = np.arange(s0 + 1.0, s1 - DASH_M + 0.1, DASH_EVERY_M)
        return [self._stripe(name, s, s + DASH_M, d, MARK_WIDTH_M, origin) for s in starts]

    def _crossing_marks(self, plan: BlockPlan, origin: NDArray[np.float64]) -> list[Mesh]:
        """Zebra stripes over the street before and behind the side road, and stop lines."""
        middle = plan.start + BLOCK_M / 2
        parts = []
        for end in (-1, 1):
            s = middle + end * (CROSS_HALF_M + 0.4 + 1.5)
            for d in np.arange(-self._road + 0.6, self._road - 0.3, 1.1):
                parts.append(self._stripe("edge_line", s - 1.5, s + 1.5, d, 0.5, origin))
            stop = middle + end * (CROSS_HALF_M + 4.6)
            lane = end * (1 if self._place.traffic_side == "right" else -1)
            half = (self._road - 0.4) / 2
            parts.append(self._stripe("edge_line", stop - 0.2, stop + 0.2, lane * (0.2 + half), 2 * half, origin))
        return parts

    def _stripe(self, name: str, s0: float, s1: float, d: float, width: float, origin: NDArray[np.float64]) -> Mesh:
        s = _steps(s0, s1, 5.0)
        across = np.array([d - width / 2, d + width / 2])
        return self._sheet(name, s, across, np.full(2, MARK_HEIGHT_M), origin)


def _steps(low: float, high: float, step: float) -> NDArray[np.float64]:
    return np.linspace(low, high, max(1, round((high - low) / step)) + 1)


def _bumps(s: NDArray[np.float64], d: NDArray[np.float64], height: float) -> NDArray[np.float64]:
    """Bumps of `height` m; the rows at both edges of the strip stay level, so that it meets its neighbours."""
    if height == 0:
        return np.zeros_like(s)
    bumps = height * 1.6 * noise.at(s + 5000.0, d + 5000.0, 6.0).astype(np.float64)
    bumps[:, [0, -1]] = 0.0
    return bumps


def _surfaces(place: Place, seed: int) -> dict[str, Surface]:
    palette, dice = place.palette, Dice(seed, place.model_seed, "ground")

    def pick(codes: tuple[str, ...]) -> Colour:
        return linear(dice.choice(codes))

    grass, rough = pick(palette.grass), place.roughness
    mark = {"raw_class": RawClass.MARKING, "material": Material.MARKING}
    return {
        "road": Surface(raw_class=RawClass.ROAD, material=Material.ASPHALT, colour=pick(palette.asphalt)),
        "parking": Surface(raw_class=RawClass.PARKING, material=Material.ASPHALT, colour=pick(palette.parking)),
        "curb": Surface(raw_class=RawClass.CURB, material=Material.CONCRETE, colour=pick(palette.curb)),
        "sidewalk": Surface(raw_class=RawClass.SIDEWALK, material=Material.PAVING, colour=pick(palette.paving)),
        "verge": Surface(
            raw_class=RawClass.TERRAIN, material=Material.GRASS, colour=grass, bumps=rough, step=(0.8, 0.6)
        ),
        "yard": Surface(
            raw_class=RawClass.TERRAIN, material=Material.GRASS, colour=grass, bumps=rough, step=(1.0, 0.9)
        ),
        "land": Surface(
            raw_class=RawClass.TERRAIN, material=Material.GRASS, colour=grass, bumps=2 * rough, step=(7.5, 12.0)
        ),
        "base": Surface(raw_class=RawClass.TERRAIN, material=Material.SOIL, colour=pick(palette.soil)),
        "centre_line": Surface(colour=linear(palette.centre_line), **mark),  # type: ignore[arg-type]
        "edge_line": Surface(colour=linear(palette.edge_line), **mark),  # type: ignore[arg-type]
    }
