# SPDX-License-Identifier: Apache-2.0
"""SemanticKITTI: the sweeps and colour images of KITTI odometry with a label for every point.

Layout below the root (or below its folder `dataset`): `sequences/NN/{velodyne,image_2,image_3,labels}/FFFFFF.*`,
`sequences/NN/{calib,times}.txt`. Sequences 11 to 21 have no published labels; no benchmark here uses them.
Source: PRBonn/semantic-kitti-api config/semantic-kitti.yaml for the ids; KITTI's odometry devkit for calib.txt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.training.data.download_check import find_missing
from xmodal_seg.training.data.raw_classes import SEMANTIC_KITTI_CLASSES, DatasetName, check_raw_labels
from xmodal_seg.training.data.sources import (
    SourceCamera,
    SourceFrame,
    SweepPoints,
    check_same_length,
    chosen_cameras,
    plain_image,
    read_rows,
)
from xmodal_seg.training.data.splits import SEMANTIC_KITTI_HIDDEN_TEST, SequenceInfo

CAMERAS = ("image_2", "image_3")
# Frames of each labelled sequence (the benchmark's counts are their sums).
SEQUENCE_LENGTHS = {
    "00": 4541,
    "01": 1101,
    "02": 4661,
    "03": 801,
    "04": 271,
    "05": 2761,
    "06": 1101,
    "07": 1101,
    "08": 4071,
    "09": 1591,
    "10": 1201,
}
# times.txt counts from the start of a sequence; ROS takes the stamp 0 for "no stamp".
_START_NS = 1_000_000_000


class SemanticKittiSource:
    """See `sources.Source`. With `partial` the sequences and frames that are there are taken for all there is.

    With `hidden_test` also the sequences without labels that are there.
    """

    dataset: DatasetName = "semantic_kitti"
    variants: tuple[str, ...] = ()
    has_intensity = True
    rectifies = False

    def __init__(
        self, root: str | Path, *, cameras: Sequence[str] = (), partial: bool = False, hidden_test: bool = False
    ) -> None:
        self.root = Path(root) / "dataset" if (Path(root) / "dataset").is_dir() else Path(root)
        self.cameras = chosen_cameras(cameras, CAMERAS)
        self.partial = partial
        self.hidden_test = hidden_test

    def missing_tables(self) -> list[str]:
        names = [sequence.name for sequence in self.sequences()]
        if not names:
            return ["sequences"]
        return find_missing(
            self.root, [f"sequences/{name}/{file}" for name in names for file in ("calib.txt", "times.txt")]
        )

    def raw_classes(self) -> Mapping[int, str]:
        return SEMANTIC_KITTI_CLASSES

    def sequences(self) -> list[SequenceInfo]:
        found = {path.name for path in (self.root / "sequences").glob("[0-9][0-9]")}
        labelled = found & SEQUENCE_LENGTHS.keys() if self.partial else SEQUENCE_LENGTHS.keys()
        unlabelled = {name for name in found if name in SEMANTIC_KITTI_HIDDEN_TEST} if self.hidden_test else set()
        return [SequenceInfo(name=name) for name in sorted({*labelled, *unlabelled})]

    def frames(self) -> list[SourceFrame]:
        return [frame for sequence in self.sequences() for frame in self._sequence_frames(sequence.name)]

    def read_points(self, frame: SourceFrame) -> SweepPoints:
        points_path = self.root / frame.points
        rows = read_rows(points_path, "<f4", 4)  # x y z remission
        labels = np.zeros(len(rows), dtype=np.uint16)
        if frame.labels:
            labels_path = self.root / frame.labels
            # Upper 16 bits: the instance.
            labels = (read_rows(labels_path, "<u4", 1)[:, 0] & 0xFFFF).astype(np.uint16)
            check_same_length(len(rows), len(labels), points_path, labels_path)
            check_raw_labels(labels, SEMANTIC_KITTI_CLASSES, where=str(labels_path))
        return SweepPoints(
            points=np.ascontiguousarray(rows[:, :3]), raw_labels=labels, intensity=np.clip(rows[:, 3], 0.0, 1.0)
        )

    def read_image(self, frame: SourceFrame, camera: SourceCamera, variant: str = "") -> NDArray[np.uint8]:
        return plain_image(self, camera, variant)

    def _sequence_frames(self, sequence: str) -> list[SourceFrame]:
        folder = f"sequences/{sequence}"
        calibrations = read_calibration(self.root / folder / "calib.txt")
        times_path = self.root / folder / "times.txt"
        stamps_ns = read_times(times_path)
        labelled = sequence in SEQUENCE_LENGTHS
        frames = []
        for number in self._frame_numbers(sequence):
            name = f"{number:06d}"
            if number >= len(stamps_ns):
                raise ValueError(f"{times_path}: has {len(stamps_ns)} stamps, frame {name} needs more")
            cameras = [
                SourceCamera(
                    name=camera,
                    image=f"{folder}/{camera}/{name}.png",
                    camera_matrix=calibrations[camera][0],
                    camera_T_lidar=calibrations[camera][1],
                    stamp_ns=stamps_ns[number],
                )
                for camera in self.cameras
            ]
            frames.append(
                SourceFrame(
                    sequence=sequence,
                    name=name,
                    stamp_ns=stamps_ns[number],
                    cameras=tuple(cameras),
                    points=f"{folder}/velodyne/{name}.bin",
                    labels=f"{folder}/labels/{name}.label" if labelled else "",
                )
            )
        return frames

    def _frame_numbers(self, sequence: str) -> list[int]:
        if not self.partial and sequence in SEQUENCE_LENGTHS:
            return list(range(SEQUENCE_LENGTHS[sequence]))
        folder = self.root / "sequences" / sequence
        stems = {path.stem for kind in ("velodyne", "labels", *self.cameras) for path in (folder / kind).glob("*")}
        return sorted(int(stem) for stem in stems if stem.isdigit())


def read_calibration(path: Path) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """calib.txt -> for each colour camera its matrix (3, 3) and its place camera_T_lidar (4, 4).

    P2 and P3 (3, 4) project from rectified camera 0; their fourth column K t is the camera's offset from it.
    Raises ValueError naming the line that is missing or malformed.
    """
    lines = _calibration_lines(path)
    camera0_T_lidar = np.vstack([_matrix(lines, "Tr", path), [0.0, 0.0, 0.0, 1.0]])
    found = {}
    for camera, key in zip(CAMERAS, ("P2", "P3"), strict=True):
        projection = _matrix(lines, key, path)
        offset = np.eye(4)
        offset[:3, 3] = np.linalg.solve(projection[:, :3], projection[:, 3])
        found[camera] = (projection[:, :3].copy(), offset @ camera0_T_lidar)
    return found


def read_times(path: Path) -> list[int]:
    """times.txt (s from the start of the sequence) -> stamps in ns. Raises ValueError for a line that is no number."""
    stamps = []
    for number, line in enumerate(_read_text(path).split(), start=1):
        try:
            stamps.append(_START_NS + round(float(line) * 1e9))
        except ValueError as error:
            raise ValueError(f"{path}: line {number}: expected a time in s, got {line!r}") from error
    return stamps


def _calibration_lines(path: Path) -> dict[str, str]:
    pairs = (line.split(":", 1) for line in _read_text(path).splitlines() if ":" in line)
    return {key.strip(): values for key, values in pairs}


def _matrix(lines: Mapping[str, str], key: str, path: Path) -> NDArray[np.float64]:
    if key not in lines:
        hint = "; the archive of the images has such a file too: extract data_odometry_calib.zip last" * (key == "Tr")
        raise ValueError(f"{path}: has no line {key}; it has {', '.join(lines) or 'none'}{hint}")
    try:
        values = [float(value) for value in lines[key].split()]
    except ValueError as error:
        raise ValueError(f"{path}: line {key}: {error}") from error
    if len(values) != 12:
        raise ValueError(f"{path}: line {key}: expected 12 numbers, got {len(values)}")
    return np.array(values).reshape(3, 4)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
