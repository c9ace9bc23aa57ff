# SPDX-License-Identifier: Apache-2.0
"""Subscriptions of the segmentation node: callbacks only put messages into the pairing and pairs into the mailbox."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from typing import Any

from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2

from xmodal_seg.messages import stamp_ns as message_stamp_ns
from xmodal_seg.nodes.segmentation_settings import SegmentationNodeSettings
from xmodal_seg.pairing import NearestPairing, Pair, PairedImage

_POLL_S = 0.01
_QUEUE_DEPTH = 5


class Inputs:
    """Subscribes, pairs by stamp and hands each pair to `on_pair`. Created on activation, closed on deactivation."""

    def __init__(
        self,
        *,
        node: LifecycleNode,
        settings: SegmentationNodeSettings,
        on_pair: Callable[[Pair], None],
        on_sweep: Callable[[bool], None],
        on_jump: Callable[[], None],
        on_camera_jump: Callable[[str], None],
    ) -> None:
        """`on_sweep` is told of each sweep whether it was dropped for an old or repeated stamp, `on_camera_jump` of a
        camera whose stamps go back again and again while the sweeps' do not.
        """
        self._node = node
        self._on_pair = on_pair
        self._on_sweep = on_sweep
        self._on_jump = on_jump
        self._on_camera_jump = on_camera_jump
        self._jumps = 0
        self._lock = threading.Lock()
        self._pairing = NearestPairing(
            cameras=settings.cameras,
            tolerance_ns=round(settings.sync_tolerance_ms * 1e6),
            timeout_ns=round(settings.camera_timeout_ms * 1e6),
            stamp_offsets_ns={name: settings.stamp_offset_ns(i) for i, name in enumerate(settings.cameras)},
            image_topics={
                name: node.resolve_topic_name(settings.subscribed_image_topic(i))
                for i, name in enumerate(settings.cameras)
            },
            jump_threshold_ns=round(settings.jump_threshold_s * 1e9),
        )
        self._has_infos = settings.use_camera_info
        self._approximate = _Approximate(settings, on_pair) if settings.sync_policy == "approximate" else None
        self._subscriptions = list(self._subscribe(settings))
        # On the steady clock: a sim-time timer stops with a paused bag, and a waiting sweep would never go on alone.
        self._timer = node.create_timer(_POLL_S, self._poll, clock=Clock(clock_type=ClockType.STEADY_TIME))
        jump = JumpThreshold(
            min_forward=None, min_backward=Duration(seconds=-settings.jump_threshold_s), on_clock_change=True
        )
        self._jump_handle = node.get_clock().create_jump_callback(jump, post_callback=self._clock_jumped)

    @property
    def counters(self) -> dict[str, int]:
        """What the pairing counted so far."""
        with self._lock:
            return asdict(self._pairing.counters)

    def close(self) -> None:
        """Unsubscribe and forget what waits."""
        self._jump_handle.unregister()
        self._node.destroy_timer(self._timer)
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def _subscribe(self, settings: SegmentationNodeSettings) -> list[Any]:
        node = self._node
        qos = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=_QUEUE_DEPTH,
            reliability=ReliabilityPolicy[settings.reliability.upper()],
        )
        subscriptions = [node.create_subscription(PointCloud2, settings.points_topic, self._cloud, qos)]
        for number, camera in enumerate(settings.cameras):
            kind = CompressedImage if settings.image_transport == "compressed" else Image
            topic = settings.subscribed_image_topic(number)
            subscriptions.append(node.create_subscription(kind, topic, partial(self._image, camera), qos))
            if settings.use_camera_info:
                info_topic = settings.camera_info_topic(number)
                callback = partial(self._info, camera)
                subscriptions.append(node.create_subscription(CameraInfo, info_topic, callback, _info_qos(settings)))
        return subscriptions

    def _cloud(self, message: PointCloud2) -> None:
        if self._approximate is not None:
            self._on_sweep(False)  # message_filters does not tell
            if self._approximate.cloud(message):
                self._on_jump()
            return
        with self._lock:
            dropped = self._pairing.counters.dropped_clouds
            pairs = self._pairing.add_cloud(message_stamp_ns(message), message, now_ns=time.monotonic_ns())
            is_dropped = self._pairing.counters.dropped_clouds > dropped
        self._on_sweep(is_dropped)  # before its pair can be labelled
        self._hand_over(pairs)

    def _image(self, camera: str, message: Image | CompressedImage) -> None:
        if self._approximate is not None:
            self._approximate.image(camera, message)
            return
        stamp_ns, now_ns = message_stamp_ns(message), time.monotonic_ns()
        with self._lock:
            jumps = self._pairing.jumps_alone(camera)
            pairs = self._pairing.add_image(camera, stamp_ns, message, now_ns=now_ns)
            is_hopping = self._pairing.jumps_alone(camera) > max(jumps, 1)  # the first may be a bag's that loops
            if not self._has_infos:
                # The calibration file needs only the frame_id, so the image stands in for the CameraInfo.
                pairs += self._pairing.add_info(camera, stamp_ns, message, now_ns=now_ns)
        if is_hopping:
            self._on_camera_jump(camera)
        self._hand_over(pairs)

    def _info(self, camera: str, message: CameraInfo) -> None:
        if self._approximate is not None:
            self._approximate.info(camera, message)
            return
        with self._lock:
            pairs = self._pairing.add_info(camera, message_stamp_ns(message), message, now_ns=time.monotonic_ns())
        self._hand_over(pairs)

    def _poll(self) -> None:
        with self._lock:
            pairs = self._pairing.poll(time.monotonic_ns())
        self._hand_over(pairs)

    def _hand_over(self, pairs: Sequence[Pair]) -> None:
        jumps = self._pairing.counters.jumps
        if jumps != self._jumps:
            self._jumps = jumps
            self._on_jump()
        for pair in pairs:
            self._on_pair(pair)

    def _clock_jumped(self, _: Any) -> None:
        with self._lock:
            pairs = self._pairing.reset()
        if self._approximate is not None:
            self._approximate.reset()
        self._on_jump()
        self._hand_over(pairs)


def _info_qos(settings: SegmentationNodeSettings) -> QoSProfile:
    if settings.camera_info_durability == "volatile":
        reliability, durability = ReliabilityPolicy[settings.reliability.upper()], DurabilityPolicy.VOLATILE
    else:
        reliability, durability = ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=_QUEUE_DEPTH, reliability=reliability, durability=durability
    )


class _Approximate:
    """message_filters' ApproximateTimeSynchronizer behind the same hand-over, for those who ask for it by name."""

    def __init__(self, settings: SegmentationNodeSettings, on_pair: Callable[[Pair], None]) -> None:
        if find_spec("message_filters") is None:
            raise ValueError("sync_policy: 'approximate' needs message_filters, which is not installed; use nearest")
        self._cameras = settings.cameras
        self._slop_s = settings.sync_tolerance_ms / 1e3
        self._jump_ns = round(settings.jump_threshold_s * 1e9)
        self._on_pair = on_pair
        self._infos: dict[str, CameraInfo] = {}
        self.reset()

    def reset(self) -> None:
        """Start anew: after a jump back in time message_filters would drop what is new and keep what is old."""
        import message_filters

        self._last_ns = 0
        self._cloud = message_filters.SimpleFilter()
        self._images = [message_filters.SimpleFilter() for _ in self._cameras]
        synchronizer = message_filters.ApproximateTimeSynchronizer(
            [self._cloud, *self._images], queue_size=10, slop=self._slop_s
        )
        synchronizer.registerCallback(self._matched)
        self._synchronizer = synchronizer  # its filters hold no reference to it

    def cloud(self, message: PointCloud2) -> bool:
        """Take a sweep; True if its stamp jumped back."""
        stamp_ns = message_stamp_ns(message)
        jumped = stamp_ns < self._last_ns - self._jump_ns
        if jumped:
            self.reset()
        self._last_ns = stamp_ns
        self._cloud.signalMessage(message)
        return jumped

    def image(self, camera: str, message: Image | CompressedImage) -> None:
        self._images[self._cameras.index(camera)].signalMessage(message)

    def info(self, camera: str, message: CameraInfo) -> None:
        self._infos[camera] = message

    def _matched(self, cloud: PointCloud2, *images: Image | CompressedImage) -> None:
        paired = {
            camera: PairedImage(
                stamp_ns=message_stamp_ns(image), image=image, info=self._infos.get(camera), info_exact=False
            )
            for camera, image in zip(self._cameras, images, strict=True)
        }
        self._on_pair(Pair(stamp_ns=message_stamp_ns(cloud), cloud=cloud, images=paired, missing=(), reason=""))
