# SPDX-License-Identifier: Apache-2.0
"""Image and CompressedImage to RGB."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from xmodal_seg.messages.buffers import check_data_size, data_bytes, unsigned

REDUCED_SIDE = 150  # px
MAX_IMAGE_PIXELS = 2**25  # of a compressed image, 8K; its header could claim any size

# encoding -> (bytes per channel, channels, OpenCV's conversion of 8-bit pixels to RGB)
_ENCODINGS: dict[str, tuple[int, int, int | None]] = {
    "mono8": (1, 1, cv2.COLOR_GRAY2RGB),
    "rgb8": (1, 3, None),
    "bgr8": (1, 3, cv2.COLOR_BGR2RGB),
    "rgba8": (1, 4, cv2.COLOR_RGBA2RGB),
    "bgra8": (1, 4, cv2.COLOR_BGRA2RGB),
    "8UC1": (1, 1, cv2.COLOR_GRAY2RGB),
    "8UC3": (1, 3, cv2.COLOR_BGR2RGB),  # says nothing of the order; what writes it hands over OpenCV's arrays
    "8UC4": (1, 4, cv2.COLOR_BGRA2RGB),
    "mono16": (2, 1, cv2.COLOR_GRAY2RGB),
    "rgb16": (2, 3, None),
    "bgr16": (2, 3, cv2.COLOR_BGR2RGB),
    "rgba16": (2, 4, cv2.COLOR_RGBA2RGB),
    "bgra16": (2, 4, cv2.COLOR_BGRA2RGB),
    "16UC1": (2, 1, cv2.COLOR_GRAY2RGB),
    "16UC3": (2, 3, cv2.COLOR_BGR2RGB),
    "16UC4": (2, 4, cv2.COLOR_BGRA2RGB),
    "yuv422": (1, 2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (1, 2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (1, 2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": (1, 2, cv2.COLOR_YUV2RGB_YUY2),
    "nv12": (1, 1, cv2.COLOR_YUV2RGB_NV12),
    "nv21": (1, 1, cv2.COLOR_YUV2RGB_NV21),
}
for _pattern in ("rggb", "bggr", "gbrg", "grbg"):
    _demosaic = getattr(cv2, f"COLOR_Bayer{_pattern.upper()}2RGB")
    _ENCODINGS[f"bayer_{_pattern}8"] = (1, 1, _demosaic)
    _ENCODINGS[f"bayer_{_pattern}16"] = (2, 1, _demosaic)
IMAGE_ENCODINGS = tuple(_ENCODINGS)  # of sensor_msgs/Image, that decode_image reads


def decode_image(msg: Any) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of an Image (IMAGE_ENCODINGS) or a CompressedImage (JPEG or PNG).

    16-bit channels keep their upper byte (value >> 8). EXIF orientation is ignored: the calibration belongs to the
    sensor's own rows.
    """
    return _decode_compressed(msg) if hasattr(msg, "format") else _decode_raw(msg)


def decode_small_image(msg: Any) -> NDArray[np.uint8]:
    """(h, w, 3) uint8 RGB like `decode_image`, but a large JPEG at a quarter or half of its size.

    For looks at the whole picture that need no detail: a JPEG decodes at a fraction of the cost.
    """
    return _decode_compressed(msg, reduced=True) if hasattr(msg, "format") else _decode_raw(msg)


