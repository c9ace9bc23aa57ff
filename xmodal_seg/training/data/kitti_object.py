# SPDX-License-Identifier: Apache-2.0
"""KITTI's object frames: single sweeps with one colour image and labelled 3D boxes.

Layout, as downloaded: calib/, image_2/, label_2/ and velodyne/, with files of the same six digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from xmodal_seg.geometry import NO_CAMERA, project_frame
from xmodal_seg.structures import Calibration, CameraView, Frame

VEHICLES = ("Car", "Van", "Truck", "Tram")
UNTOLD = ("Misc", "DontCare")  # whether a vehicle or not is left open
_NUM_VALUES = 14  # of a line behind its type


@dataclass(frozen=True, kw_only=True)
class LabelledObject:
    """One line of a label file; lengths in m, in axes of the rectified camera: x right, y down, z forward."""

    kind: str  # Car, Pedestrian, ...; DontCare has a 2D box only
    box_px: tuple[float, float, float, float]  # left, top, right, bottom in the image
    size: tuple[float, float, float]  # along, up, across
    bottom: tuple[float, float, float]  # middle of the box's floor
    yaw: float  # rad about y; at 0 the object looks along x

    def holds(self, points: NDArray[np.floating]) -> NDArray[np.bool_]:
        """(N,) which `points` (N, 3) in camera axes lie in the box."""
        cosine, sine = np.cos(self.yaw), np.sin(self.yaw)
        x, y, z = (points - np.array(self.bottom)).T
        along, up, across = cosine * x - sine * z, -y, sine * x + cosine * z
        length, height, width = self.size
        return (np.abs(along) <= length / 2) & (np.abs(across) <= width / 2) & (up >= 0) & (up <= height)


@dataclass(frozen=True, kw_only=True)
class ObjectFrame:
    """A frame and what is labelled in it."""

    name: str
    frame: Frame
    in_vehicle: NDArray[np.bool_]  # (N,) in the box of a vehicle
    outside: NDArray[np.bool_]  # (N,) seen by the camera, and certainly in no vehicle

    def select(self, mask: NDArray[np.bool_]) -> ObjectFrame:
        """The same frame with the points of `mask` (N,) alone."""
        return ObjectFrame(
            name=self.name,
            frame=self.frame.select(mask),
            in_vehicle=self.in_vehicle[mask],
            outside=self.outside[mask],
        )


def frame_names(root: Path) -> list[str]:
    """Of all frames with labels; ValueError where there are none."""
    names = sorted(path.stem for path in (root / "label_2").glob("*.txt"))
    if not names:
        raise ValueError(f"{root}: expected KITTI's object frames (calib, image_2, label_2, velodyne), found no labels")
    return names


def read_object_frame(root: Path, name: str) -> ObjectFrame:
    """The frame `name`; ValueError naming the file that is missing or malformed."""
    matrix, camera_T_lidar, rectified_T_lidar = _calibration(root / "calib" / f"{name}.txt")
    image_path, sweep_path = root / "image_2" / f"{name}.png", root / "velodyne" / f"{name}.bin"
    image = cv2.imread(str(image_path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{image_path}: expected a PNG image, cannot read it")
    if not sweep_path.is_file() or sweep_path.stat().st_size % 16:
        raise ValueError(f"{sweep_path}: expected rows of four float32, found no such file")
    sweep = np.fromfile(sweep_path, dtype="<f4").reshape(-1, 4).astype(np.float32)
    view = CameraView(
        name="image_2",
        image=np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8),
        calibration=Calibration(
            camera_matrix=matrix, camera_T_lidar=camera_T_lidar, image_size=(image.shape[0], image.shape[1])
        ),
    )
    frame = Frame(points=sweep[:, :3].copy(), intensity=sweep[:, 3].copy(), cameras=(view,), frame_id=name)
    objects = read_objects(root / "label_2" / f"{name}.txt")
    in_camera = frame.points @ rectified_T_lidar[:3, :3].T + rectified_T_lidar[:3, 3]
    in_vehicle = _held(in_camera, [each for each in objects if each.kind in VEHICLES])
    projection = project_frame(frame)
    untold = _held(in_camera, [each for each in objects if each.kind == "Misc"])
    for each in objects:
        if each.kind == "DontCare":
            left, top, right, bottom = each.box_px
            u, v = projection.uv.T
            untold |= (u >= left) & (u <= right) & (v >= top) & (v <= bottom)
    seen = projection.camera_index != NO_CAMERA
    return ObjectFrame(name=name, frame=frame, in_vehicle=in_vehicle & seen, outside=seen & ~in_vehicle & ~untold)


def read_objects(path: Path) -> list[LabelledObject]:
    """The lines of a label file; ValueError naming the line that is malformed."""
    objects = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        kind, *words = line.split() or [""]
        try:
            values = [float(word) for word in words]
        except ValueError as error:
            raise ValueError(f"{path}: line {number}: expected numbers after the type, got {line!r}") from error
        if len(values) != _NUM_VALUES:
            raise ValueError(f"{path}: line {number}: expected a type and {_NUM_VALUES} numbers, got {len(values)}")
        height, width, length = values[7:10]
        left, top, right, bottom = values[3:7]
        x, y, z = values[10:13]
        objects.append(
            LabelledObject(
                kind=kind,
                box_px=(left, top, right, bottom),
                size=(length, height, width),
                bottom=(x, y, z),
                yaw=values[13],
            )
        )
    return objects


def _held(points: NDArray[np.floating], objects: list[LabelledObject]) -> NDArray[np.bool_]:
    """(N,) points in any of the boxes."""
    held = np.zeros(len(points), dtype=np.bool_)
    for each in objects:
        held |= each.holds(points)
    return held


def _calibration(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Camera matrix of image_2, its camera_T_lidar, and that of the rectified axes in which boxes are given.

    P2 (3, 4) projects from the rectified axes; its fourth column K t is the colour camera's offset from them.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected the calibration of the frame, found no such file")
    lines = dict(line.split(":", 1) for line in path.read_text(encoding="utf-8").splitlines() if ":" in line)
    projection = _matrix(lines, "P2", (3, 4), path)
    rectify, place, offset = np.eye(4), np.eye(4), np.eye(4)
    rectify[:3, :3] = _matrix(lines, "R0_rect", (3, 3), path)
    place[:3] = _matrix(lines, "Tr_velo_to_cam", (3, 4), path)
    offset[:3, 3] = np.linalg.solve(projection[:, :3], projection[:, 3])
    rectified_T_lidar = rectify @ place
    return projection[:, :3].copy(), offset @ rectified_T_lidar, rectified_T_lidar


def _matrix(lines: dict[str, str], key: str, shape: tuple[int, int], path: Path) -> NDArray[np.float64]:
    values = lines.get(key, "").split()
    try:
        return np.array(values, dtype=np.float64).reshape(shape)
    except ValueError as error:
        raise ValueError(f"{path}: line {key}: expected {shape[0] * shape[1]} numbers, got {len(values)}") from error
