# SPDX-License-Identifier: Apache-2.0
"""A driver and the node in two processes over DDS, with messages of full size at 10 Hz.

The driver has a process of its own: one that made and destroyed the participants of many tests before can fail to find
anybody over TCP.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

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

from xmodal_seg.commands.processes import Child, child

pytestmark = [pytest.mark.ros, pytest.mark.slow, pytest.mark.usefixtures("large_data")]
NUM_POINTS, IMAGE_SIZE = 120_000, (900, 1600)
NUM_SWEEPS, PERIOD_S = 40, 0.1


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the driver sent and heard."""

    sent: list[int]  # stamps, ns
    answered: list[int]  # stamps of the labelled clouds, ns
    frame_ms: list[float]
    before: dict[str, str]  # diagnostics ahead of the first sweep that counts
    after: dict[str, str]

    @property
    def dropped_busy(self) -> int:
        """Counters that are 0 are not in the diagnostics."""
        return int(self.after.get("dropped_busy", 0)) - int(self.before.get("dropped_busy", 0))


class Peer:
    """Publishes sweeps and images as a driver would, best effort, and hears the answers."""

    def __init__(self) -> None:
        self.node = Node("driver")
        self.executor = SingleThreadedExecutor()
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


def test_full_size_messages_at_10_hz_lose_nothing(tmp_path: Path) -> None:
    """Every sweep is answered, or counted as dropped because the worker was busy; a fast worker drops none."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        outcome = pool.submit(drive, tmp_path).result(timeout=300)
    assert len(outcome.answered) + outcome.dropped_busy == NUM_SWEEPS, f"lost on the way; node: {outcome.after}"
    assert outcome.answered == sorted(set(outcome.answered) & set(outcome.sent))
    assert outcome.after["pairing incomplete"] == outcome.before["pairing incomplete"], "images were lost"
    if np.percentile(outcome.frame_ms, 95) < 0.7 * PERIOD_S * 1e3:
        assert outcome.dropped_busy == 0


def drive(folder: Path) -> Outcome:
    """Start the node, send it the sweeps at their pace, and stop it."""
    checkpoint = save_tiny_checkpoint(folder / "checkpoint", with_3d=False)
    parameters = ["autostart:=true", f"checkpoint:={checkpoint}", "device:=cpu", "point_scope:=visible"]
    parameters += ["num_threads:=1", "diagnostics_period_s:=0.2", "camera_timeout_ms:=1000.0"]
    arguments = ["--ros-args", *(word for parameter in parameters for word in ("-p", parameter))]
    rclpy.init()
    peer = Peer()
    peer.make_messages()
    try:
        with child("xmodal_seg.nodes.segmentation_node", arguments, log=folder / "node.log", environment={}) as node:
            wait_for_node(peer, node)
            peer.transforms.publish(make_transform())
            before = rehearse(peer, node)
            sent = send_sweeps(peer)
            assert node.stop() == 0, node.last_lines()
        return Outcome(sent=sent, answered=peer.stamps, frame_ms=peer.frame_ms, before=before, after=peer.values)
    finally:
        peer.close()
        rclpy.shutdown()


def rehearse(peer: Peer, node: Child) -> dict[str, str]:
    """Send until a sweep is answered, since best effort may lose the first ones; the node's diagnostics after that."""
    deadline = time.monotonic() + 90
    while not peer.stamps:
        assert time.monotonic() < deadline, f"the node answered nothing: {node.last_lines(20)}"
        peer.send(0)
        peer.spin(1.0)
    peer.spin(3.0)  # longer than a sweep waits for an image that was lost
    peer.values.clear()
    while not peer.values:
        assert time.monotonic() < deadline, f"the node sends no diagnostics: {node.last_lines(20)}"
        peer.spin(0.1)
    peer.stamps.clear()
    return dict(peer.values)


def send_sweeps(peer: Peer) -> list[int]:
    sent = []
    next_s = time.monotonic()
    for number in range(NUM_SWEEPS):
        sent.append(peer.send(number))
        next_s += PERIOD_S
        peer.spin(max(0.0, next_s - time.monotonic()))
    peer.spin(2.0)
    return sent


def wait_for_node(peer: Peer, node: Child) -> None:
    deadline = time.monotonic() + 90
    publishers = (peer.points, peer.image, peer.info, peer.transforms)
    while not all(p.get_subscription_count() for p in publishers) or not peer.node.count_publishers(
        "xmodal_seg/points"
    ):
        assert time.monotonic() < deadline, f"the node did not subscribe: {node.last_lines(20)}"
        peer.spin(0.1)
