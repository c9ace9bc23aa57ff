# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node `xmodal_seg`: camera images and LiDAR sweeps in, labelled sweeps out.

Threads: the executor's callbacks only fill the pairing and a keep-newest mailbox; one worker decodes, infers and
publishes. Between two frames the worker changes to the weight bank that the topic `lighting` asks for, and puts in what
the adapter, which learns in a thread of its own, has on offer.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState

from xmodal_seg.adaptation.adapter import OnlineAdapter
from xmodal_seg.calibration_file import load_calibration_file
from xmodal_seg.devices import GpuWatch, can_compute, is_lost, unused_gpu
from xmodal_seg.inference import Segmenter
from xmodal_seg.lighting_health import seeing_cameras
from xmodal_seg.nodes.adaptation_link import AdaptationLink
from xmodal_seg.nodes.adaptation_services import AdaptationServices
from xmodal_seg.nodes.conversions import diagnostic_status, make_image_decoder
from xmodal_seg.nodes.extrinsics import Extrinsics, make_extrinsics
from xmodal_seg.nodes.frame_assembly import FrameAssembler
from xmodal_seg.nodes.health import Health
from xmodal_seg.nodes.inputs import Inputs
from xmodal_seg.nodes.lighting_input import LightingInput
from xmodal_seg.nodes.lighting_messages import ReportedLight
from xmodal_seg.nodes.mailbox import Worker
from xmodal_seg.nodes.outputs import Outputs
from xmodal_seg.nodes.parameters import ParameterGuard, declare_all
from xmodal_seg.nodes.runner import GpuLostError, run_node
from xmodal_seg.nodes.segmentation_settings import SegmentationNodeSettings
from xmodal_seg.nodes.transitions import configure_and_activate, transition
from xmodal_seg.pairing import Pair

UNTRAINED_WARNING = "the weights are untrained: labels mean nothing; give a trained one by the parameter checkpoint"
_STAMPS_GO_BACK = "the stamps of its images keep going back: two publishers on one topic, or two clocks?"
_STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class _Configured:
    """What on_configure makes and on_cleanup frees."""

    segmenter: Segmenter
    extrinsics: Extrinsics
    assemble: FrameAssembler
    outputs: Outputs
    worker: Worker[Pair]
    gpu: GpuWatch  # of the worker
    adaptation: AdaptationLink


