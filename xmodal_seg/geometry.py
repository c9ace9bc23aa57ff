# SPDX-License-Identifier: Apache-2.0
"""Rigid transforms and camera projection in numpy; metres and pixels, float32 points.

Sources: the pinhole and fisheye models of OpenCV's calib3d, which CameraInfo's plumb_bob, rational_polynomial and
equidistant name.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.structures import NO_CAMERA, Calibration, Frame, Projection

MIN_DEPTH_M = 0.1  # nearer points are on the sensor itself, and their pixel is numerically meaningless
_RADIUS_SAMPLES = 2048


def invert_rigid(target_T_source: NDArray[np.float64]) -> NDArray[np.float64]:
    """(4, 4) inverse of a rotation and translation, exact in the rotation."""
    inverse = np.eye(4)
    inverse[:3, :3] = target_T_source[:3, :3].T
    inverse[:3, 3] = -target_T_source[:3, :3].T @ target_T_source[:3, 3]
    return inverse


def transform_points(target_T_source: NDArray[np.float64], points: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, 3) points in source axes -> (N, 3) in target axes, m."""
    rotation = target_T_source[:3, :3].astype(np.float32)
    return points @ rotation.T + target_T_source[:3, 3].astype(np.float32)


def project_points(
    points: NDArray[np.float32], calibration: Calibration
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Where LiDAR points fall in an image, distortion included.

    Args:
        points: (N, 3) m in LiDAR axes; rows that are not finite are never seen.
        calibration: of the image as it is (raw: with its distortion).

    Returns:
        index (M,) of the points inside the image and at least MIN_DEPTH_M in front of it, their uv (M, 2) px and
        their depth (M,) m.
    """
    rotation = calibration.camera_T_lidar[:3, :3].astype(np.float32)
    translation = calibration.camera_T_lidar[:3, 3].astype(np.float32)
    with np.errstate(invalid="ignore"):  # NaN rows are asked for; they compare false
        depth = points @ rotation[2] + translation[2]
        index = np.flatnonzero((depth > MIN_DEPTH_M) & (depth < np.inf))
    # Only what is in front is worth the other two rows: half of a sweep.
    x, y = rotation[:2] @ points.take(index, axis=0).T + translation[:2, None]
    depth = depth[index]
    x, y = x / depth, y / depth
    if calibration.distortion_model != "none":
        # Past a certain angle the polynomial folds back, and points outside the field of view would land inside the
        # image; so they leave before it is applied.
        inside = np.flatnonzero(x * x + y * y < valid_radius(calibration) ** 2)
        index, depth = index[inside], depth[inside]
        x, y = distort(x[inside], y[inside], calibration)
    matrix = calibration.camera_matrix.astype(np.float32)
    u = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]
    v = matrix[1, 1] * y + matrix[1, 2]
    height, width = calibration.image_size
    inside = np.flatnonzero((u >= -0.5) & (u < width - 0.5) & (v >= -0.5) & (v < height - 0.5))
    return index[inside], np.stack([u[inside], v[inside]], axis=1), depth[inside]


def distort(
    x: NDArray[np.float32], y: NDArray[np.float32], calibration: Calibration
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Normalised image coordinates (x = X/Z, y = Y/Z) -> the same after the lens, by the calibration's model."""
    if calibration.distortion is None or calibration.distortion_model == "none":
        return x, y
    radius_squared = x * x + y * y
    scale = _radial_scale(radius_squared, calibration).astype(x.dtype)
    if calibration.distortion_model == "equidistant":
        return x * scale, y * scale
    p1, p2 = (float(p) for p in calibration.distortion[2:4])
    return (
        x * scale + 2 * p1 * x * y + p2 * (radius_squared + 2 * x * x),
        y * scale + p1 * (radius_squared + 2 * y * y) + 2 * p2 * x * y,
    )


def valid_radius(calibration: Calibration) -> float:
    """Largest r = |(X, Y)| / Z up to which the lens maps larger angles to larger radii; inf without distortion."""
    if calibration.distortion is None or calibration.distortion_model == "none":
        return np.inf
    radius = np.tan(np.linspace(0.0, np.deg2rad(89.0), _RADIUS_SAMPLES))
    distorted = radius * _radial_scale(radius**2, calibration)
    folds = np.flatnonzero(np.diff(distorted) <= 0)
    return float(radius[folds[0]]) if folds.size else float(radius[-1])


def project_frame(frame: Frame) -> Projection:
    """Which camera sees each point of a frame, and where.

    A point that several cameras see takes the one in which it lies nearest the image centre, measured in fractions of
    the image size: there the lens is best known and the neighbour's edge is avoided.
    """
    num_points = frame.num_points
    camera_index = np.full(num_points, NO_CAMERA, dtype=np.int64)
    uv = np.full((num_points, 2), np.nan, dtype=np.float32)
    depth = np.full(num_points, np.nan, dtype=np.float32)
    best = np.full(num_points, np.inf, dtype=np.float32)
    for number, camera in enumerate(frame.cameras):
        index, camera_uv, camera_depth = project_points(frame.points, camera.calibration)
        eccentricity = _eccentricity(camera_uv, camera.calibration.image_size)
        nearer = np.flatnonzero(eccentricity < best[index])
        chosen = index[nearer]
        best[chosen] = eccentricity[nearer]
        camera_index[chosen] = number
        put_pairs(uv, chosen, camera_uv.take(nearer, axis=0))
        depth[chosen] = camera_depth[nearer]
    return Projection(camera_index=camera_index, uv=uv, depth=depth)


def put_pairs(target: NDArray[np.float32], index: NDArray[np.int64], pairs: NDArray[np.float32]) -> None:
    """target[index] = pairs, for contiguous (N, 2) float32: as one value of 8 bytes each, a fifth of NumPy's time."""
    target.view(np.complex64)[:, 0][index] = pairs.view(np.complex64)[:, 0]


def _eccentricity(uv: NDArray[np.float32], image_size: tuple[int, int]) -> NDArray[np.float32]:
    """(M,) squared distance from the image centre, in fractions of the image size."""
    height, width = image_size
    # Column by column: NumPy is several times slower along an axis of two.
    across = (uv[:, 0] - np.float32((width - 1) / 2)) / np.float32(width)
    down = (uv[:, 1] - np.float32((height - 1) / 2)) / np.float32(height)
    return across * across + down * down


def _radial_scale(radius_squared: NDArray[np.floating], calibration: Calibration) -> NDArray[np.floating]:
    """Distorted radius / undistorted radius at r^2 (tangential terms apart)."""
    assert calibration.distortion is not None
    coefficients = [float(value) for value in calibration.distortion]
    if calibration.distortion_model == "equidistant":
        radius = np.sqrt(np.maximum(radius_squared, 1e-16))
        theta = np.arctan(radius)
        theta_squared = theta * theta
        k1, k2, k3, k4 = coefficients
        polynomial = 1 + theta_squared * (k1 + theta_squared * (k2 + theta_squared * (k3 + theta_squared * k4)))
        return theta * polynomial / radius
    k1, k2, _, _, k3, k4, k5, k6 = [*coefficients, *[0.0] * (8 - len(coefficients))]
    numerator = 1 + radius_squared * (k1 + radius_squared * (k2 + radius_squared * k3))
    denominator = 1 + radius_squared * (k4 + radius_squared * (k5 + radius_squared * k6))
    return numerator / denominator
