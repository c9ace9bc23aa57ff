# SPDX-License-Identifier: Apache-2.0
"""Real frames of KITTI and nuScenes laid out as the downloads are, through the real programs: labelled 3D boxes against
labelled 2D boxes.

The label files hold the class of the 3D box that a point lies in. After preparation, such a point must fall inside the
2D box that was drawn around the same object in the image.
"""

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from miniatures import NUSCENES_CATEGORIES, run_prepare, token

from xmodal_seg.geometry import invert_rigid, project_frame
from xmodal_seg.labels import UNLABELED
from xmodal_seg.structures import Frame
from xmodal_seg.training.data.nuscenes import LIDAR_T_SENSOR
from xmodal_seg.training.data.prepared_dataset import PreparedDataset, open_dataset
from xmodal_seg.transforms import pose_from_matrix
from xmodal_seg.visualize import camera_overlay, write_png

pytestmark = pytest.mark.real_data
MARGIN_PX = 3.0  # of the drawn boxes
KITTI_CLASSES = {"Car": 10, "Truck": 18, "Pedestrian": 30, "Cyclist": 31, "Misc": 99}
NUSCENES_VEHICLES = (0, 1, 2, 3, 4, 5, 6)  # labels of the info file that are merged into `vehicle`


def points_in_box(points: np.ndarray, centre: np.ndarray, size: np.ndarray, yaw: float) -> np.ndarray:
    """Rows of `points` (N, 3) inside a box of `size` (along, across, up) turned by `yaw` about the third axis."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    local = (points - centre) @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return np.flatnonzero((np.abs(local) <= size / 2).all(axis=1))


def inside_2d(uv: np.ndarray, box: list[float]) -> np.ndarray:
    left, top, right, bottom = box
    inside = (uv >= (left - MARGIN_PX, top - MARGIN_PX)) & (uv <= (right + MARGIN_PX, bottom + MARGIN_PX))
    return inside.all(axis=1)


def turned(frame: Frame, degrees: float) -> Frame:
    """The frame with its cameras turned to the side: what a wrong calibration looks like."""
    turn = np.eye(4)
    turn[:3, :3] = cv2.Rodrigues(np.array([0.0, np.deg2rad(degrees), 0.0]))[0]
    cameras = tuple(
        replace(view, calibration=replace(view.calibration, camera_T_lidar=turn @ view.calibration.camera_T_lidar))
        for view in frame.cameras
    )
    return replace(frame, cameras=cameras)


def save_overlay(dataset: PreparedDataset, index: int, name: str) -> None:
    """For the eye, where XMODAL_SEG_OVERLAYS names a folder."""
    folder = os.environ.get("XMODAL_SEG_OVERLAYS")
    if folder:
        frame = dataset[index]
        labels = np.where(frame.labels < 0, UNLABELED, frame.labels).astype(np.uint8)
        for view in frame.cameras:
            write_png(
                Path(folder) / f"{name}_{view.name}.png", camera_overlay(frame, view, labels, dataset.label_space)
            )


# ------------------------------------------------------------------------------------------------------------- KITTI


def kitti_download(source: Path, root: Path) -> list[list[tuple[str, np.ndarray, list[float]]]]:
    """The object frames as sequences 00, 01, 02, each with its own calibration; of each its (class, points, 2D box)."""
    objects = []
    for number in range(3):
        name, folder = f"{number:06d}", root / "sequences" / f"{number:02d}"
        for kind, extension in (("velodyne", "bin"), ("image_2", "png")):
            (folder / kind).mkdir(parents=True)
            shutil.copy(source / kind / f"{name}.{extension}", folder / kind / f"000000.{extension}")
        lines = dict(
            line.split(": ", 1) for line in (source / "calib" / f"{name}.txt").read_text().splitlines() if line
        )
        rectify, place = np.eye(4), np.eye(4)
        rectify[:3, :3] = np.array(lines["R0_rect"].split(), dtype=float).reshape(3, 3)
        place[:3] = np.array(lines["Tr_velo_to_cam"].split(), dtype=float).reshape(3, 4)
        rectified_T_lidar = rectify @ place
        tr = " ".join(str(value) for value in rectified_T_lidar[:3].reshape(-1))
        (folder / "calib.txt").write_text("".join(f"P{i}: {lines[f'P{i}']}\n" for i in range(4)) + f"Tr: {tr}\n")
        (folder / "times.txt").write_text("0.0\n")
        points = np.fromfile(folder / "velodyne" / "000000.bin", dtype="<f4").reshape(-1, 4)[:, :3]
        in_camera = points @ rectified_T_lidar[:3, :3].T + rectified_T_lidar[:3, 3]
        found = kitti_objects(source / "label_2" / f"{name}.txt", in_camera)
        labels = np.zeros(len(points), dtype="<u4")
        for kind, rows, _ in found:
            labels[rows] = KITTI_CLASSES[kind]
        (folder / "labels").mkdir()
        labels.tofile(folder / "labels" / "000000.label")
        objects.append(found)
    return objects


def kitti_objects(path: Path, in_camera: np.ndarray) -> list[tuple[str, np.ndarray, list[float]]]:
    found = []
    for line in path.read_text().splitlines():
        kind, *numbers = line.split()
        if kind == "DontCare":
            continue
        values = [float(number) for number in numbers]
        height, width, length = values[7:10]
        x, y, z = values[10:13]  # the middle of the bottom; y points down
        # Turning about y (down) by ry is turning the (x, z) plane by -ry.
        rows = points_in_box(
            in_camera[:, [0, 2, 1]], np.array([x, z, y - height / 2]), np.array([length, width, height]), -values[13]
        )
        found.append((kind, rows, values[3:7]))
    return found


def kitti_shares(dataset: PreparedDataset, objects: list, *, degrees: float = 0.0) -> dict[str, float]:
    """For each object of at least five points: the share of them that falls into its 2D box."""
    shares = {}
    for index, found in enumerate(objects):
        projection = project_frame(turned(dataset[index], degrees))
        for number, (kind, rows, box) in enumerate(found):
            of_object = np.isin(dataset.points(index)["sweep_index"], rows)
            assert (dataset.points(index)["raw_label"][of_object] == KITTI_CLASSES[kind]).all()
            if of_object.sum() >= 5:
                share = np.mean(inside_2d(projection.uv[of_object], box))
                shares[f"{index}/{number} {kind} ({of_object.sum()})"] = float(share)
    return shares


def test_kitti_points_fall_on_their_objects(real_data: Path, tmp_path: Path) -> None:
    objects = kitti_download(real_data / "kitti_object", tmp_path / "kitti")
    assert run_prepare("semantic_kitti", tmp_path / "kitti", tmp_path / "out", "--partial") == 0
    dataset = open_dataset(tmp_path / "out", split="all")
    for index in range(3):
        save_overlay(dataset, index, f"kitti_{index}")
    shares = kitti_shares(dataset, objects)
    print(shares)
    assert len(shares) == 6
    assert min(shares.values()) > 0.97, shares
    askew = kitti_shares(dataset, objects, degrees=2.0)
    assert np.mean(list(askew.values())) < 0.6, askew


def test_kitti_uv_equals_the_devkits_own_formula(real_data: Path, tmp_path: Path) -> None:
    """P2 R0_rect Tr_velo_to_cam x, in double precision."""
    kitti_download(real_data / "kitti_object", tmp_path / "kitti")
    assert run_prepare("semantic_kitti", tmp_path / "kitti", tmp_path / "out", "--partial") == 0
    dataset = open_dataset(tmp_path / "out", split="all")
    for index in range(3):
        calibration = tmp_path / "kitti" / "sequences" / f"{index:02d}" / "calib.txt"
        lines = dict(line.split(": ", 1) for line in calibration.read_text().splitlines())
        p2, tr = (np.array(lines[key].split(), dtype=float).reshape(3, 4) for key in ("P2", "Tr"))
        frame = dataset[index]
        homogeneous = np.hstack([frame.points.astype(np.float64), np.ones((frame.num_points, 1))])
        pixels = homogeneous @ (p2 @ np.vstack([tr, [0, 0, 0, 1]])).T
        np.testing.assert_allclose(project_frame(frame).uv, pixels[:, :2] / pixels[:, 2:], atol=0.01)


# ---------------------------------------------------------------------------------------------------------- nuScenes


def nuscenes_download(source: Path, root: Path) -> dict:
    """One scene of one key frame with six cameras; the car's poses at their stamps follow from the info file."""
    info = next(iter(pickle.loads(next(source.glob("*.pkl")).read_bytes())["data_list"]))
    global_T_ego, ego_T_lidar = (np.array(m) for m in (info["ego2global"], info["lidar_points"]["lidar2ego"]))
    tables: dict[str, list[dict]] = {
        "category": [{"token": str(i), "name": n, "index": i} for i, n in enumerate(NUSCENES_CATEGORIES)],
        "log": [{"token": "log", "location": "singapore-onenorth"}],
        "scene": [{"token": "scene", "name": "scene-0061", "description": "Parked truck", "log_token": "log"}],
        "sample": [{"token": "sample", "timestamp": 1532402927647951, "scene_token": "scene"}],
        "sample_data": [],
        "sensor": [],
        "calibrated_sensor": [],
        "ego_pose": [],
        "lidarseg": [],
    }

    def add(channel: str, file: str, ego_T_sensor: np.ndarray, pose: np.ndarray, stamp_us: int, matrix: list) -> str:
        folder = f"samples/{channel}"
        (root / folder).mkdir(parents=True)
        shutil.copy(source / file, root / folder / file)
        name = token(channel)
        tables["sensor"].append({"token": channel, "channel": channel})
        tables["calibrated_sensor"].append(
            {"token": f"c{channel}", "sensor_token": channel, "camera_intrinsic": matrix, **pose_record(ego_T_sensor)}
        )
        tables["ego_pose"].append({"token": f"p{channel}", **pose_record(pose)})
        tables["sample_data"].append(
            {
                "token": name,
                "sample_token": "sample",
                "ego_pose_token": f"p{channel}",
                "calibrated_sensor_token": f"c{channel}",
                "timestamp": stamp_us,
                "is_key_frame": True,
                "filename": f"{folder}/{file}",
            }
        )
        return name

    lidar_file = info["lidar_points"]["lidar_path"]
    lidar = add("LIDAR_TOP", lidar_file, ego_T_lidar, global_T_ego, 1532402927647951, [])
    for channel, camera in info["images"].items():
        ego_T_camera, camera_T_lidar = np.array(camera["cam2ego"]), np.array(camera["lidar2cam"])
        pose = global_T_ego @ ego_T_lidar @ np.linalg.inv(camera_T_lidar) @ np.linalg.inv(ego_T_camera)
        stamp_us = round(camera["timestamp"] * 1e6)
        add(channel, camera["img_path"], ego_T_camera, pose, stamp_us, camera["cam2img"])
    points = np.fromfile(root / "samples" / "LIDAR_TOP" / lidar_file, dtype="<f4").reshape(-1, 5)[:, :3]
    labels = np.full(len(points), 29, dtype=np.uint8)
    for instance in info["instances"]:
        if instance["bbox_label_3d"] in NUSCENES_VEHICLES:
            labels[nuscenes_rows(points, instance)] = NUSCENES_CATEGORIES.index("vehicle.car")
    labels_file = f"lidarseg/v1.0-mini/{lidar}_lidarseg.bin"
    (root / labels_file).parent.mkdir(parents=True)
    labels.tofile(root / labels_file)
    tables["lidarseg"].append({"token": lidar, "sample_data_token": lidar, "filename": labels_file})
    (root / "v1.0-mini").mkdir()
    for name, rows in tables.items():
        (root / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))
    return info


