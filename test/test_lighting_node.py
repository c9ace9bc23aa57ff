# SPDX-License-Identifier: Apache-2.0
"""The lighting node over DDS, alone and beside the segmentation node, whose bank follows the light."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: it comes with ROS or with the extra pip-ros")

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import TransformStamped
from light_pictures import day_picture, night_picture
from node_harness import as_data, make_cloud, make_info, make_transform, save_two_bank_checkpoint, to_stamp
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, NavSatFix, PointCloud2
from std_msgs.msg import Float32

from xmodal_seg.lighting_state import BankSelector, BankSettings
from xmodal_seg.messages import stamp_ns
from xmodal_seg.nodes import lighting_input, lighting_node
from xmodal_seg.nodes.lighting_input import LightingInput
from xmodal_seg.nodes.lighting_inputs import exposure_of
from xmodal_seg.nodes.lighting_messages import read_lighting
from xmodal_seg.nodes.lighting_node import LightingNode
from xmodal_seg.nodes.segmentation_node import SegmentationNode

pytestmark = pytest.mark.ros
S = 10**9
START_NS = 1_700_000_000 * S
_NO_LIMITS = dict.fromkeys(("warn_frame_time_ms", "error_frame_time_ms", "warn_input_age_ms"), 1000000000000000.0)


def image_message(pixels: np.ndarray, stamp_ns: int) -> Image:
    height, width = pixels.shape[:2]
    message = Image(height=height, width=width, encoding="rgb8", step=width * 3, data=as_data(pixels))
    message.header.stamp, message.header.frame_id = to_stamp(stamp_ns), "front_optical"
    return message


def jpeg_message(pixels: np.ndarray, stamp_ns: int) -> CompressedImage:
    data = array("B")
    data.frombytes(cv2.imencode(".jpg", pixels[..., ::-1])[1].tobytes())
    message = CompressedImage(format="rgb8; jpeg compressed bgr8", data=data)
    message.header.stamp = to_stamp(stamp_ns)
    return message


class Stage:
    """One context with a lighting node, perhaps a segmentation node, and a peer that feeds and hears them."""

    def __init__(self, *, compressed: bool = False, checkpoint: Path | None = None, **parameters: Any) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.peer = Node("peer", context=self.context)
        self.nodes: list[Any] = []
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.peer)
        transport = {"image_transport": "compressed"} if compressed else {}
        common = {"diagnostics_period_s": 0.1, **transport}
        self._add(LightingNode, {**common, "max_rate_hz": 1000.0, **parameters})
        if checkpoint is not None:
            segmentation = {"checkpoint": str(checkpoint), "device": "cpu", "camera_timeout_ms": 5000.0, **_NO_LIMITS}
            segmentation |= {"error_input_age_ms": 1e15, "stale_after_s": 1e9, "bank.hold_s": 2.0}
            self._add(SegmentationNode, {**common, **segmentation})
        topic, kind = ("front/image/compressed", CompressedImage) if compressed else ("front/image", Image)
        self.image = self.peer.create_publisher(kind, topic, 10)
        self.info = self.peer.create_publisher(CameraInfo, "front/camera_info", 10)
        self.points = self.peer.create_publisher(PointCloud2, "points", 10)
        self.fix = self.peer.create_publisher(NavSatFix, "fix", 10)
        latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.transforms = self.peer.create_publisher(TransformStamped, "static_transforms", latched)
        self.lighting: list[DiagnosticArray] = []
        self.lambdas: list[float] = []
        self.clouds: list[PointCloud2] = []
        self.status: dict[str, DiagnosticStatus] = {}
        self.peer.create_subscription(DiagnosticArray, "lighting", self.lighting.append, 10)
        self.peer.create_subscription(Float32, "lighting/lambda", lambda message: self.lambdas.append(message.data), 10)
        self.peer.create_subscription(PointCloud2, "xmodal_seg/points", self.clouds.append, 10)
        self.peer.create_subscription(DiagnosticArray, "/diagnostics", self._note, 50)

    def start(self) -> Stage:
        for node in self.nodes:
            assert node.trigger_configure().name == "SUCCESS"
            assert node.trigger_activate().name == "SUCCESS"
        self.spin_until(lambda: self.image.get_subscription_count() == len(self.nodes), "image subscriptions")
        self.spin_until(lambda: self.peer.count_publishers("lighting") > 0, "the output")
        if len(self.nodes) > 1:
            self.spin_until(lambda: self.peer.count_subscribers("lighting") == 2, "the lighting input")
            self.spin_until(lambda: self.info.get_subscription_count() > 0, "the camera_info subscription")
        return self

    def show(self, pixels: np.ndarray, stamp_ns: int) -> DiagnosticArray:
        """Publish one image and wait for its estimate."""
        count = len(self.lighting)
        self.image.publish(image_message(pixels, stamp_ns))
        self.spin_until(lambda: len(self.lighting) > count, "an estimate")
        return self.lighting[-1]

    def spin_until(self, condition: Callable[[], bool], what: str, *, timeout_s: float = 30.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}; {self.status}"
            self.executor.spin_once(timeout_sec=0.05)

    def spin_for(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left_s := deadline - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=left_s)

    def message(self, name: str) -> str:
        status = self.status.get(name)
        return "" if status is None else status.message

    def values(self, name: str) -> dict[str, str]:
        status = self.status.get(name)
        return {} if status is None else {value.key: value.value for value in status.values}

    def close(self) -> None:
        for node in self.nodes:
            node.close()
        self.executor.shutdown()
        for node in (*self.nodes, self.peer):
            node.destroy_node()
        rclpy.shutdown(context=self.context)

    def _add(self, make: Any, parameters: dict[str, Any]) -> None:
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        try:
            self.nodes.append(make(context=self.context, parameter_overrides=overrides))
        except ValueError:
            rclpy.shutdown(context=self.context)
            raise
        self.executor.add_node(self.nodes[-1])

    def _note(self, message: DiagnosticArray) -> None:
        self.status.update({status.name: status for status in message.status})


@pytest.fixture
def stage() -> Iterator[Callable[..., Stage]]:
    stages: list[Stage] = []

    def make(**parameters: Any) -> Stage:
        stages.append(Stage(**parameters))
        return stages[-1].start()

    yield make
    for made in stages:
        made.close()


def test_day_and_night_are_said_with_the_images_stamp(stage: Callable[..., Stage]) -> None:
    shown = stage()
    said = shown.show(day_picture(), START_NS)
    assert said.header.stamp == to_stamp(START_NS)
    (front,) = read_lighting(said)
    assert (front.name, front.condition) == ("front", "day")
    assert front.guidance > 0.5
    shown.spin_until(lambda: bool(shown.lambdas), "lambda")
    assert shown.lambdas[0] == pytest.approx(front.guidance, abs=1e-3)
    again = [read_lighting(shown.show(night_picture(t % 5), START_NS + (t - 100) * S))[0] for t in range(12)]
    assert again[0].condition == "day"  # another recording, or a clock that was set in a tunnel
    assert again[-1].condition == "night"
    assert again[-1].guidance < 0.5


def test_compressed_images_are_read(stage: Callable[..., Stage]) -> None:
    shown = stage(compressed=True)
    shown.image.publish(jpeg_message(night_picture(size=(700, 1000)), START_NS))
    shown.spin_until(lambda: bool(shown.lighting), "an estimate")
    assert read_lighting(shown.lighting[0])[0].darkness > 0.5


def test_a_silent_camera_becomes_stale_and_a_bad_image_is_named(stage: Callable[..., Stage]) -> None:
    shown = stage()
    shown.show(day_picture(), START_NS)
    shown.spin_until(lambda: "stale" in shown.lighting[-1].status[0].message, "staleness")
    assert shown.lighting[-1].status[0].level == DiagnosticStatus.WARN
    shown.spin_until(lambda: shown.lambdas[-1] == pytest.approx(0.5), "the middle")
    broken = image_message(day_picture(), START_NS + S)
    broken.encoding = "nonsense"
    shown.image.publish(broken)
    shown.spin_until(lambda: "encoding" in shown.status["lighting: lighting"].message, "the sentence")
    (front,) = read_lighting(shown.show(day_picture(1), START_NS + 2 * S))
    assert front.guidance > 0.5


def test_images_of_1_hz_change_condition_and_bank(stage: Callable[..., Stage]) -> None:
    shown = stage(**{"estimator.time_constant_s": 0.0, "estimator.hysteresis.enter_s": 2.0})
    began_s = time.monotonic()
    for second in range(6):
        shown.spin_for(began_s + second - time.monotonic())
        pixels = day_picture(second) if second < 2 else night_picture(second)
        shown.image.publish(image_message(pixels, START_NS + second * S))
    shown.spin_for(0.8)
    selector = BankSelector(banks=("day", "night"), served="day", settings=BankSettings(hold_s=3.0))
    banks = [selector.update(read_lighting(said), stamp_ns(said)) for said in shown.lighting]
    assert (banks[0], banks[-1]) == ("day", "night")
    assert read_lighting(shown.lighting[-1])[0].condition == "night"
    first = next(i for i, said in enumerate(shown.lighting) if stamp_ns(said) > START_NS)
    assert not any("stale" in said.status[0].message for said in shown.lighting[first:])


def test_a_camera_whose_clock_is_off_does_not_hold_the_bank(stage: Callable[..., Stage]) -> None:
    shown = stage(cameras=["front", "rear"], **{"estimator.time_constant_s": 0.0, "estimator.hysteresis.enter_s": 0.5})
    for tenth in range(30):
        pixels = day_picture(tenth % 7) if tenth < 5 else night_picture(tenth % 7)
        taken_ns = START_NS + tenth * S // 10
        shown.show(pixels, taken_ns)
        count = len(shown.lighting)
        shown.nodes[0]._estimate("rear", image_message(pixels, taken_ns - 3600 * S))
        shown.spin_until(lambda count=count: len(shown.lighting) > count, "an estimate of the rear camera")
    stamps = [stamp_ns(said) for said in shown.lighting]
    assert stamps == sorted(stamps)
    assert (stamps[0], stamps[-1]) == (START_NS, START_NS + 29 * S // 10)
    selector = BankSelector(banks=("day", "night"), served="day", settings=BankSettings(hold_s=1.0))
    banks = [selector.update(read_lighting(said), stamp_ns(said)) for said in shown.lighting]
    assert (banks[0], banks[-1]) == ("day", "night")


def test_a_camera_that_never_sends_is_told_after_a_while(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = stage(cameras=["front", "rear"], **{"estimator.stale_after_s": 60.0})
    shown.show(day_picture(), START_NS)
    shown.spin_until(lambda: "front: day" in shown.message("lighting: lighting"), "the diagnostics")
    assert shown.status["lighting: lighting"].level == DiagnosticStatus.OK
    monkeypatch.setattr(lighting_node, "_MISSED_AFTER_S", 0.0)
    shown.spin_until(lambda: "rear: no image yet" in shown.message("lighting: lighting"), "the sentence")
    assert shown.status["lighting: lighting"].level == DiagnosticStatus.WARN
    assert "front: no image" not in shown.message("lighting: lighting")


def test_a_node_that_waits_for_its_activation_warns() -> None:
    shown = Stage()
    try:
        shown.spin_until(lambda: shown.message("lighting: lighting") == "not active", "the diagnostics")
        level = shown.status["lighting: lighting"].level
    finally:
        shown.close()
    assert level == DiagnosticStatus.WARN


def test_a_slow_camera_is_repeated_so_that_its_node_counts_as_alive(stage: Callable[..., Stage]) -> None:
    shown = stage(**{"estimator.stale_after_s": 60.0})
    shown.show(day_picture(), START_NS)
    shown.spin_until(lambda: len(shown.lighting) > 2, "two repetitions", timeout_s=10)
    assert {stamp_ns(said) for said in shown.lighting} == {START_NS}
    assert {read_lighting(said) for said in shown.lighting} == {read_lighting(shown.lighting[0])}


def test_exposure_metadata_count_by_their_stamp(stage: Callable[..., Stage]) -> None:
    shown = stage()
    metadata = SimpleNamespace(exposure_time=100_000, gain=30.0, header=SimpleNamespace(stamp=to_stamp(START_NS)))
    shown.nodes[0]._exposure("front", metadata)
    assert "exposure disagrees" in shown.show(day_picture(), START_NS).status[0].message
    assert "exposure" not in shown.show(day_picture(1), START_NS + 43_200 * S).status[0].message
    metadata.gain = float("nan")
    shown.nodes[0]._exposure("front", metadata)
    shown.spin_until(lambda: "exposure of 'front'" in shown.message("lighting: lighting"), "the sentence")


def test_points_and_fix_are_heard(stage: Callable[..., Stage]) -> None:
    pytest.importorskip("astral", reason="the extra `sun` is not installed")
    shown = stage(fix_topic="fix")
    shown.spin_until(lambda: shown.fix.get_subscription_count() == 1, "the fix subscription")
    shown.fix.publish(NavSatFix(latitude=51.5, longitude=0.0))
    for i in range(6):
        shown.points.publish(make_cloud(START_NS, num_points=500, seed=i))
        shown.spin_until(lambda i=i: shown.nodes[0]._configured.lidar.handled > i, "the sweep")
    shown.points.publish(make_cloud(START_NS, num_points=9))
    shown.spin_until(lambda: shown.nodes[0]._configured.lidar.handled > 6, "the last sweep")
    noon_ns = START_NS + 43_600 * S  # 2023-11-15 10:20 UTC
    said = shown.show(night_picture(), START_NS)
    assert "LiDAR degraded" in said.status[0].message
    assert "sun" in shown.show(night_picture(1), noon_ns).status[0].message


def test_estimator_parameters_change_while_it_runs(stage: Callable[..., Stage]) -> None:
    shown = stage()
    (result,) = shown.nodes[0].set_parameters([Parameter("estimator.lambda_max", value=0.6)])
    assert result.successful
    (front,) = read_lighting(shown.show(day_picture(), START_NS))
    assert front.guidance <= 0.6
    (result,) = shown.nodes[0].set_parameters([Parameter("estimator.lambda_min", value=0.9)])
    assert not result.successful
    assert "lambda_min" in result.reason


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"cameras": ["front", "front"]}, "cameras: expected different"),
        ({"image_topics": ["a", "b"]}, "image_topics: expected one entry for each of the 1 cameras"),
        ({"nonsense": 1}, "no parameter 'nonsense'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(parameters: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Stage(**parameters)


@pytest.mark.parametrize("parameters", [{"coefficients": "/nowhere.yaml"}, {"exposure_topics": ["front/meta"]}])
def test_what_is_missing_fails_the_start(parameters: dict[str, Any]) -> None:
    shown = Stage(**parameters)
    node = shown.nodes[0]
    started = node.trigger_configure().name == "SUCCESS" and node.trigger_activate().name == "SUCCESS"
    shown.close()
    assert not started


def test_without_a_camera_nothing_is_missed() -> None:
    shown = Stage(cameras=[""])
    node = shown.nodes[0]
    started = node.trigger_configure().name == "SUCCESS" and node.trigger_activate().name == "SUCCESS"
    try:
        shown.spin_until(lambda: any(s.message == "no camera" for s in shown.status.values()), "the diagnostics")
        level = shown.status["lighting: lighting"].level
    finally:
        shown.close()
    assert started
    assert level == DiagnosticStatus.OK


def test_both_nodes_follow_the_light_with_bank_and_lambda(stage: Callable[..., Stage], tmp_path: Path) -> None:
    shown = stage(checkpoint=save_two_bank_checkpoint(tmp_path / "checkpoint"), **{"estimator.time_constant_s": 0.5})
    shown.transforms.publish(make_transform())
    banks, lambdas = [], []
    for second in range(27):
        if second == 17:
            assert shown.nodes[1].set_parameters([Parameter("adaptation.mode", value="off")])[0].successful
        stamp_ns = START_NS + second * S
        pixels = day_picture(second % 7) if second < 3 or 10 <= second < 17 else night_picture(second % 7)
        shown.show(pixels if second < 24 else np.zeros_like(pixels), stamp_ns)
        shown.info.publish(make_info(stamp_ns, size=pixels.shape[:2]))
        count = len(shown.clouds)
        shown.points.publish(make_cloud(stamp_ns, seed=second))
        shown.spin_until(lambda count=count: len(shown.clouds) > count, "a labelled sweep")
        banks.append(shown.nodes[1]._configured.segmenter.bank)
        lambdas.append(read_lighting(shown.lighting[-1])[0].guidance)
    changes = [(second, bank) for second, bank in enumerate(banks) if second == 0 or bank != banks[second - 1]]
    assert [bank for _, bank in changes] == ["day", "night", "day"], "and stays so from the 17th second on"
    assert 3 + 2 <= changes[1][0] < 10
    assert 10 + 2 <= changes[2][0] < 17
    assert lambdas[2] > 0.6 > 0.4 > lambdas[9]
    assert lambdas[16] > 0.6 > 0.4 > lambdas[23]
    # What a black image shows is labelled from the cloud alone.
    shown.spin_until(
        lambda: int(shown.values("xmodal_seg: segmentation").get("blind_cameras", 0)) >= 1,
        "diagnostics of the last second",
    )
    values = shown.values("xmodal_seg: segmentation")
    assert (values["bank"], values["condition"], values["bank_changes"]) == ("day", "night", "2")


def test_a_message_that_says_nonsense_is_named_and_changes_nothing(ros_context: Any) -> None:
    node = Node("listener", context=ros_context)
    problems: list[str] = []
    heard = LightingInput(
        node=node,
        topic="lighting",
        banks=("day", "night"),
        served="day",
        settings=BankSettings(),
        on_problem=problems.append,
    )
    for values, sentence in (
        ({"darkness": "0.5", "lambda": "2", "confidence": "1", "condition": "day"}, "lambda: expected a number"),
        ({"darkness": "x", "lambda": "1", "confidence": "1", "condition": "day"}, "darkness: expected a number"),
        ({"darkness": "0", "lambda": "1", "confidence": "1", "condition": "noon"}, "condition: expected one of day"),
    ):
        pairs = [SimpleNamespace(key=key, value=value) for key, value in values.items()]
        heard._heard(SimpleNamespace(status=[SimpleNamespace(hardware_id="front", values=pairs)]))
        assert sentence in problems[-1]
    assert heard.bank == "day"
    assert heard.values() == {"lighting": "not heard yet"}
    heard.close()
    node.destroy_node()


@pytest.mark.parametrize(("banks", "warned"), [(("day", "night"), True), (("default",), False)])
def test_nobody_watching_the_light_is_told_where_there_are_banks(
    ros_context: Any, monkeypatch: pytest.MonkeyPatch, banks: tuple[str, ...], warned: bool
) -> None:
    node = Node("listener", context=ros_context)
    heard = LightingInput(
        node=node, topic="lighting", banks=banks, served=banks[0], settings=BankSettings(), on_problem=pytest.fail
    )
    assert heard.warnings() == []
    monkeypatch.setattr(lighting_input, "_MISSED_AFTER_S", 0.0)
    assert [sentence[:39] for sentence in heard.warnings()] == ["lighting: nothing heard yet, so bank 'd"] * warned
    heard._heard(SimpleNamespace(status=[], header=SimpleNamespace(stamp=SimpleNamespace(sec=1, nanosec=0))))
    assert ["nothing heard for 0 s" in sentence for sentence in heard.warnings()] == [True] * warned
    monkeypatch.undo()
    assert heard.warnings() == []
    heard.close()
    node.destroy_node()


def test_flir_metadata_is_in_microseconds() -> None:
    exposure = exposure_of(SimpleNamespace(exposure_time=2500, gain=6.0))
    assert (exposure.time_s, exposure.gain_db) == (pytest.approx(0.0025), 6.0)
