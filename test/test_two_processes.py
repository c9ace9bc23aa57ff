# SPDX-License-Identifier: Apache-2.0
"""Test and node in two processes over DDS, with messages of full size at 10 Hz."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: it comes with ROS or with the extra pip-ros")

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TransformStamped
from node_harness import LATCHED, make_cloud, make_image, make_info, make_transform, save_tiny_checkpoint, to_stamp
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Float32

from xmodal_seg.commands.processes import child

pytestmark = [pytest.mark.ros, pytest.mark.slow, pytest.mark.usefixtures("large_data")]
NUM_POINTS, IMAGE_SIZE = 120_000, (900, 1600)
NUM_SWEEPS, PERIOD_S = 40, 0.1


class Peer:
    """Publishes sweeps and images as a driver would, best effort, and hears the answers."""

    def __init__(self, context: rclpy.context.Context) -> None:
        self.node = Node("driver", context=context)
        self.executor = SingleThreadedExecutor(context=context)
        self.executor.add_node(self.node)
        self.points = self.node.create_publisher(PointCloud2, "points", qos_profile_sensor_data)
        self.image = self.node.create_publisher(Image, "front/image", qos_profile_sensor_data)
        self.info = self.node.create_publisher(CameraInfo, "front/camera_info", qos_profile_sensor_data)
        self.transforms = self.node.create_publisher(TransformStamped, "static_transforms", LATCHED)
        self.stamps: list[int] = []
        self.frame_ms: list[float] = []
        self.values: dict[str, str] = {}
        self.node.create_subscription(PointCloud2, "xmodal_seg/points", self._cloud, 50)
        self.node.create_subscription(Float32, "xmodal_seg/debug/frame_ms", self._frame_ms, 50)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._diagnostics, 10)

    def send(self, number: int) -> int:
        stamp_ns = time.time_ns()
        cloud, image = self.clouds[number % 2], self.images[number % 2]
        cloud.header.stamp = image.header.stamp = to_stamp(stamp_ns)
        self.image.publish(image)
        self.info.publish(make_info(stamp_ns, size=IMAGE_SIZE, focal_px=800.0))
        self.points.publish(cloud)
        return stamp_ns

    def make_messages(self) -> None:
        self.clouds = [make_cloud(0, num_points=NUM_POINTS, seed=seed) for seed in range(2)]
        self.images = [make_image(seed, size=IMAGE_SIZE) for seed in range(2)]

    def spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=left)

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()

    def _cloud(self, message: PointCloud2) -> None:
        assert message.width == NUM_POINTS
        self.stamps.append(message.header.stamp.sec * 10**9 + message.header.stamp.nanosec)

    def _frame_ms(self, message: Float32) -> None:
        self.frame_ms.append(message.data)

    def _diagnostics(self, message: DiagnosticArray) -> None:
        self.values = {value.key: value.value for value in message.status[0].values}


def wait_for_node(peer: Peer) -> None:
    deadline = time.monotonic() + 90
    publishers = (peer.points, peer.image, peer.info, peer.transforms)
    while not all(p.get_subscription_count() for p in publishers) or not peer.node.count_publishers(
        "xmodal_seg/points"
    ):
        assert time.monotonic() < deadline, "the node did not subscribe"
        peer.spin(0.1)


def test_full_size_messages_at_10_hz_lose_nothing(ros_context: Any, tmp_path: Path) -> None:
    """Every sweep is answered, or counted as dropped because the worker was busy; a fast worker drops none."""
    checkpoint = save_tiny_checkpoint(tmp_path / "checkpoint", with_3d=False)
    parameters = ["autostart:=true", f"checkpoint:={checkpoint}", "device:=cpu", "point_scope:=visible"]
    parameters += ["num_threads:=1", "diagnostics_period_s:=0.2", "camera_timeout_ms:=1000.0"]
    arguments = ["--ros-args", *(word for parameter in parameters for word in ("-p", parameter))]
    peer = Peer(ros_context)
    try:
        peer.make_messages()
        with child("xmodal_seg.nodes.segmentation_node", arguments, log=tmp_path / "node.log", environment={}) as node:
            wait_for_node(peer)
            peer.transforms.publish(make_transform())
            peer.send(0)  # the first exchange after discovery is not guaranteed by best effort
            peer.spin(3.0)  # longer than a sweep waits for an image that was lost
            peer.stamps.clear()
            before = dict(peer.values)
            sent = []
            next_s = time.monotonic()
            for number in range(NUM_SWEEPS):
                sent.append(peer.send(number))
                next_s += PERIOD_S
                peer.spin(max(0.0, next_s - time.monotonic()))
            peer.spin(2.0)
            dropped = int(peer.values.get("dropped_busy", 0)) - int(before.get("dropped_busy", 0))
            assert node.stop() == 0, node.last_lines()
        assert len(peer.stamps) + dropped == NUM_SWEEPS, f"lost between the processes; node: {peer.values}"
        assert peer.stamps == sorted(set(peer.stamps) & set(sent))
        assert peer.values["pairing incomplete"] == before["pairing incomplete"], "images were lost"
        if np.percentile(peer.frame_ms, 95) < 0.7 * PERIOD_S * 1e3:
            assert dropped == 0
    finally:
        peer.close()
