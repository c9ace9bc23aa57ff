# SPDX-License-Identifier: Apache-2.0
"""Where `camera_T_lidar` comes from: tf2, latched TransformStamped messages, or a calibration file."""

from __future__ import annotations

import threading
import time
from importlib.util import find_spec
from typing import Protocol

import numpy as np
from geometry_msgs.msg import TransformStamped
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

from xmodal_seg.calibration_file import CalibrationFile
from xmodal_seg.messages import transform_matrix
from xmodal_seg.nodes.segmentation_settings import SegmentationNodeSettings
from xmodal_seg.transforms import TransformTree

STATIC_TRANSFORMS_TOPIC = "/static_transforms"  # absolute, as /tf_static is
_POLL_S = 0.01


class Extrinsics(Protocol):
    """A source of camera poses. `lookup` may wait, so it is called from the worker, never from a callback."""

    def lookup(self, camera_frame: str, lidar_frame: str, stamp_ns: int, *, deadline_s: float) -> NDArray[np.float64]:
        """camera_T_lidar (4, 4) m; ValueError naming both frames if it is not known by `deadline_s` (monotonic)."""
        ...

    def clear(self) -> None:
        """Forget what a jump in time made wrong."""
        ...

    def close(self) -> None:
        """Stop listening."""
        ...


class FileExtrinsics:
    """Poses of a calibration file; the LiDAR's frame plays no part."""

    def __init__(self, *, file: CalibrationFile) -> None:
        self._file = file

    def lookup(self, camera_frame: str, lidar_frame: str, stamp_ns: int, *, deadline_s: float) -> NDArray[np.float64]:
        return self._file.camera_T_lidar(camera_frame)

    def clear(self) -> None:
        pass

    def close(self) -> None:
        pass


class TopicExtrinsics:
    """Latched `geometry_msgs/TransformStamped` on `/static_transforms`, for machines without tf2."""

    def __init__(self, *, node: Node) -> None:
        self._node = node
        self._tree = TransformTree()
        self._arrived = threading.Condition()
        latched = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=1000,
            reliability=ReliabilityPolicy.RELIABLE,
            durability=DurabilityPolicy.TRANSIENT_LOCAL,
        )
        self._subscription = node.create_subscription(TransformStamped, STATIC_TRANSFORMS_TOPIC, self._store, latched)

    def lookup(self, camera_frame: str, lidar_frame: str, stamp_ns: int, *, deadline_s: float) -> NDArray[np.float64]:
        with self._arrived:
            while True:
                try:
                    return self._tree.lookup(camera_frame, lidar_frame, stamp_ns)
                except ValueError:
                    remaining = deadline_s - time.monotonic()
                    if remaining <= 0 or not self._arrived.wait(remaining):
                        # A last look gives the sentence of the state at the deadline.
                        return self._tree.lookup(camera_frame, lidar_frame, stamp_ns)

    def clear(self) -> None:
        self._tree.clear()

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)

    def _store(self, message: TransformStamped) -> None:
        with self._arrived:
            try:
                self._tree.add_message(message, static=True)
            except ValueError as error:
                self._node.get_logger().error(f"{STATIC_TRANSFORMS_TOPIC}: {error}", throttle_duration_sec=5.0)
            self._arrived.notify_all()


class TfExtrinsics:
    """tf2: /tf and /tf_static, looked up at the sweep's stamp."""

    def __init__(self, *, node: Node) -> None:
        import tf2_ros

        self._tf2 = tf2_ros
        self._buffer = tf2_ros.Buffer()
        self._listener = tf2_ros.TransformListener(self._buffer, node)

    def lookup(self, camera_frame: str, lidar_frame: str, stamp_ns: int, *, deadline_s: float) -> NDArray[np.float64]:
        from rclpy.time import Time

        stamp = Time(nanoseconds=stamp_ns)
        camera_frame, lidar_frame = camera_frame.lstrip("/"), lidar_frame.lstrip("/")  # tf2 refuses ROS 1's names
        while True:
            try:
                return transform_matrix(self._buffer.lookup_transform(camera_frame, lidar_frame, stamp))
            except self._tf2.TransformException as error:
                if time.monotonic() >= deadline_s:
                    raise ValueError(f"no transform from {lidar_frame!r} to {camera_frame!r}: {error}") from error
            # The wait is on the steady clock: tf2's own time-out runs on the node's clock, which a paused bag stops.
            time.sleep(_POLL_S)

    def clear(self) -> None:
        self._buffer.clear()  # Python's tf2 buffer does not notice a jump back in time

    def close(self) -> None:
        self._listener.unregister()


def make_extrinsics(
    *, node: Node, settings: SegmentationNodeSettings, calibration_file: CalibrationFile | None
) -> Extrinsics:
    """The source that the settings name; ValueError if what they name is missing."""
    source = settings.transforms
    has_tf2 = find_spec("tf2_ros") is not None
    if source == "auto":
        source = "file" if calibration_file is not None else "tf" if has_tf2 else "topic"
    if source == "file":
        assert calibration_file is not None  # the settings check it
        return FileExtrinsics(file=calibration_file)
    if source == "tf":
        if not has_tf2:
            raise ValueError("transforms: 'tf' needs tf2_ros, which is not installed; use topic or file")
        return TfExtrinsics(node=node)
    return TopicExtrinsics(node=node)
