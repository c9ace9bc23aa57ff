# SPDX-License-Identifier: Apache-2.0
"""Fills a block of street: parking, trees, furniture, people, houses, parks, crossings; all drawn from one Dice."""

from __future__ import annotations

from dataclasses import dataclass, field

from xmodal_seg.simulation import library
from xmodal_seg.simulation.buildings import FLOOR_M, BuildingPlan
from xmodal_seg.simulation.dice import Dice
from xmodal_seg.simulation.palettes import linear
from xmodal_seg.simulation.places import Place
from xmodal_seg.simulation.plans import (
    BLOCK_M,
    CROSS_HALF_M,
    CROSS_WALK_M,
    HousePlan,
    Kind,
    Placement,
    Side,
    SideProfile,
)


@dataclass
class Draft:
    """What the functions below add to while a block is planned."""

    place: Place
    dice: Dice
    start: float
    road: float
    placements: list[Placement] = field(default_factory=list)
    houses: list[HousePlan] = field(default_factory=list)


def _yaw(side: Side) -> float:
    """Things beside the road turn their left to it."""
    return 0.0 if side < 0 else 3.1416


def _drive_yaw(place: Place, side: Side) -> float:
    """Direction in which vehicles stand and drive on a side of the road."""
    forward = -1 if place.traffic_side == "right" else 1
    return 0.0 if side == forward else 3.1416


def plan_side(draft: Draft, side: Side, profile: SideProfile, index: int) -> None:
    starts = profile.starts(draft.road)
    _plan_parking(draft, side, profile, starts)
    _plan_street_trees(draft, side, profile, starts)
    _plan_furniture(draft, side, profile, starts, index)
    _plan_people(draft, side, profile, starts)
    if profile.edge != "none" and profile.facing != "lot":
        _plan_edge(draft, side, profile, starts)
    _plan_bushes(draft, side, profile, starts)
    {"buildings": _plan_buildings, "park": _plan_park, "lot": _plan_lot}[profile.facing](draft, side, profile, starts)
    if draft.dice.chance(draft.place.towers):
        _plan_tower(draft, side, starts["front"] + 32.0)


def _plan_parking(draft: Draft, side: Side, profile: SideProfile, starts: dict[str, float]) -> None:
    if profile.parking == "none":
        return
    bay = 6.0 if profile.parking == "parallel" else 2.75
    middle = starts["parking"] + profile.parking_width / 2
    for i in range(int(BLOCK_M / bay)):
        if not draft.dice.chance(draft.place.parked):
            continue
        s = draft.start + (i + 0.5) * bay + draft.dice.uniform(-0.2, 0.2)
        if profile.parking == "parallel":
            yaw = _drive_yaw(draft.place, side) + draft.dice.uniform(-0.03, 0.03)
        else:
            yaw = side * (1.5708 if draft.dice.chance(0.7) else -1.5708) + draft.dice.uniform(-0.04, 0.04)
        _park(draft, s, side * middle, yaw, big=profile.parking == "parallel")


def _park(draft: Draft, s: float, d: float, yaw: float, *, big: bool) -> None:
    dice = draft.dice
    if dice.chance(draft.place.motorcycles):
        for _ in range(2):
            at = s + dice.uniform(-1.6, 1.6)
            number = dice.integer(0, library.NUM_OBJECTS)
            draft.placements.append(Placement(kind="two_wheeler", model=number, s=at, d=d, yaw=yaw + 1.2))
        return
    if big and dice.chance(0.5 * draft.place.trucks):
        model, kind = dice.integer(0, library.NUM_TRUCKS), "truck"
    else:
        model, kind = dice.integer(0, library.NUM_CARS), "car"
    colour = linear(dice.choice(draft.place.palette.cars))
    draft.placements.append(Placement(kind=kind, model=model, s=s, d=d, yaw=yaw, colour=colour))  # type: ignore[arg-type]


def _plan_street_trees(draft: Draft, side: Side, profile: SideProfile, starts: dict[str, float]) -> None:
    """A row of trees: in the verge where there is one, else behind the sidewalk."""
    dice = draft.dice
    row = starts["verge"] + profile.verge / 2 if profile.verge else starts["yard"] + 1.2
    at = draft.start + dice.uniform(0, draft.place.tree_every)
    while at < draft.start + BLOCK_M:
        draft.placements.append(_tree(dice, at, side * (row + dice.uniform(-0.3, 0.3)), profile.curb))
        at += draft.place.tree_every * dice.uniform(0.7, 1.4)


