# SPDX-License-Identifier: Apache-2.0
"""The four data sets in miniature, in the exact layout of their downloads on disk.

One little world stands in all of them: a flat road with a wall of "building" ahead and a "car" box before it. Numbers
of frames, points and pixels are small and odd; names, tables, encodings and file formats are those of the downloads.
Every maker returns the root that a user would give to `--root`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from programs import load_program

from xmodal_seg.training.data.raw_classes import A2D2_COLOURS

ROAD, BUILDING, CAR = 0, 1, 2


@dataclass(frozen=True)
class World:
    """Points in x forward, y left, z up, and what each one belongs to."""

    points: NDArray[np.float32]
    kinds: NDArray[np.int64]


def make_world(num_points: int = 601, seed: int = 0, *, behind: bool = True, around: bool = False) -> World:
    """Road on both sides (or ahead only), a wall at 20 m, a car at 10 m; `around` turns each point to any side."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice([ROAD, BUILDING, CAR], num_points, p=[0.6, 0.25, 0.15])
    low = -15.0 if behind else 4.0
    points = rng.uniform((low, -7, -1.7), (19, 7, -1.7), (num_points, 3))
    wall, car = kinds == BUILDING, kinds == CAR
    points[wall] = rng.uniform((20, -7, -1.7), (20, 7, 3), (wall.sum(), 3))
    points[car] = rng.uniform((9.5, 0.1, -1.7), (10.5, 1.9, -0.3), (car.sum(), 3))
    if around:
        angle = rng.uniform(0, 2 * np.pi, num_points)
        x, y = points[:, 0].copy(), points[:, 1].copy()
        points[:, 0], points[:, 1] = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
    return World(points=points.astype(np.float32), kinds=kinds)


