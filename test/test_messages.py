# SPDX-License-Identifier: Apache-2.0
"""Messages to numpy and back, on look-alikes of the ROS types."""

from __future__ import annotations

import struct
from array import array
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from xmodal_seg.labels import NUSCENES_6
from xmodal_seg.messages import (
    IMAGE_ENCODINGS,
    LABELLED_DTYPE,
    LABELLED_FIELDS,
    calibration_from_camera_info,
    decode_cloud,
    decode_cloud_labels,
    decode_image,
    decode_small_image,
    labelled_points_array,
    stamp_ns,
    transform_matrix,
)
from xmodal_seg.messages.images import MAX_IMAGE_PIXELS

RNG = np.random.default_rng(5)
DATATYPES = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 8}


def message_data(values: bytes) -> array[int]:
    return array("B", values)


# --- PointCloud2


def cloud_message(
    columns: dict[str, NDArray[Any]],
    *,
    height: int = 1,
    gap: int = 0,
    row_gap: int = 0,
    bigendian: bool = False,
    **changes: Any,
) -> SimpleNamespace:
    """A PointCloud2 of `columns` in their order; `gap` bytes before each field, `row_gap` behind each row."""
    order = ">" if bigendian else "<"
    num_points = len(next(iter(columns.values())))
    width = num_points // height
    offset, fields, formats = 0, [], []
    for name, values in columns.items():
        kind = values.dtype.str[1:]
        offset += gap
        fields.append(SimpleNamespace(name=name, offset=offset, datatype=DATATYPES[kind], count=1))
        formats.append(order + kind)
        offset += values.dtype.itemsize
    dtype = np.dtype(
        {"names": list(columns), "formats": formats, "offsets": [f.offset for f in fields], "itemsize": offset + gap}
    )
    points = np.zeros((height, width), dtype)
    for name, values in columns.items():
        points[name] = values.reshape(height, width)
    rows = np.full((height, width * dtype.itemsize + row_gap), 0xAB, np.uint8)
    rows[:, : width * dtype.itemsize] = points.view(np.uint8).reshape(height, -1)
    values = {
        "height": height,
        "width": width,
        "fields": fields,
        "is_bigendian": bigendian,
        "point_step": dtype.itemsize,
        "row_step": rows.shape[1],
        "data": message_data(rows.tobytes()),
    }
    return SimpleNamespace(**{**values, **changes})


def xyz_columns(kind: str = "f4", num_points: int = 15) -> dict[str, NDArray[Any]]:
    return {axis: RNG.normal(size=num_points).astype(kind) for axis in "xyz"}


