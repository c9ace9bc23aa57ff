# SPDX-License-Identifier: Apache-2.0
"""Subscriptions of the lighting node; callbacks only hand messages on."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.lifecycle import LifecycleNode
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, NavSatFix, PointCloud2

from xmodal_seg.lighting import Exposure
from xmodal_seg.messages import stamp_ns
from xmodal_seg.nodes.lighting_settings import LightingNodeSettings

_MICRO = 1e-6


class LightingInputs:
    """Created on activation, closed on deactivation."""

    def __init__(
        self,
        *,
        node: LifecycleNode,
        settings: LightingNodeSettings,
        on_image: Callable[[str, Any], None],
        on_exposure: Callable[[str, Any], None],
        on_points: Callable[[Any], None],
        on_fix: Callable[[Any], None],
    ) -> None:
        """Raises ValueError if exposure topics are given and their messages are not installed."""
        self._node = node
        self._on_image, self._on_exposure = on_image, on_exposure
        self._least_gap_ns = round(1e9 / settings.max_rate_hz)
        self._last_ns: dict[str, int] = {}
        exposure_type = _exposure_type() if settings.exposure_topics else None
        qos = QoSProfile(
            history=HistoryPolicy.KEEP_LAST, depth=2, reliability=ReliabilityPolicy[settings.reliability.upper()]
        )
        kind = CompressedImage if settings.image_transport == "compressed" else Image
        self._subscriptions: list[Any] = []
        for number, camera in enumerate(settings.cameras):
            self._subscribe(kind, settings.image_topic(number), partial(self._image, camera), qos)
            if exposure_type is not None:
                callback = partial(self._exposure, camera)
                self._subscribe(exposure_type, settings.exposure_topics[number], callback, qos)
        if settings.points_topic:
            self._subscribe(PointCloud2, settings.points_topic, on_points, qos)
        if settings.fix_topic:
            self._subscribe(NavSatFix, settings.fix_topic, on_fix, qos)

    def close(self) -> None:
        """Unsubscribe."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def _subscribe(self, kind: Any, topic: str, callback: Callable[..., None], qos: QoSProfile) -> None:
        self._subscriptions.append(self._node.create_subscription(kind, topic, callback, qos))

    def _image(self, camera: str, message: Image | CompressedImage) -> None:
        """Hand on what is not too soon after the one before; a stamp that goes back is a jump in time."""
        stamp = stamp_ns(message)
        gap_ns = stamp - self._last_ns.get(camera, stamp - self._least_gap_ns)
        # A tenth of tolerance: stamps of a camera at just this rate jitter.
        if 0 <= gap_ns < 0.9 * self._least_gap_ns:
            return
        self._last_ns[camera] = stamp
        self._on_image(camera, message)

    def _exposure(self, camera: str, message: Any) -> None:
        if message.exposure_time > 0:  # 0: the driver does not know
            self._on_exposure(camera, message)


def exposure_of(message: Any) -> Exposure:
    """Of a flir_camera_msgs/ImageMetaData: exposure_time in us, gain in dB. ValueError for a gain that is no number."""
    return Exposure(time_s=message.exposure_time * _MICRO, gain_db=float(message.gain))


def _exposure_type() -> Any:
    try:
        return importlib.import_module("flir_camera_msgs.msg").ImageMetaData
    except ImportError as error:
        raise ValueError("exposure_topics: need flir_camera_msgs, which is not installed; leave them empty") from error
