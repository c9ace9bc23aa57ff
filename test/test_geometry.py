# SPDX-License-Identifier: Apache-2.0
"""Projection against OpenCV's own functions, and the gate that keeps points outside the field of view out."""

import cv2
import numpy as np
import pytest

from xmodal_seg.geometry import MIN_DEPTH_M, invert_rigid, project_frame, project_points, transform_points, valid_radius
from xmodal_seg.structures import NO_CAMERA, Calibration, CameraView, Frame

HEIGHT, WIDTH = 130, 170
MATRIX = np.array([[90.0, 0.0, 81.0], [0.0, 85.0, 66.0], [0.0, 0.0, 1.0]])
# LiDAR x forward, y left, z up -> camera x right, y down, z forward, with a lever arm.
POSE = np.array([[0.0, -1, 0, 0.1], [0, 0, -1, -0.2], [1, 0, 0, 0.05], [0, 0, 0, 1]])
DISTORTIONS = {
    "none": None,
    "plumb_bob": np.array([-0.3, 0.1, 0.001, -0.002, -0.01]),
    "rational_polynomial": np.array([0.4, -0.2, 0.0005, 0.001, 0.01, 0.6, -0.1, 0.02]),
    "equidistant": np.array([0.02, -0.01, 0.004, -0.001]),
}


def make_calibration(model: str = "none", **changes: object) -> Calibration:
    values = {
        "camera_matrix": MATRIX,
        "camera_T_lidar": POSE,
        "image_size": (HEIGHT, WIDTH),
        "distortion": DISTORTIONS[model],
        "distortion_model": model,
    }
    return Calibration(**(values | changes))


def random_points(num: int = 5000, seed: int = 3) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.uniform((-20, -20, -8), (40, 20, 8), (num, 3)).astype(np.float32)


def opencv_uv(in_camera: np.ndarray, calibration: Calibration) -> np.ndarray:
    rotation, translation = np.zeros(3), np.zeros(3)
    if calibration.distortion_model == "equidistant":
        uv, _ = cv2.fisheye.projectPoints(
            in_camera[:, None].astype(np.float64), rotation, translation, MATRIX, calibration.distortion
        )
    else:
        uv, _ = cv2.projectPoints(in_camera.astype(np.float64), rotation, translation, MATRIX, calibration.distortion)
    return uv[:, 0]


@pytest.mark.parametrize("model", DISTORTIONS)
def test_projection_equals_opencv(model: str) -> None:
    points, calibration = random_points(), make_calibration(model)
    index, uv, depth = project_points(points, calibration)
    in_camera = transform_points(POSE, points[index])
    assert len(index) > 300
    np.testing.assert_allclose(uv, opencv_uv(in_camera, calibration), atol=2e-3)
    np.testing.assert_allclose(depth, in_camera[:, 2], rtol=1e-6)


@pytest.mark.parametrize("model", DISTORTIONS)
def test_every_point_of_the_field_of_view_is_found(model: str) -> None:
    """Reference: OpenCV's projection of all points in front, kept where the angle is within the lens' valid range."""
    points, calibration = random_points(), make_calibration(model)
    in_camera = points @ POSE[:3, :3].T + POSE[:3, 3]
    candidates = np.flatnonzero(in_camera[:, 2] > MIN_DEPTH_M)
    normalised = in_camera[candidates, :2] / in_camera[candidates, 2:]
    candidates = candidates[np.linalg.norm(normalised, axis=1) < valid_radius(calibration)]
    uv = opencv_uv(in_camera[candidates], calibration)
    inside = (uv >= -0.5).all(axis=1) & (uv[:, 0] < WIDTH - 0.5) & (uv[:, 1] < HEIGHT - 0.5)
    np.testing.assert_array_equal(project_points(points, calibration)[0], candidates[inside])