def pose_record(matrix: np.ndarray) -> dict:
    translation, (x, y, z, w) = pose_from_matrix(matrix)
    return {"translation": translation.tolist(), "rotation": [w, x, y, z]}


def nuscenes_rows(points: np.ndarray, instance: dict) -> np.ndarray:
    x, y, z, length, width, height, yaw = instance["bbox_3d"]
    return points_in_box(points, np.array([x, y, z]), np.array([length, width, height]), yaw)


def box_in_image(info: dict, channel: str, instance: dict) -> list[float] | None:
    """The 2D box of the info file that belongs to an instance, by the place of its centre in the camera."""
    centre = np.array(info["images"][channel]["lidar2cam"]) @ [*instance["bbox_3d"][:3], 1]
    if centre[2] <= 1:
        return None
    uv = (np.array(info["images"][channel]["cam2img"]) @ centre[:3])[:2] / centre[2]
    candidates = [
        (float(np.hypot(*(np.array(other["center_2d"]) - uv))), other["bbox"])
        for other in info["cam_instances"][channel]
        if other["bbox_label"] == instance["bbox_label"] and abs(other["depth"] - centre[2]) < 0.05
    ]
    best = min(candidates, default=(np.inf, None), key=lambda candidate: candidate[0])
    return best[1] if best[0] < 2 else None


