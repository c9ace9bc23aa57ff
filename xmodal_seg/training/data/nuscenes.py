# SPDX-License-Identifier: Apache-2.0
"""nuScenes with nuScenes-lidarseg: its tables read directly (the official toolkit pins NumPy below 2).

Layout below the root: `v1.0-trainval/*.json`, `samples/LIDAR_TOP/*.pcd.bin`, `samples/CAM_*/*.jpg`,
`lidarseg/v1.0-trainval/*_lidarseg.bin`. Frames are the key frames (2 Hz).
Source: nutonomy/nuscenes-devkit docs/schema_nuscenes.md; the projection chain as valeoai/xmuda_journal projection.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.geometry import invert_rigid
from xmodal_seg.training.data.download_check import find_missing
from xmodal_seg.training.data.raw_classes import DatasetName, check_raw_labels
from xmodal_seg.training.data.sources import (
    SourceCamera,
    SourceFrame,
    SweepPoints,
    check_same_length,
    chosen_cameras,
    plain_image,
    read_rows,
)
from xmodal_seg.training.data.splits import SequenceInfo
from xmodal_seg.transforms import matrix_from_pose

CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK_RIGHT", "CAM_BACK")
LIDAR = "LIDAR_TOP"
DEFAULT_VERSION = "v1.0-trainval"
# Table -> what is read of its records.
_TABLES = {
    "calibrated_sensor": {"token", "sensor_token", "translation", "rotation", "camera_intrinsic"},
    "category": {"name"},
    "ego_pose": {"token", "translation", "rotation"},
    "lidarseg": {"sample_data_token", "filename"},
    "log": {"token", "location"},
    "sample": {"token", "timestamp", "scene_token"},
    "sample_data": {
        "token",
        "sample_token",
        "ego_pose_token",
        "calibrated_sensor_token",
        "timestamp",
        "is_key_frame",
        "filename",
    },
    "scene": {"token", "name", "description", "log_token"},
    "sensor": {"token", "channel"},
}
_CHUNK_CHARACTERS = 1 << 22
_LONGEST_RECORD = 1 << 20  # characters; what is no record after these never becomes one
_SEPARATORS = re.compile(r"[\s,]*")

# LIDAR_TOP has x right, y forward, z up; the project has x forward, y left, z up.
LIDAR_T_SENSOR = np.array([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])

Record = dict[str, Any]


class NuScenesSource:
    """See `sources.Source`. `version` is the folder with the tables, such as v1.0-trainval or v1.0-mini."""

    dataset: DatasetName = "nuscenes"
    variants: tuple[str, ...] = ()
    has_intensity = True
    rectifies = False

    def __init__(self, root: str | Path, *, version: str = DEFAULT_VERSION, cameras: Sequence[str] = ()) -> None:
        self.root = Path(root)
        self.version = version
        self.cameras = chosen_cameras(cameras, CAMERAS)
        self._raw_classes: dict[int, str] | None = None

    def missing_tables(self) -> list[str]:
        return find_missing(self.root, [f"{self.version}/{table}.json" for table in _TABLES])

    def raw_classes(self) -> Mapping[int, str]:
        """From category.json. Raises ValueError if its categories have no `index` (it came without lidarseg)."""
        if self._raw_classes is None:
            path = self._table_path("category")
            categories = list(self._read("category"))
            if any("index" not in category for category in categories):
                raise ValueError(
                    f"{path}: categories have no 'index'; extract nuScenes-lidarseg over the download, which has it"
                )
            self._raw_classes = {category["index"]: category["name"] for category in categories}
            if len(self._raw_classes) != len(categories):
                raise ValueError(f"{path}: two categories have one index")
        return self._raw_classes

    def sequences(self) -> list[SequenceInfo]:
        locations = {log["token"]: log["location"] for log in self._read("log")}
        scenes = self._scenes()
        self._check_found("log", {scene["log_token"] for scene in scenes}, locations, by="scene")
        return [
            SequenceInfo(name=scene["name"], location=locations[scene["log_token"]], description=scene["description"])
            for scene in scenes
        ]

    def frames(self) -> list[SourceFrame]:
        scene_names = {scene["token"]: scene["name"] for scene in self._scenes()}
        order = {name: number for number, name in enumerate(scene_names.values())}
        samples = sorted(
            (sample for sample in self._read("sample") if sample["scene_token"] in scene_names),
            key=lambda sample: (order[scene_names[sample["scene_token"]]], sample["timestamp"]),
        )
        data = self._key_frame_data()
        poses = self._poses(data)
        labels = {record["sample_data_token"]: record["filename"] for record in self._read("lidarseg")}
        return [
            self._frame(sample["token"], scene_names[sample["scene_token"]], data, poses, labels) for sample in samples
        ]

    def read_points(self, frame: SourceFrame) -> SweepPoints:
        points_path, labels_path = self.root / frame.points, self.root / frame.labels
        rows = read_rows(points_path, "<f4", 5)  # x y z intensity ring
        labels = read_rows(labels_path, "u1", 1)[:, 0].astype(np.uint16)
        check_same_length(len(rows), len(labels), points_path, labels_path)
        check_raw_labels(labels, self.raw_classes(), where=str(labels_path))
        points = np.stack([rows[:, 1], -rows[:, 0], rows[:, 2]], axis=1)
        return SweepPoints(points=points, raw_labels=labels, intensity=np.clip(rows[:, 3] / 255.0, 0.0, 1.0))

    def read_image(self, frame: SourceFrame, camera: SourceCamera, variant: str = "") -> NDArray[np.uint8]:
        return plain_image(self, camera, variant)

    def _frame(
        self,
        sample_token: str,
        scene: str,
        data: Mapping[tuple[str, str], Record],
        poses: Mapping[str, NDArray[np.float64]],
        labels: Mapping[str, str],
    ) -> SourceFrame:
        lidar = self._data_of(data, sample_token, LIDAR)
        if lidar["token"] not in labels:
            raise ValueError(f"{self._table_path('lidarseg')}: has no labels for the sweep {lidar['token']} of {scene}")
        global_T_lidar = poses[lidar["ego_pose_token"]] @ poses[lidar["calibrated_sensor_token"]]
        cameras = []
        for name in self.cameras:
            record = self._data_of(data, sample_token, name)
            global_T_camera = poses[record["ego_pose_token"]] @ poses[record["calibrated_sensor_token"]]
            cameras.append(
                SourceCamera(
                    name=name,
                    image=record["filename"],
                    camera_matrix=record["camera_matrix"],
                    camera_T_lidar=place_camera(global_T_camera, global_T_lidar),
                    stamp_ns=record["timestamp"] * 1000,
                )
            )
        return SourceFrame(
            sequence=scene,
            name=lidar["token"],
            stamp_ns=lidar["timestamp"] * 1000,
            cameras=tuple(cameras),
            points=lidar["filename"],
            labels=labels[lidar["token"]],
        )

    def _data_of(self, data: Mapping[tuple[str, str], Record], sample_token: str, channel: str) -> Record:
        if (sample_token, channel) not in data:
            raise ValueError(
                f"{self._table_path('sample_data')}: has no {channel} key frame for the sample {sample_token}"
            )
        return data[sample_token, channel]

    def _key_frame_data(self) -> dict[tuple[str, str], Record]:
        """(sample token, channel) -> its sample_data record, for the channels that are wanted."""
        sensor_names = {sensor["token"]: sensor["channel"] for sensor in self._read("sensor")}
        wanted = {LIDAR, *self.cameras}
        calibrated = list(self._read("calibrated_sensor"))
        self._check_found("sensor", {r["sensor_token"] for r in calibrated}, sensor_names, by="calibrated_sensor")
        sensors = {record["token"]: record for record in calibrated if sensor_names[record["sensor_token"]] in wanted}
        matrices = {name: np.array(r["camera_intrinsic"], dtype=np.float64) for name, r in sensors.items()}
        found: dict[tuple[str, str], Record] = {}
        for record in self._read(
            "sample_data", lambda r: r["is_key_frame"] and r["calibrated_sensor_token"] in sensors
        ):
            sensor = sensors[record["calibrated_sensor_token"]]
            record["camera_matrix"] = matrices[sensor["token"]]
            found[record["sample_token"], sensor_names[sensor["sensor_token"]]] = record
        return found

    def _poses(self, data: Mapping[tuple[str, str], Record]) -> dict[str, NDArray[np.float64]]:
        """Token of a calibrated sensor or an ego pose -> (4, 4) parent_T_child."""
        sensors = {record["calibrated_sensor_token"] for record in data.values()}
        egos = {record["ego_pose_token"] for record in data.values()}
        poses = {r["token"]: _pose(r) for r in self._read("calibrated_sensor", lambda r: r["token"] in sensors)}
        poses.update({r["token"]: _pose(r) for r in self._read("ego_pose", lambda r: r["token"] in egos)})
        for name, tokens in (("calibrated_sensor", sensors), ("ego_pose", egos)):
            self._check_found(name, tokens, poses, by="sample_data")
        return poses

    def _check_found(self, table: str, tokens: Set[str], found: Mapping[str, Any], *, by: str) -> None:
        """Raises ValueError for a token in the table `by` of which `table` has no record."""
        lost = tokens - found.keys()
        if lost:
            raise ValueError(f"{self._table_path(table)}: has no record {min(lost)}, which {by}.json refers to")

    def _scenes(self) -> list[Record]:
        return sorted(self._read("scene"), key=lambda scene: scene["name"])

    def _read(self, table: str, keep: Callable[[Record], bool] | None = None) -> Iterator[Record]:
        records = iter_records(self._table_path(table), keys=_TABLES[table])
        return records if keep is None else (record for record in records if keep(record))

    def _table_path(self, table: str) -> Path:
        return self.root / self.version / f"{table}.json"


def place_camera(global_T_camera: NDArray[np.float64], global_T_lidar: NDArray[np.float64]) -> NDArray[np.float64]:
    """camera_T_lidar (4, 4) for points in the project's axes, by way of the world: the car moves between two stamps.

    lidar -> ego at the sweep's stamp -> global -> ego at the image's stamp -> camera.
    """
    return invert_rigid(global_T_camera) @ global_T_lidar @ invert_rigid(LIDAR_T_SENSOR)


def iter_records(path: Path, *, keys: Set[str] = frozenset(), chunk: int = _CHUNK_CHARACTERS) -> Iterator[Record]:
    """The objects of a JSON list, one after the other.

    sample_data.json of the full data set has 2.6 million of them; whole, it would take several GB of memory. `chunk`
    characters are read at a time.

    Raises ValueError if the file is missing, is not a list of objects, or is cut off, or an object lacks one of `keys`.
    """
    decoder = json.JSONDecoder()
    with _open_text(path) as file:
        text, position, at_end = _read_text(file, chunk, path), 1, False
        if not text.startswith("["):
            raise ValueError(f"{path}: expected a JSON list of records")
        while True:
            start = _SEPARATORS.match(text, position).end()  # type: ignore[union-attr] # it matches nothing, too
            if text.startswith("]", start):
                return
            try:
                record, position = decoder.raw_decode(text, start)
            except json.JSONDecodeError as error:
                if at_end or len(text) - start > max(chunk, _LONGEST_RECORD):
                    raise ValueError(f"{path}: the table is cut off or not JSON: {error.msg}") from error
                more = _read_text(file, chunk, path)
                text, position, at_end = text[start:] + more, 0, not more
                continue
            if not isinstance(record, dict):
                raise ValueError(f"{path}: expected records, got {type(record).__name__}")
            if not keys <= record.keys():
                raise ValueError(f"{path}: a record has no {min(keys - record.keys())!r}; it has {', '.join(record)}")
            yield record


def _open_text(path: Path) -> TextIO:
    try:
        return path.open(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error


def _read_text(file: TextIO, num_characters: int, path: Path) -> str:
    try:
        return file.read(num_characters)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file: {error.reason}") from error


def _pose(record: Record) -> NDArray[np.float64]:
    """Translation in m and quaternion w, x, y, z -> (4, 4)."""
    w, x, y, z = record["rotation"]
    return matrix_from_pose(np.array(record["translation"], dtype=np.float64), np.array([x, y, z, w]))