def road_image(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """(H, W, 3) RGB: sky above, road below, noise."""
    image = np.full((height, width, 3), (120, 160, 220), dtype=np.uint8)
    image[height // 2 :] = (90, 85, 95)
    noise = np.random.default_rng(seed).integers(0, 12, image.shape)
    return (image + noise).astype(np.uint8)


def run_prepare(name: str, root: Path, out: Path, *flags: str) -> int:
    """training/prepare_<name>.py in this process; its exit status."""
    return load_program(f"prepare_{name}").main(["--root", str(root), "--out", str(out), "--workers", "1", *flags])


def save_image(path: Path, image: NDArray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)


# ---------------------------------------------------------------------------------------------------- nuScenes

# All 32 categories with the index that nuScenes-lidarseg's category.json gives them (alphabetical, noise first).
NUSCENES_CATEGORIES = (
    "noise",
    "animal",
    "human.pedestrian.adult",
    "human.pedestrian.child",
    "human.pedestrian.construction_worker",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.police_officer",
    "human.pedestrian.stroller",
    "human.pedestrian.wheelchair",
    "movable_object.barrier",
    "movable_object.debris",
    "movable_object.pushable_pullable",
    "movable_object.trafficcone",
    "static_object.bicycle_rack",
    "vehicle.bicycle",
    "vehicle.bus.bendy",
    "vehicle.bus.rigid",
    "vehicle.car",
    "vehicle.construction",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
    "vehicle.motorcycle",
    "vehicle.trailer",
    "vehicle.truck",
    "flat.driveable_surface",
    "flat.other",
    "flat.sidewalk",
    "flat.terrain",
    "static.manmade",
    "static.other",
    "static.vegetation",
    "vehicle.ego",
)
NUSCENES_CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK_RIGHT", "CAM_BACK")
_YAWS_DEG = (0.0, 55.0, -55.0, 110.0, -110.0, 180.0)
NUSCENES_SIZE = (90, 160)  # height, width; the real ones are ten times larger
NUSCENES_MATRIX = np.array([[126.0, 0, 81.6], [0, 126.0, 49.1], [0, 0, 1]])


@dataclass(frozen=True)
class Scene:
    name: str
    location: str
    description: str
    num_samples: int = 2


# One for every part of both tasks.
NUSCENES_SCENES = (
    Scene("scene-0061", "singapore-onenorth", "Parked truck, construction, intersection"),
    Scene("scene-0004", "singapore-hollandvillage", "Rain, pedestrians"),
    Scene("scene-0103", "boston-seaport", "Many peds right, wait for turning car"),
    Scene("scene-0012", "singapore-queenstown", "Turn left"),
    Scene("scene-0161", "boston-seaport", "Car overtaking, parking lot", 3),
    Scene("scene-0992", "singapore-hollandvillage", "Night, difficult lighting"),
    Scene("scene-1044", "singapore-hollandvillage", "Night, after rain, ped"),
    Scene("scene-1059", "singapore-queenstown", "Turning, NIGHT, street light"),
)


def make_nuscenes(
    root: Path,
    scenes: Sequence[Scene] = NUSCENES_SCENES,
    *,
    version: str = "v1.0-trainval",
    cameras: Sequence[str] = NUSCENES_CAMERAS,
    num_points: int = 601,
    scale: int = 1,
) -> Path:
    """Tables, key frames of LiDAR and cameras, one sweep in between, lidarseg; images at `scale` (10 is full size)."""
    tables = _NuScenesTables(root, version, cameras, scale)
    for number, scene in enumerate(scenes):
        tables.add_scene(scene, number, num_points)
    tables.write()
    return root


class _NuScenesTables:
    def __init__(self, root: Path, version: str, cameras: Sequence[str], scale: int) -> None:
        self.root, self.version, self.cameras = root, version, cameras
        self.size = (scale * NUSCENES_SIZE[0], scale * NUSCENES_SIZE[1])
        self.matrix = scaled(NUSCENES_MATRIX, scale)
        self.around = scale > 1
        self.rows: dict[str, list[dict]] = {name: [] for name in _NUSCENES_TABLES}
        self.rows["category"] = [
            {"token": token("category", name), "name": name, "description": "", "index": index}
            for index, name in enumerate(NUSCENES_CATEGORIES)
        ]
        # A real table is in no order that could be relied on.
        self.rows["category"].sort(key=lambda row: row["token"])
        self._add_sensors()

    def _add_sensors(self) -> None:
        self._add_sensor("LIDAR_TOP", "lidar", translation=[0.94, 0.0, 1.84], yaw_deg=-90.0, matrix=[])
        for name, yaw_deg in zip(NUSCENES_CAMERAS, _YAWS_DEG, strict=True):
            self._add_sensor(name, "camera", translation=[1.7, 0.1, 1.5], yaw_deg=yaw_deg, matrix=self.matrix.tolist())

    def _add_sensor(
        self, channel: str, modality: str, *, translation: list[float], yaw_deg: float, matrix: list
    ) -> None:
        # A camera's axes: x right, y down, z forward.
        turn = yaw_quaternion(yaw_deg)
        if modality == "camera":
            turn = multiply(turn, (0.5, -0.5, 0.5, -0.5))
        self.rows["sensor"].append({"token": token("sensor", channel), "channel": channel, "modality": modality})
        self.rows["calibrated_sensor"].append(
            {
                "token": token("calibrated", channel),
                "sensor_token": token("sensor", channel),
                "translation": translation,
                "rotation": list(turn),
                "camera_intrinsic": matrix,
            }
        )

    def add_scene(self, scene: Scene, number: int, num_points: int) -> None:
        log = token("log", scene.name)
        self.rows["log"].append(
            {
                "token": log,
                "logfile": f"n015-2018-07-24-{number:02d}",
                "vehicle": "n015",
                "date_captured": "2018-07-24",
                "location": scene.location,
            }
        )
        samples = [token("sample", scene.name, str(index)) for index in range(scene.num_samples)]
        self.rows["scene"].append(
            {
                "token": token("scene", scene.name),
                "log_token": log,
                "nbr_samples": len(samples),
                "first_sample_token": samples[0],
                "last_sample_token": samples[-1],
                "name": scene.name,
                "description": scene.description,
            }
        )
        for index, sample in enumerate(samples):
            stamp_us = 1532402927647951 + number * 100_000_000 + index * 500_000
            self.rows["sample"].append(
                {
                    "token": sample,
                    "timestamp": stamp_us,
                    "prev": samples[index - 1] if index else "",
                    "next": samples[index + 1] if index + 1 < len(samples) else "",
                    "scene_token": token("scene", scene.name),
                }
            )
            self._add_sweep(sample, stamp_us, key=True, num_points=num_points, seed=100 * number + index)
            self._add_sweep(sample, stamp_us + 50_000, key=False, num_points=num_points, seed=0)
            for channel in self.cameras:
                self._add_image(sample, channel, stamp_us - 12_345, seed=index)

    def _add_data(self, sample: str, channel: str, stamp_us: int, filename: str, *, key: bool) -> str:
        # The car drives 5 m/s along a heading of 30 degrees: a pose for every record, as in the data set.
        name = token("data", sample, channel, str(stamp_us))
        travelled = 5.0 * (stamp_us % 100_000_000) * 1e-6
        self.rows["ego_pose"].append(
            {
                "token": token("pose", name),
                "timestamp": stamp_us,
                "rotation": list(yaw_quaternion(30.0)),
                "translation": [400.0 + 0.866025 * travelled, 1100.0 + 0.5 * travelled, 0.0],
            }
        )
        image = channel.startswith("CAM")
        self.rows["sample_data"].append(
            {
                "token": name,
                "sample_token": sample,
                "ego_pose_token": token("pose", name),
                "calibrated_sensor_token": token("calibrated", channel),
                "timestamp": stamp_us,
                "fileformat": "jpg" if image else "pcd",
                "is_key_frame": key,
                "height": self.size[0] if image else 0,
                "width": self.size[1] if image else 0,
                "filename": filename,
                "prev": "",
                "next": "",
            }
        )
        return name

    def _add_sweep(self, sample: str, stamp_us: int, *, key: bool, num_points: int, seed: int) -> None:
        folder = "samples" if key else "sweeps"
        filename = f"{folder}/LIDAR_TOP/n015-2018-07-24-11-22-45+0800__LIDAR_TOP__{stamp_us}.pcd.bin"
        name = self._add_data(sample, "LIDAR_TOP", stamp_us, filename, key=key)
        if not key:
            return
        world = make_world(num_points, seed, around=self.around)
        # LIDAR_TOP: x right, y forward, z up; intensity 0-255, ring.
        rows = np.zeros((num_points, 5), dtype="<f4")
        rows[:, 0], rows[:, 1], rows[:, 2] = -world.points[:, 1], world.points[:, 0], world.points[:, 2]
        rows[:, 3] = np.arange(num_points) % 256
        rows[:, 4] = np.arange(num_points) % 32
        path = self.root / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        rows.tofile(path)
        labels = np.array([24, 28, 17], dtype=np.uint8)[world.kinds]
        # A few of everything that is merged or ignored.
        rare = np.array([2, 26, 27, 30, 19, 31, 0, 16], dtype=np.uint8)
        labels[: 8 * 5] = np.tile(rare, 5)
        labels_name = f"lidarseg/{self.version}/{name}_lidarseg.bin"
        (self.root / labels_name).parent.mkdir(parents=True, exist_ok=True)
        labels.tofile(self.root / labels_name)
        self.rows["lidarseg"].append({"token": name, "sample_data_token": name, "filename": labels_name})

    def _add_image(self, sample: str, channel: str, stamp_us: int, *, seed: int) -> None:
        filename = f"samples/{channel}/n015-2018-07-24-11-22-45+0800__{channel}__{stamp_us}.jpg"
        self._add_data(sample, channel, stamp_us, filename, key=True)
        save_image(self.root / filename, road_image(*self.size, seed=seed))

    def write(self) -> None:
        folder = self.root / self.version
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in self.rows.items():
            (folder / f"{name}.json").write_text(json.dumps(rows, indent=0))


_NUSCENES_TABLES = (
    "attribute",
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "lidarseg",
    "log",
    "map",
    "sample",
    "sample_annotation",
    "sample_data",
    "scene",
    "sensor",
    "visibility",
)


def scaled(matrix: NDArray[np.float64], scale: int) -> NDArray[np.float64]:
    """The camera matrix of an image enlarged by `scale`; integer coordinates are pixel centres in both."""
    return np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2], [0, 0, 1]]) @ matrix


