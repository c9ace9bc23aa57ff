# SPDX-License-Identifier: Apache-2.0
"""Keeps what the segmentation node publishes, clouds on the disk, and when; for programs that watch it from outside."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Float32

from xmodal_seg.bag_writing import LABELLED_TOPIC
from xmodal_seg.messages import stamp_ns
from xmodal_seg.nodes.answers import Answers
from xmodal_seg.nodes.lighting_input import NOT_HEARD_YET
from xmodal_seg.nodes.own_topics import SEGMENTATION_NODE
from xmodal_seg.nodes.playback import header_stamp_ns

AGE_TOPIC = f"/{SEGMENTATION_NODE}/debug/pipeline_latency_ms"
SERVED_TOPIC = f"/{SEGMENTATION_NODE}/served"


@dataclass(frozen=True, kw_only=True)
class Status:
    """One diagnostic status of the segmentation node, of segmentation or of adaptation."""

    level: int  # 0 OK, 1 WARN, 2 ERROR, 3 STALE
    message: str
    values: dict[str, str]
    arrived_s: float = 0.0  # steady clock


class Recorder:
    """Serialised labelled clouds in order of arrival, and diagnostics; made by `recording`.

    With `points_topic` also when each sweep and its answer came here, on the steady clock by the sweep's stamp in ns,
    what labelled it (by the same stamp), and the ages at publishing that the node reports.
    """

    def __init__(self, *, context: Context, answers: Answers, points_topic: str | None = None) -> None:
        self.answers = answers
        self.asked_s: dict[int, float] = {}
        self.answered_s: dict[int, float] = {}
        self.ages_ms: list[float] = []
        self.statuses: list[Status] = []
        self.adaptation: list[Status] = []
        self.served: dict[int, dict[str, str]] = {}
        self._node = rclpy.create_node("xmodal_seg_recorder", context=context)
        reliable = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
        self._node.create_subscription(PointCloud2, LABELLED_TOPIC, self._cloud, reliable, raw=True)
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._diagnostics, reliable)
        if points_topic is not None:
            newest = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
            self._node.create_subscription(PointCloud2, points_topic, self._sweep, newest, raw=True)
            self._node.create_subscription(Float32, AGE_TOPIC, self._age, reliable)
            self._node.create_subscription(DiagnosticArray, SERVED_TOPIC, self._what_served, reliable)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self._node)

    @property
    def hears_the_node(self) -> bool:
        """Whether diagnostics of the node have come and the publisher of its answers is known."""
        return bool(self.statuses) and self._node.count_publishers(LABELLED_TOPIC) > 0

    @property
    def has_missed_the_node(self) -> bool:
        """Whether no answer came though the node has labelled sweeps, or never was heard of."""
        labelled = int(self.statuses[-1].values.get("frames", 0)) if self.statuses else None
        return not len(self.answers) and labelled != 0

    @property
    def has_missed_the_light(self) -> bool:
        """Whether the node was to follow the lighting node and to the end had not heard it."""
        told = [status.values["lighting"] for status in self.statuses if "lighting" in status.values]
        return bool(told) and told[-1] == NOT_HEARD_YET

    def spin_once(self, timeout_s: float) -> None:
        """Take what has come, or wait for it."""
        self._executor.spin_once(timeout_sec=timeout_s)

    def close(self) -> None:
        self._executor.shutdown()
        self._node.destroy_node()

    def _sweep(self, data: bytes) -> None:
        self.asked_s.setdefault(header_stamp_ns(data), time.monotonic())

    def _cloud(self, data: bytes) -> None:
        self.answered_s.setdefault(header_stamp_ns(data), time.monotonic())  # before the disk takes its time
        self.answers.add(data)

    def _age(self, message: Float32) -> None:
        self.ages_ms.append(message.data)

    def _what_served(self, message: DiagnosticArray) -> None:
        self.served[stamp_ns(message)] = {entry.key: entry.value for entry in message.status[0].values}

    def _diagnostics(self, message: DiagnosticArray) -> None:
        kept = {
            f"{SEGMENTATION_NODE}: segmentation": self.statuses,
            f"{SEGMENTATION_NODE}: adaptation": self.adaptation,
        }
        for status in message.status:
            if status.name in kept:
                values = {entry.key: entry.value for entry in status.values}
                kept[status.name].append(
                    Status(level=status.level[0], message=status.message, values=values, arrived_s=time.monotonic())
                )


@contextmanager
def recording(*, domain_id: int, folder: Path, points_topic: str | None = None) -> Iterator[Recorder]:
    """A recorder in a context of its own, so that it disturbs no other rclpy user of the process.

    The clouds lie in `folder`, without a name, for as long as the recorder is kept.
    """
    context = Context()
    rclpy.init(context=context, domain_id=domain_id, signal_handler_options=SignalHandlerOptions.NO)
    try:
        recorder = Recorder(context=context, answers=Answers(folder), points_topic=points_topic)
        try:
            yield recorder
        finally:
            recorder.close()
    finally:
        context.try_shutdown()