def _tree(dice: Dice, s: float, d: float, h: float) -> Placement:
    yaw, scale = dice.uniform(0, 6.28), dice.uniform(0.75, 1.2)
    return Placement(kind="tree", model=dice.integer(0, library.NUM_TREES), s=s, d=d, h=h, yaw=yaw, scale=scale)


def _plan_furniture(draft: Draft, side: Side, profile: SideProfile, starts: dict[str, float], index: int) -> None:
    """Lamps, signs and small objects stand in a row just behind the curb."""
    dice, place = draft.dice, draft.place
    row = side * (starts["verge"] + 0.45)
    if (index + (side > 0)) % 2 == 0 or place.lamp_every < BLOCK_M:
        s = draft.start + dice.uniform(10, 20)
        draft.placements.append(
            Placement(
                kind="lamp",
                model=0,
                s=s,
                d=row,
                h=profile.curb,
                yaw=_yaw(side),
                length=starts["curb"] - draft.road + 1.2,
            )
        )
    if dice.chance(BLOCK_M / place.sign_every):
        s, model = draft.start + dice.uniform(2, 9), dice.integer(0, library.NUM_SIGNS)
        draft.placements.append(
            Placement(kind="sign", model=model, s=s, d=row, h=profile.curb, yaw=_drive_yaw(place, side))
        )
    if dice.chance(BLOCK_M / place.objects_every):
        s, model = draft.start + dice.uniform(21, 28), dice.integer(0, library.NUM_OBJECTS)
        d = side * (starts["yard"] + 0.6)
        draft.placements.append(
            Placement(kind="object", model=model, s=s, d=d, h=profile.curb, yaw=_yaw(side) + 3.1416)
        )


def _plan_people(draft: Draft, side: Side, profile: SideProfile, starts: dict[str, float]) -> None:
    """People who stand; those who walk belong to the traffic."""
    if draft.dice.chance(0.35 * BLOCK_M / draft.place.pedestrian_every / 4):
        s = draft.start + draft.dice.uniform(1, 29)
        for _ in range(draft.dice.integer(1, 4)):
            d = side * draft.dice.uniform(starts["yard"] - 0.9, starts["yard"] - 0.2)
            model, yaw = draft.dice.integer(0, library.NUM_PEOPLE), draft.dice.uniform(0, 6.28)
            at = s + draft.dice.uniform(-0.9, 0.9)
            draft.placements.append(Placement(kind="person", model=model, s=at, d=d, h=profile.curb, yaw=yaw))


def _plan_edge(draft: Draft, side: Side, profile: SideProfile, starts: dict[str, float]) -> None:
    """A hedge, wall or fence in pieces of 5 m at the far end of the yard, with a gap for the door."""
    d, gap = side * (starts["front"] - 0.7), draft.dice.integer(0, 6)
    model = draft.dice.integer(0, 4)
    kind: Kind = profile.edge  # type: ignore[assignment]
    for i in range(6):
        if i != gap:
            s = draft.start + 5.0 * i + 2.5
            draft.placements.append(
                Placement(kind=kind, model=model, s=s, d=d, h=profile.curb, yaw=_yaw(side), length=5.1)
            )


def _plan_bushes(draft: Draft, side: Side, profile: SideProfile, starts: dict[str, float]) -> None:
    if profile.yard < 2.0:
        return
    for _ in range(int(BLOCK_M / draft.place.bush_every)):
        s = draft.start + draft.dice.uniform(0.5, 29.5)
        d = side * draft.dice.uniform(starts["yard"] + 1.0, starts["front"] - 1.2)
        model, scale = draft.dice.integer(0, library.NUM_BUSHES), draft.dice.uniform(0.7, 1.2)
        draft.placements.append(Placement(kind="bush", model=model, s=s, d=d, h=profile.curb, scale=scale))


def _plan_buildings(draft: Draft, side: Side, profile: SideProfile, starts: dict[str, float]) -> None:
    dice = draft.dice
    number = max(1, round(BLOCK_M / dice.between(draft.place.frontage)))
    share = BLOCK_M / number
    for i in range(number):
        gap = dice.choice((0.0, 1.5, 3.5), (3, 1, 2))
        plan = _house(draft, width=share - gap, depth=dice.uniform(9, 14), floors=_floors(draft))
        s = draft.start + (i + 0.5) * share
        draft.houses.append(HousePlan(plan=plan, s=s, d=side * (starts["front"] + dice.uniform(0, 0.8)), side=side))


