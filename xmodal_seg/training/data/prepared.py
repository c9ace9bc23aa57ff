# SPDX-License-Identifier: Apache-2.0
"""The prepared format: what a training needs of a data set, in arrays that are mapped into memory, not read.

A folder holds:

- `prepared.json`: format number, data set, options, raw classes (id -> name), sequences (name, location, description),
  camera names, image variants, where the images are, a hash of the content.
- `frames.npy`: one row per frame (`FRAME_DTYPE`), in the order of sequence and time.
- `cameras.npy`: (frames, cameras) rows of `camera_dtype`; `present` is False where a frame lacks the camera.
- `points/<shard>.npy`: the points of up to 64 consecutive frames, one row each (`POINT_DTYPE`).

A camera's image is a path below `image_root`; `{variant}` in it stands for one of the variants (VirtualKITTI's
weathers). Points and cameras are in metres with x forward, y left, z up (camera: x right, y down, z forward); the pixel
of a point is not stored but computed by `geometry.project_frame` like on the robot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.training.data.class_merges import DatasetName
from xmodal_seg.training.data.splits import SequenceInfo

FORMAT = 1
FRAMES_PER_SHARD = 64
HEADER_FILE, FRAMES_FILE, CAMERAS_FILE, POINTS_FOLDER = "prepared.json", "frames.npy", "cameras.npy", "points"

POINT_DTYPE = np.dtype(
    [
        ("xyz", "<f4", (3,)),  # m
        ("sweep_index", "<u4"),  # row of the point in the data set's own file
        ("intensity", "<f2"),  # in [0, 1]; 0 where the data set has none
        ("raw_label", "<u2"),  # id of `raw_classes`
    ]
)
FRAME_DTYPE = np.dtype(
    [
        ("shard", "<u4"),
        ("first", "<u8"),  # row of the frame's first point in its shard
        ("num_points", "<u4"),
        ("num_sweep_points", "<u4"),  # before points that no camera sees were left out
        ("stamp_ns", "<i8"),
        ("sequence", "<u4"),  # position in the header's `sequences`
        ("name", "S48"),  # the data set's own: nuScenes' lidar token, 000123, 20180810142822_000000123
    ]
)


def camera_dtype(path_length: int) -> np.dtype:
    """Rows of cameras.npy; paths take as many bytes as the longest."""
    return np.dtype(
        [
            ("present", "?"),
            ("camera_matrix", "<f8", (3, 3)),
            ("camera_T_lidar", "<f8", (4, 4)),
            ("image_size", "<i4", (2,)),  # height, width
            ("stamp_ns", "<i8"),
            ("image", f"S{max(path_length, 1)}"),
        ]
    )


@dataclass(frozen=True, kw_only=True)
class Header:
    """prepared.json."""

    dataset: DatasetName
    cameras: tuple[str, ...]
    variants: tuple[str, ...]  # image variants, () for a data set without
    points: str  # visible: only those that a camera sees; all
    has_intensity: bool
    raw_classes: dict[int, str]
    sequences: tuple[SequenceInfo, ...]
    image_root: str  # absolute, or relative to the folder itself
    shards: tuple[str, ...]  # file names in points/
    content: str  # changes when points, labels or calibrations do; not when folders move
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        write_text(folder / HEADER_FILE, json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def read(folder: Path) -> Header:
        """Raises ValueError if the folder holds no prepared data, or of another format."""
        path = folder / HEADER_FILE
        if not path.is_file():
            raise ValueError(f"{folder}: no prepared data here ({HEADER_FILE} is missing); run training/prepare_*.py")
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise ValueError(f"{path}: expected format {FORMAT}, got {values.get('format')}; prepare the data again")
        values["raw_classes"] = {int(raw_id): name for raw_id, name in values["raw_classes"].items()}
        values["sequences"] = tuple(SequenceInfo(**sequence) for sequence in values["sequences"])
        for name in ("cameras", "variants", "shards"):
            values[name] = tuple(values[name])
        return Header(**values)


def write_array(path: Path, array: NDArray[Any]) -> None:
    """np.save through a temporary file, so that a cut one never bears the final name."""
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as file:
        np.save(file, array)
    temporary.replace(path)


def write_parts(path: Path, parts: Sequence[NDArray[Any]], *, dtype: np.dtype) -> None:
    """As `write_array` of the joined (N,) parts, which are never joined in memory."""
    shape = (sum(len(part) for part in parts),)
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.tobytes())
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """As `write_array`."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def raw_histogram(points: NDArray[Any]) -> dict[int, int]:
    """Points of each raw id among rows of `POINT_DTYPE`."""
    ids, counts = np.unique(points["raw_label"], return_counts=True)
    return cast(dict[int, int], dict(zip(ids.tolist(), counts.tolist(), strict=True)))


def merge_raw_histogram(raw: Mapping[int, int], table: NDArray[np.int64], *, num_classes: int) -> NDArray[np.int64]:
    """(K,) points of each class, from points of each raw id."""
    counts = np.zeros(num_classes, dtype=np.int64)
    for raw_id, count in raw.items():
        if table[raw_id] >= 0:
            counts[table[raw_id]] += count
    return counts