@pytest.fixture(scope="module")
def key_frame(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, PreparedDataset]:
    folder = tmp_path_factory.mktemp("nuscenes")
    info = nuscenes_download(real_data / "nuscenes_sample", folder / "download")
    flags = ("--partial", "--version", "v1.0-mini", "--cameras", "all")
    assert run_prepare("nuscenes", folder / "download", folder / "out", *flags) == 0
    return info, open_dataset(folder / "out", split="train_singapore")


def test_nuscenes_places_equal_the_info_file(key_frame: tuple[dict, PreparedDataset]) -> None:
    """lidar -> ego -> world -> ego -> camera, out of tables with quaternions, against the toolkit's own matrices."""
    info, dataset = key_frame
    for camera in dataset[0].cameras:
        expected = np.array(info["images"][camera.name]["lidar2cam"]) @ invert_rigid(LIDAR_T_SENSOR)
        np.testing.assert_allclose(camera.calibration.camera_T_lidar, expected, atol=1e-5)


def nuscenes_shares(info: dict, dataset: PreparedDataset, *, degrees: float = 0.0) -> dict[str, float]:
    """For each object of at least five points in a camera: the share of them that falls into its 2D box."""
    frame = dataset[0]
    seen_by = project_frame(frame).camera_index
    projection = project_frame(turned(frame, degrees))
    raw = frame.points @ LIDAR_T_SENSOR[:3, :3].astype(np.float32)  # its transpose takes back to the sensor's axes
    shares = {}
    for number, instance in enumerate(info["instances"]):
        rows = nuscenes_rows(raw, instance)
        for camera_number, camera in enumerate(frame.cameras):
            box = box_in_image(info, camera.name, instance)
            seen = rows[seen_by[rows] == camera_number]
            if box is not None and len(seen) >= 5:
                name = f"{number} {camera.name} ({len(seen)})"
                shares[name] = float(np.mean(inside_2d(projection.uv[seen], box)))
    return shares


def test_nuscenes_points_fall_on_their_objects(key_frame: tuple[dict, PreparedDataset]) -> None:
    info, dataset = key_frame
    save_overlay(dataset, 0, "nuscenes")
    shares = nuscenes_shares(info, dataset)
    print(shares)
    assert len(shares) >= 20
    assert {name.split()[1] for name in shares} == {camera.name for camera in dataset[0].cameras}
    assert min(shares.values()) > 0.97, shares
    askew = nuscenes_shares(info, dataset, degrees=2.0)
    assert np.mean(list(askew.values())) < 0.6, askew
    vehicle = dataset.label_space.class_names.index("vehicle")
    assert (dataset.labels(0) == vehicle).sum() > 500
