# SPDX-License-Identifier: Apache-2.0
"""22,000 odd and malformed messages: each is read to what is promised or refused by the name of a field."""

from __future__ import annotations

import struct
import zlib
from array import array
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xmodal_seg.messages import (
    IMAGE_ENCODINGS,
    INTENSITY_FIELDS,
    calibration_from_camera_info,
    decode_cloud,
    decode_cloud_labels,
    decode_image,
)
from xmodal_seg.messages.images import MAX_IMAGE_PIXELS
from xmodal_seg.structures import DISTORTION_SIZES, Calibration

pytestmark = pytest.mark.slow

ODD_SIZES = st.sampled_from(
    [0, 1, 2, 3, 4, 5, 7, 8, 12, 13, 16, 24, 47, 48, 255, 256, 640, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
)
ODD_NUMBERS = st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, 0.5, 1e-12, 5e-324, 1e-300, 500.0, 319.5, 1e9, 1e300, float("nan"), float("inf"), -1e308]
)
BYTES = st.binary(max_size=64)
NOISE = np.random.default_rng(1).bytes(1 << 14)


@st.composite
def choices(draw: st.DrawFn, *options: list[Any]) -> list[Any]:
    """One of each list, in a single draw of bytes: draws are what costs the time here."""
    drawn = draw(st.binary(min_size=len(options), max_size=len(options)))
    return [values[byte % len(values)] for values, byte in zip(options, drawn, strict=True)]


def noise(size: int, seed: int) -> array[int]:
    return array("B", NOISE[seed : seed + size])


def fuzz(num_examples: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=num_examples, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
    )


def outcome(decode: Callable[[], Any], fields: tuple[str, ...]) -> Any:
    """What `decode` returns, or the field that its ValueError begins with; everything else is raised on."""
    try:
        return decode()
    except ValueError as error:
        message = str(error)
    name = message.partition(":")[0]
    assert name in fields, f"no field is named: {message}"
    return name


def assert_both_happened(outcomes: Counter[str], *, at_least: int, read: int, refused: int) -> None:
    """The messages must not be so odd that nothing is read, nor so tame that nothing is refused."""
    num_read = outcomes.pop("read", 0)
    assert sum(outcomes.values()) + num_read >= at_least
    assert num_read >= read, outcomes
    assert sum(outcomes.values()) >= refused, num_read
    print(f"read {num_read}, refused {dict(outcomes)}")


# --- PointCloud2

SIZES = [0, 1, 1, 2, 2, 4, 4, 4, 8]  # bytes of sensor_msgs/PointField.datatype


@st.composite
def clouds(draw: st.DrawFn) -> SimpleNamespace:
    """A cloud that is right in most respects, with up to two wrong values."""
    gap = [0, 0, 0, 1, 2, 3]
    height, width, fourth, turn, bigendian, is_zero, seed, *rest = draw(
        choices(
            [0, 1, 1, 2, 3, 4],
            [0, 1, 2, 3, 4, 5],
            [*INTENSITY_FIELDS, "ring", "x"],
            list(range(5)),
            [False, True],
            [False, True],
            list(range(256)),
            *[gap] * 7,
            *[[7, 8, 7, 7, 7, 8, 7, 8, 7, 2]] * 3,
            *[[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]] * 2,
        )
    )
    gaps, types = rest[:7], rest[7:]
    kinds = list(zip(["x", "y", "z", fourth, "label"], types, strict=True))
    fields, offset = [], 0
    for (name, datatype), before in zip(kinds[turn:] + kinds[:turn], gaps, strict=False):
        offset += before
        fields.append(SimpleNamespace(name=name, offset=offset, datatype=datatype, count=1))
        offset += SIZES[datatype] if datatype < len(SIZES) else 4
    point_step = offset + gaps[5]
    row_step = width * point_step + gaps[6]
    msg = SimpleNamespace(
        height=height,
        width=width,
        fields=fields,
        is_bigendian=bigendian,
        point_step=point_step,
        row_step=0 if height == 1 and is_zero else row_step,
        data=noise(width * point_step if height == 1 else height * row_step, seed),
    )
    for kind in draw(st.lists(st.sampled_from(["size", "field", "data", "drop"]), max_size=2)):
        if kind == "size":
            setattr(msg, draw(st.sampled_from(["height", "width", "point_step", "row_step"])), draw(ODD_SIZES))
        elif kind == "field" and msg.fields:
            setattr(
                draw(st.sampled_from(msg.fields)),
                draw(st.sampled_from(["offset", "datatype", "count"])),
                draw(ODD_SIZES),
            )
        elif kind == "data":
            msg.data = array("B", draw(st.one_of(BYTES, st.just(msg.data.tobytes()[1:]))))
        elif msg.fields:
            msg.fields = msg.fields[1:]
    return msg