def _decode_raw(msg: Any) -> NDArray[np.uint8]:
    if msg.encoding not in _ENCODINGS:
        raise ValueError(f"encoding: expected one of {', '.join(IMAGE_ENCODINGS)}, got {msg.encoding!r}")
    channel_bytes, num_channels, conversion = _ENCODINGS[msg.encoding]
    height, width, step = unsigned(msg.height), unsigned(msg.width), unsigned(msg.step)
    _check_image_size(msg.encoding, height, width)
    num_rows = height * 3 // 2 if msg.encoding in ("nv12", "nv21") else height  # half as many rows of chroma below
    row_bytes = width * num_channels * channel_bytes
    if step < row_bytes:
        raise ValueError(f"step: {width} px of {msg.encoding} need {row_bytes} bytes, got {step}")
    data = data_bytes(msg.data)
    check_data_size(data, rows=num_rows, row_bytes=row_bytes, step=step)

    rows = np.ndarray((num_rows, row_bytes), np.uint8, data, 0, (step, 1))
    if channel_bytes == 2:
        rows = rows[:, 0 if msg.is_bigendian else 1 :: 2]
    pixels = np.ascontiguousarray(rows).reshape(num_rows, width, num_channels)
    return pixels.copy() if conversion is None else np.asarray(cv2.cvtColor(pixels, conversion), dtype=np.uint8)


def _check_image_size(encoding: str, height: int, width: int) -> None:
    bayer = encoding.startswith("bayer")
    least = 3 if bayer else 1  # a mosaic needs a neighbour on each side
    even_height, even_width = encoding.startswith("nv"), encoding.startswith(("nv", "yuv", "uyvy", "yuyv"))
    for name, value, even in (("height", height, even_height), ("width", width, even_width)):
        if value < least:
            raise ValueError(f"{name}: expected at least {least} px for {encoding}, got {value}")
        if even and value % 2:
            raise ValueError(f"{name}: expected an even number of px for {encoding}, got {value}")


def _decode_compressed(msg: Any, *, reduced: bool = False) -> NDArray[np.uint8]:
    if "compressedDepth" in msg.format:
        raise ValueError(f"format: expected a JPEG or PNG colour image, got {msg.format!r}")
    data = data_bytes(msg.data)
    height, width = _compressed_size(data.tobytes(), msg.format)
    if not 0 < height * width <= MAX_IMAGE_PIXELS:
        raise ValueError(f"data: expected an image of 1 to {MAX_IMAGE_PIXELS} px, its header says {height}x{width}")
    original = msg.format.split(";")[0].strip()
    is_mosaic = original.startswith("bayer_") and original in _ENCODINGS
    flags = _reduced_flags(min(height, width)) if reduced and not is_mosaic else cv2.IMREAD_ANYCOLOR
    try:
        image = cv2.imdecode(data, flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ValueError(f"data: the image does not decode ({error.err})") from error
    if image is None:
        raise ValueError(f"data: the image does not decode (format {msg.format!r}, {data.size} bytes)")
    if image.ndim == 3:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)
    # image_transport compresses a Bayer mosaic as a grey image and names its pattern first.
    conversion = _ENCODINGS[original][2] if is_mosaic else None
    if conversion is not None:
        _check_image_size(original, *image.shape)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB if conversion is None else conversion), dtype=np.uint8)


def _reduced_flags(side: int) -> int:
    """OpenCV's flags that leave at least REDUCED_SIDE px of the shorter side."""
    if side >= 4 * REDUCED_SIDE:
        return cv2.IMREAD_REDUCED_COLOR_4
    return cv2.IMREAD_REDUCED_COLOR_2 if side >= 2 * REDUCED_SIDE else cv2.IMREAD_ANYCOLOR


def _compressed_size(data: bytes, image_format: str) -> tuple[int, int]:
    """(height, width) px from the header of a JPEG or PNG; ValueError when it is neither or ends too early."""
    if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR":
        if data.rfind(b"IEND") < 0:
            raise ValueError(f"data: the PNG ends before its last chunk ({len(data)} bytes)")
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    if data.startswith(b"\xff\xd8"):
        return _jpeg_size(data)
    raise ValueError(f"data: expected a JPEG or PNG, got {data[:4].hex() or 'no bytes'}... (format {image_format!r})")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Walk the segments of a JPEG to its frame header (ITU-T T.81, B.1.1.3)."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if data.rfind(b"\xff\xd9", at) < 0:  # decoders would fill the rest with grey
                raise ValueError(f"data: the JPEG ends before its end marker ({len(data)} bytes)")
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise ValueError(f"data: the JPEG has no frame header ({len(data)} bytes)")
