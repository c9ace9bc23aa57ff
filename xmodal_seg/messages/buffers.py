# SPDX-License-Identifier: Apache-2.0
"""Sizes and bytes of messages, checked before anything is allocated."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def unsigned(value: Any) -> int:
    size = int(value)
    assert size >= 0, "ROS's sizes are unsigned"
    return size


def data_bytes(data: Any) -> NDArray[np.uint8]:
    return np.frombuffer(data, dtype=np.uint8) if len(data) else np.empty(0, dtype=np.uint8)


def check_data_size(data: NDArray[np.uint8], *, rows: int, row_bytes: int, step: int) -> None:
    """`rows` rows of `step` bytes; the padding of the last may be left out."""
    least = max(rows - 1, 0) * step + row_bytes if rows else 0
    if not least <= data.size <= rows * step:
        raise ValueError(f"data: {rows} rows of {step} bytes (height x step) need {rows * step} bytes, got {data.size}")