def test_clouds() -> None:
    outcomes: Counter[str] = Counter()
    names = ("fields", "point_step", "row_step", "data")

    @fuzz(8000)
    @given(msg=clouds(), has_range=st.booleans())
    def check(msg: SimpleNamespace, has_range: bool) -> None:
        cloud = outcome(lambda: decode_cloud(msg, intensity_range=(0, 255) if has_range else None), names)
        labels = outcome(lambda: decode_cloud_labels(msg), names)
        num_points = msg.height * msg.width
        if not isinstance(labels, str):
            assert labels.shape == (num_points,)
            assert labels.dtype == np.int64
        if isinstance(cloud, str):
            outcomes[cloud] += 1
            return
        outcomes["read"] += 1
        assert cloud.points.shape == (num_points, 3)
        assert cloud.points.dtype == np.float32
        if not has_range:
            assert cloud.intensity is None
        elif cloud.intensity is not None:
            assert cloud.intensity.shape == (num_points,)
            assert cloud.intensity.dtype == np.float32
            assert ((cloud.intensity >= 0) & (cloud.intensity <= 1)).all()

    check()
    assert_both_happened(outcomes, at_least=8000, read=800, refused=800)


# --- Image


@st.composite
def images(draw: st.DrawFn) -> SimpleNamespace:
    encoding, height, width, padding, channel_bytes, bigendian, seed = draw(
        choices(
            [*IMAGE_ENCODINGS, *IMAGE_ENCODINGS, "32FC1", "", "RGB8", "nv24", "8UC2"],
            [0, 1, 2, 3, 4, 5, 6, 7],
            [0, 1, 2, 3, 4, 6, 8, 9],
            [0, 0, 1, 2],
            [1, 1, 2],
            [0, 1],
            list(range(256)),
        )
    )
    num_channels = 4 if "a8" in encoding or "C4" in encoding else 3 if "gb" in encoding or "C3" in encoding else 1
    num_channels = 2 if encoding.startswith(("yuv", "uyvy")) else num_channels
    channel_bytes = 2 if "16" in encoding else channel_bytes
    step = width * num_channels * channel_bytes + padding
    rows = height * 3 // 2 if encoding.startswith("nv") else height
    msg = SimpleNamespace(
        encoding=encoding,
        height=height,
        width=width,
        step=step,
        is_bigendian=bigendian,
        data=noise(rows * step, seed),
    )
    for kind in draw(st.lists(st.sampled_from(["size", "data"]), max_size=1)):
        if kind == "size":
            setattr(msg, draw(st.sampled_from(["height", "width", "step"])), draw(ODD_SIZES))
        else:
            msg.data = array("B", draw(BYTES))
    return msg


def test_images() -> None:
    outcomes: Counter[str] = Counter()

    @fuzz(5000)
    @given(msg=images())
    def check(msg: SimpleNamespace) -> None:
        image = outcome(lambda: decode_image(msg), ("encoding", "height", "width", "step", "data"))
        if isinstance(image, str):
            outcomes[image] += 1
            return
        outcomes["read"] += 1
        assert image.shape == (msg.height, msg.width, 3)
        assert image.dtype == np.uint8

    check()
    assert_both_happened(outcomes, at_least=5000, read=300, refused=500)


# --- CompressedImage


def _originals() -> list[bytes]:
    rng = np.random.default_rng(3)
    found = []
    for shape in ((13, 17, 3), (6, 8), (1, 1, 3)):
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        found += [cv2.imencode(extension, pixels)[1].tobytes() for extension in (".jpg", ".png")]
        found.append(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes())
        found.append(cv2.imencode(".png", pixels.astype(np.uint16) * 257)[1].tobytes())
    return found


ORIGINALS = _originals()
FORMATS = st.sampled_from(
    [
        "jpeg",
        "png",
        "",
        "rgb8; jpeg compressed bgr8",
        "bayer_rggb8; jpeg compressed ",
        "bayer_x; png",
        "h264",
        ";",
        "16UC1; compressedDepth png",
    ]
)


def _with_size(data: bytes, height: int, width: int) -> bytes:
    """A PNG that claims another size under a checksum that is right, or a JPEG that does."""
    if data.startswith(b"\x89PNG"):
        header = b"IHDR" + struct.pack(">II", width % 2**32, height % 2**32) + data[24:29]
        return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    return data[: at + 5] + struct.pack(">HH", height % 2**16, width % 2**16) + data[at + 9 :]


