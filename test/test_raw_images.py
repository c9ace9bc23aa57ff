# SPDX-License-Identifier: Apache-2.0
"""A raw, distorted image of a real camera through the node: every point lands on the pixel that OpenCV gives it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: it comes with ROS or with the extra pip-ros")

from node_harness import (
    Harness,
    as_data,
    make_cloud,
    make_image,
    make_info,
    make_transform,
    save_tiny_checkpoint,
)
from sensor_msgs.msg import Image

from xmodal_seg.transforms import pose_from_matrix

pytestmark = [pytest.mark.ros, pytest.mark.real_data]
STAMP_NS = 10**9


def find(values: Any, wanted: tuple[str, ...]) -> Any:
    """The first value under one of the names, however deep."""
    for key, value in values.items():
        if key.endswith(wanted):
            return value
        found = find(value, wanted) if isinstance(value, dict) else None
        if found is not None:
            return found
    return None


def read_ascii_pcd(path: Path) -> np.ndarray:
    header, _, body = path.read_bytes().partition(b"DATA ascii\n")
    assert header
    return np.array([line.split()[:3] for line in body.decode().splitlines() if line], dtype=np.float32)


def test_points_land_on_opencvs_pixels(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "sensors_calibration" / "manual_calib"
    intrinsics = json.loads((folder / "center_camera-intrinsic.json").read_text())
    extrinsics = json.loads((folder / "top_center_lidar-to-center_camera-extrinsic.json").read_text())
    camera_matrix = np.array(find(intrinsics, ("cam_K", "K"))["data"], dtype=float)
    distortion = np.array(find(intrinsics, ("cam_dist", "D"))["data"], dtype=float).ravel()
    camera_T_lidar = np.array(find(extrinsics, ("sensor_calib",))["data"], dtype=float)
    points = read_ascii_pcd(folder / "0.pcd")
    pixels = cv2.cvtColor(cv2.imread(str(folder / "0.png")), cv2.COLOR_BGR2RGB)

    cloud = make_cloud(STAMP_NS, num_points=len(points))
    cloud.data = as_data(np.hstack([points, np.zeros((len(points), 1), np.float32)]))
    image = make_image(STAMP_NS, size=pixels.shape[:2])
    image.data = as_data(pixels)
    info = make_info(STAMP_NS, size=pixels.shape[:2])
    info.k, info.d = camera_matrix.ravel().tolist(), distortion.tolist()
    transform = make_transform()
    translation, quaternion = pose_from_matrix(np.linalg.inv(camera_T_lidar))
    move, turn = transform.transform.translation, transform.transform.rotation
    move.x, move.y, move.z = map(float, translation)
    turn.x, turn.y, turn.z, turn.w = map(float, quaternion)

    harness = Harness(save_tiny_checkpoint(tmp_path / "checkpoint"), overlay_radius_px=0, images_rectified="no")
    label_images: list[Image] = []
    harness.peer.create_subscription(Image, "xmodal_seg/label_image", label_images.append, 10)
    try:
        harness.start()
        harness.transforms.publish(transform)
        harness.spin_until(lambda: harness.peer.count_publishers("xmodal_seg/label_image") > 0, "the label image")
        harness.image.publish(image)
        harness.info.publish(info)
        harness.points.publish(cloud)
        labelled = harness.wait_for_clouds(1)[0]
        harness.spin_until(lambda: bool(label_images), "the label image")
    finally:
        harness.close()

    painted = np.frombuffer(bytes(label_images[0].data), np.uint8).reshape(pixels.shape[:2])
    labels = np.frombuffer(bytes(labelled.data), np.uint8).reshape(len(points), -1)[:, labelled.fields[3].offset]
    in_camera = points @ camera_T_lidar[:3, :3].T + camera_T_lidar[:3, 3]
    front = (in_camera[:, 2] > 0.5) & (np.hypot(in_camera[:, 0], in_camera[:, 1]) < in_camera[:, 2])
    uv, _ = cv2.projectPoints(in_camera[front].astype(float), np.zeros(3), np.zeros(3), camera_matrix, distortion)
    uv = np.rint(uv[:, 0]).astype(int)
    inside = ((uv >= 0) & (uv < (pixels.shape[1], pixels.shape[0]))).all(axis=1)
    agree = painted[uv[inside, 1], uv[inside, 0]] == labels[front][inside]
    assert inside.sum() > 5000
    assert agree.mean() > 0.99  # the rest share a pixel with a point of another class
