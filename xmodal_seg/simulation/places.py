# SPDX-License-Identifier: Apache-2.0
"""Places: everything that makes the streets of one town differ from those of another."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from xmodal_seg.config import Settings
from xmodal_seg.simulation import palettes
from xmodal_seg.simulation.dice import Dice
from xmodal_seg.simulation.furniture import SignKind
from xmodal_seg.simulation.palettes import Palette
from xmodal_seg.simulation.plants import TreeKind
from xmodal_seg.simulation.vehicles import Body

Range = tuple[float, float]
Facing = Literal["buildings", "park", "lot"]
Edge = Literal["none", "hedge", "wall", "fence"]
Parking = Literal["none", "parallel", "perpendicular"]
RANDOM_MODELS = 1_000_000  # random places take their object models from here on, named ones from below


class Place(Settings):
    """Layout, densities, object models and colours of a place. Lengths in m; weights need not sum to one."""

    name: str = "custom"
    traffic_side: Literal["right", "left"] = "right"
    model_seed: int = Field(default=1, ge=0, description="object models and facade styles are drawn from it")
    palette: Palette = Palette()

    lane_width: float = Field(default=2.8, gt=2, lt=6)
    lanes: int = Field(default=1, ge=1, le=3, description="lanes of each direction")
    shoulder: float = Field(default=0.8, ge=0.8, lt=4, description="room for bicycles beside the outer lane")
    bend: float = Field(default=0.35, ge=0, le=0.6, description="largest turn of the street from its axis, rad")
    hill: float = Field(default=1.5, ge=0, le=8, description="height of the hills along the street, m")
    stretch: tuple[int, int] = Field(default=(3, 6), description="blocks of 30 m between two crossings")

    parking: dict[Parking, float] = Field(default={"none": 3.0, "parallel": 1.6, "perpendicular": 0.3})
    verge: Range = (2.0, 3.6)
    verge_share: float = Field(default=0.65, ge=0, le=1, description="share of stretches with grass beside the curb")
    sidewalk: Range = (3.2, 4.6)
    yard: Range = (4.0, 8.0)
    curb: Range = (0.12, 0.18)
    roughness: float = Field(default=0.07, ge=0, le=0.3, description="height of the bumps in grass, m")
    edges: dict[Edge, float] = Field(default={"none": 2.0, "hedge": 1.0, "wall": 0.7, "fence": 1.0})

    facing: dict[Facing, float] = Field(default={"buildings": 4.0, "park": 1.2, "lot": 0.5})
    floors: tuple[int, int] = Field(default=(2, 5), description="least and most floors")
    frontage: Range = (9.0, 18.0)
    gabled: float = Field(default=0.5, ge=0, le=1)
    shops: float = Field(default=0.25, ge=0, le=1)
    balconies: float = Field(default=0.3, ge=0, le=1)
    towers: float = Field(default=0.3, ge=0, le=1, description="chance of tall buildings behind the first row")

    trees: dict[TreeKind, float] = Field(default={"broad": 2.0, "round": 1.0, "column": 0.3, "conifer": 0.3})
    tree_every: float = Field(default=11.0, gt=3, description="mean distance of street trees, m")
    bush_every: float = Field(default=9.0, gt=1)
    lamp_every: float = Field(default=28.0, gt=8)
    lamp_height: float = Field(default=7.0, gt=3, lt=14)
    lamp_warmth: float = Field(default=0.6, ge=0, le=1, description="0 white light, 1 sodium yellow")
    sign_every: float = Field(default=35.0, gt=5)
    signs: dict[SignKind, float] = Field(
        default={"round": 1.0, "triangle": 1.0, "stop": 0.3, "board": 0.3, "arrow": 0.7}
    )
    objects_every: float = Field(default=22.0, gt=3)
    fences: dict[Literal["rails", "slats", "guard"], float] = Field(default={"rails": 1.0, "slats": 1.0, "guard": 0.2})

    parked: float = Field(default=0.7, ge=0, le=1, description="share of parking bays that are taken")
    bodies: dict[Body, float] = Field(
        default={"sedan": 2, "hatchback": 2, "estate": 1, "suv": 1.5, "van": 0.7, "pickup": 0.2}
    )
    trucks: float = Field(default=0.08, ge=0, le=1, description="share of lorries in the traffic")
    buses: float = Field(default=0.05, ge=0, le=1)
    gap: float = Field(default=45.0, gt=12, description="mean distance between vehicles of a lane, m")
    speed: Range = (7.0, 13.0)
    bicycle_every: float = Field(default=70.0, gt=5)
    pedestrian_every: float = Field(default=14.0, gt=2)
    motorcycles: float = Field(default=0.06, ge=0, le=1, description="share of parking bays with motorcycles")


USA = Place(
    name="usa",
    model_seed=11,
    palette=palettes.USA,
    lane_width=2.9,
    lanes=1,
    shoulder=0.8,
    bend=0.2,
    verge=(2.2, 3.6),
    verge_share=0.75,
    sidewalk=(3.4, 4.8),
    yard=(4.0, 8.0),
    parking={"none": 3.0, "parallel": 1.6, "perpendicular": 0.3},
    facing={"buildings": 4.0, "park": 1.0, "lot": 0.9},
    floors=(2, 6),
    frontage=(10.0, 22.0),
    gabled=0.3,
    shops=0.4,
    balconies=0.05,
    trees={"broad": 2.5, "round": 1.0, "column": 0.4},
    bodies={"sedan": 2.5, "hatchback": 0.5, "estate": 0.5, "suv": 2.5, "van": 0.7, "pickup": 1.3},
    trucks=0.10,
    pedestrian_every=16.0,
    bicycle_every=110.0,
)
SINGAPORE = Place(
    name="singapore",
    traffic_side="left",
    model_seed=12,
    palette=palettes.SINGAPORE,
    lane_width=2.75,
    shoulder=0.8,
    lanes=1,
    bend=0.45,
    hill=2.5,
    parking={"none": 4.0, "parallel": 1.0, "perpendicular": 0.4},
    verge=(2.0, 3.2),
    verge_share=0.85,
    sidewalk=(3.4, 4.6),
    yard=(4.0, 8.0),
    edges={"none": 2.0, "hedge": 2.0, "wall": 0.4, "fence": 1.0},
    facing={"buildings": 3.0, "park": 2.0, "lot": 0.4},
    floors=(3, 10),
    frontage=(14.0, 28.0),
    gabled=0.15,
    shops=0.3,
    balconies=0.7,
    towers=0.6,
    trees={"broad": 2.5, "palm": 1.5, "round": 0.6},
    tree_every=8.0,
    bush_every=5.0,
    lamp_warmth=0.9,
    bodies={"sedan": 3.0, "hatchback": 1.5, "estate": 0.5, "suv": 1.0, "van": 1.2},
    buses=0.12,
    gap=38.0,
    motorcycles=0.15,
)
GERMANY = Place(
    name="germany",
    model_seed=13,
    palette=palettes.GERMANY,
    lane_width=2.8,
    shoulder=0.8,
    bend=0.5,
    hill=2.5,
    parking={"none": 1.6, "parallel": 1.4, "perpendicular": 0.7},
    verge_share=0.6,
    sidewalk=(2.4, 3.4),
    yard=(3.5, 7.0),
    edges={"none": 1.0, "hedge": 2.0, "wall": 1.2, "fence": 1.4},
    facing={"buildings": 4.0, "park": 1.4, "lot": 0.3},
    floors=(1, 4),
    frontage=(9.0, 15.0),
    gabled=0.85,
    shops=0.1,
    towers=0.1,
    trees={"broad": 1.5, "round": 1.5, "conifer": 0.8, "column": 0.3},
    bodies={"sedan": 1.2, "hatchback": 2.5, "estate": 1.8, "suv": 0.8, "van": 0.9},
    bicycle_every=55.0,
)
VIRTUAL = GERMANY.model_copy(
    update={
        "name": "virtual",
        "model_seed": 14,
        "palette": palettes.VIRTUAL,
        "lanes": 1,
        "lane_width": 3.0,
        "verge_share": 0.8,
        "yard": (4.0, 9.0),
        "sidewalk": (3.2, 4.4),
        "floors": (2, 5),
        "gabled": 0.6,
        "tree_every": 8.0,
        "gap": 32.0,
        "trucks": 0.15,
        "bodies": {"sedan": 2.0, "hatchback": 1.5, "suv": 0.6, "van": 0.5},
        "pedestrian_every": 60.0,
        "bicycle_every": 300.0,
    }
)
INGOLSTADT = GERMANY.model_copy(
    update={
        "name": "ingolstadt",
        "model_seed": 15,
        "palette": palettes.INGOLSTADT,
        "lane_width": 2.8,
        "lanes": 1,
        "shoulder": 0.8,
        "bend": 0.3,
        "sidewalk": (3.4, 4.6),
        "verge_share": 0.7,
        "floors": (2, 6),
        "gabled": 0.5,
        "shops": 0.3,
        "trucks": 0.14,
        "gap": 34.0,
    }
)
DEV_A = Place(name="dev_a", model_seed=16, palette=palettes.DEV_A)
DEV_B = Place(
    name="dev_b",
    traffic_side="left",
    model_seed=17,
    palette=palettes.DEV_B,
    lane_width=2.8,
    bend=0.45,
    hill=2.5,
    parking={"none": 3.5, "parallel": 1.0, "perpendicular": 0.6},
    verge_share=0.8,
    sidewalk=(3.4, 4.6),
    floors=(3, 8),
    gabled=0.2,
    balconies=0.6,
    towers=0.5,
    trees={"broad": 2.0, "palm": 1.0, "column": 0.8},
    tree_every=8.0,
    lamp_warmth=0.9,
    motorcycles=0.15,
)
PLACES = {place.name: place for place in (USA, SINGAPORE, GERMANY, VIRTUAL, INGOLSTADT, DEV_A, DEV_B)}


def place_named(name: str) -> Place:
    """A named place, or `random:<number>` for one drawn at random. Raises ValueError for any other name."""
    kind, _, number = name.partition(":")
    if kind == "random" and number.isdecimal():
        return random_place(int(number))
    if name not in PLACES:
        raise ValueError(f"place: expected one of {', '.join(PLACES)} or random:<number>, got {name!r}")
    return PLACES[name]


def random_place(seed: int) -> Place:
    """A place drawn from wide ranges; its object models, colours and facades are shared with no named place."""
    dice = Dice(seed, "place")
    floors = dice.integer(1, 5)
    return Place(
        name=f"random:{seed}",
        traffic_side=dice.choice(("right", "left")),
        model_seed=RANDOM_MODELS + seed,
        palette=palettes.random_palette(Dice(seed, "palette")),
        lane_width=dice.uniform(2.8, 3.5),
        lanes=dice.choice((1, 2), (6, 1)),
        shoulder=dice.uniform(0.8, 1.4),
        bend=dice.uniform(0.1, 0.55),
        hill=dice.uniform(0.3, 3.0),
        parking={"none": dice.uniform(0.5, 2), "parallel": dice.uniform(0.5, 2), "perpendicular": dice.uniform(0, 1)},
        verge_share=dice.uniform(0.4, 0.95),
        sidewalk=(dice.uniform(2.0, 2.8), dice.uniform(3.0, 4.5)),
        yard=(dice.uniform(3.0, 4.5), dice.uniform(5.0, 9.0)),
        roughness=dice.uniform(0.04, 0.12),
        edges={"none": 1.5, "hedge": dice.uniform(0, 2), "wall": dice.uniform(0, 1.5), "fence": dice.uniform(0, 1.5)},
        facing={"buildings": 4.0, "park": dice.uniform(0.3, 2.5), "lot": dice.uniform(0.1, 1.2)},
        floors=(floors, floors + dice.integer(1, 7)),
        frontage=(dice.uniform(8, 12), dice.uniform(13, 26)),
        gabled=dice.uniform(0, 1),
        shops=dice.uniform(0, 0.5),
        balconies=dice.uniform(0, 0.7),
        towers=dice.uniform(0, 0.7),
        trees={
            "broad": dice.uniform(0.2, 2),
            "round": dice.uniform(0, 1.5),
            "column": dice.uniform(0, 0.8),
            "conifer": dice.uniform(0, 0.8),
            "palm": dice.uniform(0, 0.8),
        },
        tree_every=dice.uniform(7, 16),
        bush_every=dice.uniform(4, 14),
        lamp_every=dice.uniform(20, 38),
        lamp_height=dice.uniform(5, 9.5),
        lamp_warmth=dice.uniform(0, 1),
        parked=dice.uniform(0.4, 0.9),
        bodies={body: dice.uniform(0.2, 2) for body in ("sedan", "hatchback", "estate", "suv", "van", "pickup")},
        trucks=dice.uniform(0.03, 0.18),
        buses=dice.uniform(0.0, 0.12),
        gap=dice.uniform(28, 60),
        bicycle_every=dice.uniform(30, 150),
        pedestrian_every=dice.uniform(7, 30),
        motorcycles=dice.uniform(0, 0.2),
    )