def stacked(columns: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    return np.stack([columns[axis] for axis in "xyz"], axis=1).astype(np.float32)


@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize("bigendian", [False, True])
@pytest.mark.parametrize(("height", "gap", "row_gap"), [(1, 0, 0), (3, 0, 0), (1, 3, 0), (5, 1, 7)])
def test_points_of_every_layout(kind: str, bigendian: bool, height: int, gap: int, row_gap: int) -> None:
    columns = xyz_columns(kind)
    msg = cloud_message(columns, height=height, gap=gap, row_gap=row_gap, bigendian=bigendian)
    cloud = decode_cloud(msg, intensity_range=None)
    assert cloud.points.dtype == np.float32
    np.testing.assert_array_equal(cloud.points, stacked(columns))
    assert cloud.intensity is None


def test_fields_in_any_order_and_others_between_them() -> None:
    columns = xyz_columns()
    mixed = {
        "ring": np.arange(15, dtype="u2"),
        "z": columns["z"],
        "intensity": RNG.integers(0, 256, 15).astype("u1"),
        "x": columns["x"],
        "time": RNG.random(15),
        "y": columns["y"],
    }
    cloud = decode_cloud(cloud_message(mixed), intensity_range=(0, 255))
    np.testing.assert_array_equal(cloud.points, stacked(columns))
    np.testing.assert_allclose(cloud.intensity, mixed["intensity"] / 255, rtol=1e-6)


def test_mixed_float_types() -> None:
    columns = {"x": RNG.normal(size=5).astype("f8"), "y": RNG.normal(size=5).astype("f4"), "z": RNG.normal(size=5)}
    np.testing.assert_array_equal(decode_cloud(cloud_message(columns), intensity_range=None).points, stacked(columns))


def test_nan_points_keep_their_rows() -> None:
    columns = xyz_columns()
    columns["y"][4] = np.nan
    np.testing.assert_array_equal(decode_cloud(cloud_message(columns), intensity_range=None).points, stacked(columns))


@pytest.mark.parametrize("kind", list(DATATYPES))
def test_intensity_of_every_type_is_scaled_and_clipped(kind: str) -> None:
    values = np.array([0, 10, 60, 110, 120], dtype=kind)
    columns = {**xyz_columns(num_points=5), "intensity": values}
    cloud = decode_cloud(cloud_message(columns), intensity_range=(10, 110))
    assert cloud.intensity is not None
    assert cloud.intensity.dtype == np.float32
    np.testing.assert_allclose(cloud.intensity, [0, 0, 0.5, 1, 1], atol=1e-6)


def test_intensity_that_is_not_finite_stays_in_range() -> None:
    values = np.array([np.nan, np.inf, -np.inf, 1e300, 0.5])
    cloud = decode_cloud(cloud_message({**xyz_columns(num_points=5), "i": values}), intensity_range=(0, 1))
    np.testing.assert_array_equal(cloud.intensity, np.float32([0, 1, 0, 1, 0.5]))


def test_the_first_known_intensity_field_is_read() -> None:
    both = {**xyz_columns(num_points=2), "reflectance": np.float32([1, 1]), "intensity": np.float32([0.25, 0.5])}
    np.testing.assert_array_equal(decode_cloud(cloud_message(both), intensity_range=(0, 1)).intensity, [0.25, 0.5])
    del both["intensity"]
    np.testing.assert_array_equal(decode_cloud(cloud_message(both), intensity_range=(0, 1)).intensity, [1, 1])
    del both["reflectance"]
    assert decode_cloud(cloud_message(both), intensity_range=(0, 1)).intensity is None


@pytest.mark.parametrize("has_fields", [True, False])
def test_zero_points(has_fields: bool) -> None:
    msg = cloud_message({axis: np.empty(0, "f4") for axis in "xyz"})
    msg.fields = msg.fields if has_fields else []
    cloud = decode_cloud(msg, intensity_range=(0, 1))
    assert cloud.points.shape == (0, 3)
    assert cloud.intensity is not None
    assert cloud.intensity.shape == (0,)
    assert decode_cloud_labels(msg).shape == (0,)


@pytest.mark.parametrize("wrap", [bytes, bytearray, lambda data: np.frombuffer(bytes(data), np.uint8)])
def test_data_of_any_buffer(wrap: Any) -> None:
    columns = xyz_columns()
    msg = cloud_message(columns)
    msg.data = wrap(msg.data)
    np.testing.assert_array_equal(decode_cloud(msg, intensity_range=None).points, stacked(columns))


@pytest.mark.parametrize("gap", [0, 2])
def test_points_do_not_share_memory_with_the_message(gap: int) -> None:
    columns = {**xyz_columns(), "intensity": np.float32(np.full(15, 0.5))}
    msg = cloud_message(columns, gap=gap)
    cloud = decode_cloud(msg, intensity_range=(0, 1))
    msg.data[:] = message_data(bytes(len(msg.data)))
    np.testing.assert_array_equal(cloud.points, stacked(columns))
    assert cloud.intensity is not None
    assert (cloud.intensity == 0.5).all()
    cloud.points[0] = 7  # and can be written to


@pytest.mark.parametrize("kind", ["u1", "u2", "u4"])
def test_labels(kind: str) -> None:
    values = RNG.integers(0, 250, 15).astype(kind)
    labels = decode_cloud_labels(cloud_message({**xyz_columns(), "label": values}, height=3, row_gap=2))
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, values)


def test_labels_of_another_field_and_none() -> None:
    msg = cloud_message({**xyz_columns(num_points=3), "class_id": np.uint8([1, 2, 3])})
    np.testing.assert_array_equal(decode_cloud_labels(msg, field="class_id"), [1, 2, 3])
    with pytest.raises(ValueError, match=r"fields: expected one field 'label', got 0 among \[x, y, z, class_id\]"):
        decode_cloud_labels(msg)


def _set_field(msg: SimpleNamespace, which: str, /, **changes: Any) -> None:
    for field in msg.fields:
        if field.name == which:
            vars(field).update(changes)