def test_a_folding_lens_does_not_bring_outside_points_back() -> None:
    calibration = make_calibration(distortion=np.array([-0.35, 0.0, 0.0, 0.0]), distortion_model="plumb_bob")
    # 3 r k1 r^2 = 1 at the fold: r = 1 / sqrt(1.05).
    assert valid_radius(calibration) == pytest.approx(1 / np.sqrt(1.05), rel=0.01)
    at_80_degrees = np.array([[1.0, -np.tan(np.deg2rad(80.0)), 0.0]], dtype=np.float32)
    folded = opencv_uv(transform_points(POSE, at_80_degrees), calibration)[0]
    assert folded[0] < WIDTH * 10  # the polynomial gives a finite pixel for it ...
    assert project_points(at_80_degrees, calibration)[0].size == 0  # ... and the gate refuses it


def test_points_behind_and_not_finite_are_not_seen() -> None:
    points = np.array([[-5, 0, 0], [np.nan, 0, 0], [np.inf, 0, 0], [5, 0, 0], [1.0, 0.1, -0.2]], dtype=np.float32)
    assert project_points(points, make_calibration())[0].tolist() == [3, 4]


def test_pixel_centres_are_integers() -> None:
    """A point on the ray of pixel (0, 0)'s outer edge is inside, one just beyond it outside."""
    calibration = make_calibration(camera_T_lidar=np.eye(4))
    for u, seen in ((-0.49, True), (-0.51, False), (WIDTH - 0.51, True), (WIDTH - 0.49, False)):
        point = np.float32([[(u - 81.0) / 90.0, 0.0, 1.0]])
        assert (project_points(point, calibration)[0].size == 1) is seen


def test_invert_rigid() -> None:
    np.testing.assert_allclose(invert_rigid(POSE) @ POSE, np.eye(4), atol=1e-12)


def make_view(name: str, yaw_rad: float) -> CameraView:
    cosine, sine = np.cos(yaw_rad), np.sin(yaw_rad)
    turned = np.array([[cosine, sine, 0, 0], [-sine, cosine, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    calibration = make_calibration(camera_T_lidar=POSE @ turned)
    return CameraView(name=name, image=np.zeros((HEIGHT, WIDTH, 3), np.uint8), calibration=calibration)


def test_overlapping_cameras_take_the_more_central_view() -> None:
    points = random_points()
    views = (make_view("left", np.deg2rad(35)), make_view("right", np.deg2rad(-35)))
    projection = project_frame(Frame(points=points, cameras=views))
    seen = [np.full(len(points), np.inf), np.full(len(points), np.inf)]
    for number, view in enumerate(views):
        index, uv, _ = project_points(points, view.calibration)
        centre = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
        seen[number][index] = (((uv - centre) / (WIDTH, HEIGHT)) ** 2).sum(axis=1)
    overlap = np.isfinite(seen[0]) & np.isfinite(seen[1])
    assert overlap.sum() > 20
    expected = np.where(np.isinf(seen[0]) & np.isinf(seen[1]), NO_CAMERA, np.argmin(seen, axis=0))
    np.testing.assert_array_equal(projection.camera_index, expected)
    assert np.isnan(projection.uv[projection.camera_index == NO_CAMERA]).all()


def test_a_frame_without_cameras_sees_nothing() -> None:
    projection = project_frame(Frame(points=random_points(7)))
    assert (projection.camera_index == NO_CAMERA).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"camera_matrix": np.eye(2)}, "camera_matrix: expected shape"),
        ({"camera_matrix": np.diag([0.0, 0, 1])}, "positive focal lengths"),
        ({"camera_T_lidar": np.full((4, 4), np.nan)}, "camera_T_lidar: expected finite"),
        ({"image_size": (0, 5)}, "image_size"),
        ({"distortion": np.zeros(3), "distortion_model": "plumb_bob"}, "plumb_bob takes"),
        ({"distortion": np.zeros(4), "distortion_model": "brown"}, "distortion_model"),
        ({"distortion": np.full(4, np.inf), "distortion_model": "equidistant"}, "finite coefficients"),
    ],
)
def test_bad_calibrations_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_calibration(**changes)


def test_an_image_must_fit_its_calibration() -> None:
    with pytest.raises(ValueError, match="its calibration is for 130x170"):
        CameraView(name="front", image=np.zeros((13, 17, 3), np.uint8), calibration=make_calibration())
