# SPDX-License-Identifier: Apache-2.0
"""VirtualKITTI 1.3.1: points made from its depth images, labelled by its semantic images.

Layout below the root: `vkitti_1.3.1_{rgb,depthgt,scenegt}/SSSS/<weather>/FFFFF.png` and
`vkitti_1.3.1_scenegt/SSSS_clone_scenegt_rgb_encoding.txt`. Where the points were already made with
VisualComputingInstitute/vkitti3D-dataset (`vkitti_npy/SSSS/FFFFF.npy`, XYZRGBL), they are taken instead of the depth.
Source: that repository's tools/create_npy.py, version 1, as valeoai/xmuda_journal uses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.training.data.download_check import find_missing
from xmodal_seg.training.data.image_files import read_depth, read_image
from xmodal_seg.training.data.raw_classes import (
    VIRTUAL_KITTI_CLASSES,
    ColourTable,
    DatasetName,
    check_raw_labels,
)
from xmodal_seg.training.data.sources import (
    SourceCamera,
    SourceFrame,
    SweepPoints,
    chosen_cameras,
    plain_image,
)
from xmodal_seg.training.data.splits import SequenceInfo

CAMERAS = ("camera",)
WEATHERS = ("clone", "fog", "morning", "overcast", "rain", "sunset")
SEQUENCE_LENGTHS = {"0001": 447, "0002": 233, "0006": 270, "0018": 339, "0020": 837}
MAX_RANGE_M = 100.0  # of the Euclidean distance; it also cuts the sky, which is at 655.35 m

CAMERA_MATRIX = np.array([[725.0, 0, 620.5], [0, 725.0, 187.0], [0, 0, 1]])
# The points have x forward, y left, z up at the camera's own place.
CAMERA_T_LIDAR = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])

_RGB, _DEPTH, _SCENE = "vkitti_1.3.1_rgb", "vkitti_1.3.1_depthgt", "vkitti_1.3.1_scenegt"
_NPY_FOLDERS = ("vkitti_npy", "vkitti3d_npy")
_FRAME_PERIOD_NS = 100_000_000
_START_NS = 1_000_000_000  # the data set has no stamps; ROS takes 0 for "no stamp"
_UNKNOWN = 255


class VirtualKittiSource:
    """See `sources.Source`. With `partial` the sequences and frames that are there are taken for all there is."""

    dataset: DatasetName = "virtual_kitti"
    variants: tuple[str, ...] = WEATHERS
    has_intensity = False
    rectifies = False

    def __init__(self, root: str | Path, *, cameras: Sequence[str] = (), partial: bool = False) -> None:
        self.root = Path(root)
        self.cameras = chosen_cameras(cameras, CAMERAS)
        self.partial = partial
        self._npy_folder = next((name for name in _NPY_FOLDERS if (self.root / name).is_dir()), "")

    def missing_tables(self) -> list[str]:
        names = [sequence.name for sequence in self.sequences()]
        if not names:
            return [_RGB]
        return [] if self._npy_folder else find_missing(self.root, [_encoding_file(name) for name in names])

    def raw_classes(self) -> Mapping[int, str]:
        return VIRTUAL_KITTI_CLASSES

    def sequences(self) -> list[SequenceInfo]:
        found = [name for name in SEQUENCE_LENGTHS if (self.root / _RGB / name).is_dir()]
        return [SequenceInfo(name=name) for name in (found if self.partial else SEQUENCE_LENGTHS)]

    def frames(self) -> list[SourceFrame]:
        return [
            self._frame(sequence.name, number)
            for sequence in self.sequences()
            for number in self._frame_numbers(sequence.name)
        ]

    def read_points(self, frame: SourceFrame) -> SweepPoints:
        if self._npy_folder:
            return _read_npy(self.root / frame.points)
        depth_path, scene_path = self.root / frame.points, self.root / frame.labels
        depth_m = read_depth(depth_path) / 100.0
        colours = read_image(scene_path)
        if colours.shape[:2] != depth_m.shape:
            raise ValueError(f"{scene_path}: is {colours.shape[:2]} px, its depth image {depth_m.shape}")
        points = points_from_depth(depth_m)
        near = np.flatnonzero(np.square(points).sum(axis=1) < MAX_RANGE_M**2)
        table = _scene_colours(self.root / _encoding_file(frame.sequence))
        labels = table.raw_ids(colours.reshape(-1, 3)[near])
        _check_known(labels, colours.reshape(-1, 3)[near], scene_path)
        return SweepPoints(points=points[near].astype(np.float32), raw_labels=labels.astype(np.uint16))

    def read_image(self, frame: SourceFrame, camera: SourceCamera, variant: str = "") -> NDArray[np.uint8]:
        return plain_image(self, camera, variant or WEATHERS[0])

    def _frame(self, sequence: str, number: int) -> SourceFrame:
        name = f"{number:05d}"
        stamp_ns = _START_NS + number * _FRAME_PERIOD_NS
        camera = SourceCamera(
            name=CAMERAS[0],
            image=f"{_RGB}/{sequence}/{{variant}}/{name}.png",
            camera_matrix=CAMERA_MATRIX,
            camera_T_lidar=CAMERA_T_LIDAR,
            stamp_ns=stamp_ns,
        )
        if self._npy_folder:
            points, labels = f"{self._npy_folder}/{sequence}/{name}.npy", ""
        else:
            points, labels = f"{_DEPTH}/{sequence}/clone/{name}.png", f"{_SCENE}/{sequence}/clone/{name}.png"
        return SourceFrame(
            sequence=sequence, name=name, stamp_ns=stamp_ns, cameras=(camera,), points=points, labels=labels
        )

    def _frame_numbers(self, sequence: str) -> list[int]:
        if not self.partial:
            return list(range(SEQUENCE_LENGTHS[sequence]))
        stems = {path.stem for path in (self.root / _RGB / sequence / WEATHERS[0]).glob("*.png")}
        return sorted(int(stem) for stem in stems if stem.isdigit())


def points_from_depth(depth_m: NDArray[np.float64]) -> NDArray[np.float64]:
    """(H, W) depth along the optical axis, m -> (H * W, 3) points with x forward, y left, z up; row by row."""
    rows, columns = np.indices(depth_m.shape)
    x = (columns - CAMERA_MATRIX[0, 2]) / CAMERA_MATRIX[0, 0] * depth_m
    y = (rows - CAMERA_MATRIX[1, 2]) / CAMERA_MATRIX[1, 1] * depth_m
    return np.stack([depth_m, -x, -y], axis=-1).reshape(-1, 3)


@lru_cache(maxsize=8)
def _scene_colours(path: Path) -> ColourTable:
    """The encoding file `Category(:id) r g b` -> colour table; `Car:12` is a car."""
    ids = {name: raw_id for raw_id, name in VIRTUAL_KITTI_CLASSES.items()}
    colours: dict[tuple[int, int, int], int] = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        fields = line.split()
        if not fields:
            continue
        category = fields[0].split(":")[0]
        if len(fields) != 4 or category not in ids or not all(field.isdigit() for field in fields[1:]):
            raise ValueError(f"{path}: expected lines such as 'Car:1 90 128 255' of a known category, got {line!r}")
        colours[int(fields[1]), int(fields[2]), int(fields[3])] = ids[category]
    return ColourTable(colours, default=_UNKNOWN)


def _check_known(labels: NDArray[np.uint8], colours: NDArray[np.uint8], path: Path) -> None:
    wrong = np.flatnonzero(labels == _UNKNOWN)
    if wrong.size:
        raise ValueError(
            f"{path}: {wrong.size} of {labels.size} points have a colour that the encoding file does not name; "
            f"the first is {tuple(colours[wrong[0]].tolist())}"
        )


def _read_npy(path: Path) -> SweepPoints:
    """(N, 7) XYZRGBL."""
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    if rows.ndim != 2 or rows.shape[1] != 7:
        raise ValueError(f"{path}: expected (N, 7) with x y z r g b label, got {rows.shape}")
    labels = rows[:, 6].astype(np.uint16)
    check_raw_labels(labels, VIRTUAL_KITTI_CLASSES, where=str(path))
    return SweepPoints(points=rows[:, :3].astype(np.float32), raw_labels=labels)


def _encoding_file(sequence: str) -> str:
    return f"{_SCENE}/{sequence}_clone_scenegt_rgb_encoding.txt"