def token(*parts: str) -> str:
    """32 hex digits, the same at every call."""
    return hashlib.md5("/".join(parts).encode()).hexdigest()


def yaw_quaternion(yaw_deg: float) -> tuple[float, float, float, float]:
    """w, x, y, z of a turn about z."""
    half = np.deg2rad(yaw_deg) / 2
    return float(np.cos(half)), 0.0, 0.0, float(np.sin(half))


def multiply(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float, float]:
    """Hamilton product of w, x, y, z quaternions."""
    w1, x1, y1, z1 = a
    w2, x2, y2, z2 = b
    return (
        w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2,
        w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2,
        w1 * y2 - x1 * z2 + y1 * w2 + z1 * x2,
        w1 * z2 + x1 * y2 - y1 * x2 + z1 * w2,
    )


# ---------------------------------------------------------------------------------------------- SemanticKITTI

KITTI_SIZES = {"image_2": (37, 124), "image_3": (37, 124)}
KITTI_MATRIX = np.array([[71.8856, 0, 60.71928], [0, 71.8856, 18.52157], [0, 0, 1]])
KITTI_OFFSET_M = {"image_2": 0.06, "image_3": -0.47}
KITTI_TR = np.array(
    [
        [4.276802385584e-04, -9.999672484946e-01, -8.084491683471e-03, -1.198459927713e-02],
        [-7.210626507497e-03, 8.081198471645e-03, -9.999413164504e-01, -5.403984729748e-02],
        [9.999738645903e-01, 4.859485810390e-04, -7.206933692422e-03, -2.921968648686e-01],
    ]
)


