# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node `lighting`: camera images in, darkness, guidance (lambda), confidence and condition out.

Threads: callbacks put messages into keep-newest slots, one for each camera and one for the LiDAR; their workers share
one estimator behind a lock.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import NavSatStatus
from std_msgs.msg import Float32

from xmodal_seg.lighting import CameraLighting, LightingEstimator
from xmodal_seg.lighting_model import load_coefficients
from xmodal_seg.lighting_state import common_light
from xmodal_seg.messages import decode_cloud, decode_small_image, stamp_ns
from xmodal_seg.nodes.camera_time import CameraTime
from xmodal_seg.nodes.conversions import diagnostic_status
from xmodal_seg.nodes.lighting_inputs import LightingInputs, exposure_of
from xmodal_seg.nodes.lighting_messages import lighting_message
from xmodal_seg.nodes.lighting_settings import LightingNodeSettings
from xmodal_seg.nodes.mailbox import Worker
from xmodal_seg.nodes.parameters import ParameterGuard, declare_all
from xmodal_seg.nodes.problems import Problems
from xmodal_seg.nodes.runner import run_node
from xmodal_seg.nodes.transitions import configure_and_activate, transition

_STOP_TIMEOUT_S = 5.0
_WATCH_EVERY_S = 0.5
_MISSED_AFTER_S = 10.0  # a camera that has not sent yet; some take as long from one image to the next
_REPEAT_AFTER_S = 1.0  # listeners take two seconds without a message for the end of this node
_RELIABLE = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=5, reliability=ReliabilityPolicy.RELIABLE)


@dataclass(frozen=True, kw_only=True)
class _Configured:
    """What on_configure makes and on_cleanup frees."""

    estimator: LightingEstimator
    lighting: Any  # publishers
    guidance: Any
    workers: dict[str, Worker[Any]]  # by camera
    lidar: Worker[Any]


