# SPDX-License-Identifier: Apache-2.0
"""Raw classes of the data sets: ids and names of SemanticKITTI and VirtualKITTI, colours of A2D2.

nuScenes is missing on purpose: published lists of its ids disagree, and category.json of the download is asked.
Sources: PRBonn/semantic-kitti-api, VisualComputingInstitute/vkitti3D-dataset, A2D2's class_list.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

DatasetName = Literal["nuscenes", "semantic_kitti", "virtual_kitti", "a2d2"]

SEMANTIC_KITTI_CLASSES = {
    0: "unlabeled",
    1: "outlier",
    10: "car",
    11: "bicycle",
    13: "bus",
    15: "motorcycle",
    16: "on-rails",
    18: "truck",
    20: "other-vehicle",
    30: "person",
    31: "bicyclist",
    32: "motorcyclist",
    40: "road",
    44: "parking",
    48: "sidewalk",
    49: "other-ground",
    50: "building",
    51: "fence",
    52: "other-structure",
    60: "lane-marking",
    70: "vegetation",
    71: "trunk",
    72: "terrain",
    80: "pole",
    81: "traffic-sign",
    99: "other-object",
    252: "moving-car",
    253: "moving-bicyclist",
    254: "moving-person",
    255: "moving-motorcyclist",
    256: "moving-on-rails",
    257: "moving-bus",
    258: "moving-truck",
    259: "moving-other-vehicle",
}

# 99 stands for the sky that is nearer than the 100 m cut; a table of the 14 published ids has no place for it.
VIRTUAL_KITTI_CLASSES = {
    0: "Terrain",
    1: "Tree",
    2: "Vegetation",
    3: "Building",
    4: "Road",
    5: "GuardRail",
    6: "TrafficSign",
    7: "TrafficLight",
    8: "Pole",
    9: "Misc",
    10: "Truck",
    11: "Car",
    12: "Van",
    13: "Don't care",
    99: "Sky",
}

# Colour in the label image -> class, in the order of class_list.json; the position is the raw id.
A2D2_COLOURS = {
    "#ff0000": "Car 1",
    "#c80000": "Car 2",
    "#960000": "Car 3",
    "#800000": "Car 4",
    "#b65906": "Bicycle 1",
    "#963204": "Bicycle 2",
    "#5a1e01": "Bicycle 3",
    "#5a1e1e": "Bicycle 4",
    "#cc99ff": "Pedestrian 1",
    "#bd499b": "Pedestrian 2",
    "#ef59bf": "Pedestrian 3",
    "#ff8000": "Truck 1",
    "#c88000": "Truck 2",
    "#968000": "Truck 3",
    "#00ff00": "Small vehicles 1",
    "#00c800": "Small vehicles 2",
    "#009600": "Small vehicles 3",
    "#0080ff": "Traffic signal 1",
    "#1e1c9e": "Traffic signal 2",
    "#3c1c64": "Traffic signal 3",
    "#00ffff": "Traffic sign 1",
    "#1edcdc": "Traffic sign 2",
    "#3c9dc7": "Traffic sign 3",
    "#ffff00": "Utility vehicle 1",
    "#ffffc8": "Utility vehicle 2",
    "#e96400": "Sidebars",
    "#6e6e00": "Speed bumper",
    "#808000": "Curbstone",
    "#ffc125": "Solid line",
    "#400040": "Irrelevant signs",
    "#b97a57": "Road blocks",
    "#000064": "Tractor",
    "#8b636c": "Non-drivable street",
    "#d23273": "Zebra crossing",
    "#ff0080": "Obstacles / trash",
    "#fff68f": "Poles",
    "#960096": "RD restricted area",
    "#ccff99": "Animals",
    "#eea2ad": "Grid structure",
    "#212cb1": "Signal corpus",
    "#b432b4": "Drivable cobblestone",
    "#ff46b9": "Electronic traffic",
    "#eee9bf": "Slow drive area",
    "#93fdc2": "Nature object",
    "#9696c8": "Parking area",
    "#b496c8": "Sidewalk",
    "#48d1cc": "Ego car",
    "#c87dd2": "Painted driv. instr.",
    "#9f79ee": "Traffic guide obj.",
    "#8000ff": "Dashed line",
    "#ff00ff": "RD normal street",
    "#87ceff": "Sky",
    "#f1e6ff": "Buildings",
    "#60458f": "Blurred area",
    "#352e52": "Rain dirt",
}
A2D2_UNMATCHED = 55  # a colour that is none of the list: undistortion mixes colours at borders
A2D2_CLASSES = {**dict(enumerate(A2D2_COLOURS.values())), A2D2_UNMATCHED: "unmatched colour"}


def check_raw_labels(raw_labels: NDArray[np.integer], raw_classes: Mapping[int, str], *, where: str) -> None:
    """Raises ValueError naming the first point whose label is no class of the data set."""
    known = np.zeros(2**16, dtype=bool)
    known[list(raw_classes)] = True
    wrong = np.flatnonzero(~known[raw_labels])
    if wrong.size:
        raise ValueError(
            f"{where}: {wrong.size} of {raw_labels.size} points have a label that is no class of the data set; "
            f"point {wrong[0]} has {raw_labels[wrong[0]]}"
        )


class ColourTable:
    """RGB colour -> raw id, by a table over all 2^24 colours (one look-up per pixel)."""

    def __init__(self, colours: Mapping[tuple[int, int, int], int], *, default: int) -> None:
        self._ids = np.full(2**24, default, dtype=np.uint8)
        for (red, green, blue), raw_id in colours.items():
            self._ids[red << 16 | green << 8 | blue] = raw_id

    def raw_ids(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(..., 3) -> (...)."""
        wide = rgb.astype(np.uint32)
        return self._ids[wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]]


def rgb_from_hex(text: str) -> tuple[int, int, int]:
    """`#ff8000` -> (255, 128, 0). Raises ValueError for anything else."""
    digits = text.removeprefix("#")
    if len(digits) != 6 or any(digit not in "0123456789abcdefABCDEF" for digit in digits):
        raise ValueError(f"expected a colour such as #ff8000, got {text!r}")
    return int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:], 16)
