# SPDX-License-Identifier: Apache-2.0
"""The node from messages to messages: alignment, back-pressure, recovery, life cycle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: it comes with ROS or with the extra pip-ros")

from node_harness import Harness, make_cloud, make_image, make_info, make_transform, save_tiny_checkpoint
from rclpy.parameter import Parameter

from xmodal_seg.labels import UNLABELED
from xmodal_seg.messages import decode_cloud
from xmodal_seg.nodes import segmentation_node
from xmodal_seg.nodes.runner import GpuLostError

pytestmark = pytest.mark.ros
MS = 1_000_000
START_NS = 1_700_000_000 * 10**9


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture
def start(checkpoint: Path) -> Iterator[Callable[..., Harness]]:
    harnesses: list[Harness] = []

    def make(**parameters: Any) -> Harness:
        harnesses.append(Harness(checkpoint, **parameters))
        return harnesses[-1].start()

    yield make
    for harness in harnesses:
        harness.close()


def fields_of(cloud: Any) -> np.ndarray:
    dtype = np.dtype(
        {
            "names": [field.name for field in cloud.fields],
            "formats": [{2: "u1", 7: "<f4", 6: "<u4"}[field.datatype] for field in cloud.fields],
            "offsets": [field.offset for field in cloud.fields],
            "itemsize": cloud.point_step,
        }
    )
    return np.frombuffer(bytes(cloud.data), dtype)


def test_every_point_comes_back_in_order_with_the_inputs_header(start: Callable[..., Harness]) -> None:
    harness = start()
    harness.transforms.publish(make_transform())
    sent = [harness.send(START_NS + i * 100 * MS, num_points=400 + i, seed=i) for i in range(1)]
    for i in range(1, 4):
        harness.wait_for_clouds(i)
        sent.append(harness.send(START_NS + i * 100 * MS, num_points=400 + i, seed=i))
    for cloud, origin in zip(harness.wait_for_clouds(4), sent, strict=True):
        assert cloud.header == origin.header
        points = fields_of(cloud)
        expected = decode_cloud(origin, intensity_range=None).points
        np.testing.assert_array_equal(np.stack([points["x"], points["y"], points["z"]], axis=1), expected)
        assert (points["label"] < 6).all()
        assert ((points["probability"] > 0) & (points["probability"] <= 1)).all()
    assert harness.wait_for_status("labelling").level == b"\x00"


def test_nan_points_stay_in_place_unlabelled(start: Callable[..., Harness]) -> None:
    harness = start()
    harness.transforms.publish(make_transform())
    message = make_cloud(START_NS)
    values = np.frombuffer(bytes(message.data), np.float32).reshape(-1, 4).copy()
    values[::7, 1] = np.nan
    message.data = values.tobytes()
    harness.image.publish(make_image(START_NS))
    harness.info.publish(make_info(START_NS))
    harness.points.publish(message)
    points = fields_of(harness.wait_for_clouds(1)[0])
    np.testing.assert_array_equal(points["label"] == UNLABELED, np.isnan(values[:, 1]))
    assert (points["probability"][::7] == 0).all()


def test_an_empty_sweep_is_answered(start: Callable[..., Harness]) -> None:
    harness = start(cameras=[""])
    harness.points.publish(make_cloud(START_NS, num_points=0))
    assert harness.wait_for_clouds(1)[0].width == 0


def test_a_sweep_goes_on_without_its_camera_and_says_so(start: Callable[..., Harness]) -> None:
    harness = start(camera_timeout_ms=50.0)
    harness.points.publish(make_cloud(START_NS))
    assert (fields_of(harness.wait_for_clouds(1)[0])["label"] < 6).all()
    assert "camera 'front'" in harness.wait_for_status("no image on '/front/image' yet").message


def test_sweeps_that_all_have_one_stamp_are_named(start: Callable[..., Harness]) -> None:
    harness = start(cameras=[""])

    def is_told() -> bool:
        harness.points.publish(make_cloud(0))
        return any("came with old or repeated stamps" in status.message for status in harness.diagnostics)

    harness.spin_until(is_told, "the status of repeated stamps")
    harness.wait_for_clouds(1)  # on a busy computer its labels come after the status
    assert len(harness.clouds) == 1


def test_a_missing_transform_names_both_frames(start: Callable[..., Harness]) -> None:
    harness = start(transform_timeout_s=0.05)
    harness.send(START_NS)
    harness.wait_for_clouds(1)
    message = harness.wait_for_status("front_optical").message
    assert "'lidar'" in message
    harness.transforms.publish(make_transform())
    harness.send(START_NS + 100 * MS)
    harness.wait_for_clouds(2)


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda cloud: setattr(cloud.fields[1], "datatype", 99), "datatype"),
        (lambda cloud: setattr(cloud, "fields", cloud.fields[1:]), "'x'"),
        (lambda cloud: setattr(cloud, "data", cloud.data[:-5]), "data"),
    ],
)
def test_a_malformed_sweep_is_named_and_the_next_one_labelled(
    start: Callable[..., Harness], spoil: Callable[[Any], None], word: str
) -> None:
    harness = start(cameras=[""])
    bad = make_cloud(START_NS)
    spoil(bad)
    harness.points.publish(bad)
    status = harness.wait_for_status("sweep not labelled")
    assert word in status.message
    assert status.level == b"\x02"
    harness.points.publish(make_cloud(START_NS + 100 * MS))
    harness.wait_for_clouds(1)


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda image, info: setattr(image, "encoding", "nonsense"), "encoding"),
        (lambda image, info: setattr(info, "k", [0.0] * 9), "camera_info.k"),
        (lambda image, info: setattr(info, "width", 99), "99"),
    ],
)
def test_a_bad_camera_costs_only_the_camera(
    start: Callable[..., Harness], spoil: Callable[[Any, Any], None], word: str
) -> None:
    harness = start()
    harness.transforms.publish(make_transform())
    image, info = make_image(START_NS), make_info(START_NS)
    spoil(image, info)
    harness.image.publish(image)
    harness.info.publish(info)
    harness.points.publish(make_cloud(START_NS))
    assert (fields_of(harness.wait_for_clouds(1)[0])["label"] < 6).all()
    assert word in harness.wait_for_status("camera 'front'").message
    harness.send(START_NS + 100 * MS)
    harness.wait_for_clouds(2)


def test_a_bag_loop_recovers_at_once(start: Callable[..., Harness]) -> None:
    harness = start()
    harness.transforms.publish(make_transform())
    stamps = [START_NS + i * 100 * MS for i in range(30)]
    expected = 0
    for _ in range(2):
        for stamp_ns in stamps[::10]:
            harness.send(stamp_ns)
            expected += 1
            harness.wait_for_clouds(expected)
    found = [cloud.header.stamp.sec * 10**9 + cloud.header.stamp.nanosec for cloud in harness.clouds]
    assert found == stamps[::10] * 2
    assert not any("no image" in status.message for status in harness.diagnostics)


def test_calibration_can_come_from_a_file_alone(start: Callable[..., Harness], tmp_path: Path) -> None:
    path = tmp_path / "calibration.yaml"
    path.write_text(
        """