@pytest.mark.parametrize(
    ("field", "changes", "message"),
    [
        ("x", {"name": "u"}, "fields: expected one field 'x', got 0"),
        ("z", {"name": "y"}, "fields: expected one field 'y', got 2"),
        ("y", {"datatype": 5}, "fields: expected 'y' of type f4 or f8, got i4"),
        ("y", {"datatype": 99}, r"fields: expected 'y' of type f4 or f8, got unknown \(datatype 99\)"),
        ("z", {"count": 3}, "fields: expected one element in 'z', got count 3"),
        ("z", {"offset": 13}, "fields: 'z' at offset 13 ends beyond point_step 16"),
        ("intensity", {"offset": 2**31}, "fields: 'intensity' at offset 2147483648 ends beyond"),
        (None, {"data": message_data(bytes(239))}, "data: 5 rows of 48 bytes .* need 240 bytes, got 239"),
        (None, {"data": message_data(bytes(241))}, "data: 5 rows of 48 bytes .* need 240 bytes, got 241"),
        (None, {"width": 4}, "row_step: 4 points of 16 bytes need 64 bytes, got 48"),
        (None, {"height": 6}, "data: 6 rows of 48 bytes .* need 288 bytes, got 240"),
        (None, {"height": 2**32 - 1}, "data: 4294967295 rows"),
        (None, {"height": 1, "width": 2**32 - 1}, "data: 1 rows"),
        (None, {"point_step": 0, "row_step": 0}, "point_step: expected the bytes of a point, got 0 for 15 points"),
    ],
)
def test_a_malformed_cloud_is_refused_by_the_name_of_its_field(
    field: str | None, changes: dict[str, Any], message: str
) -> None:
    msg = cloud_message({**xyz_columns(), "intensity": np.zeros(15, "f4")}, height=5)
    if field is None:
        vars(msg).update(changes)
    else:
        _set_field(msg, field, **changes)
    with pytest.raises(ValueError, match=f"^{message}"):
        decode_cloud(msg, intensity_range=(0, 1))


def test_what_drivers_leave_out_is_read_all_the_same() -> None:
    columns = xyz_columns()
    unpadded = cloud_message(columns, height=3, row_gap=4)
    unpadded.data = unpadded.data[:-4]
    for msg in (cloud_message(columns, row_step=0), unpadded):
        _set_field(msg, "x", count=0)
        np.testing.assert_array_equal(decode_cloud(msg, intensity_range=None).points, stacked(columns))


@pytest.mark.parametrize("value_range", [(1, 1), (2, 1), (0, float("nan"))])
def test_a_wrong_intensity_range_is_refused(value_range: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="intensity_range: expected"):
        decode_cloud(cloud_message(xyz_columns()), intensity_range=value_range)


# --- Image

