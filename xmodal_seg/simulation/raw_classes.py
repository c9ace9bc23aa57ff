# SPDX-License-Identifier: Apache-2.0
"""Classes of the simulated world, and how they map onto the label spaces of the four tasks.

The merges follow the data sets that each task compares: nuScenes-lidarseg (a rider belongs to the bicycle, walls and
poles are manmade, litter bins are ignored), SemanticKITTI in its A2D2 and VirtualKITTI styles (a low wall counts with
the fences as an object, a van is a car, a bus is ignored).
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.labels import LABEL_SPACES, LabelSpace


class RawClass(IntEnum):
    NOTHING = 0  # sky in an image; rain, fog and spray in a cloud
    ROAD = 1
    MARKING = 2
    PARKING = 3
    SIDEWALK = 4
    CURB = 5
    TERRAIN = 6
    BUILDING = 7
    WALL = 8
    FENCE = 9
    POLE = 10
    SIGN = 11
    SIGNAL = 12
    STREET_OBJECT = 13  # litter bins, benches, boxes, shelters
    TRUNK = 14
    VEGETATION = 15
    CAR = 16
    VAN = 17
    TRUCK = 18
    BUS = 19
    BICYCLE = 20
    MOTORCYCLE = 21
    RIDER = 22
    PEDESTRIAN = 23


NUM_RAW = len(RawClass)

_R = RawClass
GROUPS: dict[str, dict[str, tuple[RawClass, ...]]] = {
    "nuscenes_6": {
        "vehicle": (_R.CAR, _R.VAN, _R.TRUCK, _R.BUS, _R.BICYCLE, _R.MOTORCYCLE, _R.RIDER),
        "driveable_surface": (_R.ROAD, _R.MARKING, _R.PARKING),
        "sidewalk": (_R.SIDEWALK, _R.CURB),
        "terrain": (_R.TERRAIN,),
        "manmade": (_R.BUILDING, _R.WALL, _R.FENCE, _R.POLE, _R.SIGN, _R.SIGNAL),
        "vegetation": (_R.TRUNK, _R.VEGETATION),
    },
    "semantic_kitti_10": {
        "car": (_R.CAR, _R.VAN),
        "truck": (_R.TRUCK,),
        "bike": (_R.BICYCLE, _R.MOTORCYCLE, _R.RIDER),
        "person": (_R.PEDESTRIAN,),
        "road": (_R.ROAD, _R.MARKING),
        "parking": (_R.PARKING,),
        "sidewalk": (_R.SIDEWALK, _R.CURB),
        "building": (_R.BUILDING,),
        "nature": (_R.TERRAIN, _R.TRUNK, _R.VEGETATION),
        "other_objects": (_R.WALL, _R.FENCE, _R.POLE, _R.SIGN, _R.SIGNAL, _R.STREET_OBJECT),
    },
    "virtual_kitti_6": {
        "vegetation_terrain": (_R.TERRAIN, _R.TRUNK, _R.VEGETATION),
        "building": (_R.BUILDING,),
        "road": (_R.ROAD, _R.MARKING),
        "object": (_R.WALL, _R.FENCE, _R.POLE, _R.SIGN, _R.SIGNAL, _R.STREET_OBJECT),
        "truck": (_R.TRUCK,),
        "car": (_R.CAR, _R.VAN),
    },
}
IGNORED: dict[str, tuple[RawClass, ...]] = {
    "nuscenes_6": (_R.NOTHING, _R.STREET_OBJECT, _R.PEDESTRIAN),
    "semantic_kitti_10": (_R.NOTHING, _R.BUS),
    "virtual_kitti_6": (
        _R.NOTHING,
        _R.PARKING,
        _R.SIDEWALK,
        _R.CURB,
        _R.BUS,
        _R.BICYCLE,
        _R.MOTORCYCLE,
        _R.RIDER,
        _R.PEDESTRIAN,
    ),
}


def train_ids(label_space: LabelSpace) -> NDArray[np.int64]:
    """(NUM_RAW,) raw class -> train id of `label_space`, IGNORE_INDEX where it is ignored.

    Raises ValueError for a label space the simulated world has no merge for.
    """
    if label_space.name not in GROUPS:
        raise ValueError(f"the simulated world maps onto {', '.join(GROUPS)}, not onto {label_space.name!r}")
    groups = {name: [int(raw) for raw in raws] for name, raws in GROUPS[label_space.name].items()}
    return label_space.train_id_table(groups, num_raw=NUM_RAW)


def label_space_named(name: str) -> LabelSpace:
    """The label space called `name`. Raises ValueError for an unknown one."""
    if name not in GROUPS:
        raise ValueError(f"label space: expected one of {', '.join(GROUPS)}, got {name!r}")
    return LABEL_SPACES[name]
