# SPDX-License-Identifier: Apache-2.0
"""Keeps what the segmentation node publishes, as raw bytes; for programs that watch it from outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import PointCloud2

from xmodal_seg.bag_writing import LABELLED_TOPIC

NODE_NAME = "xmodal_seg"


@dataclass(frozen=True, kw_only=True)
class Status:
    """One diagnostic status of the segmentation node."""

    level: int  # 0 OK, 1 WARN, 2 ERROR, 3 STALE
    message: str
    values: dict[str, str]


class Recorder:
    """Serialised labelled clouds in order of arrival and diagnostics; made by `recording`."""

    def __init__(self, *, context: Context) -> None:
        self.clouds: list[bytes] = []
        self.statuses: list[Status] = []
        self._node = rclpy.create_node("xmodal_seg_recorder", context=context)
        reliable = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
        self._node.create_subscription(PointCloud2, LABELLED_TOPIC, self.clouds.append, reliable, raw=True)
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._diagnostics, reliable)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self._node)

    def spin_once(self, timeout_s: float) -> None:
        """Take what has come, or wait for it."""
        self._executor.spin_once(timeout_sec=timeout_s)

    def close(self) -> None:
        self._executor.shutdown()
        self._node.destroy_node()

    def _diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.startswith(f"{NODE_NAME}:"):
                values = {entry.key: entry.value for entry in status.values}
                self.statuses.append(Status(level=status.level[0], message=status.message, values=values))


@contextmanager
def recording(*, domain_id: int) -> Iterator[Recorder]:
    """A recorder in a context of its own, so that it disturbs no other rclpy user of the process."""
    context = Context()
    rclpy.init(context=context, domain_id=domain_id, signal_handler_options=SignalHandlerOptions.NO)
    try:
        recorder = Recorder(context=context)
        try:
            yield recorder
        finally:
            recorder.close()
    finally:
        context.try_shutdown()