class LightingNode(LifecycleNode):
    """Estimates the light in every camera's images; see the README for topics and parameters."""

    def __init__(self, **node_args: Any) -> None:
        """Declares the parameters. Raises ValueError, one sentence, if they do not fit together."""
        super().__init__("lighting", **node_args)
        self.settings = declare_all(self, LightingNodeSettings)
        self._guard = ParameterGuard(node=self, cls=LightingNodeSettings, on_change=self._settings_changed)
        self._lock = threading.Lock()  # of the estimator and what belongs to it
        self._configured: _Configured | None = None
        self._inputs: LightingInputs | None = None  # while active
        self._time = CameraTime()  # stamps what is said, since listeners count by it
        self._published_s = 0.0  # steady clock
        self._began_s = 0.0  # to be active, by the same clock
        self._problems = Problems()
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # must go on when simulated time stands still
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._timer = self.create_timer(self.settings.diagnostics_period_s, self._publish_diagnostics, clock=steady)
        watch_every_s = min(_WATCH_EVERY_S, self.settings.estimator.stale_after_s)
        self._watchdog = self.create_timer(watch_every_s, self._watch, clock=steady)

    @transition
    def on_configure(self, _: LifecycleState) -> None:
        """Load the coefficients, create publishers."""
        settings = self.settings
        estimator = LightingEstimator(
            settings=settings.estimator, coefficients=load_coefficients(settings.coefficients)
        )
        self._configured = _Configured(
            estimator=estimator,
            lighting=self.create_lifecycle_publisher(DiagnosticArray, "lighting", _RELIABLE),
            guidance=self.create_lifecycle_publisher(Float32, "~/lambda", _RELIABLE),
            workers={
                camera: Worker(
                    handler=partial(self._estimate, camera),
                    on_error=partial(self._failed, f"camera {camera!r}"),
                    name=f"lighting {camera}",
                )
                for camera in settings.cameras
            },
            lidar=Worker(handler=self._check_lidar, on_error=partial(self._failed, "points"), name="lidar health"),
        )
        origin = "calibrated" if estimator.coefficients.calibrated else "default coefficients, not calibrated"
        self.get_logger().info(f"lighting of {', '.join(settings.cameras) or 'no camera'}: {origin}")

    @transition
    def on_activate(self, state: LifecycleState) -> None:
        """Start the workers and subscribe; a failure leaves the node inactive and configured."""
        configured = self._require_configured()
        for worker in (*configured.workers.values(), configured.lidar):
            worker.start()
        super().on_activate(state)
        self._began_s = time.monotonic()
        try:
            self._inputs = LightingInputs(
                node=self,
                settings=self.settings,
                on_image=self._image,
                on_exposure=self._exposure,
                on_points=self._points,
                on_fix=self._fix,
            )
        except Exception:
            super().on_deactivate(state)
            self._stop_work()
            raise

    @transition
    def on_deactivate(self, state: LifecycleState) -> None:
        """Unsubscribe and forget what was seen."""
        self._stop_work()
        super().on_deactivate(state)

    @transition
    def on_cleanup(self, _: LifecycleState) -> None:
        """Free what configuring made."""
        self.close()

    @transition
    def on_shutdown(self, _: LifecycleState) -> None:
        """End from any state."""
        self.close()

    @transition
    def on_error(self, _: LifecycleState) -> None:
        """Back to unconfigured after a failed transition."""
        self.close()

    def close(self) -> None:
        """Stop the workers and free what configuring made; harmless in any state."""
        self._stop_work()
        configured, self._configured = self._configured, None
        if configured is not None:
            for publisher in (configured.lighting, configured.guidance):
                self.destroy_lifecycle_publisher(publisher)

    def _require_configured(self) -> _Configured:
        if self._configured is None:
            raise RuntimeError("not configured")
        return self._configured

    def _stop_work(self) -> None:
        inputs, self._inputs = self._inputs, None
        if inputs is not None:
            inputs.close()
        if self._configured is None:
            return
        for worker in (*self._configured.workers.values(), self._configured.lidar):
            if not worker.stop(timeout_s=_STOP_TIMEOUT_S):
                raise RuntimeError("an image in work does not end")
        with self._lock:
            self._configured.estimator.reset()
            self._time = CameraTime()

    def _image(self, camera: str, message: Any) -> None:
        self._require_configured().workers[camera].put(message)

    def _points(self, message: Any) -> None:
        self._require_configured().lidar.put(message)

    def _estimate(self, camera: str, message: Any) -> None:
        """Worker: one image to an estimate of all cameras."""
        configured = self._require_configured()
        arrived_ns = time.monotonic_ns()
        image, stamp = decode_small_image(message), stamp_ns(message)
        with self._lock:
            configured.estimator.update(camera, image, stamp, arrived_ns=arrived_ns)
            cameras = configured.estimator.current(arrived_ns)
            heard = [each.name for each in cameras if "stale" not in each.reasons]
            time_ns = self._time.update(camera, stamp, heard=heard)
        self._publish(configured, cameras, time_ns)

    def _exposure(self, camera: str, message: Any) -> None:
        try:
            with self._lock:
                self._require_configured().estimator.update_exposure(camera, exposure_of(message), stamp_ns(message))
        except ValueError as error:
            self._failed(f"exposure of {camera!r}", error)

    def _check_lidar(self, message: Any) -> None:
        points = decode_cloud(message, intensity_range=None).points
        with self._lock:
            self._require_configured().estimator.update_lidar(points, stamp_ns(message))

    def _fix(self, message: Any) -> None:
        if message.status.status == NavSatStatus.STATUS_NO_FIX:
            return
        try:
            with self._lock:
                self._require_configured().estimator.update_fix(latitude=message.latitude, longitude=message.longitude)
        except ValueError as error:
            self._failed("fix", error)

    def _watch(self) -> None:
        """Say that estimates are stale when no image comes any more; repeat them where the cameras are slow."""
        configured, inputs = self._configured, self._inputs
        if configured is None or inputs is None:
            return
        with self._lock:
            time_ns = self._time.newest_ns
            cameras = configured.estimator.current(time.monotonic_ns())
            silent_s = time.monotonic() - self._published_s
        if time_ns is None or not cameras:
            return
        if silent_s >= _REPEAT_AFTER_S or all("stale" in camera.reasons for camera in cameras):
            self._publish(configured, cameras, time_ns)

    def _publish(self, configured: _Configured, cameras: Sequence[CameraLighting], time_ns: int) -> None:
        estimator = self.settings.estimator
        self._published_s = time.monotonic()
        configured.lighting.publish(
            lighting_message(
                cameras, node_name=self.get_name(), stamp_ns=time_ns, min_confidence=estimator.min_confidence
            )
        )
        light = common_light(cameras, min_confidence=estimator.min_confidence)
        middle = (estimator.lambda_min + estimator.lambda_max) / 2
        configured.guidance.publish(Float32(data=middle if light is None else light.guidance))

    def _failed(self, source: str, error: Exception) -> None:
        sentence = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        if self._problems.note(source, sentence, now_s=time.monotonic(), level="WARN"):
            self.get_logger().warning(f"{source}: {sentence}")

    def _settings_changed(self, settings: LightingNodeSettings) -> None:
        self.settings = settings
        if self._configured is not None:
            with self._lock:
                self._configured.estimator.apply(settings.estimator)

    def _publish_diagnostics(self) -> None:
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        message.status = [self._status()]
        self._diagnostics.publish(message)

    def _status(self) -> Any:
        name = f"{self.get_name()}: lighting"
        configured = self._configured
        if configured is None or self._inputs is None:
            # One that launch has started again waits here for a lifecycle manager, who may not know of it.
            return diagnostic_status(name=name, level="WARN", message="not active")
        if not configured.workers:
            return diagnostic_status(name=name, level="OK", message="no camera")
        with self._lock:
            cameras = configured.estimator.current(time.monotonic_ns())
        recent = self._problems.recent(time.monotonic())
        problems = [f"{source}: {problem.sentence}" for source, problem in recent.items()]
        if not cameras:
            return diagnostic_status(name=name, level="STALE", message="; ".join(problems) or "no image yet")
        problems += [f"{camera}: no image yet" for camera in self._missed(cameras)]
        unsure = [c for c in cameras if c.confidence < self.settings.estimator.min_confidence]
        said = [f"{c.name}: {c.condition}, lambda {c.guidance:.2f}" for c in cameras]
        said += [f"{c.name}: {', '.join(c.reasons)}" for c in unsure]
        said += problems
        values = {
            "calibrated": configured.estimator.coefficients.calibrated,
            **{f"{camera} images": worker.handled for camera, worker in configured.workers.items()},
            **{f"{camera} skipped": worker.dropped for camera, worker in configured.workers.items()},
        }
        return diagnostic_status(
            name=name, level="WARN" if unsure or problems else "OK", message="; ".join(said), values=values
        )

    def _missed(self, cameras: Sequence[CameraLighting]) -> list[str]:
        """Cameras that have had time to send an image and have not."""
        if time.monotonic() - self._began_s < _MISSED_AFTER_S:
            return []
        seen = {camera.name for camera in cameras}
        return [camera for camera in self.settings.cameras if camera not in seen]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until it is told to stop; 0 on an orderly end, 1 if it could not start."""
    return run_node(LightingNode, argv=argv, on_start=_autostart, close=LightingNode.close)


def _autostart(node: LightingNode) -> bool:
    return not node.settings.autostart or configure_and_activate(node)


if __name__ == "__main__":
    sys.exit(main())