def make_semantic_kitti(
    root: Path,
    sequences: dict[str, int] | None = None,
    *,
    num_points: int = 601,
    nested: bool = True,
    scale: int = 1,
) -> Path:
    """Sequences with calib, times, poses, velodyne, both colour cameras and labels (11 to 21 without).

    Images at `scale` (10 is full size).
    """
    folder = root / "dataset" if nested else root
    for sequence, num_frames in (sequences or {"00": 3, "07": 2, "08": 2, "11": 1}).items():
        _kitti_sequence(folder / "sequences" / sequence, sequence, num_frames, num_points, scale)
    return root


def _kitti_sequence(folder: Path, sequence: str, num_frames: int, num_points: int, scale: int) -> None:
    folder.mkdir(parents=True)
    (folder / "calib.txt").write_text(kitti_calibration(scale))
    (folder / "times.txt").write_text("".join(f"{0.1037 * index:.6e}\n" for index in range(num_frames)))
    (folder / "poses.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 0\n" * num_frames)
    for index in range(num_frames):
        world = make_world(num_points, seed=index, around=scale > 1)
        rows = np.concatenate([world.points, np.linspace(0, 0.99, num_points)[:, None]], axis=1).astype("<f4")
        _write(folder / "velodyne" / f"{index:06d}.bin", rows)
        if int(sequence) <= 10:
            labels = np.array([40, 50, 10], dtype="<u4")[world.kinds]
            labels[::50] = 252
            labels[1::50] = 99
            labels[2::50] = 0
            labels[3::50] = 44
            instances = (np.arange(num_points, dtype="<u4") % 9) << 16
            _write(folder / "labels" / f"{index:06d}.label", labels | instances)
        for camera, size in KITTI_SIZES.items():
            save_image(folder / camera / f"{index:06d}.png", road_image(scale * size[0], scale * size[1], seed=index))