H, W = 6, 8
RGB = RNG.integers(0, 256, (H, W, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (H, W), dtype=np.uint8)
GREY_RGB = np.repeat(GREY[:, :, None], 3, axis=2)
RGBA = np.dstack([RGB, RNG.integers(0, 256, (H, W), dtype=np.uint8)])


def image_message(
    encoding: str, pixels: NDArray[Any], *, bigendian: bool = False, padding: int = 0, **changes: Any
) -> SimpleNamespace:
    """An Image of `pixels` (rows, W[, channels])."""
    ordered = pixels.astype(pixels.dtype.newbyteorder(">" if bigendian else "<"))
    row_bytes = ordered[0].nbytes
    rows = np.full((len(pixels), row_bytes + padding), 0xAB, np.uint8)
    rows[:, :row_bytes] = np.ascontiguousarray(ordered).view(np.uint8).reshape(len(pixels), row_bytes)
    values = {
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "encoding": encoding,
        "is_bigendian": int(bigendian),
        "step": rows.shape[1],
        "data": message_data(rows.tobytes()),
    }
    return SimpleNamespace(**{**values, **changes})


EIGHT_BITS = {
    "mono8": (GREY, GREY_RGB),
    "8UC1": (GREY, GREY_RGB),
    "rgb8": (RGB, RGB),
    "bgr8": (RGB[..., ::-1], RGB),
    "8UC3": (RGB[..., ::-1], RGB),
    "rgba8": (RGBA, RGB),
    "bgra8": (RGBA[..., [2, 1, 0, 3]], RGB),
    "8UC4": (RGBA[..., [2, 1, 0, 3]], RGB),
}
SIXTEEN_BITS = {
    "mono16": EIGHT_BITS["mono8"],
    "16UC1": EIGHT_BITS["mono8"],
    "rgb16": EIGHT_BITS["rgb8"],
    "bgr16": EIGHT_BITS["bgr8"],
    "16UC3": EIGHT_BITS["bgr8"],
    "rgba16": EIGHT_BITS["rgba8"],
    "bgra16": EIGHT_BITS["bgra8"],
    "16UC4": EIGHT_BITS["bgra8"],
}


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", EIGHT_BITS)
def test_eight_bit_encodings(encoding: str, padding: int) -> None:
    pixels, expected = EIGHT_BITS[encoding]
    np.testing.assert_array_equal(decode_image(image_message(encoding, pixels, padding=padding)), expected)


@pytest.mark.parametrize("bigendian", [False, True])
@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("encoding", SIXTEEN_BITS)
def test_sixteen_bits_keep_their_upper_byte(encoding: str, padding: int, bigendian: bool) -> None:
    pixels, expected = SIXTEEN_BITS[encoding]
    wide = pixels.astype(np.uint16) << 8 | 0x7F
    msg = image_message(encoding, wide, padding=padding, bigendian=bigendian)
    np.testing.assert_array_equal(decode_image(msg), expected)


MOSAICS = {"rggb": "RGGB", "bggr": "BGGR", "gbrg": "GBRG", "grbg": "GRBG"}


def mosaic_of(colour: tuple[int, int, int], pattern: str) -> NDArray[np.uint8]:
    tile = np.array([colour["rgb".index(letter)] for letter in pattern], dtype=np.uint8).reshape(2, 2)
    return np.tile(tile, (H // 2, W // 2))


@pytest.mark.parametrize("pattern", MOSAICS)
def test_bayer_of_one_colour(pattern: str) -> None:
    mosaic = mosaic_of((200, 100, 50), pattern)
    expected = np.broadcast_to(np.uint8([200, 100, 50]), (H, W, 3))
    np.testing.assert_array_equal(decode_image(image_message(f"bayer_{pattern}8", mosaic)), expected)
    wide = image_message(f"bayer_{pattern}16", mosaic.astype(np.uint16) << 8, bigendian=True)
    np.testing.assert_array_equal(decode_image(wide), expected)


YUV_RED = (81, 90, 240)  # BT.601, studio range
RED = np.broadcast_to(np.uint8([254, 0, 0]), (H, W, 3))


@pytest.mark.parametrize(
    ("encoding", "order"), [("yuv422", "uyvy"), ("uyvy", "uyvy"), ("yuv422_yuy2", "yuyv"), ("yuyv", "yuyv")]
)
def test_packed_yuv(encoding: str, order: str) -> None:
    pair = [YUV_RED["yuv".index(letter)] for letter in order]
    pixels = np.tile(np.uint8(pair), (H, W // 2)).reshape(H, W, 2)
    np.testing.assert_allclose(decode_image(image_message(encoding, pixels, padding=3)), RED, atol=2)


@pytest.mark.parametrize(("encoding", "chroma"), [("nv12", (90, 240)), ("nv21", (240, 90))])
def test_planar_yuv_of_the_height_of_its_image(encoding: str, chroma: tuple[int, int]) -> None:
    rows = np.vstack([np.full((H, W), YUV_RED[0], np.uint8), np.tile(np.uint8(chroma), (H // 2, W // 2))])
    msg = image_message(encoding, rows, padding=4, height=H)
    np.testing.assert_allclose(decode_image(msg), RED, atol=2)


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgb16"])
def test_an_image_does_not_share_memory_with_the_message(encoding: str) -> None:
    pixels, expected = {**EIGHT_BITS, **SIXTEEN_BITS}[encoding]
    msg = image_message(encoding, pixels.astype(np.uint16) << 8 if encoding.endswith("16") else pixels)
    image = decode_image(msg)
    msg.data[:] = message_data(bytes(len(msg.data)))
    np.testing.assert_array_equal(image, expected)
    image[0] = 0


def test_every_encoding_stands_in_a_test() -> None:
    tested = [*EIGHT_BITS, *SIXTEEN_BITS, "yuv422", "uyvy", "yuv422_yuy2", "yuyv", "nv12", "nv21"]
    tested += [f"bayer_{pattern}{bits}" for pattern in MOSAICS for bits in (8, 16)]
    assert sorted(tested) == sorted(IMAGE_ENCODINGS)


@pytest.mark.parametrize(
    ("encoding", "changes", "message"),
    [
        ("rgb8", {"encoding": "32FC1"}, "encoding: expected one of mono8, .*, got '32FC1'"),
        ("rgb8", {"encoding": ""}, "encoding: expected one of"),
        ("rgb8", {"height": 0}, "height: expected at least 1 px for rgb8, got 0"),
        ("rgb8", {"width": 0}, "width: expected at least 1 px"),
        ("rgb8", {"step": 23}, "step: 8 px of rgb8 need 24 bytes, got 23"),
        ("rgb8", {"width": 2**32 - 1}, "step: 4294967295 px"),
        ("rgb8", {"height": 2**32 - 1}, "data: 4294967295 rows of 24 bytes"),
        ("rgb8", {"data": message_data(bytes(143))}, "data: 6 rows of 24 bytes .* need 144 bytes, got 143"),
        ("rgb8", {"height": 5}, "data: 5 rows of 24 bytes .* need 120 bytes, got 144"),
        ("yuv422", {"width": 7}, "width: expected an even number of px for yuv422, got 7"),
        ("nv12", {"height": 5}, "height: expected an even number of px for nv12, got 5"),
        ("bayer_rggb8", {"height": 2}, "height: expected at least 3 px for bayer_rggb8, got 2"),
    ],
)
def test_a_malformed_image_is_refused_by_the_name_of_its_field(
    encoding: str, changes: dict[str, Any], message: str
) -> None:
    msg = image_message("rgb8", RGB)
    vars(msg).update({"encoding": encoding, **changes})
    with pytest.raises(ValueError, match=f"^{message}"):
        decode_image(msg)


# --- CompressedImage


def compressed(extension: str, pixels: NDArray[Any], image_format: str, **changes: Any) -> SimpleNamespace:
    """A CompressedImage of `pixels` in OpenCV's order."""
    _, data = cv2.imencode(extension, pixels)
    return SimpleNamespace(**{"format": image_format, "data": message_data(data.tobytes()), **changes})


@pytest.mark.parametrize("image_format", ["png", "rgb8; png compressed bgr8", "PNG", ""])
def test_png_is_exact(image_format: str) -> None:
    np.testing.assert_array_equal(decode_image(compressed(".png", RGB[..., ::-1], image_format)), RGB)


@pytest.mark.parametrize("image_format", ["jpeg", "jpg", "rgb8; jpeg compressed bgr8", "bgr8; jpeg compressed bgr8"])
def test_jpeg_is_near_and_in_rgb(image_format: str) -> None:
    flat = np.broadcast_to(np.uint8([200, 100, 50]), (17, 13, 3))
    image = decode_image(compressed(".jpg", np.ascontiguousarray(flat[..., ::-1]), image_format))
    np.testing.assert_allclose(image, flat, atol=3)


@pytest.mark.parametrize("extension", [".png", ".jpg"])
def test_grey_images_become_rgb(extension: str) -> None:
    flat = np.full((17, 13), 77, np.uint8)
    image = decode_image(compressed(extension, flat, "mono8; jpeg compressed "))
    np.testing.assert_allclose(image, np.full((17, 13, 3), 77), atol=1)


@pytest.mark.parametrize(("pixels", "expected"), [(GREY, GREY_RGB), (RGB[..., ::-1], RGB)])
def test_sixteen_bit_png_keeps_the_upper_byte(pixels: NDArray[Any], expected: NDArray[Any]) -> None:
    wide = pixels.astype(np.uint16) << 8 | 0x7F
    np.testing.assert_array_equal(decode_image(compressed(".png", wide, "png")), expected)


def test_png_with_alpha() -> None:
    np.testing.assert_array_equal(decode_image(compressed(".png", RGBA[..., [2, 1, 0, 3]], "png")), RGB)


def test_a_compressed_mosaic_is_demosaiced() -> None:
    mosaic = mosaic_of((200, 100, 50), "gbrg")
    image = decode_image(compressed(".png", mosaic, "bayer_gbrg8; png compressed "))
    np.testing.assert_array_equal(image, np.broadcast_to(np.uint8([200, 100, 50]), (H, W, 3)))
    with pytest.raises(ValueError, match="height: expected at least 3 px for bayer_gbrg8, got 2"):
        decode_image(compressed(".png", mosaic[:2], "bayer_gbrg8; png compressed "))


def test_exif_orientation_is_ignored() -> None:
    msg = compressed(".jpg", np.zeros((10, 20, 3), np.uint8), "jpeg")
    tiff = b"MM\0*\0\0\0\x08" + b"\0\x01" + b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0" + bytes(4)  # rotated by 90 degrees
    segment = b"Exif\0\0" + tiff
    data = bytes(msg.data)
    msg.data = message_data(data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:])
    assert decode_image(msg).shape == (10, 20, 3)


def _png_that_claims(width: int, height: int) -> bytes:
    data = bytearray(compressed(".png", RGB, "png").data)
    data[16:24] = struct.pack(">II", width, height)
    return bytes(data)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((600, 802), (150, 201)), ((300, 402), (150, 201)), ((90, 131), (90, 131)), ((700, 90), (700, 90))],
)
def test_a_large_jpeg_is_decoded_small(size: tuple[int, int], expected: tuple[int, int]) -> None:
    pixels = np.full((*size, 3), (200, 90, 30), np.uint8)  # BGR
    small = decode_small_image(compressed(".jpg", pixels, "jpeg"))
    assert small.shape == (*expected, 3)
    np.testing.assert_allclose(small.mean(axis=(0, 1)), (30, 90, 200), atol=3)


def test_what_cannot_shrink_is_decoded_as_ever() -> None:
    raw = image_message(*("rgb8", RGB))
    np.testing.assert_array_equal(decode_small_image(raw), decode_image(raw))
    mosaic = compressed(".png", np.full((620, 640), 77, np.uint8), "bayer_rggb8; png compressed ")
    assert decode_small_image(mosaic).shape == (620, 640, 3)
    with pytest.raises(ValueError, match="expected a JPEG or PNG"):
        decode_small_image(SimpleNamespace(format="jpeg", data=message_data(b"nonsense")))


JPEG = bytes(compressed(".jpg", RGB, "jpeg").data)
PNG = bytes(compressed(".png", RGB, "png").data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "data: expected a JPEG or PNG, got no bytes"),
        (b"GIF89a..........", "data: expected a JPEG or PNG, got 47494638"),
        (JPEG[: len(JPEG) // 2], "data: the JPEG has no frame header|data: the JPEG ends before"),
        (JPEG[:-2], "data: the JPEG ends before its end marker"),
        (JPEG[:4], "data: the JPEG has no frame header"),
        (PNG[:-12], "data: the PNG ends before its last chunk"),
        (PNG[:40] + PNG[-12:], "data: the image does not decode"),
        (_png_that_claims(2**31 - 1, 2**31 - 1), f"data: expected an image of 1 to {MAX_IMAGE_PIXELS} px"),
        (_png_that_claims(0, 5), "data: expected an image of 1 to"),
    ],
)
def test_malformed_compressed_data_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_image(SimpleNamespace(format="jpeg", data=message_data(data)))


def test_compressed_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="format: expected a JPEG or PNG colour image, got '16UC1; compressedDepth"):
        decode_image(compressed(".png", GREY, "16UC1; compressedDepth png"))


# --- CameraInfo


def camera_info(**changes: Any) -> SimpleNamespace:
    roi = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0, do_rectify=False)
    values: dict[str, Any] = {
        "height": 480,
        "width": 640,
        "distortion_model": "plumb_bob",
        "d": array("d", [-0.3, 0.1, 0.001, -0.002, 0.01]),
        "k": np.array([500.0, 0, 319.5, 0, 510, 239.5, 0, 0, 1]),
        "r": np.eye(3).reshape(-1),
        "p": np.array([450.0, 0, 310, 0, 0, 460, 230, 0, 0, 0, 1, 0]),
        "binning_x": 0,
        "binning_y": 0,
        "roi": roi,
    }
    return SimpleNamespace(**{**values, **changes})


def roi(x_offset: int, y_offset: int, width: int, height: int) -> SimpleNamespace:
    return SimpleNamespace(x_offset=x_offset, y_offset=y_offset, width=width, height=height, do_rectify=False)


def a_pose() -> NDArray[np.float64]:
    pose = np.eye(4)
    pose[:3, :3] = cv2.Rodrigues(np.array([0.1, -0.4, 0.2]))[0]
    pose[:3, 3] = 0.3, -0.1, 2.0
    return pose


def test_a_raw_image_takes_k_and_d() -> None:
    calibration = calibration_from_camera_info(camera_info(), camera_T_lidar=a_pose(), rectified=False)
    np.testing.assert_array_equal(calibration.camera_matrix, camera_info().k.reshape(3, 3))
    np.testing.assert_array_equal(calibration.camera_T_lidar, a_pose())
    np.testing.assert_array_equal(calibration.distortion, camera_info().d)
    assert calibration.distortion_model == "plumb_bob"
    assert calibration.image_size == (480, 640)


@pytest.mark.parametrize(
    ("name", "coefficients", "model"),
    [
        ("plumb_bob", [0.1, 0.2, 0.3, 0.4], "plumb_bob"),
        ("rational_polynomial", [0.1] * 8, "rational_polynomial"),
        ("equidistant", [0.0] * 4, "equidistant"),
        ("fisheye", [0.1] * 4, "equidistant"),
        ("plumb_bob", [0.0] * 5, "none"),
        ("plumb_bob", [], "none"),
        ("", [], "none"),
    ],
)
def test_distortion_models(name: str, coefficients: list[float], model: str) -> None:
    info = camera_info(distortion_model=name, d=coefficients)
    calibration = calibration_from_camera_info(info, camera_T_lidar=np.eye(4), rectified=False)
    assert calibration.distortion_model == model
    assert (calibration.distortion is None) == (model == "none")


def project(matrix: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    seen = points @ matrix.T
    return seen[:, :2] / seen[:, 2:]


def in_camera(pose: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    return points @ pose[:3, :3].T + pose[:3, 3]


POINTS = RNG.uniform((-1, -1, 4), (1, 1, 6), (20, 3))


def test_a_rectified_image_projects_as_the_whole_of_p_behind_r() -> None:
    rotation = cv2.Rodrigues(np.array([0.02, -0.03, 0.01]))[0]
    projection = np.array([[450.0, 0, 310, -45.2], [0, 460, 230, 0.8], [0, 0, 1, 0.0027]])
    info = camera_info(p=projection.reshape(-1), r=rotation.reshape(-1))
    calibration = calibration_from_camera_info(info, camera_T_lidar=a_pose(), rectified=True)
    rectified = in_camera(a_pose(), POINTS) @ rotation.T
    expected = project(projection, np.hstack([rectified, np.ones((20, 1))]))
    seen = project(calibration.camera_matrix, in_camera(calibration.camera_T_lidar, POINTS))
    np.testing.assert_allclose(seen, expected, atol=1e-9)
    assert calibration.distortion is None


def test_an_r_that_is_not_given_is_no_rotation() -> None:
    calibration = calibration_from_camera_info(camera_info(r=np.zeros(9)), camera_T_lidar=a_pose(), rectified=True)
    np.testing.assert_allclose(calibration.camera_T_lidar, a_pose())


@pytest.mark.parametrize("rectified", [False, True])
def test_a_region_and_binning_move_and_scale_pixels_about_their_edges(rectified: bool) -> None:
    info = camera_info(binning_x=2, binning_y=4, roi=roi(100, 40, 301, 402))
    full = calibration_from_camera_info(camera_info(), camera_T_lidar=a_pose(), rectified=rectified)
    part = calibration_from_camera_info(info, camera_T_lidar=a_pose(), rectified=rectified)
    assert part.image_size == (100, 150)
    np.testing.assert_array_equal(part.camera_T_lidar, full.camera_T_lidar)
    uv = project(full.camera_matrix, in_camera(full.camera_T_lidar, POINTS))
    expected = (uv + 0.5 - [100, 40]) / [2, 4] - 0.5
    np.testing.assert_allclose(project(part.camera_matrix, in_camera(part.camera_T_lidar, POINTS)), expected)


def test_the_outermost_pixel_edges_of_a_binned_image_are_those_of_the_full_one() -> None:
    calibration = calibration_from_camera_info(camera_info(binning_x=4), camera_T_lidar=np.eye(4), rectified=False)
    left_edge_ray = (-0.5 - 319.5) / 500
    assert calibration.camera_matrix[0, 0] * left_edge_ray + calibration.camera_matrix[0, 2] == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("rectified", "changes", "message"),
    [
        (False, {"k": np.zeros(9)}, "camera_info.k: expected positive focal lengths, got fx=0, fy=0"),
        (True, {"p": np.zeros(12)}, "camera_info.p: expected positive focal lengths, got fx=0, fy=0"),
        (False, {"k": np.full(9, np.nan)}, "camera_info.k: expected finite numbers"),
        (False, {"k": np.ones(8)}, r"camera_info.k: expected 9 numbers, got shape \(8,\)"),
        (
            False,
            {"k": np.array([500.0, 0, 1, 0, 500, 1, 0, 0, 0])},
            "camera_info.k: expected an upper triangular matrix",
        ),
        (True, {"r": np.full(9, np.inf)}, "camera_info.r: expected finite numbers"),
        (True, {"r": np.ones(9)}, "camera_info.r: expected a rotation matrix"),
        (True, {"r": -np.eye(3).reshape(-1)}, "camera_info.r: expected a rotation matrix"),
        (True, {"p": np.array([5.0, 5, 0, 0, 5, 5, 0, 0, 0, 0, 1, 0])}, "camera_info.p: expected an upper triangular"),
        (
            True,
            {"p": np.array([500.0, 0, 1, 1e300, 0, 500, 1, 0, 0, 0, 1, 0])},
            "camera_info.p: expected a last column of px times metres",
        ),
        (False, {"d": [0.1, float("nan"), 0, 0]}, "camera_info.d: expected finite numbers"),
        (False, {"d": [0.1] * 8}, r"camera_info.d: plumb_bob takes \(4, 5\) coefficients, got 8"),
        (False, {"distortion_model": "fisheye", "d": []}, r"camera_info.d: fisheye takes \(4,\) coefficients, got 0"),
        (False, {"distortion_model": "ftheta"}, "camera_info.distortion_model: expected one of .*, got 'ftheta'"),
        (False, {"distortion_model": ""}, "camera_info.distortion_model: expected one of .*, got ''"),
        (False, {"width": 0}, "camera_info.width: expected the px of the full-resolution image, got 0"),
        (False, {"height": 0}, "camera_info.height: expected"),
        (False, {"roi": roi(600, 0, 41, 480)}, "camera_info.roi: x_offset 600 and width 41 px do not lie in 640 px"),
        (False, {"roi": roi(0, 1, 640, 0)}, "camera_info.roi: y_offset 1 and height 480 px do not lie in 480 px"),
        (False, {"binning_y": 481}, "camera_info.binning_y: expected at most 480 px, got 481"),
    ],
)
def test_a_camera_info_that_cannot_be_used_is_refused(rectified: bool, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        calibration_from_camera_info(camera_info(**changes), camera_T_lidar=np.eye(4), rectified=rectified)


# --- stamps and transforms


def test_stamps() -> None:
    header = SimpleNamespace(stamp=SimpleNamespace(sec=1_532_402_927, nanosec=647_950_848))
    assert stamp_ns(SimpleNamespace(header=header)) == 1_532_402_927_647_950_848


def transform_message(rotation: tuple[float, ...], translation: tuple[float, ...]) -> SimpleNamespace:
    return SimpleNamespace(
        header=SimpleNamespace(frame_id="lidar"),
        child_frame_id="camera",
        transform=SimpleNamespace(
            rotation=SimpleNamespace(**dict(zip("xyzw", rotation, strict=True))),
            translation=SimpleNamespace(**dict(zip("xyz", translation, strict=True))),
        ),
    )


def test_a_transform_turns_by_its_quaternion_of_any_length() -> None:
    matrix = transform_matrix(transform_message((0, 0, 3, 3), (1, 2, 3)))  # a quarter turn about z
    np.testing.assert_allclose(matrix, [[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]], atol=1e-12)


@pytest.mark.parametrize(("rotation", "translation"), [((0, 0, 0, 0), (0, 0, 0)), ((0, 0, 0, 1), (0, float("nan"), 0))])
def test_a_transform_that_is_none_is_refused_by_both_frames(
    rotation: tuple[float, ...], translation: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match="transform 'lidar' -> 'camera'"):
        transform_matrix(transform_message(rotation, translation))


# --- labelled points


@pytest.mark.parametrize("num_points", [0, 1, 13])
def test_labelled_points_are_read_back(num_points: int) -> None:
    points = RNG.normal(size=(num_points, 3)).astype(np.float32)
    labels = RNG.choice(np.uint8([0, 1, 5, 255]), num_points)
    probability = RNG.random(num_points).astype(np.float32)
    palette = NUSCENES_6.palette()
    values = labelled_points_array(points=points, labels=labels, probability=probability, palette=palette)

    msg = SimpleNamespace(
        height=1,
        width=num_points,
        fields=LABELLED_FIELDS,
        is_bigendian=False,
        point_step=LABELLED_DTYPE.itemsize,
        row_step=values.nbytes,
        data=message_data(values.tobytes()),
    )
    np.testing.assert_array_equal(decode_cloud(msg, intensity_range=None).points, points)
    np.testing.assert_array_equal(decode_cloud_labels(msg), labels)
    np.testing.assert_array_equal(values["probability"], probability)
    packed = np.ascontiguousarray(values["rgb"]).view("<u4")
    colours = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1)
    np.testing.assert_array_equal(colours, palette[labels])
    assert values.view(np.uint8).reshape(num_points, 24)[:, 13:16].max(initial=0) == 0  # the padding
    out = np.full(24 * num_points, 7, np.uint8)
    labelled_points_array(points=points, labels=labels, probability=probability, palette=palette, out=out)
    assert out.tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": np.zeros((5, 3))}, r"points: expected \(5, 3\) float32, got \(5, 3\) float64"),
        ({"labels": np.zeros(4, np.uint8)}, r"labels: expected \(5,\) uint8, got \(4,\)"),
        ({"probability": np.zeros((5, 1), np.float32)}, r"probability: expected \(5,\) float32, got \(5, 1\)"),
        ({"palette": np.zeros((6, 3), np.uint8)}, r"palette: expected \(256, 3\) uint8, got \(6, 3\)"),
        ({"out": np.zeros(119, np.uint8)}, r"out: expected 120 bytes for 5 points, got \(119,\) uint8"),
    ],
)
def test_labelled_points_of_wrong_shape_are_refused(changes: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {
        "points": np.zeros((5, 3), np.float32),
        "labels": np.zeros(5, np.uint8),
        "probability": np.zeros(5, np.float32),
        "palette": np.zeros((256, 3), np.uint8),
    }
    with pytest.raises(ValueError, match=message):
        labelled_points_array(**{**values, **changes})