cameras:
  front_optical:
    camera_T_lidar: [[0, -1, 0, 0], [0, 0, -1, 0.1], [1, 0, 0, 0], [0, 0, 0, 1]]
    intrinsics: {image_size: [60, 80], camera_matrix: [[40, 0, 40], [0, 40, 30], [0, 0, 1]]}
""",
        encoding="utf-8",
    )
    harness = start(calibration_file=str(path), use_camera_info=False)
    harness.image.publish(make_image(START_NS))
    harness.points.publish(make_cloud(START_NS))
    harness.wait_for_clouds(1)
    status = harness.wait_for_status("")
    assert {value.key: value.value for value in status.values}.get("camera_problems") is None


def test_dynamic_parameters_act_and_the_others_are_refused(start: Callable[..., Harness]) -> None:
    harness = start(cameras=[""])
    accepted = harness.node.set_parameters([Parameter("min_probability", value=1.0)])[0]
    refused = harness.node.set_parameters([Parameter("checkpoint", value="other")])[0]
    assert (accepted.successful, refused.successful) == (True, False)
    harness.points.publish(make_cloud(START_NS))
    assert (fields_of(harness.wait_for_clouds(1)[0])["label"] == UNLABELED).all()


def test_the_life_cycle_can_be_repeated(checkpoint: Path) -> None:
    harness = Harness(checkpoint, cameras=[""])
    try:
        for round_number in range(3):
            harness.start()
            harness.points.publish(make_cloud(START_NS + round_number * 100 * MS))
            harness.wait_for_clouds(round_number + 1)
            assert harness.node.trigger_deactivate().name == "SUCCESS"
            assert harness.node.trigger_cleanup().name == "SUCCESS"
        assert harness.node.trigger_shutdown().name == "SUCCESS"
    finally:
        harness.close()


def test_transitions_during_a_long_frame_never_run_two_workers(
    start: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmentation_node, "_STOP_TIMEOUT_S", 0.01)
    harness = start(transform_timeout_s=1.5)
    harness.send(START_NS)  # its frame waits for a transform that does not come
    configured = harness.node._require_configured()
    harness.spin_until(lambda: configured.worker.busy_since is not None, "the frame to be in work")
    assert harness.node.trigger_deactivate().name == "SUCCESS"
    assert harness.node.trigger_activate().name == "FAILURE"
    assert harness.node.trigger_cleanup().name == "FAILURE"
    harness.spin_until(lambda: not configured.worker.is_alive, "the frame to end")
    assert harness.node.trigger_activate().name == "SUCCESS"
    harness.transforms.publish(make_transform())
    harness.spin_until(lambda: harness.points.get_subscription_count() > 0, "the subscription")
    harness.send(START_NS + 100 * MS)
    assert harness.wait_for_clouds(1)[0].header.stamp.nanosec == 100 * MS


@pytest.mark.skipif(find_spec("message_filters") is not None, reason="message_filters is installed")
def test_a_failed_activation_leaves_the_node_inactive_and_configured(checkpoint: Path) -> None:
    harness = Harness(checkpoint, sync_policy="approximate")
    try:
        assert harness.node.trigger_configure().name == "SUCCESS"
        assert harness.node.trigger_activate().name == "FAILURE"
        assert harness.node.trigger_activate().name == "FAILURE"
        assert harness.node.trigger_cleanup().name == "SUCCESS"
    finally:
        harness.close()


def test_whether_images_are_rectified_is_told_from_the_remapped_topic(checkpoint: Path) -> None:
    remap = ["--ros-args", "-r", "front/image:=/cam/image_rect_color"]
    harness = Harness(checkpoint, cli_args=remap)
    try:
        assert harness.node.trigger_configure().name == "SUCCESS"
        assert harness.node._require_configured().assemble._rectified == (True,)
    finally:
        harness.close()


def test_the_camera_info_of_another_frame_is_not_taken(start: Callable[..., Harness]) -> None:
    harness = start(camera_timeout_ms=50.0)
    harness.transforms.publish(make_transform())
    image = make_image(START_NS, frame_id="front_optical_2")
    harness.info.publish(make_info(START_NS - 100 * MS))
    harness.image.publish(image)
    harness.points.publish(make_cloud(START_NS))
    harness.wait_for_clouds(1)
    assert "'front_optical_2'" in harness.wait_for_status("camera 'front'").message


def test_a_failed_configuration_leaves_the_node_unconfigured_and_usable(tmp_path: Path) -> None:
    harness = Harness(tmp_path / "nothing")
    try:
        assert harness.node.trigger_configure().name == "FAILURE"
        assert harness.node.trigger_configure().name == "FAILURE"  # again, instead of an invalid transition
    finally:
        harness.close()


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"cameras": ["a", "a"]}, "cameras"),
        ({"cameras": ["a", "b"], "image_topics": ["x"]}, "image_topics"),
        ({"transforms": "file"}, "calibration_file"),
        ({"intensity_max": -1.0}, "intensity_max"),
        ({"sync_tolerance_ms": 0.0}, "sync_tolerance_ms"),
        ({"intensity_min": float("nan")}, "intensity_min"),
        ({"warn_frame_time_ms": 5000.0, "error_frame_time_ms": 100.0}, "warn_frame_time_ms"),
        ({"misspelt": 1}, "misspelt"),
        ({"cameras": 3}, "cameras"),
    ],
)
def test_wrong_parameters_end_the_start_with_one_sentence(checkpoint: Path, parameters: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word) as caught:
        Harness(checkpoint, **parameters)
    assert "\n" not in str(caught.value)


def test_a_gpu_that_is_lost_ends_the_node_and_a_frame_that_fails_does_not(
    start: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = "CUDA error: misaligned address"
    errors = iter([RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError(lost)])

    def fail(*_: Any, **__: Any) -> None:
        raise next(errors)

    monkeypatch.setattr(segmentation_node.Segmenter, "predict", fail, raising=True)
    monkeypatch.setattr(segmentation_node.Segmenter, "warm_up", lambda *_, **__: None)
    harness = start(cameras=[""])
    harness.points.publish(make_cloud(START_NS))
    harness.wait_for_status("mat1 and mat2")
    assert not segmentation_node._check_gpu(harness.node)

    harness.points.publish(make_cloud(START_NS + 100 * MS))
    harness.wait_for_status(lost)
    with pytest.raises(GpuLostError, match=f"the GPU is lost to this process: RuntimeError: {lost}"):
        segmentation_node._check_gpu(harness.node)


def test_a_gpu_that_no_longer_answers_is_told_from_frames_that_keep_failing(
    start: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = segmentation_node.Segmenter.predict
    fails = iter([True, True, False, True, True, True])

    def sometimes(*args: Any, **kwargs: Any) -> Any:
        if next(fails):
            raise RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")
        return predict(*args, **kwargs)

    monkeypatch.setattr(segmentation_node, "can_compute", lambda _: False)
    monkeypatch.setattr(segmentation_node.Segmenter, "warm_up", lambda *_, **__: None)
    monkeypatch.setattr(segmentation_node.Segmenter, "predict", sometimes)
    harness = start(cameras=[""])
    worker = harness.node._require_configured().worker
    for number in range(6):
        assert harness.node.gpu_lost is None
        harness.points.publish(make_cloud(START_NS + number * 100 * MS))
        harness.spin_until(lambda number=number: worker.handled > number, "the frame")
    assert "CUDNN_STATUS_EXECUTION_FAILED" in str(harness.node.gpu_lost)


def test_a_node_that_waits_for_its_activation_warns(checkpoint: Path) -> None:
    harness = Harness(checkpoint)
    try:
        assert harness.wait_for_status("not active").level == b"\x01"
    finally:
        harness.close()


def test_a_gpu_that_stands_idle_is_told(start: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation_node, "unused_gpu", lambda: "there is a GPU, but the CPU computes")
    harness = start(cameras=[""], device="auto")
    assert harness.wait_for_status("there is a GPU, but the CPU computes").level == b"\x01"


def test_a_gpu_that_is_lost_while_the_model_is_loaded(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(segmentation_node.Segmenter, "warm_up", fail)
    harness = Harness(checkpoint, cameras=[""], autostart=True)
    try:
        with pytest.raises(GpuLostError, match="illegal memory access"):
            segmentation_node._autostart(harness.node)
    finally:
        harness.close()
