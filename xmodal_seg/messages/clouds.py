# SPDX-License-Identifier: Apache-2.0
"""PointCloud2 to points, intensity and labels; labelled points to the bytes of a PointCloud2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.messages.buffers import check_data_size, data_bytes, unsigned

INTENSITY_FIELDS = (
    "intensity",
    "intensities",
    "reflectance",
    "reflectivity",
    "i",
)  # the first that a cloud has is read

# sensor_msgs/PointField.datatype
_POINT_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
_UINT8, _FLOAT32 = 2, 7


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """The points of a PointCloud2 in message order, row by row where it is organised."""

    points: NDArray[np.float32]  # (N, 3) m; NaN where the sensor got no return
    intensity: NDArray[np.float32] | None  # (N,) in [0, 1]


def decode_cloud(msg: Any, *, intensity_range: tuple[float, float] | None) -> Cloud:
    """Points of a PointCloud2 and their intensity scaled from `intensity_range` to [0, 1] and clipped.

    Any field order, padding and endianness; x, y, z are float32 or float64. Intensity is the first of INTENSITY_FIELDS
    that the cloud has, of any type (0 where it is NaN); None when it has none or `intensity_range` is None.
    """
    layout = _CloudLayout(msg)
    return Cloud(points=layout.xyz(), intensity=_intensity(layout, intensity_range))


def decode_cloud_labels(msg: Any, *, field: str = "label") -> NDArray[np.int64]:
    """(N,) raw labels in the uint8, uint16 or uint32 field `field` of a PointCloud2."""
    layout = _CloudLayout(msg)
    return layout.column(field, ("u1", "u2", "u4")).astype(np.int64).reshape(-1)


class _CloudLayout:
    """Where the columns of a PointCloud2 lie in its data; the sizes are checked before anything is allocated."""

    def __init__(self, msg: Any) -> None:
        self.height, self.width = unsigned(msg.height), unsigned(msg.width)
        self.point_step = unsigned(msg.point_step)
        self.row_step = unsigned(msg.row_step)
        if self.height <= 1:  # many drivers leave it out for a single row, which may be padded all the same
            self.row_step = max(self.row_step, self.width * self.point_step)
        self.order = ">" if msg.is_bigendian else "<"
        self.fields = msg.fields
        self.data = data_bytes(msg.data)
        self._check_sizes()

    @property
    def num_points(self) -> int:
        return self.height * self.width

    def _check_sizes(self) -> None:
        row_bytes = self.width * self.point_step
        if self.row_step < row_bytes:
            raise ValueError(
                f"row_step: {self.width} points of {self.point_step} bytes need {row_bytes} bytes, got {self.row_step}"
            )
        if self.num_points and self.point_step == 0:
            raise ValueError(f"point_step: expected the bytes of a point, got 0 for {self.num_points} points")
        check_data_size(self.data, rows=self.height, row_bytes=row_bytes, step=self.row_step)

    def column(self, name: str, types: tuple[str, ...]) -> NDArray[Any]:
        """(height, width) view of one field."""
        if self.num_points == 0:
            return np.empty((0, 0), dtype=types[0])
        dtype, offset = self._find(name, types)
        return self._view(dtype, offset)

    def xyz(self) -> NDArray[np.float32]:
        """(N, 3) float32, copied."""
        if self.num_points == 0:
            return np.empty((0, 3), dtype=np.float32)
        (x_type, x), (y_type, y), (z_type, z) = (self._find(name, ("f4", "f8")) for name in ("x", "y", "z"))
        if x_type == y_type == z_type == np.float32 and (y, z) == (x + 4, x + 8):
            # Three neighbours copied as one item of 12 bytes: four times faster than three columns.
            return self._view(np.dtype("V12"), x).copy().view(np.float32).reshape(-1, 3)
        points = np.empty((self.height, self.width, 3), dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # a float64 beyond float32 becomes infinite
            for axis, (dtype, offset) in enumerate(((x_type, x), (y_type, y), (z_type, z))):
                points[..., axis] = self._view(dtype, offset)
        return points.reshape(-1, 3)

    def _view(self, dtype: np.dtype[Any], offset: int) -> NDArray[Any]:
        strides = (self.row_step, self.point_step)
        return np.ndarray((self.height, self.width), dtype, self.data, offset, strides)

    def _find(self, name: str, types: tuple[str, ...]) -> tuple[np.dtype[Any], int]:
        found = [field for field in self.fields if field.name == name]
        if len(found) != 1:
            raise ValueError(
                f"fields: expected one field {name!r}, got {len(found)} among "
                f"[{', '.join(str(field.name) for field in self.fields)}]"
            )
        field = found[0]
        kind = _POINT_TYPES.get(field.datatype)
        if kind not in types:
            raise ValueError(
                f"fields: expected {name!r} of type {' or '.join(types)}, got {kind or 'unknown'} "
                f"(datatype {field.datatype})"
            )
        if field.count not in (0, 1):  # 0 is an old way to say 1
            raise ValueError(f"fields: expected one element in {name!r}, got count {field.count}")
        dtype = np.dtype(self.order + kind)
        offset = unsigned(field.offset)
        if offset + dtype.itemsize > self.point_step:
            raise ValueError(
                f"fields: {name!r} at offset {offset} ends beyond point_step {self.point_step} ({dtype.itemsize} bytes)"
            )
        return dtype, offset


def _intensity(layout: _CloudLayout, value_range: tuple[float, float] | None) -> NDArray[np.float32] | None:
    if value_range is None:
        return None
    low, high = value_range
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"intensity_range: expected (low, high) with low < high, got {value_range}")
    if layout.num_points == 0:
        return np.empty(0, dtype=np.float32)
    names = {field.name for field in layout.fields}
    name = next((name for name in INTENSITY_FIELDS if name in names), None)
    if name is None:
        return None
    column = layout.column(name, tuple(_POINT_TYPES.values()))
    with np.errstate(over="ignore", invalid="ignore"):
        values = column.astype(np.float32).reshape(-1)
        values -= np.float32(low)
        values *= np.float32(1.0 / (high - low))
    # fmax and fmin take the number where the other is NaN.
    np.fmax(values, np.float32(0), out=values)
    return np.fmin(values, np.float32(1), out=values)


@dataclass(frozen=True)
class PointFieldSpec:
    """One sensor_msgs/PointField."""

    name: str
    offset: int
    datatype: int
    count: int = 1


LABELLED_FIELDS = (
    PointFieldSpec("x", 0, _FLOAT32),
    PointFieldSpec("y", 4, _FLOAT32),
    PointFieldSpec("z", 8, _FLOAT32),
    PointFieldSpec("label", 12, _UINT8),
    PointFieldSpec("probability", 16, _FLOAT32),
    PointFieldSpec("rgb", 20, _FLOAT32),
)
LABELLED_DTYPE = np.dtype(
    {
        "names": [field.name for field in LABELLED_FIELDS],
        "formats": ["<" + _POINT_TYPES[field.datatype] for field in LABELLED_FIELDS],
        "offsets": [field.offset for field in LABELLED_FIELDS],
        "itemsize": 24,
    }
)


def labelled_points_array(
    *,
    points: NDArray[np.float32],
    labels: NDArray[np.uint8],
    probability: NDArray[np.float32],
    palette: NDArray[np.uint8],
    out: NDArray[np.uint8] | None = None,
) -> NDArray[Any]:
    """(N,) of LABELLED_DTYPE, the bytes of the published cloud whose fields are LABELLED_FIELDS.

    They are written into `out`, N * LABELLED_DTYPE.itemsize bytes, if it is given: a message's own memory.
    `palette` (256, 3) gives the colour of a label; `rgb` is 0x00RRGGBB in the bits of a float32, as RViz reads it.
    """
    num_points = points.shape[0]
    for name, values, shape, dtype in (
        ("points", points, (num_points, 3), np.float32),
        ("labels", labels, (num_points,), np.uint8),
        ("probability", probability, (num_points,), np.float32),
        ("palette", palette, (256, 3), np.uint8),
    ):
        if values.shape != shape or values.dtype != dtype:
            raise ValueError(f"{name}: expected {shape} {np.dtype(dtype)}, got {values.shape} {values.dtype}")
    words = (
        np.empty((num_points, LABELLED_DTYPE.itemsize // 4), dtype="<u4") if out is None else _words(out, num_points)
    )
    if num_points:
        xyz = np.ndarray(num_points, "V12", words, 0, words.strides[:1])  # three columns as one: three times faster
        xyz[:] = np.ascontiguousarray(points, dtype="<f4").view("V12").reshape(-1)
    words[:, 3] = labels  # fills the whole word, which zeroes the padding behind the label
    words[:, 4] = np.ascontiguousarray(probability, dtype="<f4").view("<u4")
    packed = palette.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    words[:, 5] = packed.take(labels, mode="clip")  # a uint8 is never out of range; "clip" is the quick way
    return words.view(LABELLED_DTYPE).reshape(-1)


def _words(data: NDArray[np.uint8], num_points: int) -> NDArray[np.uint32]:
    """(N, words of a point), the memory of `data`."""
    if data.dtype != np.uint8 or data.shape != (num_points * LABELLED_DTYPE.itemsize,):
        raise ValueError(
            f"out: expected {num_points * LABELLED_DTYPE.itemsize} bytes for {num_points} points, "
            f"got {data.shape} {data.dtype}"
        )
    return data.view("<u4").reshape(num_points, LABELLED_DTYPE.itemsize // 4)
