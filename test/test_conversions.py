# SPDX-License-Identifier: Apache-2.0
"""Results as real ROS messages, and the image decoders."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sensor_msgs", reason="ROS messages are not installed")

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import Quaternion, Transform, TransformStamped, Vector3
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField, RegionOfInterest
from std_msgs.msg import Header, String

from xmodal_seg.labels import NUSCENES_6
from xmodal_seg.messages import (
    calibration_from_camera_info,
    decode_cloud,
    decode_cloud_labels,
    decode_image,
    stamp_ns,
)
from xmodal_seg.nodes.conversions import (
    diagnostic_status,
    image_message,
    label_info_message,
    label_info_type,
    labelled_cloud_message,
    make_image_decoder,
    transform_matrix,
)

HEADER = Header(stamp=Time(sec=12, nanosec=34), frame_id="velodyne")
RNG = np.random.default_rng(7)


def over_the_wire(message: Any) -> Any:
    return deserialize_message(serialize_message(message), type(message))


@pytest.mark.parametrize("num_points", [0, 17])
def test_a_labelled_cloud_keeps_header_order_and_values(num_points: int) -> None:
    points = RNG.normal(size=(num_points, 3)).astype(np.float32)
    labels = RNG.integers(0, 6, num_points, dtype=np.uint8)
    probability = RNG.random(num_points).astype(np.float32)
    sent = labelled_cloud_message(
        header=HEADER, points=points, labels=labels, probability=probability, palette=NUSCENES_6.palette()
    )
    cloud = over_the_wire(sent)
    assert cloud.header == HEADER
    assert (cloud.height, cloud.width, cloud.point_step, cloud.row_step) == (1, num_points, 24, 24 * num_points)
    assert [field.name for field in cloud.fields] == ["x", "y", "z", "label", "probability", "rgb"]
    assert cloud.is_dense
    np.testing.assert_array_equal(decode_cloud(cloud, intensity_range=None).points, points)
    np.testing.assert_array_equal(decode_cloud_labels(cloud), labels)
    assert stamp_ns(cloud) == 12_000_000_034


def test_a_cloud_with_nan_points_does_not_claim_to_be_dense() -> None:
    points = np.full((2, 3), np.nan, np.float32)
    zeros = np.zeros(2, np.uint8)
    sent = labelled_cloud_message(
        header=HEADER, points=points, labels=zeros, probability=np.float32([0, 0]), palette=NUSCENES_6.palette()
    )
    assert not sent.is_dense


def test_a_real_cloud_message_with_intensity_is_read() -> None:
    values = RNG.random((5, 4)).astype(np.float32)
    fields = [PointField(name=name, offset=4 * i, datatype=7, count=1) for i, name in enumerate(("x", "y", "z", "i"))]
    sent = PointCloud2(height=1, width=5, fields=fields, point_step=16, row_step=80, data=values.tobytes())
    cloud = decode_cloud(over_the_wire(sent), intensity_range=(0, 1))
    np.testing.assert_array_equal(cloud.points, values[:, :3])
    np.testing.assert_array_equal(cloud.intensity, values[:, 3])


@pytest.mark.parametrize(("encoding", "shape"), [("rgb8", (5, 7, 3)), ("mono8", (5, 7))])
def test_image_messages_are_read_back(encoding: Any, shape: tuple[int, ...]) -> None:
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    received = over_the_wire(image_message(pixels, encoding=encoding, header=HEADER))
    assert received.header == HEADER
    assert received.step == 7 * (3 if encoding == "rgb8" else 1)
    expected = pixels if encoding == "rgb8" else np.repeat(pixels[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(decode_image(received), expected)


@pytest.mark.parametrize(
    ("image", "encoding"),
    [
        (np.zeros((5, 7), np.uint8), "rgb8"),
        (np.zeros((5, 7, 3), np.uint8), "mono8"),
        (np.zeros((5, 7, 4), np.uint8), "rgb8"),
        (np.zeros((5, 7), np.int64), "mono8"),
    ],
)
def test_images_that_do_not_fit_their_encoding_are_refused(image: Any, encoding: Any) -> None:
    with pytest.raises(ValueError, match=f"image: expected uint8 pixels for {encoding}"):
        image_message(image, encoding=encoding, header=HEADER)


def test_a_slice_of_an_image_can_be_sent() -> None:
    pixels = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)[1:, ::2]
    np.testing.assert_array_equal(decode_image(image_message(pixels, encoding="rgb8", header=HEADER)), pixels)


def test_a_real_camera_info_is_read() -> None:
    info = CameraInfo(
        height=480,
        width=640,
        distortion_model="plumb_bob",
        d=[0.1, 0.2, 0.0, 0.0, 0.0],
        k=[500.0, 0.0, 319.5, 0.0, 500.0, 239.5, 0.0, 0.0, 1.0],
        roi=RegionOfInterest(x_offset=10, y_offset=20, width=100, height=50),
    )
    calibration = calibration_from_camera_info(over_the_wire(info), camera_T_lidar=np.eye(4), rectified=False)
    assert calibration.image_size == (50, 100)
    np.testing.assert_allclose(calibration.camera_matrix[:2, 2], [309.5, 219.5])
    with pytest.raises(ValueError, match=r"camera_info\.k"):
        calibration_from_camera_info(CameraInfo(), camera_T_lidar=np.eye(4), rectified=False)


def test_a_real_transform_is_read() -> None:
    half = np.sqrt(0.5)
    message = TransformStamped(
        header=HEADER,
        child_frame_id="camera",
        transform=Transform(
            translation=Vector3(x=1.0, y=2.0, z=3.0), rotation=Quaternion(x=half, y=0.0, z=0.0, w=half)
        ),
    )
    expected = [[1, 0, 0, 1], [0, 0, -1, 2], [0, 1, 0, 3], [0, 0, 0, 1]]
    np.testing.assert_allclose(transform_matrix(over_the_wire(message)), expected, atol=1e-12)


def test_a_diagnostic_status_writes_its_values() -> None:
    status = over_the_wire(
        diagnostic_status(name="seg: input", level="WARN", message="late", values={"age_ms": 12.5, "drops": 3})
    )
    assert (status.name, status.level, status.message) == ("seg: input", DiagnosticStatus.WARN, "late")
    assert [(value.key, value.value) for value in status.values] == [("age_ms", "12.5"), ("drops", "3")]
    assert diagnostic_status(name="seg", level="OK", message="").values == []


def test_label_info_without_vision_msgs_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vision_msgs.msg", None)
    assert label_info_type() is String
    info = json.loads(label_info_message(NUSCENES_6, header=HEADER).data)
    assert (info["name"], info["unlabeled"]) == ("nuscenes_6", 255)
    assert [entry["class_name"] for entry in info["class_map"]] == list(NUSCENES_6.class_names)
    assert info["class_map"][1] == {"class_id": 1, "class_name": "driveable_surface", "colour": [110, 60, 120]}


def test_label_info_with_vision_msgs_is_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    package, module = ModuleType("vision_msgs"), ModuleType("vision_msgs.msg")
    module.LabelInfo = type("LabelInfo", (SimpleNamespace,), {})  # type: ignore[attr-defined]
    module.VisionClass = type("VisionClass", (SimpleNamespace,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vision_msgs", package)
    monkeypatch.setitem(sys.modules, "vision_msgs.msg", module)
    info = label_info_message(NUSCENES_6, header=HEADER)
    assert type(info) is label_info_type() is module.LabelInfo  # type: ignore[attr-defined]
    assert info.header is HEADER
    assert [(entry.class_id, entry.class_name) for entry in info.class_map][:2] == [
        (0, "vehicle"),
        (1, "driveable_surface"),
    ]


# --- image decoders

RGB_IMAGE = image_message(np.full((4, 6, 3), 9, np.uint8), encoding="rgb8", header=HEADER)


class FakeBridge:
    """What CvBridge does, as far as it is used."""

    def imgmsg_to_cv2(self, msg: Any, desired_encoding: str) -> Any:
        assert desired_encoding == "rgb8"
        if msg.encoding == "broken":
            raise RuntimeError("unrecognised image encoding")
        return np.full((msg.height, msg.width, 3), 1, np.uint8)

    def compressed_imgmsg_to_cv2(self, msg: Any, desired_encoding: str) -> Any:
        assert desired_encoding == "rgb8"
        return np.full((2, 2, 3), 2, np.uint8)


@pytest.fixture
def has_bridge(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("cv_bridge")
    module.CvBridge = FakeBridge  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cv_bridge", module)


@pytest.fixture
def has_no_bridge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv_bridge", None)


@pytest.mark.usefixtures("has_no_bridge")
def test_without_cv_bridge_auto_is_built_in() -> None:
    assert make_image_decoder("auto") is decode_image
    assert make_image_decoder("builtin") is decode_image


@pytest.mark.usefixtures("has_no_bridge")
def test_asking_for_a_cv_bridge_that_is_missing_is_refused() -> None:
    with pytest.raises(ValueError, match="image_decoder: cv_bridge cannot be imported"):
        make_image_decoder("cv_bridge")


@pytest.mark.usefixtures("has_bridge")
def test_cv_bridge_decodes_when_it_is_asked_for() -> None:
    decode = make_image_decoder("cv_bridge")
    assert (decode(RGB_IMAGE) == 1).all()
    assert (decode(CompressedImage(format="jpeg")) == 2).all()
    with pytest.raises(ValueError, match="cv_bridge cannot convert the image: unrecognised image encoding"):
        decode(Image(encoding="broken"))


@pytest.mark.usefixtures("has_bridge")
def test_auto_leaves_to_cv_bridge_only_what_is_not_built_in() -> None:
    decode = make_image_decoder("auto")
    assert (decode(RGB_IMAGE) == 9).all()
    assert (decode(Image(height=2, width=2, encoding="8SC3")) == 1).all()
    assert make_image_decoder("builtin") is decode_image
    with pytest.raises(ValueError, match="data: expected a JPEG or PNG"):
        decode(CompressedImage(format="jpeg"))
