# SPDX-License-Identifier: Apache-2.0
"""Label spaces: the classes a model speaks, their colours, and how raw labels of a data set map onto them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORE_INDEX = -100  # a point without ground truth; no loss, no metric
UNLABELED = 255  # a point about which nothing can be said, in published uint8 labels (vision_msgs' convention)
UNLABELED_COLOUR = (128, 128, 128)


@dataclass(frozen=True, kw_only=True)
class LabelSpace:
    """Names and colours of K classes; the position of a name is its train id."""

    name: str
    class_names: tuple[str, ...]  # (K,)
    colours: tuple[tuple[int, int, int], ...]  # (K,) RGB 0-255

    def __post_init__(self) -> None:
        if not 1 <= len(self.class_names) < UNLABELED:
            raise ValueError(
                f"label space {self.name!r}: expected 1 to {UNLABELED - 1} classes, got {len(self.class_names)}"
            )
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"label space {self.name!r}: class names must differ, got {list(self.class_names)}")
        if len(self.colours) != len(self.class_names):
            raise ValueError(
                f"label space {self.name!r}: expected one colour per class ({len(self.class_names)}), "
                f"got {len(self.colours)}"
            )
        for class_name, colour in zip(self.class_names, self.colours, strict=True):
            if len(colour) != 3 or not all(0 <= channel <= 255 for channel in colour):
                raise ValueError(f"label space {self.name!r}: colour of {class_name!r} must be 3 x 0-255, got {colour}")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def palette(self) -> NDArray[np.uint8]:
        """(256, 3) uint8 RGB by label, grey for every value that is not a class."""
        table = np.full((256, 3), UNLABELED_COLOUR, dtype=np.uint8)
        table[: self.num_classes] = self.colours
        return table

    def train_id_table(self, groups: Mapping[str, Sequence[int]], *, num_raw: int) -> NDArray[np.int64]:
        """(num_raw,) raw id -> train id, IGNORE_INDEX for every raw id that no group names.

        `groups` gives the raw ids of each class by class name. Raises ValueError for an unknown class, a raw id
        outside [0, num_raw) and a raw id in two groups.
        """
        table = np.full(num_raw, IGNORE_INDEX, dtype=np.int64)
        for class_name, raw_ids in groups.items():
            if class_name not in self.class_names:
                raise ValueError(
                    f"label space {self.name!r} has no class {class_name!r}; it has {', '.join(self.class_names)}"
                )
            for raw_id in raw_ids:
                if not 0 <= raw_id < num_raw:
                    raise ValueError(f"raw id {raw_id} of class {class_name!r} is outside [0, {num_raw})")
                if table[raw_id] != IGNORE_INDEX:
                    raise ValueError(
                        f"raw id {raw_id} is in {self.class_names[table[raw_id]]!r} and in {class_name!r}; "
                        "it must be in one group"
                    )
                table[raw_id] = self.class_names.index(class_name)
        return table


# The three merges of the paper's four tasks (train ids are the positions).
NUSCENES_6 = LabelSpace(
    name="nuscenes_6",
    class_names=("vehicle", "driveable_surface", "sidewalk", "terrain", "manmade", "vegetation"),
    colours=((255, 110, 30), (110, 60, 120), (240, 60, 220), (150, 220, 80), (225, 200, 120), (20, 140, 40)),
)
SEMANTIC_KITTI_10 = LabelSpace(
    name="semantic_kitti_10",
    class_names=(
        "car",
        "truck",
        "bike",
        "person",
        "road",
        "parking",
        "sidewalk",
        "building",
        "nature",
        "other_objects",
    ),
    colours=(
        (90, 140, 255),
        (60, 50, 190),
        (60, 220, 220),
        (255, 40, 40),
        (160, 60, 160),
        (250, 150, 250),
        (130, 20, 120),
        (255, 200, 0),
        (20, 150, 40),
        (255, 240, 150),
    ),
)
VIRTUAL_KITTI_6 = LabelSpace(
    name="virtual_kitti_6",
    class_names=("vegetation_terrain", "building", "road", "object", "truck", "car"),
    colours=((20, 150, 40), (255, 200, 0), (160, 60, 160), (255, 240, 150), (60, 50, 190), (90, 140, 255)),
)
LABEL_SPACES = {space.name: space for space in (NUSCENES_6, SEMANTIC_KITTI_10, VIRTUAL_KITTI_6)}
