# SPDX-License-Identifier: Apache-2.0
"""A2D2, the semantic segmentation data set: images undistorted, points labelled by the colour of their pixel.

Layout below the root (or below its folder `camera_lidar_semantic`): `cams_lidars.json`, `class_list.json` and
`<sequence>/{camera,lidar,label}/cam_front_center/<date>_{camera,lidar,label}_frontcenter_<id>.{png,npz,png}`.
The points of an npz are those in view of its camera, in the axes of the camera's view (x forward, y left, z up);
`row` and `col` are their pixels in the undistorted image. Frames whose npz has no `row` have no point in view.
Source: the data set's tutorial; undistortion and labels as valeoai/xmuda_journal data/a2d2/preprocess.py.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from xmodal_seg.geometry import transform_points
from xmodal_seg.training.data.image_files import read_image
from xmodal_seg.training.data.raw_classes import (
    A2D2_CLASSES,
    A2D2_COLOURS,
    A2D2_UNMATCHED,
    ColourTable,
    DatasetName,
    rgb_from_hex,
)
from xmodal_seg.training.data.sources import SourceCamera, SourceFrame, SweepPoints, chosen_cameras
from xmodal_seg.training.data.splits import A2D2_TEST, A2D2_TRAIN, SequenceInfo

CAMERAS = ("front_center", "front_left", "front_right", "side_left", "side_right", "rear_center")
CONFIG_FILE, CLASS_FILE = "cams_lidars.json", "class_list.json"
CAMERA_T_LIDAR = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
# Largest median distance between a point's given pixel and its projection; a wrong calibration is off by far more.
MAX_PROJECTION_ERROR_PX = 2.0
_IMAGE_NAME = re.compile(r"(\d+)_camera_([a-z]+)_(\d+)")
_NPZ_KEYS = ("points", "row", "col", "timestamp", "reflectance")
_NO_POINTS = SweepPoints(
    points=np.zeros((0, 3), dtype=np.float32),
    raw_labels=np.zeros(0, dtype=np.uint16),
    intensity=np.zeros(0, dtype=np.float32),
)


@dataclass(frozen=True, kw_only=True)
class LensCalibration:
    """A camera of cams_lidars.json."""

    lens: str  # Telecam or Fisheye
    camera_matrix: NDArray[np.float64]  # (3, 3) of the undistorted image
    original_matrix: NDArray[np.float64]  # (3, 3) of the image as it is
    distortion: NDArray[np.float64]  # in OpenCV's order for the lens
    image_size: tuple[int, int]  # (height, width) px


class A2D2Source:
    """See `sources.Source`. Each camera's image is a frame of its own: the cameras are not triggered together.

    With `partial` the sequences and frames that are there are taken for all there is.
    """

    dataset: DatasetName = "a2d2"
    variants: tuple[str, ...] = ()
    has_intensity = True
    rectifies = True

    def __init__(self, root: str | Path, *, cameras: Sequence[str] = (), partial: bool = False) -> None:
        nested = Path(root) / "camera_lidar_semantic"
        self.root = nested if nested.is_dir() else Path(root)
        self.cameras = chosen_cameras(cameras, CAMERAS)
        self.partial = partial

    def missing_tables(self) -> list[str]:
        names = [] if self.partial else [name for name in _sequence_names() if not (self.root / name).is_dir()]
        missing = [f"{name}/camera" for name in names]
        if not (self.root / CLASS_FILE).is_file():
            missing.append(CLASS_FILE)
        return missing if self._config_path().is_file() else [CONFIG_FILE, *missing]

    def raw_classes(self) -> Mapping[int, str]:
        """Position in class_list.json -> name. Raises ValueError if the list is not the published one."""
        path = self.root / CLASS_FILE
        listed = {colour.lower(): name for colour, name in _read_json(path).items()}
        if listed != A2D2_COLOURS:
            different = sorted({*listed.items()} ^ {*A2D2_COLOURS.items()})
            raise ValueError(f"{path}: differs from the published list in {different[0]} and {len(different) - 1} more")
        return A2D2_CLASSES

    def sequences(self) -> list[SequenceInfo]:
        names = [name for name in _sequence_names() if not self.partial or (self.root / name).is_dir()]
        return [SequenceInfo(name=name) for name in names]

    def frames(self) -> list[SourceFrame]:
        frames = {
            sequence.name: [
                self._frame(sequence.name, stem, camera)
                for camera in self.cameras
                for stem in self._image_stems(sequence.name, camera)
            ]
            for sequence in self.sequences()
        }
        empty = [name for name, found in frames.items() if not found]
        if empty and not self.partial:
            raise ValueError(
                f"{self.root}: no frame of {' or '.join(self.cameras)} in {', '.join(empty)}; are they extracted?"
            )
        return [frame for found in frames.values() for frame in found]

    def read_points(self, frame: SourceFrame) -> SweepPoints:
        points_path, camera = self.root / frame.points, frame.cameras[0]
        arrays = read_npz(points_path)
        if "row" not in arrays:
            return _NO_POINTS
        points = arrays["points"].astype(np.float32)
        image = self._undistort(read_image(self.root / frame.labels), camera.name)
        rows, columns = np.rint(arrays["row"]).astype(np.int64), np.rint(arrays["col"]).astype(np.int64)
        check_pixels(points, arrays["row"], arrays["col"], camera.camera_matrix, points_path)
        inside = (rows >= 0) & (rows < image.shape[0]) & (columns >= 0) & (columns < image.shape[1])
        labels = np.full(len(points), A2D2_UNMATCHED, dtype=np.uint16)
        labels[inside] = _colour_table().raw_ids(image[rows[inside], columns[inside]])
        return SweepPoints(
            points=points,
            raw_labels=labels,
            intensity=np.clip(arrays["reflectance"].astype(np.float32) / 255.0, 0.0, 1.0),
            stamp_ns=int(arrays["timestamp"].max()) * 1000,  # the last return; microseconds in the file
        )

    def read_image(self, frame: SourceFrame, camera: SourceCamera, variant: str = "") -> NDArray[np.uint8]:
        return self._undistort(read_image(self.root / camera.image), camera.name)

    def _image_stems(self, sequence: str, camera: str) -> list[str]:
        """Image names of the frames of which any file is there, so that a missing image is noticed too."""
        stems = set()
        for kind, ending in (("camera", "png"), ("label", "png"), ("lidar", "npz")):
            paths = (self.root / sequence / kind / f"cam_{camera}").glob(f"[!.]*.{ending}")
            stems |= {path.stem.replace(f"_{kind}_", "_camera_") for path in paths}
        return sorted(stems)

    def _frame(self, sequence: str, stem: str, camera: str) -> SourceFrame:
        match = _IMAGE_NAME.fullmatch(stem)
        if match is None:
            path = self.root / sequence / "camera" / f"cam_{camera}" / f"{stem}.png"
            raise ValueError(f"{path}: expected a name such as 20180810142822_camera_frontcenter_000000037.png")
        date, side, number = match.groups()
        folder = f"cam_{camera}"
        source_camera = SourceCamera(
            name=camera,
            image=f"{sequence}/camera/{folder}/{stem}.png",
            camera_matrix=self._calibrations[camera].camera_matrix,
            camera_T_lidar=CAMERA_T_LIDAR,
            stamp_ns=0,
        )
        return SourceFrame(
            sequence=sequence,
            name=f"{date}_{side}_{number}",
            stamp_ns=0,
            cameras=(source_camera,),
            points=f"{sequence}/lidar/{folder}/{date}_lidar_{side}_{number}.npz",
            labels=f"{sequence}/label/{folder}/{date}_label_{side}_{number}.png",
        )

    def _undistort(self, image: NDArray[np.uint8], camera: str) -> NDArray[np.uint8]:
        calibration = self._calibrations[camera]
        if image.shape[:2] != calibration.image_size:
            raise ValueError(f"{camera}: expected an image of {calibration.image_size} px, got {image.shape[:2]}")
        if camera not in self._maps:
            self._maps[camera] = undistortion_maps(calibration)
        return np.asarray(cv2.remap(image, *self._maps[camera], cv2.INTER_LINEAR), dtype=np.uint8)

    def _config_path(self) -> Path:
        """In the folder of the sequences, or above it: the two are downloaded apart."""
        beside = self.root / CONFIG_FILE
        return beside if beside.is_file() else self.root.parent / CONFIG_FILE

    @cached_property
    def _calibrations(self) -> dict[str, LensCalibration]:
        return read_calibrations(self._config_path())

    @cached_property
    def _maps(self) -> dict[str, tuple[NDArray, NDArray]]:
        return {}


def read_calibrations(path: Path) -> dict[str, LensCalibration]:
    """cams_lidars.json -> camera -> calibration. Raises ValueError naming the camera and the key that is wrong."""
    cameras = _read_json(path).get("cameras", {})
    found = {}
    for name in CAMERAS:
        try:
            values = cameras[name]
            width, height = values["Resolution"]
            found[name] = LensCalibration(
                lens=values["Lens"],
                camera_matrix=np.array(values["CamMatrix"], dtype=np.float64).reshape(3, 3),
                original_matrix=np.array(values["CamMatrixOriginal"], dtype=np.float64).reshape(3, 3),
                distortion=np.array(values["Distortion"], dtype=np.float64).reshape(-1),
                image_size=(int(height), int(width)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: cameras.{name} is not complete: {error}") from error
        if found[name].lens not in ("Telecam", "Fisheye"):
            raise ValueError(f"{path}: cameras.{name}.Lens: expected Telecam or Fisheye, got {found[name].lens!r}")
    return found


def undistortion_maps(calibration: LensCalibration) -> tuple[NDArray, NDArray]:
    """Maps for cv2.remap, made once: the same that cv2.undistort and cv2.fisheye.undistortImage make anew each time."""
    size = calibration.image_size[::-1]
    make = cv2.fisheye.initUndistortRectifyMap if calibration.lens == "Fisheye" else cv2.initUndistortRectifyMap
    matrices = calibration.original_matrix, calibration.distortion, np.eye(3), calibration.camera_matrix
    return make(*matrices, size, cv2.CV_16SC2)


def read_npz(path: Path) -> dict[str, NDArray]:
    """The arrays of a frame; empty if no point is in view (such a file has no `row`).

    Raises ValueError for a damaged archive, a missing array and arrays of different lengths.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "row" not in archive.files:
                return {}
            arrays = {key: archive[key] for key in _NPZ_KEYS}
    except KeyError as error:
        raise ValueError(f"{path}: has no array {error.args[0]}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    lengths = {key: len(array) for key, array in arrays.items()}
    if len(set(lengths.values())) != 1 or arrays["points"].shape[1:] != (3,):
        raise ValueError(f"{path}: expected (N, 3) points and arrays of the same length, got {lengths}")
    return arrays if lengths["points"] else {}


def check_pixels(
    points: NDArray[np.float32],
    rows: NDArray[np.floating],
    columns: NDArray[np.floating],
    camera_matrix: NDArray[np.float64],
    path: Path,
) -> None:
    """Raises ValueError if the points do not project to the pixels that the file gives for them."""
    in_camera = transform_points(CAMERA_T_LIDAR, points)
    with np.errstate(divide="ignore", invalid="ignore"):
        projected = (in_camera / in_camera[:, 2:]) @ camera_matrix.T
    error_px = float(np.median(np.hypot(projected[:, 0] - columns, projected[:, 1] - rows)))
    if not error_px <= MAX_PROJECTION_ERROR_PX:
        raise ValueError(
            f"{path}: the points project {error_px:.1f} px (median) away from the file's row and col; "
            f"{CONFIG_FILE} belongs to other data"
        )


@lru_cache(maxsize=1)
def _colour_table() -> ColourTable:
    colours = {rgb_from_hex(colour): raw_id for raw_id, colour in enumerate(A2D2_COLOURS)}
    return ColourTable(colours, default=A2D2_UNMATCHED)


def _sequence_names() -> list[str]:
    return sorted((*A2D2_TRAIN, *A2D2_TEST))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected an object, got {type(values).__name__}")
    return values
