# SPDX-License-Identifier: Apache-2.0
"""How the paper's tasks merge the raw classes of the four data sets, by class *name*.

Source: valeoai/xmuda_journal, the four data loaders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.labels import NUSCENES_6, SEMANTIC_KITTI_10, VIRTUAL_KITTI_6, LabelSpace
from xmodal_seg.training.data.raw_classes import DatasetName

NUSCENES_TO_6 = {
    "vehicle": (
        "vehicle.bicycle",
        "vehicle.bus.bendy",
        "vehicle.bus.rigid",
        "vehicle.car",
        "vehicle.construction",
        "vehicle.motorcycle",
        "vehicle.trailer",
        "vehicle.truck",
    ),
    "driveable_surface": ("flat.driveable_surface",),
    "sidewalk": ("flat.sidewalk",),
    "terrain": ("flat.terrain",),
    "manmade": ("static.manmade",),
    "vegetation": ("static.vegetation",),
}

SEMANTIC_KITTI_TO_10 = {
    "car": ("car", "moving-car"),
    "truck": ("truck", "moving-truck"),
    "bike": (
        "bicycle",
        "motorcycle",
        "bicyclist",
        "motorcyclist",
        "moving-bicyclist",
        "moving-motorcyclist",
    ),
    "person": ("person", "moving-person"),
    "road": ("road", "lane-marking"),
    "parking": ("parking",),
    "sidewalk": ("sidewalk",),
    "building": ("building",),
    "nature": ("vegetation", "trunk", "terrain"),
    "other_objects": ("fence", "pole", "traffic-sign", "other-object"),
}

SEMANTIC_KITTI_TO_6 = {
    "vegetation_terrain": ("vegetation", "trunk", "terrain"),
    "building": ("building",),
    "road": ("road", "lane-marking"),
    "object": ("fence", "pole", "traffic-sign", "other-object"),
    "truck": ("truck", "moving-truck"),
    "car": ("car", "moving-car"),
}

VIRTUAL_KITTI_TO_6 = {
    "vegetation_terrain": ("Terrain", "Tree", "Vegetation"),
    "building": ("Building",),
    "road": ("Road",),
    "object": ("TrafficSign", "TrafficLight", "Pole", "Misc"),
    "truck": ("Truck",),
    "car": ("Car",),
}

A2D2_TO_10 = {
    "car": ("Car 1", "Car 2", "Car 3", "Car 4", "Ego car"),
    "truck": ("Truck 1", "Truck 2", "Truck 3"),
    "bike": (
        "Bicycle 1",
        "Bicycle 2",
        "Bicycle 3",
        "Bicycle 4",
        "Small vehicles 1",
        "Small vehicles 2",
        "Small vehicles 3",
    ),
    "person": ("Pedestrian 1", "Pedestrian 2", "Pedestrian 3"),
    "road": (
        "RD normal street",
        "Zebra crossing",
        "Solid line",
        "RD restricted area",
        "Slow drive area",
        "Drivable cobblestone",
        "Dashed line",
        "Painted driv. instr.",
    ),
    "parking": ("Parking area",),
    "sidewalk": ("Sidewalk", "Curbstone"),
    "building": ("Buildings",),
    "nature": ("Nature object",),
    "other_objects": (
        "Poles",
        "Traffic signal 1",
        "Traffic signal 2",
        "Traffic signal 3",
        "Traffic sign 1",
        "Traffic sign 2",
        "Traffic sign 3",
        "Sidebars",
        "Speed bumper",
        "Irrelevant signs",
        "Road blocks",
        "Obstacles / trash",
        "Animals",
        "Signal corpus",
        "Electronic traffic",
        "Traffic guide obj.",
        "Grid structure",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Raw classes of one data set, by name, grouped into the classes of a label space."""

    label_space: LabelSpace
    groups: Mapping[str, Sequence[str]]  # class of the label space -> raw class names; every other one is ignored


# Per data set, the first one is what `--bag` and statistics take unless told otherwise.
MERGES: dict[DatasetName, tuple[Merge, ...]] = {
    "nuscenes": (Merge(label_space=NUSCENES_6, groups=NUSCENES_TO_6),),
    "semantic_kitti": (
        Merge(label_space=SEMANTIC_KITTI_10, groups=SEMANTIC_KITTI_TO_10),
        Merge(label_space=VIRTUAL_KITTI_6, groups=SEMANTIC_KITTI_TO_6),
    ),
    "virtual_kitti": (Merge(label_space=VIRTUAL_KITTI_6, groups=VIRTUAL_KITTI_TO_6),),
    "a2d2": (Merge(label_space=SEMANTIC_KITTI_10, groups=A2D2_TO_10),),
}


def find_merge(dataset: DatasetName, label_space: str | None = None) -> Merge:
    """The merge of a data set into a label space, by its name; the first one for None. Raises ValueError for neither.

    A label space of `LABEL_SPACES`, such as `semantic_kitti_10`.
    """
    merges = MERGES[dataset]
    if label_space is None:
        return merges[0]
    for merge in merges:
        if merge.label_space.name == label_space:
            return merge
    known = ", ".join(merge.label_space.name for merge in merges)
    raise ValueError(f"label space of {dataset}: expected one of {known}, got {label_space!r}")


def merge_table(merge: Merge, raw_classes: Mapping[int, str], *, where: str) -> NDArray[np.int64]:
    """(max raw id + 1,) raw id -> train id, IGNORE_INDEX for a raw class that no group names.

    Args:
        raw_classes: id -> name, as the download has it.
        where: the file these come from, for the error about a name that is not there.
    """
    ids = {name: raw_id for raw_id, name in raw_classes.items()}
    missing = [name for names in merge.groups.values() for name in names if name not in ids]
    if missing:
        raise ValueError(f"{where}: has no class {', '.join(repr(name) for name in missing)}")
    groups = {class_name: [ids[name] for name in names] for class_name, names in merge.groups.items()}
    return merge.label_space.train_id_table(groups, num_raw=max(raw_classes) + 1)