def _floors(draft: Draft) -> int:
    return draft.dice.integer(draft.place.floors[0], draft.place.floors[1] + 1)


def _house(draft: Draft, *, width: float, depth: float, floors: int) -> BuildingPlan:
    dice, place = draft.dice, draft.place
    return BuildingPlan(
        width=width,
        depth=depth,
        floors=floors,
        gabled=floors <= 4 and dice.chance(place.gabled),
        shop=dice.chance(place.shops),
        balconies=dice.chance(place.balconies),
        style=dice.integer(0, library.NUM_FACADES),
        facade=linear(dice.choice(place.palette.facades)),
        roof=linear(dice.choice(place.palette.roofs)),
        seed=dice.integer(0, 1 << 30),
    )


def _plan_park(draft: Draft, side: Side, profile: SideProfile, starts: dict[str, float]) -> None:
    for _ in range(draft.dice.integer(3, 7)):
        s = draft.start + draft.dice.uniform(1, 29)
        d = side * draft.dice.uniform(starts["front"], starts["front"] + 24)
        draft.placements.append(_tree(draft.dice, s, d, profile.curb))


def _plan_lot(draft: Draft, side: Side, profile: SideProfile, starts: dict[str, float]) -> None:
    """A car park: two rows of bays behind the sidewalk, a building far behind."""
    for row in (starts["yard"] + 3.0, starts["yard"] + 14.0):
        for i in range(10):
            if draft.dice.chance(draft.place.parked):
                s = draft.start + 1.5 + 2.8 * i
                yaw = 1.5708 if draft.dice.chance(0.5) else -1.5708
                _park(draft, s, side * row, yaw, big=False)
    plan = _house(draft, width=26.0, depth=14.0, floors=draft.dice.integer(1, 4))
    draft.houses.append(HousePlan(plan=plan, s=draft.start + 15.0, d=side * (starts["yard"] + 26.0), side=side))


def _plan_tower(draft: Draft, side: Side, d: float) -> None:
    floors = draft.dice.integer(6, 14)
    plan = _house(draft, width=draft.dice.uniform(14, 24), depth=14.0, floors=floors)
    assert plan.height > 5 * FLOOR_M
    s = draft.start + draft.dice.uniform(12, 18)
    draft.houses.append(HousePlan(plan=plan, s=s, d=side * d, side=side))


def plan_corner(draft: Draft, side: Side, profile: SideProfile) -> None:
    """A crossing: signals and signs, cars that wait in the side road, trees and houses along it."""
    dice, starts = draft.dice, profile.starts(draft.road)
    middle, reach = draft.start + BLOCK_M / 2, CROSS_HALF_M + CROSS_WALK_M
    forward = _drive_yaw(draft.place, side)
    post = middle + (reach - 0.8 if forward == 0 else 0.8 - reach)
    arm = 3.4 if (side < 0) == (forward == 0) else -3.4
    row = side * (starts["verge"] + 0.6)
    draft.placements.append(
        Placement(kind="signal", model=dice.integer(0, 3), s=post, d=row, h=profile.curb, yaw=forward, length=arm)
    )
    for i in range(dice.integer(0, 4)):
        d = side * (starts["curb"] + 5.0 + 7.0 * i)
        lane = -side if draft.place.traffic_side == "right" else side
        colour = linear(dice.choice(draft.place.palette.cars))
        s = middle + lane * CROSS_HALF_M / 2
        yaw = -side * 1.5708
        draft.placements.append(
            Placement(kind="car", model=dice.integer(0, library.NUM_CARS), s=s, d=d, yaw=yaw, colour=colour)
        )
    room = BLOCK_M / 2 - reach
    for end in (-1, 1):
        plan = _house(draft, width=room - 0.8, depth=12.0, floors=_floors(draft))
        s = middle + end * (reach + room / 2)
        draft.houses.append(HousePlan(plan=plan, s=s, d=side * (starts["front"] + 0.4), side=side))
        for d in (starts["front"] + 16.0, starts["front"] + 27.0):
            if dice.chance(0.7):
                draft.placements.append(_tree(dice, middle + end * (reach + 2.2), side * d, profile.curb))
