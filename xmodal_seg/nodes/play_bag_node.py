# SPDX-License-Identifier: Apache-2.0
"""Plays a rosbag2 as live topics with /clock, for machines without `ros2 bag`.

Topics keep their names (remap them as usual). What the nodes of this package have published while the bag was recorded
is left out, unless `topics` names it. With `pace_topic` the playback waits for each sweep's answer, so that a slow
labeller misses nothing.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from pydantic import Field
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import PointCloud2

from xmodal_seg.bag_files import Bag, open_bag
from xmodal_seg.bag_topics import find_points
from xmodal_seg.config import Settings
from xmodal_seg.nodes.bag_publishers import BagPublishers
from xmodal_seg.nodes.own_topics import own_topics
from xmodal_seg.nodes.parameters import declare_all
from xmodal_seg.nodes.playback import NOBODY_LISTENED, Pace, Timeline, header_stamp_ns
from xmodal_seg.nodes.runner import leave, run_node

_POLL_S = 0.05
_ACK_TIMEOUT_S = 5.0


class PlayBagSettings(Settings):
    """Parameters of the play_bag node; all are read at start."""

    bag: str = Field(default="", description="rosbag2 folder, or one .mcap or .db3 file")
    rate: float = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="how many times as fast as it was recorded; below 1 the segmentation node needs as many times "
        "longer waits, camera_timeout_ms and transform_timeout_s (replay.launch.py sees to it)",
    )
    loop: bool = Field(default=False, description="start again at the end; the stamps jump back")
    start_offset_s: float = Field(default=0.0, ge=0, description="leave out the beginning, s; latched topics stay")
    clock: bool = Field(default=True, description="publish /clock with the recording time, at 40 Hz and each message")
    topics: list[str] = Field(
        default=[],
        description="play only these topics; empty: all but what the nodes of this package publish, /diagnostics, "
        "/rosout and /parameter_events",
    )
    wait_for_topics: list[str] = Field(
        default=[], description="topics of the bag that must have a subscriber before the first message goes out"
    )
    wait_for_nodes: list[str] = Field(
        default=[], description="full names of nodes that must each be among these subscribers; empty: any one"
    )
    wait_timeout_s: float = Field(default=60.0, gt=0, description="end with an error if they have none after this, s")
    pace_topic: str = Field(
        default="", description="PointCloud2 that answers each sweep with its stamp: the next sweep waits for it"
    )
    pace_input: str = Field(
        default="", description="topic of the bag that is answered on pace_topic; empty: its one topic of points"
    )
    pace_timeout_s: float = Field(default=60.0, gt=0, description="go on without an answer after this, s")


class NobodyListenedError(ValueError):
    """A topic had no subscriber in time; nothing has been played."""


class PlayBagNode(Node):
    """Publishes the messages of a bag when they are due."""

    def __init__(self, **node_args: Any) -> None:
        """Opens the bag. Raises ValueError, one sentence, for a bag, topic or offset that is not there."""
        super().__init__("play_bag", **node_args)
        self._settings = settings = declare_all(self, PlayBagSettings)
        self.finished = False
        self.failure = ""
        self.exit_code = 0
        self._stack = ExitStack()
        self._bag = self._stack.enter_context(open_bag(settings.bag))
        self._start_ns = self._bag.start_ns + round(settings.start_offset_s * 1e9)
        _check(self._bag, settings, start_ns=self._start_ns)
        self._left_out = [] if settings.topics else _left_out(self._bag, settings)
        topics = settings.topics or [name for name in self._bag.topics if name not in self._left_out]
        self._outputs = BagPublishers(node=self, bag=self._bag, topics=topics)
        self._pace_input = (settings.pace_input or find_points(self._bag)) if settings.pace_topic else None
        for name in (*settings.wait_for_topics, self._pace_input):
            if name is not None and name not in self._outputs.publishers:
                raise ValueError(f"wait_for_topics, pace_input: {name} is not among the topics that are played")
        self._clock_publisher = self.create_publisher(Clock, "/clock", 10) if settings.clock else None
        self._pace = Pace(timeout_s=settings.pace_timeout_s) if settings.pace_topic else None
        if self._pace is not None:
            qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
            self.create_subscription(PointCloud2, settings.pace_topic, self._answered, qos, raw=True)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bag playback")

    def start(self) -> bool:
        """Begin to play, in a thread of its own."""
        self._thread.start()
        return True

    def close(self) -> None:
        """Stop playing and close the bag; harmless twice."""
        self._stop.set()
        if self._pace is not None:
            self._pace.cancel()
        if self._thread.is_alive():
            self._thread.join()
        self._stack.close()

    def _run(self) -> None:
        try:
            self._play()
        except NobodyListenedError as error:
            self._fail(str(error), exit_code=NOBODY_LISTENED)
        except ValueError as error:
            self._fail(str(error))
        except Exception as error:
            self._fail(f"{type(error).__name__}: {error}", log=traceback.format_exc())
        finally:
            self.finished = True

    def _fail(self, reason: str, *, log: str = "", exit_code: int = 1) -> None:
        self.failure, self.exit_code = reason, exit_code
        self.get_logger().error(log or reason)

    def _play(self) -> None:
        if not self._wait_for_subscribers():
            return
        duration_s = (self._bag.end_ns - self._start_ns) / 1e9
        played = ", ".join(self._outputs.played_topics())
        self.get_logger().info(
            f"playing {duration_s:.1f} s of {self._bag.path} at rate {self._settings.rate:g}: {played}"
        )
        if self._left_out:
            left_out = ", ".join(self._left_out)
            self.get_logger().info(
                f"left out, as running nodes publish it anew (topics plays what it names): {left_out}"
            )
        while not self._stop.is_set():
            self._play_once()
            if not self._settings.loop:
                break
        if not self._stop.is_set():
            self._outputs.wait_for_all_acked(_ACK_TIMEOUT_S)
            self.get_logger().info("end of the bag")

    def _play_once(self) -> None:
        self._outputs.publish_first_transforms()
        self._publish_latched_before_start()
        timeline = Timeline(start_ns=self._start_ns, rate=self._settings.rate)
        for message in self._bag.messages(self._outputs.played_topics(), start_ns=self._start_ns):
            is_paced = message.topic == self._pace_input
            if is_paced:
                self._wait_for_answer(timeline)
            if not timeline.wait_until(message.stamp_ns, stop=self._stop, tick=self._tick):
                return
            self._tick(message.stamp_ns)
            if self._pace is not None and is_paced:
                self._pace.sent(header_stamp_ns(message.data))
            self._outputs.publish(message)
        self._wait_for_answer(timeline)

    def _publish_latched_before_start(self) -> None:
        latched = [name for name in self._outputs.played_topics() if self._bag.topics[name].latched]
        for message in self._bag.messages(latched):
            if message.stamp_ns >= self._start_ns:
                return
            self._outputs.publish(message)

    def _wait_for_subscribers(self) -> bool:
        deadline = time.monotonic() + self._settings.wait_timeout_s
        while missing := self._missing_subscribers():
            if self._stop.wait(_POLL_S):
                return False
            if time.monotonic() > deadline:
                raise NobodyListenedError(f"{missing} in {self._settings.wait_timeout_s:g} s")
        return not self._stop.is_set()

    def _missing_subscribers(self) -> str:
        """Who did not subscribe to what; empty if the playback may begin."""
        publishers = {name: self._outputs.publishers[name] for name in self._settings.wait_for_topics}
        unheard = [name for name, publisher in publishers.items() if publisher.get_subscription_count() == 0]
        if unheard:
            return f"nobody subscribed to {', '.join(unheard)}"
        listeners = {name: self._listeners(publisher.topic_name) for name, publisher in publishers.items()}
        for node in self._settings.wait_for_nodes:
            unheard = [name for name, nodes in listeners.items() if node not in nodes]
            if unheard:
                return f"{node} did not subscribe to {', '.join(unheard)}"
        return ""

    def _listeners(self, topic: str) -> set[str]:
        """Full names of the nodes that subscribe to `topic`."""
        return {
            f"{subscription.node_namespace.rstrip('/')}/{subscription.node_name}"
            for subscription in self.get_subscriptions_info_by_topic(topic)
        }

    def _wait_for_answer(self, timeline: Timeline) -> None:
        if self._pace is None:
            return
        begin_s = time.monotonic()
        if not self._pace.wait():
            self.get_logger().warning(
                f"no answer on {self._settings.pace_topic} in {self._settings.pace_timeout_s:g} s"
            )
        timeline.hold(time.monotonic() - begin_s)

    def _answered(self, data: bytes) -> None:
        assert self._pace is not None
        self._pace.answered(header_stamp_ns(data))

    def _tick(self, stamp_ns: int) -> None:
        if self._clock_publisher is not None:
            clock = Clock()
            clock.clock.sec, clock.clock.nanosec = divmod(stamp_ns, 1_000_000_000)
            self._clock_publisher.publish(clock)


def _check(bag: Bag, settings: PlayBagSettings, *, start_ns: int) -> None:
    for name in (*settings.topics, *settings.wait_for_topics, *filter(None, [settings.pace_input])):
        bag.require(name)
    if settings.wait_for_nodes and not settings.wait_for_topics:
        raise ValueError("wait_for_nodes: expected wait_for_topics beside it, got none")
    for name in settings.wait_for_nodes:
        if not name.startswith("/"):
            raise ValueError(f"wait_for_nodes: expected full names that begin with /, got {name!r}")
    if not bag.num_messages:
        raise ValueError(f"bag {bag.path} holds no messages")
    if start_ns >= bag.end_ns:
        duration_s = (bag.end_ns - bag.start_ns) / 1e9
        raise ValueError(f"start_offset_s: {settings.start_offset_s:g} s is not within the bag's {duration_s:.3f} s")


def _left_out(bag: Bag, settings: PlayBagSettings) -> list[str]:
    """What the running nodes publish anew, this one included; recorded answers would count as those waited for.

    Raises ValueError if the bag holds nothing else.
    """
    names = [*own_topics(bag.topics), settings.pace_topic, *(["/clock"] if settings.clock else [])]
    left_out = [name for name in bag.topics if name in names]
    if len(left_out) == len(bag.topics):
        raise ValueError(
            f"bag {bag.path} holds only what running nodes publish anew; name in topics what to play: "
            f"{', '.join(left_out)}"
        )
    return left_out


def _close(node: PlayBagNode) -> None:
    """Close it; one that failed leaves at once: a middleware that locks up at the end would cost its exit code."""
    node.close()
    if node.exit_code:
        leave(node.exit_code)


def main(argv: Sequence[str] | None = None) -> int:
    """Play until the end or a signal: 0; NOBODY_LISTENED if no subscriber came, 1 if the bag could not be played."""
    return run_node(
        PlayBagNode,
        argv=argv,
        on_start=PlayBagNode.start,
        finished=lambda node: node.finished,
        close=_close,
    )


if __name__ == "__main__":
    sys.exit(main())