class SegmentationNode(LifecycleNode):
    """Labels every point of every sweep; see the README for topics, parameters and services."""

    def __init__(self, **node_args: Any) -> None:
        """Declares the parameters. Raises ValueError, one sentence, if they do not fit together."""
        super().__init__("xmodal_seg", **node_args)
        self.settings = declare_all(self, SegmentationNodeSettings)
        self._guard = ParameterGuard(
            node=self, cls=SegmentationNodeSettings, on_change=self._settings_changed, check=self._check_settings
        )
        self._configured: _Configured | None = None
        self._inputs: Inputs | None = None  # while active
        self._lighting: LightingInput | None = None  # while active, if asked for
        self._gpu_lost: str | None = None  # the error that ended all work on the GPU
        self._health = Health(now_s=time.monotonic())
        self._adaptation_services = AdaptationServices(
            node=self,
            adapter=self._adapter,
            mode=lambda: self.settings.adaptation.mode,
            enable=self._enable_adaptation,
        )
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # The steady clock: diagnostics must go on when simulated time stands still.
        self._diagnostics_timer = self.create_timer(
            self.settings.diagnostics_period_s, self._publish_diagnostics, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    @transition
    def on_configure(self, _: LifecycleState) -> None:
        """Load weights and calibration, warm up, create publishers."""
        settings = self.settings
        if settings.num_threads:
            torch.set_num_threads(settings.num_threads)
        calibration_file = load_calibration_file(settings.calibration_file) if settings.calibration_file else None
        decode_image = make_image_decoder(settings.image_decoder)
        segmenter = self._load_model()
        worker = Worker(handler=self._process, on_error=self._frame_failed, name="inference")
        adaptation = AdaptationLink(segmenter=segmenter, settings=settings.adaptation, idle=lambda: worker.is_idle)
        extrinsics = make_extrinsics(node=self, settings=settings, calibration_file=calibration_file)
        topics = [self.resolve_topic_name(settings.subscribed_image_topic(i)) for i in range(len(settings.cameras))]
        rectified = [settings.is_rectified(topic) for topic in topics]
        assemble = FrameAssembler(
            settings=settings,
            rectified=rectified,
            extrinsics=extrinsics,
            calibration_file=calibration_file,
            decode_image=decode_image,
        )
        self._configured = _Configured(
            segmenter=segmenter,
            extrinsics=extrinsics,
            assemble=assemble,
            outputs=Outputs(node=self, label_space=segmenter.label_space, cameras=settings.cameras),
            worker=worker,
            gpu=GpuWatch(probe=partial(can_compute, segmenter.device)),
            adaptation=adaptation,
        )
        self.get_logger().info(f"model: {segmenter.description}")
        for camera, topic, is_rectified in zip(settings.cameras, topics, rectified, strict=True):
            kind = "rectified, projected through P" if is_rectified else "raw, projected through K and D"
            self.get_logger().info(f"camera {camera}: images on {topic} are {kind}")
        for warning in self._warnings(segmenter):
            self.get_logger().warning(warning)

    @transition
    def on_activate(self, state: LifecycleState) -> None:
        """Start the worker and subscribe; a failure leaves the node inactive and configured."""
        configured = self._require_configured()
        configured.worker.start()
        super().on_activate(state)
        try:
            configured.adaptation.start()
            self._health = Health(now_s=time.monotonic())
            self._inputs = Inputs(
                node=self,
                settings=self.settings,
                on_pair=self._pair_ready,
                on_sweep=lambda is_old: self._health.input_arrived(time.monotonic(), has_old_stamp=is_old),
                on_jump=self._time_jumped,
                on_camera_jump=lambda camera: self._report(f"camera {camera!r}", _STAMPS_GO_BACK, level="WARN"),
            )
            if self.settings.lighting_topic:
                self._lighting = LightingInput(
                    node=self,
                    topic=self.settings.lighting_topic,
                    banks=configured.segmenter.banks,
                    served=configured.segmenter.bank,
                    settings=self.settings.bank,
                    on_problem=lambda sentence: self._report("lighting", sentence, level="WARN"),
                )
        except Exception:
            super().on_deactivate(state)
            self._stop_work()
            raise
        configured.outputs.announce_labels()

    @transition
    def on_deactivate(self, state: LifecycleState) -> None:
        """Unsubscribe, let the frame in work end, drop what waits."""
        self._stop_work()
        super().on_deactivate(state)

    @transition
    def on_cleanup(self, _: LifecycleState) -> None:
        """Free the model and its GPU memory; refused while a frame is still in work."""
        self.close()

    @transition
    def on_shutdown(self, _: LifecycleState) -> None:
        """End from any state."""
        self.close()

    @transition
    def on_error(self, _: LifecycleState) -> None:
        """Back to unconfigured after a failed transition."""
        self.close()

    @property
    def gpu_lost(self) -> str | None:
        """The error after which this process can compute nothing more on its GPU."""
        return self._gpu_lost

    def close(self) -> None:
        """Stop the threads and free everything that configuring made; harmless in any state.

        Raises RuntimeError, and frees nothing, while the worker keeps at its frame or the adapter at its turn.
        """
        if not self._stop_work():
            raise RuntimeError("the frame or the turn in work does not end, so its model cannot be freed")
        configured, self._configured = self._configured, None
        if configured is not None:
            configured.outputs.close()
            configured.extrinsics.close()
            configured.adaptation.close()  # first: the segmenter empties the GPU's cache, of these models too
            configured.segmenter.close()

    def _load_model(self) -> Segmenter:
        settings = self.settings
        try:
            segmenter = Segmenter.load(
                settings.checkpoint or None,
                device=settings.device,
                point_scope=settings.point_scope,
                precision=settings.precision,
            )
            segmenter.warm_up(num_cameras=len(settings.cameras))
        except RuntimeError as error:
            self._gpu_lost = str(error) if is_lost(error) else None
            raise
        return segmenter

    def _require_configured(self) -> _Configured:
        if self._configured is None:
            raise RuntimeError("not configured")
        return self._configured

    def _stop_work(self) -> bool:
        """Unsubscribe and stop the threads; False if one is still at a frame or a turn."""
        inputs, self._inputs = self._inputs, None
        lighting, self._lighting = self._lighting, None
        for subscribed in (inputs, lighting):
            if subscribed is not None:
                subscribed.close()
        if self._configured is None:
            return True
        ended = {
            "frame": self._configured.worker.stop(timeout_s=_STOP_TIMEOUT_S),
            "turn of the adapter": self._configured.adaptation.stop(timeout_s=_STOP_TIMEOUT_S),
        }
        for work in (work for work, has_ended in ended.items() if not has_ended):
            self.get_logger().warning(f"the {work} in work has not ended after {_STOP_TIMEOUT_S:.0f} s")
        return all(ended.values())

    def _pair_ready(self, pair: Pair) -> None:
        dropped = self._require_configured().worker.put(pair)
        if dropped:
            self._health.sweeps_dropped(dropped)

    def _process(self, pair: Pair) -> None:
        """Worker: one pair of messages to one labelled cloud."""
        configured = self._require_configured()
        start_s = time.perf_counter()
        assembled = configured.assemble(pair)
        assembled_s = time.perf_counter()
        for camera, problem in assembled.problems.items():
            self._health.count("camera_problems")
            self._report(f"camera {camera!r}", problem, level="WARN")
        if self.settings.cameras and not assembled.frame.cameras:
            self._health.count("lidar_only_frames")
        lights = self._follow_light(configured.segmenter)
        frame = seeing_cameras(assembled.frame, lights.values())
        self._health.count("blind_cameras", len(assembled.frame.cameras) - len(frame.cameras))
        adaptation = configured.adaptation
        adaptation.serve()
        labelled = configured.segmenter.predict(
            frame, min_probability=self.settings.min_probability, keep=adaptation.is_learning
        )
        configured.gpu.succeeded()
        labelled_s = time.perf_counter()
        outputs = configured.outputs
        outputs.publish_served(pair.cloud.header, frame, labelled)
        outputs.publish_cloud(pair.cloud.header, assembled.frame, labelled)
        headers = {name: paired.image.header for name, paired in pair.images.items()}
        outputs.publish_images(assembled.frame, labelled, headers=headers, radius=self.settings.overlay_radius_px)
        end_s = time.perf_counter()
        times_ms = {
            "assemble": (assembled_s - start_s) * 1e3,
            **labelled.times_ms,
            "publish": (end_s - labelled_s) * 1e3,
            "frame": (end_s - start_s) * 1e3,
        }
        now_ns = self.get_clock().now().nanoseconds
        age_ms = (now_ns - pair.stamp_ns) / 1e6 if now_ns else 0.0  # simulated time has not begun
        outputs.publish_times({**times_ms, "pipeline_latency": age_ms})
        self._health.frame_done(
            now_s=time.monotonic(),
            frame_ms=times_ms["frame"],
            age_ms=age_ms,
            stages_ms=times_ms,
            num_points=frame.num_points,
            num_left_out=labelled.num_left_out,
        )
        adaptation.observe(frame, labelled, lights=lights, latency_ms=times_ms["frame"])

    def _follow_light(self, segmenter: Segmenter) -> dict[str, ReportedLight]:
        """Worker, between two frames: serve the bank that the light asks for, unless it is to stay.

        Returns the light by camera, asked for before the model runs: after a slow frame it would look old.
        """
        lighting = self._lighting  # the other thread may take it away
        if lighting is None:
            return {}
        if self.settings.adaptation.mode != "off" and lighting.bank != segmenter.bank:
            segmenter.use_bank(lighting.bank)
            self._health.count("bank_changes")
            self.get_logger().info(f"the light has changed: bank {segmenter.bank}")
        return lighting.lights()

    def _frame_failed(self, error: Exception) -> None:
        """A frame that cannot be labelled is said and left; the next one is processed."""
        sentence = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        if self._require_configured().gpu.failed(error):
            self._gpu_lost = sentence
        self._health.count("failed_frames")
        self._report("sweep not labelled", sentence, level="ERROR")

    def _warnings(self, segmenter: Segmenter) -> list[str]:
        """What is wrong with the model for as long as it serves."""
        slow = unused_gpu() if self.settings.device == "auto" else None
        return [*([] if segmenter.trained else [UNTRAINED_WARNING]), *([slow] if slow else [])]

    def _report(self, source: str, sentence: str, *, level: Literal["WARN", "ERROR"]) -> None:
        """To the diagnostics, and now and then to the log."""
        if self._health.problem(source, sentence, now_s=time.monotonic(), level=level):
            # Two call sites, because rclpy ties a severity to the place that logs.
            if level == "WARN":
                self.get_logger().warning(f"{source}: {sentence}")
            else:
                self.get_logger().error(f"{source}: {sentence}")

    def _time_jumped(self) -> None:
        self._health.time_jumped(time.monotonic())
        if self._configured is not None:
            self._configured.extrinsics.clear()
        if self._lighting is not None:
            self._lighting.reset()

    def _check_settings(self, settings: SegmentationNodeSettings) -> None:
        if settings.adaptation.learns and self._configured is not None:
            self._adapter()

    def _settings_changed(self, settings: SegmentationNodeSettings) -> None:
        self.settings = settings
        if self._configured is not None:
            self._configured.adaptation.apply(settings.adaptation)

    def _adapter(self) -> OnlineAdapter:
        """Raises ValueError before the node is configured and for a model that cannot adapt."""
        if self._configured is None:
            raise ValueError("adaptation: the node is not configured yet")
        return self._configured.adaptation.adapter

    def _enable_adaptation(self) -> None:
        self._require_configured().adaptation.enable(self.settings.adaptation)

    def _publish_diagnostics(self) -> None:
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        message.status = [self._status()]
        if self._configured is not None:
            self._tell_news(self._configured.adaptation)
            message.status.append(self._configured.adaptation.status(name=f"{self.get_name()}: adaptation"))
        self._diagnostics.publish(message)

    def _tell_news(self, adaptation: AdaptationLink) -> None:
        said, problems = adaptation.news(now_s=time.monotonic())
        for sentence in said:
            self.get_logger().info(f"adaptation: {sentence}")
        for sentence in problems:
            self._report("adaptation", sentence, level="WARN")

    def _status(self) -> DiagnosticStatus:
        name = f"{self.get_name()}: segmentation"
        configured, inputs = self._configured, self._inputs
        if configured is None or inputs is None:
            # A node that launch has started again waits here for a lifecycle manager, who may not know of it.
            return diagnostic_status(name=name, level="WARN", message="not active")
        busy_since_s = configured.worker.busy_since
        busy_s = 0.0 if busy_since_s is None else time.monotonic() - busy_since_s
        if busy_s > self.settings.error_frame_time_ms / 1e3:
            self._report("inference", "one frame takes longer than error_frame_time_ms", level="ERROR")
        notes = self._warnings(configured.segmenter)
        if self._lighting is not None and self.settings.cameras and self.settings.adaptation.mode != "off":
            notes += self._lighting.warnings()
        counters = {f"pairing {key}": str(count) for key, count in inputs.counters.items()}
        report = self._health.report(
            now_s=time.monotonic(),
            settings=self.settings,
            extra={
                "model": configured.segmenter.description,
                "bank": configured.segmenter.bank,
                **({} if self._lighting is None else self._lighting.values()),
                "busy_s": f"{busy_s:.1f}",
                **counters,
            },
            notes=notes,
        )
        return diagnostic_status(name=name, level=report.level, message=report.message, values=report.values)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until it is told to stop; 0 on an orderly end, 1 if it could not start, 75 if it lost its GPU."""
    return run_node(SegmentationNode, argv=argv, on_start=_autostart, finished=_check_gpu, close=SegmentationNode.close)


def _autostart(node: SegmentationNode) -> bool:
    if not node.settings.autostart or configure_and_activate(node):
        return True
    _check_gpu(node)
    return False


def _check_gpu(node: SegmentationNode) -> bool:
    """Never finished. Raises GpuLostError once nothing more can be computed."""
    if node.gpu_lost is not None:
        raise GpuLostError(f"the GPU is lost to this process: {node.gpu_lost}")
    return False


if __name__ == "__main__":
    sys.exit(main())
