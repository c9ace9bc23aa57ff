# SPDX-License-Identifier: Apache-2.0
"""Everything that moves by itself. Positions are closed formulas of time, so any moment can be asked for directly.

Lanes, bicycle strips and sidewalks are conveyor belts: number j of a flow stands at j * gap + jitter(j) + speed * t.
Vehicles in the lane of the sensors keep their distance to it, so they stop where it stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.simulation import library, people
from xmodal_seg.simulation.dice import Dice
from xmodal_seg.simulation.ego import EgoMotion
from xmodal_seg.simulation.meshes import Colour, Mesh, concatenate, offset
from xmodal_seg.simulation.palettes import linear
from xmodal_seg.simulation.plans import BLOCK_M, Side
from xmodal_seg.simulation.scene import RayTree
from xmodal_seg.simulation.world import FIRST_MOVING_INSTANCE, SHADE_HEIGHT_M, World, shade_under

MoverKind = Literal["car", "truck", "bus", "cyclist", "pedestrian"]
VEHICLES: tuple[MoverKind, ...] = ("car", "truck", "bus")
SIZES: dict[MoverKind, tuple[float, float]] = {
    "car": (4.6, 1.85),
    "truck": (8.5, 2.5),
    "bus": (11.5, 2.55),
    "cyclist": (1.4, 0.3),
    "pedestrian": (0.4, 0.4),
}
SIGHT_M: dict[MoverKind, float] = {"car": 140.0, "truck": 140.0, "bus": 140.0, "cyclist": 90.0, "pedestrian": 75.0}
STRIDE_M: dict[MoverKind, float] = {"pedestrian": 1.4, "cyclist": 4.5}


@dataclass(frozen=True, kw_only=True)
class Mover:
    """One moving thing at one moment."""

    kind: MoverKind
    model: int
    s: float
    d: float
    h: float
    direction: int  # +1 along the street, -1 against it
    speed: float  # m/s
    braking: bool
    colour: Colour
    instance: int


@dataclass(frozen=True, kw_only=True)
class Flow:
    """A conveyor belt of movers."""

    number: int
    kind: Literal["vehicle", "cyclist", "pedestrian"]
    side: Side
    offset: float  # m: distance from the middle of the street, or from the inner edge of the sidewalk
    velocity: float  # m/s along the street
    gap: float  # m


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The moving world at one moment, in coordinates relative to the origin it was asked for."""

    tree: RayTree
    movers: tuple[Mover, ...]
    instances: NDArray[np.int32]  # (M,) of the movers, ascending
    velocities: NDArray[np.float32]  # (M, 3) m/s of each of them
    head_lamps: NDArray[np.float32]  # (V, 3) between the head-lamps of each vehicle
    headings: NDArray[np.float32]  # (V, 3) unit, where they shine


