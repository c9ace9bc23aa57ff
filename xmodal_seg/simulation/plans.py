# SPDX-License-Identifier: Apache-2.0
"""What a plan of a street says: profiles beside the road, placements of objects, houses, blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xmodal_seg.simulation.buildings import BuildingPlan
from xmodal_seg.simulation.meshes import Colour
from xmodal_seg.simulation.places import Edge, Facing, Parking

BLOCK_M = 30.0
CROSS_HALF_M = 4.2  # half width of a side road
CROSS_WALK_M = 2.6  # sidewalks along it
FIRST_BLOCK = -8
PARKING_WIDTH: dict[Parking, float] = {"none": 0.0, "parallel": 2.3, "perpendicular": 5.2}

Kind = Literal[
    "car",
    "truck",
    "two_wheeler",
    "tree",
    "bush",
    "hedge",
    "wall",
    "fence",
    "object",
    "sign",
    "lamp",
    "signal",
    "person",
]
Side = Literal[-1, 1]  # right, left of the street


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One object: a model of the library, where it stands and which way it looks along the street."""

    kind: Kind
    model: int
    s: float
    d: float
    h: float = 0.0
    yaw: float = 0.0
    scale: float = 1.0
    length: float = 0.0  # of hedges, walls and fences; reach of lamps and signals
    colour: Colour | None = None


@dataclass(frozen=True, kw_only=True)
class HousePlan:
    """A building and where the middle of its front stands; `side` says which way it looks."""

    plan: BuildingPlan
    s: float
    d: float
    side: Side


@dataclass(frozen=True, kw_only=True)
class SideProfile:
    """The strips beside the road, outwards: parking, curb, verge, sidewalk, yard. Widths in m."""

    parking: Parking
    curb: float
    verge: float
    sidewalk: float
    yard: float
    edge: Edge
    facing: Facing

    @property
    def parking_width(self) -> float:
        return PARKING_WIDTH[self.parking]

    def starts(self, road: float) -> dict[str, float]:
        """Distance from the middle at which each strip begins."""
        curb = road + self.parking_width
        verge = curb + 0.15
        sidewalk = verge + self.verge
        yard = sidewalk + self.sidewalk
        return {
            "parking": road,
            "curb": curb,
            "verge": verge,
            "sidewalk": sidewalk,
            "yard": yard,
            "front": yard + self.yard,
        }


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """Everything in one block of the street."""

    index: int
    crossing: bool
    sides: dict[Side, SideProfile]
    placements: tuple[Placement, ...]
    houses: tuple[HousePlan, ...]

    @property
    def start(self) -> float:
        return self.index * BLOCK_M