def kitti_calibration(scale: int = 1) -> str:
    """calib.txt of KITTI odometry: P0 to P3 and Tr."""
    lines, matrix = [], scaled(KITTI_MATRIX, scale)
    for number, offset in enumerate([0.0, -0.54, KITTI_OFFSET_M["image_2"], KITTI_OFFSET_M["image_3"]]):
        # The real P2 and P3 have a small offset along the optical axis, too.
        t = np.array([offset, -0.001, 0.0027 if number > 1 else 0.0])
        projection = np.hstack([matrix, (matrix @ t)[:, None]])
        lines.append(f"P{number}: " + " ".join(f"{value:.12e}" for value in projection.reshape(-1)))
    lines.append("Tr: " + " ".join(f"{value:.12e}" for value in KITTI_TR.reshape(-1)))
    return "\n".join(lines) + "\n"


def _write(path: Path, array: NDArray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array.tofile(path)


# ----------------------------------------------------------------------------------------------- VirtualKITTI

VKITTI_SIZE = (375, 1242)  # the camera matrix is a constant of the data set, so the size is the real one
VKITTI_WEATHERS = ("clone", "fog", "morning", "overcast", "rain", "sunset")
VKITTI_COLOURS = {
    "Terrain": (210, 0, 200),
    "Sky": (90, 200, 255),
    "Tree": (0, 199, 0),
    "Vegetation": (90, 240, 0),
    "Building": (140, 140, 140),
    "Road": (100, 60, 100),
    "GuardRail": (255, 100, 255),
    "TrafficSign": (255, 255, 0),
    "TrafficLight": (200, 200, 0),
    "Pole": (255, 130, 0),
    "Misc": (80, 80, 80),
    "Truck": (160, 60, 60),
    "Car:0": (200, 200, 200),
    "Car:17": (230, 208, 202),
    "Van:3": (0, 139, 139),
}


def make_virtual_kitti(root: Path, sequences: dict[str, int] | None = None) -> Path:
    """RGB in six weathers, depth in cm, semantic images and their colour encodings."""
    for sequence, num_frames in (sequences or {"0001": 2, "0020": 1}).items():
        encoding = root / "vkitti_1.3.1_scenegt" / f"{sequence}_clone_scenegt_rgb_encoding.txt"
        encoding.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{name} {r} {g} {b}" for name, (r, g, b) in VKITTI_COLOURS.items()]
        encoding.write_text("Category(:id) r g b\n" + "\n".join(lines) + "\n")
        for index in range(num_frames):
            name = f"{index:05d}.png"
            depth_cm, scene = vkitti_images(index)
            save_image(root / "vkitti_1.3.1_depthgt" / sequence / "clone" / name, depth_cm)
            save_image(root / "vkitti_1.3.1_scenegt" / sequence / "clone" / name, scene)
            for number, weather in enumerate(VKITTI_WEATHERS):
                image = road_image(*VKITTI_SIZE, seed=index) // (number + 1)
                save_image(root / "vkitti_1.3.1_rgb" / sequence / weather / name, image)
    return root


def vkitti_images(index: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Depth in cm, 65535 for the sky, and the colours: every category in a block of its own, a strip of near sky."""
    height, width = VKITTI_SIZE
    depth = np.full(VKITTI_SIZE, 65535, dtype=np.uint16)
    scene = np.full((height, width, 3), VKITTI_COLOURS["Sky"], dtype=np.uint8)
    depth[height // 2 :] = np.linspace(9000, 500, height - height // 2).astype(np.uint16)[:, None] + index
    scene[height // 2 :] = VKITTI_COLOURS["Road"]
    block = width // len(VKITTI_COLOURS)
    for number, colour in enumerate(VKITTI_COLOURS.values()):
        columns = slice(number * block, (number + 1) * block)
        depth[150:200, columns] = 1000 + 100 * number
        scene[150:200, columns] = colour
    depth[140:150, 50:80] = 9990  # Euclidean distance above 100 m at the image's edge: cut although its depth is not
    return depth, scene


# ------------------------------------------------------------------------------------------------------- A2D2

A2D2_SIZE = (1208 // 8, 1920 // 8)
A2D2_CAMERAS = ("front_center", "front_left", "front_right", "side_left", "side_right", "rear_center")
A2D2_MATRIX = np.array([[215.0, 0, 118.1], [0, 214.5, 73.4], [0, 0, 1]])
A2D2_ORIGINAL = np.array([[240.0, 0, 119.3], [0, 239.1, 74.9], [0, 0, 1]])
A2D2_DISTORTION = {"Telecam": [[-0.26, 0.12, 0.0003, -0.0002, -0.03]], "Fisheye": [[0.05, -0.01, 0.006, -0.002]]}
A2D2_KIND_COLOURS = ("#ff00ff", "#f1e6ff", "#c80000")  # RD normal street, Buildings, Car 2


def make_a2d2(
    root: Path,
    sequences: dict[str, int] | None = None,
    *,
    cameras: Sequence[str] = ("front_center",),
    num_points: int = 601,
    nested: bool = False,
    class_list: dict[str, str] | None = None,
    scale: int = 1,
) -> Path:
    """Sensor configuration, class list, and per camera image, npz and colour labels; the last frame has no `row`.

    Images at `scale` (8 is full size).
    """
    folder = root / "camera_lidar_semantic" if nested else root
    folder.mkdir(parents=True, exist_ok=True)
    (root / "cams_lidars.json").write_text(json.dumps(a2d2_configuration(scale), indent=2))
    (folder / "class_list.json").write_text(json.dumps(class_list or A2D2_COLOURS, indent=2))
    for sequence, num_frames in (sequences or {"20180810_142822": 3, "20180807_145028": 2}).items():
        for camera in cameras:
            for index in range(num_frames):
                _a2d2_frame(folder / sequence, camera, 37 + 45 * index, num_points, scale=scale)
    last = next(reversed(sequences or {"20180810_142822": 3}))
    _a2d2_frame(folder / last, cameras[0], 9000, num_points, scale=scale, empty=True)
    return root


def a2d2_configuration(scale: int = 1) -> dict:
    view = {"origin": [1.7, 0.0, 0.9], "x-axis": [1.0, 0.0, 0.0], "y-axis": [0.0, 1.0, 0.0]}
    cameras = {
        name: {
            "view": view,
            "Lens": "Telecam" if name == "front_center" else "Fisheye",
            "CamMatrix": scaled(A2D2_MATRIX, scale).tolist(),
            "CamMatrixOriginal": scaled(A2D2_ORIGINAL, scale).tolist(),
            "Distortion": A2D2_DISTORTION["Telecam" if name == "front_center" else "Fisheye"],
            "Resolution": [scale * A2D2_SIZE[1], scale * A2D2_SIZE[0]],
            "tstamp_delay": 0.0,
        }
        for name in A2D2_CAMERAS
    }
    return {"cameras": cameras, "lidars": {"front_center": {"view": view}}, "vehicle": {"view": view}}


def _a2d2_frame(
    folder: Path, camera: str, number: int, num_points: int, *, scale: int = 1, empty: bool = False
) -> None:
    date, side = folder.name.replace("_", ""), camera.replace("_", "")

    def path(kind: str, extension: str) -> Path:
        return folder / kind / f"cam_{camera}" / f"{date}_{kind}_{side}_{number:09d}.{extension}"

    arrays, kinds = a2d2_points(num_points, seed=number, scale=scale)
    path("lidar", "npz").parent.mkdir(parents=True, exist_ok=True)
    if empty:
        np.savez_compressed(path("lidar", "npz"), points=np.zeros((0, 3)), timestamp=np.zeros(0, dtype=np.int64))
    else:
        arrays["timestamp"] += number * 33_333
        np.savez_compressed(path("lidar", "npz"), **arrays)
    save_image(path("camera", "png"), road_image(scale * A2D2_SIZE[0], scale * A2D2_SIZE[1], seed=number))
    path("camera", "json").write_text(json.dumps({"cam_name": camera, "cam_tstamp": 1533625828000000 + number}))
    labels = a2d2_label_image(arrays["row"], arrays["col"], kinds, scale=scale)
    save_image(path("label", "png"), distort_labels(labels, a2d2_configuration(scale)["cameras"][camera]))


def a2d2_points(num_points: int, seed: int, *, scale: int = 1) -> tuple[dict[str, NDArray], NDArray[np.int64]]:
    """The arrays of an npz: points of the world that fall into the undistorted image, with their pixels."""
    world = make_world(3 * num_points, seed, behind=False)
    x, y, z = world.points.astype(np.float64).T
    matrix, (height, width) = scaled(A2D2_MATRIX, scale), A2D2_SIZE
    column = matrix[0, 0] * -y / x + matrix[0, 2]
    row = matrix[1, 1] * -z / x + matrix[1, 2]
    inside = (column > 4) & (column < scale * width - 5) & (row > 4) & (row < scale * height - 5)
    chosen = np.flatnonzero(inside)[:num_points]
    points = world.points[chosen].astype(np.float64)
    return {
        "points": points,
        "row": row[chosen],
        "col": column[chosen],
        "depth": points[:, 0],
        "distance": np.linalg.norm(points, axis=1),
        "azimuth": np.arctan2(points[:, 1], points[:, 0]),
        "reflectance": np.arange(len(chosen), dtype=np.int64) % 256,
        "timestamp": 1533625828000000 + np.arange(len(chosen), dtype=np.int64),
        "lidar_id": np.arange(len(chosen), dtype=np.int64) % 3,
    }, world.kinds[chosen]


def a2d2_label_image(rows: NDArray, columns: NDArray, kinds: NDArray[np.int64], *, scale: int = 1) -> NDArray[np.uint8]:
    """Undistorted colours: the nearest point's class everywhere, so that a lookup is unambiguous away from borders."""
    seeds = np.full((scale * A2D2_SIZE[0], scale * A2D2_SIZE[1]), 255, dtype=np.uint8)
    marks = np.zeros(seeds.shape, dtype=np.int64)
    centres = np.rint(rows).astype(int), np.rint(columns).astype(int)
    seeds[centres] = 0
    marks[centres] = kinds
    _, nearest = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    kind_of_label = np.zeros(int(nearest.max()) + 1, dtype=np.int64)
    kind_of_label[nearest[seeds == 0]] = marks[seeds == 0]
    palette = np.array([[int(text[i : i + 2], 16) for i in (1, 3, 5)] for text in A2D2_KIND_COLOURS], dtype=np.uint8)
    return palette[kind_of_label[nearest]]


def distort_labels(image: NDArray[np.uint8], camera: dict) -> NDArray[np.uint8]:
    """The image as the lens would have seen it: every raw pixel takes the colour of its undistorted place."""
    height, width = image.shape[:2]
    u, v = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    raw = np.stack([u, v], axis=-1).reshape(-1, 1, 2)
    distortion = np.array(camera["Distortion"]).reshape(-1)
    undistort = cv2.fisheye.undistortPoints if camera["Lens"] == "Fisheye" else cv2.undistortPoints
    places = undistort(raw, np.array(camera["CamMatrixOriginal"]), distortion, P=np.array(camera["CamMatrix"]))
    maps = places.reshape(height, width, 2).astype(np.float32)
    return cv2.remap(image, maps, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
