# SPDX-License-Identifier: Apache-2.0
"""Images of a data set, read so that a damaged file is an error that names it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

# A decoder fills the missing rest of a cut file with grey; only the end marker tells.
_END_MARKERS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND\xaeB`\x82"}
_TAIL_BYTES = 1024  # some writers pad the end


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of a JPEG or PNG. Raises ValueError for a missing, cut or unreadable file."""
    image = _decode(path, cv2.IMREAD_COLOR)
    if image.dtype != np.uint8:
        raise ValueError(f"{path}: expected an 8-bit image, got {image.dtype}")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def read_depth(path: str | Path) -> NDArray[np.uint16]:
    """(H, W) uint16 of a one-channel 16-bit PNG. Raises ValueError as `read_image`."""
    image = _decode(path, cv2.IMREAD_UNCHANGED)
    if image.ndim != 2 or image.dtype != np.uint16:
        raise ValueError(f"{path}: expected a one-channel 16-bit PNG, got {image.shape} {image.dtype}")
    return image


def check_image(path: str | Path) -> tuple[int, int]:
    """(height, width) px of an image that was decoded for the sake of its errors; grey costs less than colour."""
    image = _decode(path, cv2.IMREAD_GRAYSCALE)
    return image.shape[0], image.shape[1]


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write (H, W, 3) RGB through a temporary file, so that a cut one never bears the final name."""
    encoded, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert encoded
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(data.tobytes())
    temporary.replace(path)


def _decode(path: str | Path, flags: int) -> NDArray:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    markers = [end for start, end in _END_MARKERS.items() if data.startswith(start)]
    if not markers:
        raise ValueError(f"{path}: not a JPEG or PNG image")
    if markers[0] not in data[-_TAIL_BYTES:]:
        raise ValueError(f"{path}: the image is cut off after {len(data)} bytes")
    try:
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error as error:
        raise ValueError(f"{path}: the image cannot be decoded: {error.err}") from error
    if image is None:
        raise ValueError(f"{path}: the image cannot be decoded")
    return image