@st.composite
def compressed_images(draw: st.DrawFn) -> SimpleNamespace:
    data = draw(st.sampled_from(ORIGINALS))
    for kind in draw(st.lists(st.sampled_from(["byte", "byte", "byte", "cut", "insert", "size", "other"]), max_size=2)):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        if kind == "byte" and data:
            data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + draw(BYTES) + data[at:]
        elif kind == "size":
            data = _with_size(data, draw(ODD_SIZES), draw(ODD_SIZES))
        elif kind == "other":
            data = draw(st.sampled_from([b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", data[:40]])) + draw(BYTES)
    return SimpleNamespace(format=draw(FORMATS), data=array("B", data))


def test_compressed_images() -> None:
    outcomes: Counter[str] = Counter()

    @fuzz(4000)
    @given(msg=compressed_images())
    def check(msg: SimpleNamespace) -> None:
        image = outcome(lambda: decode_image(msg), ("format", "data", "height", "width"))
        if isinstance(image, str):
            outcomes[image] += 1
            return
        outcomes["read"] += 1
        assert image.ndim == 3
        assert image.shape[2] == 3
        assert 0 < image.shape[0] * image.shape[1] <= MAX_IMAGE_PIXELS
        assert image.dtype == np.uint8

    check()
    assert_both_happened(outcomes, at_least=4000, read=200, refused=400)


# --- CameraInfo


@st.composite
def camera_infos(draw: st.DrawFn) -> SimpleNamespace:
    model, num_coefficients, turn, binning_x, binning_y = draw(
        choices(
            ["plumb_bob", "plumb_bob", "rational_polynomial", "equidistant", "fisheye", "", "ftheta"],
            [0, 4, 4, 5, 5, 8, 8, 12],
            [1, 1, 1, 0, -1],
            [0, 1, 2, 3],
            [0, 1, 2, 3],
        )
    )
    msg = SimpleNamespace(
        height=480,
        width=640,
        distortion_model=model,
        d=array("d", [0.01] * num_coefficients),
        k=np.array([500.0, 0, 319.5, 0, 500, 239.5, 0, 0, 1]),
        r=np.eye(3).reshape(-1) * turn,
        p=np.array([500.0, 0, 319.5, -50, 0, 500, 239.5, 0.1, 0, 0, 1, 0.002]),
        binning_x=binning_x,
        binning_y=binning_y,
        roi=SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0, do_rectify=False),
    )
    for kind in draw(st.lists(st.sampled_from(["number", "number", "size", "roi", "length"]), max_size=3)):
        if kind == "number":
            values = getattr(msg, draw(st.sampled_from(["d", "k", "r", "p"])))
            if len(values):
                values[draw(st.integers(0, len(values) - 1))] = draw(ODD_NUMBERS)
        elif kind == "size":
            setattr(msg, draw(st.sampled_from(["height", "width", "binning_x", "binning_y"])), draw(ODD_SIZES))
        elif kind == "roi":
            setattr(msg.roi, draw(st.sampled_from(["x_offset", "y_offset", "width", "height"])), draw(ODD_SIZES))
        else:
            name = draw(st.sampled_from(["k", "r", "p"]))
            setattr(msg, name, getattr(msg, name)[:-1])
    return msg


def test_camera_infos() -> None:
    outcomes: Counter[str] = Counter()
    attributes = ("d", "k", "r", "p", "distortion_model", "height", "width", "roi", "binning_x", "binning_y")
    names = tuple(f"camera_info.{name}" for name in attributes)

    @fuzz(5000)
    @given(msg=camera_infos(), rectified=st.booleans())
    def check(msg: SimpleNamespace, rectified: bool) -> None:
        calibration = outcome(
            lambda: calibration_from_camera_info(msg, camera_T_lidar=np.eye(4), rectified=rectified), names
        )
        if isinstance(calibration, str):
            outcomes[calibration] += 1
            return
        outcomes["read"] += 1
        assert isinstance(calibration, Calibration)
        assert np.isfinite(calibration.camera_matrix).all()
        assert np.isfinite(calibration.camera_T_lidar).all()
        assert min(calibration.image_size) > 0
        num_coefficients = 0 if calibration.distortion is None else calibration.distortion.size
        assert num_coefficients in DISTORTION_SIZES[calibration.distortion_model]

    check()
    assert_both_happened(outcomes, at_least=5000, read=500, refused=500)
