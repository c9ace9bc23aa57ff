# SPDX-License-Identifier: Apache-2.0
"""CameraInfo to a Calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.messages.buffers import unsigned
from xmodal_seg.structures import DISTORTION_SIZES, Calibration, DistortionModel

_LEAST_FOCAL_LENGTH_PX = 1e-3  # anything below is no camera, and its inverse need not be finite

_DISTORTION_NAMES: dict[str, DistortionModel] = {
    "plumb_bob": "plumb_bob",
    "rational_polynomial": "rational_polynomial",
    "equidistant": "equidistant",
    "fisheye": "equidistant",
}


def calibration_from_camera_info(msg: Any, *, camera_T_lidar: NDArray[np.float64], rectified: bool) -> Calibration:
    """The calibration of the image that a CameraInfo belongs to.

    `camera_T_lidar` (4, 4) leads to the frame that the message's header names. A raw image takes K and D. A rectified
    one takes P = K' [I | t] and R, with x_rect = R x + t folded into `camera_T_lidar`, and no distortion; an R of zeros
    counts as not given. K and P speak of full-resolution pixels: the region of interest shifts them and binning scales
    them about the pixels' outer edges (an integer coordinate is a pixel's centre). Raises ValueError for an
    uncalibrated camera, a distortion model that is not known, and sizes that do not go together.
    """
    lidar_to_image = np.asarray(camera_T_lidar, dtype=np.float64)
    distortion: NDArray[np.float64] | None = None
    model: DistortionModel = "none"
    if rectified:
        projection = _numbers(msg, "p", 12).reshape(3, 4)
        full_matrix = _intrinsics("p", projection[:, :3])
        lidar_to_image = _rectification(msg, full_matrix, projection[:, 3]) @ lidar_to_image
    else:
        full_matrix = _intrinsics("k", _numbers(msg, "k", 9).reshape(3, 3))
        distortion, model = _distortion(msg)
    (x_offset, y_offset), image_size, (binning_x, binning_y) = _window(msg)
    to_window = np.array(
        [
            [1 / binning_x, 0, (0.5 - x_offset) / binning_x - 0.5],
            [0, 1 / binning_y, (0.5 - y_offset) / binning_y - 0.5],
            [0, 0, 1],
        ]
    )
    return Calibration(
        camera_matrix=to_window @ full_matrix,
        camera_T_lidar=lidar_to_image,
        image_size=image_size,
        distortion=distortion,
        distortion_model=model,
    )


def _numbers(msg: Any, name: str, size: int) -> NDArray[np.float64]:
    values = np.asarray(getattr(msg, name), dtype=np.float64)
    if values.shape != (size,):
        raise ValueError(f"camera_info.{name}: expected {size} numbers, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"camera_info.{name}: expected finite numbers, got {values.tolist()}")
    return values


def _intrinsics(name: str, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    if min(matrix[0, 0], matrix[1, 1]) < _LEAST_FOCAL_LENGTH_PX:
        raise ValueError(
            f"camera_info.{name}: expected positive focal lengths, got fx={matrix[0, 0]:g}, fy={matrix[1, 1]:g} "
            "(0 means an uncalibrated camera)"
        )
    if matrix[1, 0] != 0 or not np.array_equal(matrix[2], (0, 0, 1)):
        raise ValueError(
            f"camera_info.{name}: expected an upper triangular matrix with a last row of 0 0 1, got {matrix.tolist()}"
        )
    return matrix


def _rectification(msg: Any, matrix: NDArray[np.float64], last_column: NDArray[np.float64]) -> NDArray[np.float64]:
    """(4, 4) from the camera's frame to the one in which P's 3x3 part projects."""
    rotation = _numbers(msg, "r", 9).reshape(3, 3)
    if not rotation.any():
        rotation = np.eye(3)
    is_small = np.abs(rotation).max() < 2  # so that the products below are finite
    if not is_small or not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) or np.linalg.det(rotation) < 0:
        raise ValueError(f"camera_info.r: expected a rotation matrix, got {rotation.reshape(-1).tolist()}")
    rectified_T_camera = np.eye(4)
    rectified_T_camera[:3, :3] = rotation
    with np.errstate(all="ignore"):
        rectified_T_camera[:3, 3] = np.linalg.inv(matrix) @ last_column
    if not np.abs(rectified_T_camera).max() < 1e6:
        raise ValueError(f"camera_info.p: expected a last column of px times metres, got {last_column.tolist()}")
    return rectified_T_camera


def _distortion(msg: Any) -> tuple[NDArray[np.float64] | None, DistortionModel]:
    name = msg.distortion_model
    values = _numbers(msg, "d", len(msg.d))
    if name not in _DISTORTION_NAMES and (name or values.size):
        raise ValueError(f"camera_info.distortion_model: expected one of {', '.join(_DISTORTION_NAMES)}, got {name!r}")
    model = _DISTORTION_NAMES.get(name, "none")
    if model != "equidistant" and not values.any():
        return None, "none"  # a fisheye bends even with coefficients of 0
    if values.size not in DISTORTION_SIZES[model]:
        raise ValueError(f"camera_info.d: {name} takes {DISTORTION_SIZES[model]} coefficients, got {values.size}")
    return values, model


def _window(msg: Any) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """(x, y) of the region's corner, (height, width) of the image, (x, y) binning."""
    corner, size, binning = [], [], []
    for axis, length in (("x", "width"), ("y", "height")):
        full = unsigned(getattr(msg, length))
        bins = unsigned(getattr(msg, f"binning_{axis}")) or 1
        offset = unsigned(getattr(msg.roi, f"{axis}_offset"))
        extent = unsigned(getattr(msg.roi, length)) or full
        if full == 0:
            raise ValueError(f"camera_info.{length}: expected the px of the full-resolution image, got 0")
        if offset + extent > full:
            raise ValueError(
                f"camera_info.roi: {axis}_offset {offset} and {length} {extent} px do not lie in {full} px"
            )
        if bins > extent:
            raise ValueError(f"camera_info.binning_{axis}: expected at most {extent} px, got {bins}")
        corner.append(offset)
        size.append(extent // bins)
        binning.append(bins)
    return (corner[0], corner[1]), (size[1], size[0]), (binning[0], binning[1])
