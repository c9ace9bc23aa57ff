# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from xmodal_seg.labels import IGNORE_INDEX, UNLABELED, UNLABELED_COLOUR, LabelSpace
from xmodal_seg.structures import Calibration, CameraView, Frame
from xmodal_seg.visualize import (
    birds_eye_view,
    camera_overlay,
    class_counts,
    overlay,
    render_label_image,
    summary_panel,
    write_png,
)

HEIGHT, WIDTH = 13, 17
SPACE = LabelSpace(name="three", class_names=("car", "road", "tree"), colours=((250, 0, 0), (0, 251, 0), (0, 0, 252)))
PALETTE = SPACE.palette()
GREENISH = (99, 140, 80)
FORWARD = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])


def camera(name: str = "front", *, size: tuple[int, int] = (HEIGHT, WIDTH)) -> CameraView:
    height, width = size
    calibration = Calibration(
        camera_matrix=np.array([[10.0, 0, (width - 1) / 2], [0, 10.0, (height - 1) / 2], [0, 0, 1]]),
        camera_T_lidar=FORWARD,
        image_size=size,
    )
    return CameraView(
        name=name, image=np.full((*size, 3), GREENISH, np.uint8), calibration=calibration, stamp_ns=2_000_000
    )


def cloud(num_points: int = 50, *, cameras: tuple[CameraView, ...] = (), labels: bool = False) -> Frame:
    rng = np.random.default_rng(0)
    points = (rng.normal(size=(num_points, 3)) * (8, 4, 1) + (5, 0, 0)).astype(np.float32)
    truth = np.where(rng.uniform(size=num_points) < 0.3, IGNORE_INDEX, rng.integers(0, 3, num_points))
    return Frame(points=points, cameras=cameras, labels=truth if labels else None)


