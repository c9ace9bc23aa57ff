# SPDX-License-Identifier: Apache-2.0
"""The segmentation node's ear for `lighting`: the weight bank to serve, and what the diagnostics say of the light."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy

from xmodal_seg.lighting_state import BankSelector, BankSettings, common_light
from xmodal_seg.messages import stamp_ns
from xmodal_seg.nodes.lighting_messages import ReportedLight, read_lighting

NOT_HEARD_YET = "not heard yet"  # diagnostics
_OLD_AFTER_S = 2.0  # steady clock
_MISSED_AFTER_S = 10.0
_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=5, reliability=ReliabilityPolicy.RELIABLE)


class LightingInput:
    """Subscribes to `topic` and follows it with a BankSelector; the thread that infers asks for `bank`."""

    def __init__(
        self,
        *,
        node: Node,
        topic: str,
        banks: Sequence[str],
        served: str,
        settings: BankSettings,
        on_problem: Callable[[str], None],
    ) -> None:
        self._node = node
        self._on_problem = on_problem
        self._settings = settings
        self._num_banks = len(banks)
        self._lock = threading.Lock()
        self._selector = BankSelector(banks=banks, served=served, settings=settings)
        self._cameras: tuple[ReportedLight, ...] = ()
        self._came_s: float | None = None
        self._began_s = time.monotonic()
        self._subscription = node.create_subscription(DiagnosticArray, topic, self._heard, _QOS)

    @property
    def bank(self) -> str:
        """The bank that the light asks for."""
        with self._lock:
            return self._selector.bank

    def lights(self) -> dict[str, ReportedLight]:
        """The newest estimate of each camera; empty before the first message and once they stop coming."""
        with self._lock:
            if self._came_s is None or time.monotonic() - self._came_s > _OLD_AFTER_S:
                return {}
            return {camera.name: camera for camera in self._cameras}

    def reset(self) -> None:
        """After a jump in time: begin to count anew; bank and condition stay."""
        with self._lock:
            self._selector.reset()

    def values(self) -> dict[str, str]:
        """For the diagnostics."""
        with self._lock:
            if self._came_s is None:
                return {"lighting": NOT_HEARD_YET}
            silent_s = time.monotonic() - self._came_s
            if silent_s > _OLD_AFTER_S:
                return {"lighting": f"silent for {silent_s:.0f} s"}
            light = common_light(self._cameras, min_confidence=self._settings.min_confidence)
            condition = self._selector.condition or "unknown"
            if light is None:
                return {"lighting": "no camera is sure", "condition": condition}
            return {
                "lambda": f"{light.guidance:.3f}",
                "condition": condition,
                "darkness": f"{light.darkness:.3f}",
                "lighting confidence": f"{light.confidence:.3f}",
                "lighting": f"{light.num_healthy} of {len(self._cameras)} cameras are sure",
            }

    def warnings(self) -> list[str]:
        """What an operator has to know: nobody watches the light, though there are banks to choose from."""
        with self._lock:
            silent_s = time.monotonic() - (self._began_s if self._came_s is None else self._came_s)
            if self._num_banks < 2 or silent_s < _MISSED_AFTER_S:
                return []
            since = "yet" if self._came_s is None else f"for {silent_s:.0f} s"
            return [
                f"lighting: nothing heard {since}, so bank {self._selector.bank!r} stays (if this is meant: "
                "adaptation.mode off, or lighting_topic empty)"
            ]

    def close(self) -> None:
        """Unsubscribe."""
        self._node.destroy_subscription(self._subscription)

    def _heard(self, message: Any) -> None:
        try:
            cameras, stamp = read_lighting(message), stamp_ns(message)
        except ValueError as error:
            self._on_problem(str(error))
            return
        with self._lock:
            self._cameras, self._came_s = cameras, time.monotonic()
            self._selector.update(cameras, stamp)
