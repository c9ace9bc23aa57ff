# SPDX-License-Identifier: Apache-2.0
"""A segmentation node and a peer that feeds it, in one process and on one executor."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import torch
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TransformStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField

from xmodal_seg.checkpoint import bank_state, save_checkpoint
from xmodal_seg.config import (
    FusionSettings,
    HeadSettings,
    ImageBackboneSettings,
    ModelSettings,
    PointBackboneSettings,
    PreprocessSettings,
)
from xmodal_seg.labels import NUSCENES_6
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.nodes.segmentation_node import SegmentationNode

HEIGHT, WIDTH = 60, 80
LIDAR_FRAME, CAMERA_FRAME = "lidar", "front_optical"
_LIMITS = ("warn_frame_time_ms", "error_frame_time_ms", "warn_input_age_ms", "error_input_age_ms", "stale_after_s")
LATCHED = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
_TINY_VIT = ImageBackboneSettings(
    name="vit_tiny_patch16_224", weights="none", model_args={"depth": 1, "embed_dim": 24, "num_heads": 2}
)


def save_tiny_checkpoint(folder: Path, *, with_3d: bool = True) -> Path:
    """A model of all parts that takes milliseconds; without its 3D parts it keeps up with 120,000 points at 10 Hz."""
    torch.manual_seed(5)
    settings = _tiny_settings(with_3d=with_3d)
    save_checkpoint(folder, SegmentationModel(settings=settings), label_space=NUSCENES_6, metadata={"trained": True})
    return folder


def _tiny_settings(*, with_3d: bool = True) -> ModelSettings:
    heads = HeadSettings() if with_3d else HeadSettings(main=("2d",), mimic=(), ensemble=("2d",))
    return ModelSettings(
        num_classes=NUSCENES_6.num_classes,
        preprocess=PreprocessSettings(voxel_size=0.5, image_size=(32, 48)),
        image_backbone=_TINY_VIT,
        point_backbone=PointBackboneSettings(base_channels=4, num_levels=2),
        fusion=FusionSettings(kind="mlp" if with_3d else "none", hidden=8),
        heads=heads,
    )


def save_two_bank_checkpoint(folder: Path) -> Path:
    """The same with the banks day, served first, and night, whose weights differ."""
    torch.manual_seed(5)
    model = SegmentationModel(settings=_tiny_settings())
    day = bank_state(model)
    night = {name: tensor + 0.1 if tensor.is_floating_point() else tensor for name, tensor in day.items()}
    save_checkpoint(
        folder,
        model,
        label_space=NUSCENES_6,
        banks={"day": day, "night": night},
        default_bank="day",
        metadata={"trained": True},
    )
    return folder


def to_stamp(stamp_ns: int) -> Time:
    return Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)


def make_cloud(stamp_ns: int, *, num_points: int = 500, seed: int = 0, frame_id: str = LIDAR_FRAME) -> PointCloud2:
    generator = np.random.default_rng(seed)
    points = np.empty((num_points, 4), np.float32)
    points[:, :3] = generator.uniform((-20, -10, -2), (20, 10, 2), (num_points, 3))
    points[:, 3] = generator.uniform(0, 255, num_points)
    message = PointCloud2(
        height=1, width=num_points, point_step=16, row_step=16 * num_points, is_dense=True, data=as_data(points)
    )
    message.header.stamp, message.header.frame_id = to_stamp(stamp_ns), frame_id
    message.fields = [
        PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1)
        for i, name in enumerate(("x", "y", "z", "intensity"))
    ]
    return message


def make_image(stamp_ns: int, *, size: tuple[int, int] = (HEIGHT, WIDTH), frame_id: str = CAMERA_FRAME) -> Image:
    pixels = np.random.default_rng(stamp_ns % 1000).integers(0, 256, (*size, 3), dtype=np.uint8)
    message = Image(height=size[0], width=size[1], encoding="rgb8", step=size[1] * 3, data=as_data(pixels))
    message.header.stamp, message.header.frame_id = to_stamp(stamp_ns), frame_id
    return message


def make_info(stamp_ns: int, *, size: tuple[int, int] = (HEIGHT, WIDTH), focal_px: float = 40.0) -> CameraInfo:
    height, width = size
    k = [focal_px, 0.0, width / 2, 0.0, focal_px, height / 2, 0.0, 0.0, 1.0]
    message = CameraInfo(height=height, width=width, distortion_model="plumb_bob", d=[0.0] * 5, k=k)
    message.r = np.eye(3).ravel().tolist()
    message.p = np.hstack([np.reshape(k, (3, 3)), np.zeros((3, 1))]).ravel().tolist()
    message.header.stamp, message.header.frame_id = to_stamp(stamp_ns), CAMERA_FRAME
    return message


def make_transform(parent: str = LIDAR_FRAME, child: str = CAMERA_FRAME) -> TransformStamped:
    """LiDAR axes (x forward) to camera axes (z forward), 10 cm above."""
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id = parent
    message.transform.translation.z = 0.1
    rotation = message.transform.rotation
    rotation.x, rotation.y, rotation.z, rotation.w = -0.5, 0.5, -0.5, 0.5
    return message


def as_data(values: np.ndarray) -> array:
    data = array("B")
    data.frombytes(np.ascontiguousarray(values).tobytes())
    return data


class Harness:
    """Starts the node active and subscribes to what it publishes."""

    def __init__(self, checkpoint: Path, *, cli_args: Sequence[str] = (), **parameters: Any) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        values = {"checkpoint": str(checkpoint), "device": "cpu", "diagnostics_period_s": 0.1}
        values |= {"camera_timeout_ms": 5000.0, **parameters}
        # The stamps of the tests are made up and their machines slow: no limit on age or time may play a part.
        values |= {name: 1e15 for name in _LIMITS if name not in parameters}
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        try:
            self.node = SegmentationNode(context=self.context, parameter_overrides=overrides, cli_args=list(cli_args))
        except ValueError:
            rclpy.shutdown(context=self.context)
            raise
        self.peer = Node("peer", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.executor.add_node(self.peer)
        self.points = self.peer.create_publisher(PointCloud2, "points", 10)
        self.image = self.peer.create_publisher(Image, "front/image", 10)
        self.info = self.peer.create_publisher(CameraInfo, "front/camera_info", 10)
        self.transforms = self.peer.create_publisher(TransformStamped, "static_transforms", LATCHED)
        self.clouds: list[PointCloud2] = []
        self.diagnostics: list[Any] = []
        self.peer.create_subscription(PointCloud2, "xmodal_seg/points", self.clouds.append, 10)
        self.peer.create_subscription(
            DiagnosticArray, "/diagnostics", lambda message: self.diagnostics.append(message.status[0]), 10
        )

    def start(self) -> Harness:
        """Configure, activate, and wait until both sides have found one another."""
        assert self.node.trigger_configure().name == "SUCCESS"
        assert self.node.trigger_activate().name == "SUCCESS"
        publishers = [self.points]
        if self.node.settings.cameras:
            publishers += [self.image, self.info] if self.node.settings.use_camera_info else [self.image]
        self.spin_until(lambda: all(p.get_subscription_count() for p in publishers), "subscriptions")
        self.spin_until(lambda: self.peer.count_publishers("xmodal_seg/points") > 0, "the output")
        return self

    def send(self, stamp_ns: int, *, camera_lag_ns: int = 3_000_000, **cloud: Any) -> PointCloud2:
        """A sweep with its image and CameraInfo."""
        message = make_cloud(stamp_ns, **cloud)
        self.image.publish(make_image(stamp_ns + camera_lag_ns))
        self.info.publish(make_info(stamp_ns + camera_lag_ns))
        self.points.publish(message)
        return message

    def spin_until(self, condition: Callable[[], bool], what: str, *, timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, (
                f"waited {timeout_s:g} s for {what}; diagnostics: {self.diagnostics[-1:]}"
            )
            self.executor.spin_once(timeout_sec=0.05)

    def wait_for_clouds(self, count: int) -> list[PointCloud2]:
        self.spin_until(lambda: len(self.clouds) >= count, f"{count} clouds, got {len(self.clouds)}")
        return self.clouds

    def wait_for_status(self, word: str) -> Any:
        """The next diagnostic status whose message holds `word`."""
        self.diagnostics.clear()
        self.spin_until(lambda: any(word in status.message for status in self.diagnostics), f"the status {word!r}")
        return next(status for status in self.diagnostics if word in status.message)

    def close(self) -> None:
        self.node.close()
        self.executor.shutdown()
        self.node.destroy_node()
        self.peer.destroy_node()
        rclpy.shutdown(context=self.context)