def disc(centre: tuple[float, float], radius: int) -> np.ndarray:
    """(H, W) bool by definition: pixels whose centre is within the radius (and a half pixel squared) of the point."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    return (u - round(centre[0])) ** 2 + (v - round(centre[1])) ** 2 <= radius**2 + 0.5


@pytest.mark.parametrize("radius", [0, 1, 3])
def test_overlay_paints_discs_and_nothing_else(radius: int) -> None:
    image = np.full((HEIGHT, WIDTH, 3), 99, dtype=np.uint8)
    uv = np.array([[4.2, 5.4], [12.0, 7.0]], dtype=np.float32)
    painted = overlay(image, uv, np.array([0, 2], dtype=np.uint8), PALETTE, radius=radius)
    expected = image.copy()
    expected[disc((4.2, 5.4), radius)] = (250, 0, 0)
    expected[disc((12, 7), radius)] = (0, 0, 252)
    np.testing.assert_array_equal(painted, expected)
    assert (image == 99).all()


def test_of_overlapping_points_the_last_is_on_top() -> None:
    uv = np.array([[5.0, 5.0], [6.0, 6.0], [5.0, 7.0]])
    painted = overlay(np.zeros((HEIGHT, WIDTH, 3), np.uint8), uv, np.array([0, 1, 2], np.uint8), PALETTE, radius=2)
    expected = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for centre, colour in zip(uv, SPACE.colours, strict=True):
        expected[disc(tuple(centre), 2)] = colour
    np.testing.assert_array_equal(painted, expected)


def test_points_outside_the_image_and_nan_are_left_out() -> None:
    uv = np.array([[np.nan, np.nan], [-0.6, 3], [WIDTH - 0.4, 3], [3, HEIGHT - 0.4], [1e9, -1e9]])
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    assert not overlay(image, uv, np.zeros(5, np.uint8), PALETTE, radius=2).any()
    edge = overlay(image, np.array([[WIDTH - 0.6, -0.4]]), np.zeros(1, np.uint8), PALETTE, radius=0)
    assert tuple(np.argwhere(edge[:, :, 0])[0]) == (0, WIDTH - 1)


def test_read_only_and_strided_images_are_copied() -> None:
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)[:, ::-1]
    image.flags.writeable = False
    assert overlay(image, np.array([[3.0, 3.0]]), np.zeros(1, np.uint8), PALETTE)[3, 3, 0] == 250


def test_label_image_covers_the_pixels_of_the_overlay() -> None:
    rng = np.random.default_rng(1)
    uv, labels = rng.uniform(0, HEIGHT, (9, 2)), rng.integers(0, 3, 9).astype(np.uint8)
    label_image = render_label_image(uv, labels, (HEIGHT, WIDTH), radius=1)
    painted = overlay(np.full((HEIGHT, WIDTH, 3), 99, np.uint8), uv, labels, PALETTE, radius=1)
    shown = label_image != UNLABELED
    np.testing.assert_array_equal(painted[shown], PALETTE[label_image[shown]])
    assert (painted[~shown] == 99).all()
    assert shown.any()


def test_birds_eye_view_has_forward_up_and_left_left() -> None:
    points = np.array([[10, 0, 0], [0, 10, 0], [np.nan, 0, 0], [100, 0, 0]], dtype=np.float32)
    view = birds_eye_view(points, np.array([0, 1, 2, 2], np.uint8), PALETTE, extent_m=40, size_px=101, radius=0)
    assert tuple(view[25, 50]) == (250, 0, 0)
    assert tuple(view[50, 25]) == (0, 251, 0)
    assert not (view == (0, 0, 252)).all(axis=2).any()


def test_birds_eye_view_shows_the_highest_point() -> None:
    points = np.array([[1, 1, 3], [1, 1, -1], [1, 1, 2]], dtype=np.float32)
    view = birds_eye_view(points, np.array([2, 0, 1], np.uint8), PALETTE, extent_m=10, size_px=11, radius=0)
    assert (view == (0, 0, 252)).all(axis=2).sum() == 1
    assert not (view == (250, 0, 0)).all(axis=2).any()


def test_camera_overlay_shows_the_nearest_of_points_behind_each_other() -> None:
    points = np.array([[4, 0, 0], [20, 0, 0], [9, 0, 0]], dtype=np.float32)
    frame = Frame(points=points, cameras=(camera(),))
    picture = camera_overlay(frame, frame.cameras[0], np.array([1, 0, 2], np.uint8), SPACE)
    assert tuple(picture[HEIGHT // 2, WIDTH // 2]) == (0, 251, 0)


def test_class_counts_name_every_class_and_the_rest() -> None:
    counts = class_counts(np.array([0, 2, 2, UNLABELED, 7], dtype=np.uint8), SPACE)
    assert counts == {"car": 1, "road": 0, "tree": 2, "unlabeled": 2}
    assert class_counts(np.array([IGNORE_INDEX, 1]), SPACE) == {"car": 0, "road": 1, "tree": 0, "unlabeled": 1}


@pytest.mark.parametrize(("num_cameras", "with_truth"), [(0, False), (1, True), (6, False)])
def test_summary_panel_shows_cameras_and_classes(num_cameras: int, with_truth: bool) -> None:
    frame = cloud(cameras=tuple(camera(f"cam{i}", size=(90, 160)) for i in range(num_cameras)), labels=with_truth)
    labels = np.where(np.arange(50) % 2, 1, 2).astype(np.uint8)
    panel = summary_panel(frame, labels, SPACE, title="a title")
    assert panel.dtype == np.uint8
    assert panel.shape[1:] == (1600, 3)
    assert (panel == (0, 251, 0)).all(axis=2).any()  # of a class that is there: its bar and its points
    assert (panel == GREENISH).all(axis=2).any() == (num_cameras > 0)
    # Ground truth is the only place where class 0 has points, drawn on the dark ground of the view from above.
    dark = np.abs(panel.astype(int) - (24, 24, 28)).max(axis=2) < 3
    assert dark.sum() > (400_000 if with_truth else 200_000)


def test_summary_panel_prints_the_warning() -> None:
    without = summary_panel(cloud(), np.zeros(50, np.uint8), SPACE, title="a title")
    with_warning = summary_panel(cloud(), np.zeros(50, np.uint8), SPACE, title="a title", warning="untrained")
    changed = np.argwhere((without != with_warning).any(axis=2))
    assert len(changed) > 100
    assert changed[:, 0].max() < 100  # in the head of the panel only


def test_summary_panel_of_an_empty_sweep(tmp_path: Path) -> None:
    frame = replace(cloud(), points=np.empty((0, 3), np.float32), cameras=(camera(size=(90, 160)),))
    write_png(tmp_path / "new folder" / "panel.png", summary_panel(frame, np.empty(0, np.uint8), SPACE, title="none"))
    assert cv2.imread(str(tmp_path / "new folder" / "panel.png")).shape[1] == 1600


def test_png_keeps_channel_order(tmp_path: Path) -> None:
    write_png(tmp_path / "red.png", np.full((3, 4, 3), (200, 0, 7), dtype=np.uint8))
    assert tuple(cv2.imread(str(tmp_path / "red.png"))[0, 0]) == (7, 0, 200)
    with pytest.raises(ValueError, match="cannot write"):
        write_png(tmp_path / "red.png" / "inside.png", np.zeros((3, 4, 3), np.uint8))


def test_unlabeled_points_are_grey() -> None:
    painted = overlay(
        np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.array([[3.0, 3.0]]), np.array([255], np.uint8), PALETTE
    )
    assert tuple(painted[3, 3]) == UNLABELED_COLOUR
