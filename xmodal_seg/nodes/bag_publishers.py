# SPDX-License-Identifier: Apache-2.0
"""Publishers for the topics of a bag: recorded bytes as they are, and transforms for machines without tf2."""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module
from typing import Any

from geometry_msgs.msg import TransformStamped
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

from xmodal_seg.bag_files import Bag, RawMessage, Topic
from xmodal_seg.bag_topics import TF_TYPE
from xmodal_seg.nodes.extrinsics import STATIC_TRANSFORMS_TOPIC

_DEPTH = 10


class BagPublishers:
    """One reliable publisher per topic; latched where it was recorded so.

    /tf_static also goes out transform by transform as latched `geometry_msgs/TransformStamped` on `static_transforms`,
    for subscribers without tf2_msgs. A topic whose message type is not installed is left out with a warning.
    """

    def __init__(self, *, node: Node, bag: Bag, topics: Collection[str]) -> None:
        self._node = node
        self.publishers: dict[str, Publisher] = {}
        self._static_topics = [
            name for name in topics if bag.topics[name].msgtype == TF_TYPE and name.endswith("tf_static")
        ]
        self._static = [
            transform for message in bag.messages(self._static_topics) for transform in message.decode().transforms
        ]
        for name in topics:
            message_class = _message_class(bag.topics[name].msgtype)
            if message_class is not None:
                self.publishers[name] = node.create_publisher(message_class, name, _qos(bag.topics[name]))
            elif name not in self._static_topics:
                node.get_logger().warning(f"{name} is not played: {bag.topics[name].msgtype} is not installed")
        self._transforms = node.create_publisher(
            TransformStamped, STATIC_TRANSFORMS_TOPIC, _latched(max(1, 2 * len(self._static)))
        )

    def played_topics(self) -> list[str]:
        """Topics of which at least one form goes out."""
        return [*self.publishers, *(name for name in self._static_topics if name not in self.publishers)]

    def publish_first_transforms(self) -> None:
        """The first static transform of each frame: a recorder may have caught it after the data that needs it."""
        firsts = {transform.child_frame_id: transform for transform in reversed(self._static)}
        for transform in reversed(firsts.values()):
            self._transforms.publish(_transform_message(transform))

    def publish(self, message: RawMessage) -> None:
        """Publish one recorded message."""
        if message.topic in self._static_topics:
            for transform in message.decode().transforms:
                self._transforms.publish(_transform_message(transform))
        if message.topic in self.publishers:
            self.publishers[message.topic].publish(bytes(message.data))

    def wait_for_all_acked(self, timeout_s: float) -> None:
        """Wait until reliable subscribers have everything, so that the last messages are not lost on exit."""
        for publisher in (*self.publishers.values(), self._transforms):
            publisher.wait_for_all_acked(Duration(seconds=timeout_s))


def _message_class(msgtype: str) -> Any | None:
    """The Python class of a message type such as sensor_msgs/msg/Image; None where it is not installed."""
    package, _, name = msgtype.split("/")
    try:
        return getattr(import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError):
        return None


def _transform_message(transform: Any) -> TransformStamped:
    """The rosbags message as rclpy's."""
    message = TransformStamped()
    message.header.stamp.sec = transform.header.stamp.sec
    message.header.stamp.nanosec = transform.header.stamp.nanosec
    message.header.frame_id = transform.header.frame_id
    message.child_frame_id = transform.child_frame_id
    for part, names in (("translation", "xyz"), ("rotation", "xyzw")):
        for name in names:
            setattr(getattr(message.transform, part), name, float(getattr(getattr(transform.transform, part), name)))
    return message


def _qos(topic: Topic) -> QoSProfile:
    """Reliable serves every kind of subscriber; large messages sent best-effort get lost between processes."""
    if topic.latched:
        return _latched(max(topic.depth, 1))
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=max(topic.depth, _DEPTH), reliability=ReliabilityPolicy.RELIABLE
    )


def _latched(depth: int) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )
