# SPDX-License-Identifier: Apache-2.0
"""Frames become batches in which every point keeps its image, voxel, label and place."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from xmodal_seg.config import PreprocessSettings
from xmodal_seg.geometry import project_frame
from xmodal_seg.preprocess import prepare, resize_image, resize_uv
from xmodal_seg.structures import NO_CAMERA, Calibration, CameraView, Frame

HEIGHT, WIDTH = 39, 51
POSE = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])


def make_view(name: str, *, backwards: bool = False, size: tuple[int, int] = (HEIGHT, WIDTH)) -> CameraView:
    turn = np.diag([-1.0, -1, 1, 1]) if backwards else np.eye(4)
    calibration = Calibration(
        camera_matrix=np.array([[20.0, 0, size[1] / 2], [0, 20.0, size[0] / 2], [0, 0, 1]]),
        camera_T_lidar=POSE @ turn,
        image_size=size,
    )
    image = np.random.default_rng(len(name)).integers(0, 256, (*size, 3), dtype=np.uint8)
    return CameraView(name=name, image=image, calibration=calibration)


def make_frame(num_points: int = 400, *, seed: int = 0, cameras: tuple[CameraView, ...] = ()) -> Frame:
    generator = np.random.default_rng(seed)
    points = generator.uniform(-10, 10, (num_points, 3)).astype(np.float32)
    points[::37] = np.nan
    return Frame(
        points=points,
        intensity=generator.random(num_points, dtype=np.float32),
        labels=np.arange(num_points) % 5,
        cameras=cameras,
        frame_id="lidar",
    )


SETTINGS = PreprocessSettings(voxel_size=0.5, image_size=(26, 34))


def test_every_point_keeps_its_place() -> None:
    frames = [
        make_frame(seed=1, cameras=(make_view("front"), make_view("rear", backwards=True, size=(20, 60)))),
        make_frame(301, seed=2, cameras=(make_view("front"),)),
    ]
    batch = prepare(frames, settings=SETTINGS)
    first_image = [0, 2]
    for number, frame in enumerate(frames):
        projection = project_frame(frame)
        rows = batch.frame_index == number
        index = batch.point_index[rows].numpy()
        np.testing.assert_array_equal(index, np.flatnonzero(projection.camera_index != NO_CAMERA))
        np.testing.assert_array_equal(batch.labels[rows], frame.labels[index])
        np.testing.assert_array_equal(batch.image_index[rows], projection.camera_index[index] + first_image[number])
        coords = batch.voxel_coords[batch.point_to_voxel[rows]].numpy()
        assert (coords[:, 0] == number).all()
        shifted = frame.points[index] - frame.points[index].min(axis=0)
        np.testing.assert_array_equal(coords[:, :0:-1], np.floor(shifted.astype(np.float64) / 0.5))
    assert batch.images.shape == (3, 3, 26, 34)
    assert batch.voxel_coords.is_contiguous()


def test_scope_all_keeps_the_points_that_no_camera_sees() -> None:
    frame = make_frame(cameras=(make_view("front"),))
    batch = prepare([frame], settings=SETTINGS.model_copy(update={"point_scope": "all"}))
    np.testing.assert_array_equal(batch.point_index, np.flatnonzero(np.isfinite(frame.points).all(axis=1)))
    np.testing.assert_array_equal(batch.visible, project_frame(frame).camera_index[batch.point_index] == 0)
    assert (batch.uv[~batch.visible] == 0).all()


def test_a_frame_without_cameras_and_one_without_points() -> None:
    everything = SETTINGS.model_copy(update={"point_scope": "all"})
    batch = prepare([make_frame()], settings=everything)
    assert batch.images.shape == (0, 3, 26, 34)
    assert not batch.visible.any()
    empty = prepare([Frame(points=np.zeros((0, 3), np.float32))], settings=everything)
    assert (empty.num_points, len(empty.voxel_coords)) == (0, 0)


def test_points_outside_the_cube_leave_every_list() -> None:
    frame = make_frame(cameras=(make_view("front"),))
    batch = prepare([frame], settings=SETTINGS.model_copy(update={"max_cells": 24}))
    assert 0 < batch.num_points < prepare([frame], settings=SETTINGS).num_points
    assert (np.abs(frame.points[batch.point_index]) < 6.0).all()  # half of 24 cells of 0.5 m
    lengths = {len(batch.uv), len(batch.image_index), len(batch.point_index), len(batch.frame_index)}
    assert lengths | {len(batch.labels), len(batch.point_to_voxel)} == {batch.num_points}
    assert int(batch.voxel_coords[:, 1:].max()) < 24


def test_one_far_outlier_costs_only_itself() -> None:
    frame = make_frame()
    points = frame.points.copy()
    points[3] = (-500.0, 0.0, 0.0)
    everything = PreprocessSettings(point_scope="all")
    expected = [index for index in prepare([frame], settings=everything).point_index.tolist() if index != 3]
    assert prepare([replace(frame, points=points)], settings=everything).point_index.tolist() == expected


def test_intensity_as_input_is_averaged_in_the_voxel() -> None:
    frame = make_frame(cameras=(make_view("front"),))
    batch = prepare([frame], settings=SETTINGS.model_copy(update={"point_feats": "intensity"}))
    values = frame.intensity[batch.point_index]
    for voxel in range(len(batch.voxel_coords)):
        expected = values[batch.point_to_voxel.numpy() == voxel].mean()
        assert batch.voxel_feats[voxel, 0] == pytest.approx(expected, rel=1e-5)


def test_resizing_moves_pixels_with_the_image() -> None:
    """A bright pixel is found again at the resized coordinate of its centre."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[12:16, 32:36] = 255
    resized = resize_image(image, (20, 30))
    centre = resize_uv(np.float32([[33.5, 13.5]]), from_size=(40, 60), to_size=(20, 30))[0]
    rows, columns = torch.nonzero(resized[0] > 127, as_tuple=True)
    assert (columns.float().mean().item(), rows.float().mean().item()) == pytest.approx(tuple(centre))


def test_large_images_are_averaged_not_sampled() -> None:
    stripes = np.zeros((16, 120, 3), np.uint8)
    stripes[:, ::2] = 255
    np.testing.assert_allclose(resize_image(stripes, (4, 30)), 128, atol=2)


def test_images_many_times_too_large_come_out_as_from_one_average() -> None:
    """Exact halves come first; odd sizes, which have none, go the direct way."""
    rng = np.random.default_rng(0)
    for size in ((900, 1600), (450, 801)):
        image = cv2.GaussianBlur(rng.integers(0, 256, (*size, 3), dtype=np.uint8), (0, 0), 2)
        expected = cv2.resize(image, (60, 40), interpolation=cv2.INTER_AREA).transpose(2, 0, 1).astype(float)
        np.testing.assert_allclose(resize_image(image, (40, 60)), expected, atol=3)


def test_resize_keeps_an_image_of_the_right_size() -> None:
    image = make_view("front").image
    np.testing.assert_array_equal(resize_image(image, (HEIGHT, WIDTH)), image.transpose(2, 0, 1))


def test_what_cannot_be_prepared_is_refused() -> None:
    frame = make_frame(cameras=(make_view("front"),))
    with pytest.raises(ValueError, match="at least one frame"):
        prepare([], settings=SETTINGS)
    with pytest.raises(ValueError, match="1 of 2 frames"):
        prepare([frame, replace(frame, labels=None)], settings=SETTINGS)
    with pytest.raises(ValueError, match="point_feats: intensity"):
        prepare([replace(frame, intensity=None)], settings=SETTINGS.model_copy(update={"point_feats": "intensity"}))