class Traffic:
    """The movers of one street."""

    def __init__(self, world: World, ego: EgoMotion, seed: int) -> None:
        self._world = world
        self._ego = ego
        self._seed = seed
        place = world.place
        forward: Side = -1 if place.traffic_side == "right" else 1
        self._forward = forward
        dice = Dice(seed, place.model_seed, "flows")
        self._flows = _flows(world, forward, dice)
        self._leads = _leads(dice)
        self._fate = lru_cache(maxsize=4096)(self._draw)

    def moment(self, t: float, origin: NDArray[np.float64]) -> Moment:
        """Everything that moves and is near enough to be seen."""
        movers = tuple(sorted(self.movers(t), key=lambda mover: mover.instance))
        meshes = [mesh for mover in movers for mesh in self._meshes(mover, t, origin)]
        vehicles = [mover for mover in movers if mover.kind in VEHICLES]
        return Moment(
            tree=RayTree(concatenate(meshes)),
            movers=movers,
            instances=np.array([mover.instance for mover in movers], np.int32),
            velocities=self._directions(movers)
            * np.array([[mover.speed] for mover in movers], np.float32).reshape(-1, 1),
            head_lamps=self._noses(vehicles, origin),
            headings=self._directions(vehicles),
        )

    def movers(self, t: float) -> tuple[Mover, ...]:
        middle = float(self._ego.s(t))
        found = [mover for flow in self._flows for mover in self._on(flow, t, middle)]
        return tuple(found + self._in_lane(t, middle))

    def _on(self, flow: Flow, t: float, middle: float) -> list[Mover]:
        travelled = flow.velocity * t
        reach = SIGHT_M["car" if flow.kind == "vehicle" else flow.kind]
        low = int(np.ceil((middle - reach - travelled) / flow.gap))
        high = int(np.floor((middle + reach - travelled) / flow.gap))
        found = []
        for j in range(low, high + 1):
            kind, model, colour, jitter, present = self._fate(flow, j)
            s = (j + jitter) * flow.gap + travelled
            d, h = self._beside(flow, s) if flow.kind == "pedestrian" else (flow.side * flow.offset, 0.0)
            if present:
                found.append(
                    Mover(
                        kind=kind,
                        model=model,
                        s=s,
                        d=d,
                        h=h,
                        direction=1 if flow.velocity > 0 else -1,
                        speed=abs(flow.velocity),
                        braking=False,
                        colour=colour,
                        instance=FIRST_MOVING_INSTANCE + flow.number * 65536 + j % 65536,
                    )
                )
        return found

    def _draw(self, flow: Flow, j: int) -> tuple[MoverKind, int, Colour, float, bool]:
        """What number j of a flow is; drawn once, kept for as long as it is in sight."""
        place = self._world.place
        dice = Dice(self._seed, place.model_seed, "mover", flow.number, j)
        jitter, present = dice.uniform(-0.3, 0.3), dice.chance(0.85)
        kind: MoverKind
        if flow.kind == "vehicle":
            rest = max(0.0, 1 - place.trucks - place.buses)
            kind = dice.choice(VEHICLES, (rest, place.trucks, place.buses))
        else:
            kind = flow.kind
        return kind, _model(dice, kind), linear(dice.choice(place.palette.cars)), jitter, present

    def _beside(self, flow: Flow, s: float) -> tuple[float, float]:
        """Where the sidewalk runs at s."""
        profile = self._world.layout.profile(int(s // BLOCK_M), flow.side)
        start = profile.starts(self._world.layout.road)["sidewalk"]
        return flow.side * (start + min(flow.offset, profile.sidewalk - 0.3)), profile.curb

    def _in_lane(self, t: float, middle: float) -> list[Mover]:
        """Vehicles before and behind, in the lane of the sensors."""
        now, soon = self._ego.s(np.array([t, t + 0.5]))
        braking = bool(soon - now < now - self._ego.s(t - 0.5) - 0.4)
        found = []
        for i, (gap, swing, period) in enumerate(self._leads):
            dice = Dice(self._seed, self._world.place.model_seed, "lead", i)
            s = middle + gap + swing * float(np.sin(2 * np.pi * t / period))
            kind: MoverKind = dice.choice(VEHICLES, (0.8, 0.12, 0.08))
            found.append(
                Mover(
                    kind=kind,
                    model=_model(dice, kind),
                    s=s,
                    d=self._ego.d,
                    h=0.0,
                    direction=1,
                    speed=float(soon - now) / 0.5,
                    braking=braking,
                    colour=linear(dice.choice(self._world.place.palette.cars)),
                    instance=FIRST_MOVING_INSTANCE + i + 1,
                )
            )
        return found

    def _meshes(self, mover: Mover, t: float, origin: NDArray[np.float64]) -> list[Mesh]:
        street = self._world.street
        yaw = float(street.heading(mover.s)) + (0.0 if mover.direction > 0 else np.pi)
        position = street.point(mover.s, mover.d, mover.h) - origin
        body = self._template(mover).placed(yaw=yaw, position=position).tagged(instance=mover.instance)
        if mover.kind in ("cyclist", "pedestrian"):
            return [body]
        road = self._world.ground.surface("road")
        shade = shade_under(SIZES[mover.kind], road.colour, road.raw_class)
        lamps_on = 2 if mover.braking else 1
        return [body.styled(lamps_on), shade.placed(yaw=yaw, position=offset(position, 0, 0, SHADE_HEIGHT_M))]

    def _template(self, mover: Mover) -> Mesh:
        models = self._world.library
        if mover.kind == "car":
            return models.car(mover.model).painted(mover.colour)
        if mover.kind == "truck":
            return models.truck(mover.model).painted(mover.colour)
        if mover.kind == "bus":
            return models.bus(mover.model).painted(mover.colour)
        stride = int(mover.s / STRIDE_M[mover.kind] * people.NUM_STRIDES) % people.NUM_STRIDES
        if mover.kind == "cyclist":
            return models.cyclist(mover.model, stride)
        return models.pedestrian(mover.model, stride)

    def _noses(self, vehicles: list[Mover], origin: NDArray[np.float64]) -> NDArray[np.float32]:
        s = np.array([v.s + v.direction * SIZES[v.kind][0] / 2 for v in vehicles])
        d = np.array([v.d for v in vehicles])
        return (self._world.street.point(s, d, 0.7) - origin).astype(np.float32).reshape(-1, 3)

    def _directions(self, vehicles: Sequence[Mover]) -> NDArray[np.float32]:
        heading = self._world.street.heading(np.array([v.s for v in vehicles]))
        sign = np.array([v.direction for v in vehicles])
        return np.stack([sign * np.cos(heading), sign * np.sin(heading), 0 * heading], axis=-1).astype(np.float32)


def _flows(world: World, forward: Side, dice: Dice) -> tuple[Flow, ...]:
    place = world.place
    flows = []
    for side in (forward, -forward):
        for lane in range(place.lanes):
            if side == forward and lane == place.lanes - 1:
                continue  # the lane of the sensors
            flows.append(("vehicle", side, (lane + 0.5) * place.lane_width, dice.between(place.speed), place.gap))
        flows.append(("cyclist", side, world.layout.road - 0.5, dice.uniform(3.5, 5.5), place.bicycle_every))
        for direction in (-1, 1):
            pace = direction * dice.uniform(1.1, 1.5)
            flows.append(("pedestrian", side, dice.uniform(0.8, 1.6), pace, 4 * place.pedestrian_every))
    return tuple(
        Flow(
            number=i + 1,
            kind=kind,  # type: ignore[arg-type]
            side=side,
            offset=offset,
            velocity=velocity if kind == "pedestrian" or side == forward else -velocity,
            gap=gap,
        )
        for i, (kind, side, offset, velocity, gap) in enumerate(flows)
    )


def _leads(dice: Dice) -> tuple[tuple[float, float, float], ...]:
    """(distance m, swing m, period s) of the vehicles in the lane of the sensors; the first may be missing."""
    first = dice.uniform(20.0, 38.0)
    ahead = [(first, dice.uniform(2, 7), dice.uniform(25, 60))] if dice.chance(0.7) else []
    second = first + dice.uniform(28.0, 50.0)
    return (*ahead, (second, 4.0, dice.uniform(30, 70)), (-dice.uniform(18.0, 40.0), 4.0, dice.uniform(30, 70)))


def _model(dice: Dice, kind: MoverKind) -> int:
    numbers: dict[MoverKind, int] = {
        "car": library.NUM_CARS,
        "truck": library.NUM_TRUCKS,
        "bus": library.NUM_BUSES,
        "cyclist": library.NUM_CYCLISTS,
        "pedestrian": library.NUM_PEOPLE,
    }
    return dice.integer(0, numbers[kind])
