# SPDX-License-Identifier: Apache-2.0
"""Altering a frame: project-then-alter equals alter-then-project, and the same seed gives the same frame."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from xmodal_seg.geometry import project_frame
from xmodal_seg.structures import NO_CAMERA, Calibration, CameraView, Frame
from xmodal_seg.training.transforms import (
    AugmentSettings,
    BottomCropSettings,
    CameraParams,
    CropSettings,
    FrameParams,
    ImageAugmentSettings,
    PointAugmentSettings,
    apply,
    jitter_colours,
    make_params,
    point_matrix,
)

H, W = 13, 17
NO_CHANGE = np.eye(3)


def make_frame(distortion: NDArray[np.float64] | None = None) -> Frame:
    rng = np.random.default_rng(5)
    points = rng.uniform((1, -4, -2), (12, 4, 2), (400, 3)).astype(np.float32)
    calibration = Calibration(
        camera_matrix=np.array([[9.0, 0.7, 7.7], [0, 11.0, 6.2], [0, 0, 1]]),
        camera_T_lidar=np.array([[0.0, -1, 0, 0.2], [0, 0, -1, -0.1], [1, 0, 0, 0.3], [0, 0, 0, 1]]),
        image_size=(H, W),
        distortion=distortion,
        distortion_model="none" if distortion is None else "plumb_bob",
    )
    image = rng.integers(0, 256, (H, W, 3), dtype=np.uint8)
    camera = CameraView(name="front", image=image, calibration=calibration)
    return Frame(points=points, labels=np.arange(400) % 5, cameras=(camera,))


def with_camera_params(frame: Frame, **values: object) -> Frame:
    params = CameraParams(**values)  # type: ignore[arg-type]
    return apply(frame, FrameParams(cameras=(params,), matrix=NO_CHANGE, shift=np.zeros(3, dtype=np.int64)))


def test_moving_the_points_leaves_every_pixel_where_it_was() -> None:
    frame = make_frame()
    before = project_frame(frame)
    settings = PointAugmentSettings(noise=0.1, flip="y", rotation=6.28)
    for seed in range(5):
        matrix = point_matrix(settings, np.random.default_rng(seed))
        moved = apply(frame, FrameParams(cameras=(CameraParams(),), matrix=matrix, shift=np.zeros(3, dtype=np.int64)))
        after = project_frame(moved)
        np.testing.assert_allclose(moved.points, frame.points.astype(np.float64) @ matrix, rtol=1e-4, atol=1e-4)
        seen = (before.camera_index >= 0) & (after.camera_index >= 0)
        assert (seen == (before.camera_index >= 0)).mean() > 0.99  # a point on the edge may fall off by rounding
        np.testing.assert_allclose(after.uv[seen], before.uv[seen], atol=2e-3)
        np.testing.assert_allclose(after.depth[seen], before.depth[seen], rtol=1e-4)


@pytest.mark.parametrize("distortion", [None, np.array([-0.05, 0.01, 0.02, 0.03, 0.0])])
def test_mirror_image(distortion: NDArray[np.float64] | None) -> None:
    frame = make_frame(distortion)
    mirrored = with_camera_params(frame, flip=True)
    np.testing.assert_array_equal(mirrored.cameras[0].image, frame.cameras[0].image[:, ::-1])
    before, after = project_frame(frame), project_frame(mirrored)
    seen = (before.camera_index >= 0) & (after.camera_index >= 0)
    assert seen.sum() > 100
    np.testing.assert_allclose(after.uv[seen], (W - 1, 0) + (-1, 1) * before.uv[seen], atol=1e-4)


def test_crop_moves_pixels_and_loses_points_outside() -> None:
    frame = make_frame()
    top, left, height, width = 3, 5, 8, 7
    cropped = with_camera_params(frame, crop=(top, left, height, width))
    np.testing.assert_array_equal(cropped.cameras[0].image, frame.cameras[0].image[3:11, 5:12])
    before, after = project_frame(frame), project_frame(cropped)
    u, v = before.uv.T
    inside = (u >= left - 0.5) & (u < left + width - 0.5) & (v >= top - 0.5) & (v < top + height - 0.5)
    np.testing.assert_array_equal(after.camera_index != NO_CAMERA, inside)
    np.testing.assert_allclose(after.uv[inside], before.uv[inside] - (left, top), atol=1e-4)
    assert cropped.num_points == frame.num_points


def test_crop_then_mirror_then_move_all_at_once() -> None:
    frame = make_frame()
    matrix = point_matrix(PointAugmentSettings(noise=0.1, rotation=3.0), np.random.default_rng(1))
    camera = CameraParams(crop=(0, 2, 13, 11), flip=True)
    altered = apply(frame, FrameParams(cameras=(camera,), matrix=matrix, shift=np.zeros(3, dtype=np.int64)))
    before, after = project_frame(frame), project_frame(altered)
    seen = after.camera_index >= 0
    assert seen.sum() > 50
    np.testing.assert_allclose(after.uv[seen, 0], 10 - (before.uv[seen, 0] - 2), atol=2e-3)
    np.testing.assert_allclose(after.uv[seen, 1], before.uv[seen, 1], atol=2e-3)


def test_colours_change_as_asked() -> None:
    image = np.full((H, W, 3), (100, 150, 200), dtype=np.uint8)
    assert jitter_colours(image, CameraParams()) is image
    np.testing.assert_array_equal(jitter_colours(image, CameraParams(brightness=0.5))[0, 0], (50, 75, 100))
    np.testing.assert_array_equal(jitter_colours(image, CameraParams(brightness=2.0))[0, 0], (200, 255, 255))
    grey = jitter_colours(image, CameraParams(saturation=0.0))[0, 0]
    assert len(set(grey.tolist())) == 1
    checked = image.copy()
    checked[::2] = 0
    flat = jitter_colours(checked, CameraParams(contrast=0.0))
    assert flat.min() == flat.max()  # all contrast gone: the mean grey everywhere


def jittered_in_float(image: NDArray[np.uint8], params: CameraParams) -> NDArray[np.float64]:
    """What jitter_colours does, pixel by pixel and without rounding."""
    weights = np.array([0.299, 0.587, 0.114])
    values = np.clip(image * params.brightness, 0, 255)
    mean = (values @ weights).mean()
    values = np.clip(mean + params.contrast * (values - mean), 0, 255)
    grey = (values @ weights)[..., None]
    return np.clip(grey + params.saturation * (values - grey), 0, 255)


@pytest.mark.parametrize("seed", range(8))
def test_colour_jitter_equals_the_same_in_float(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Blocks of saturated colours, so that every clip is met, beside noise.
    image = rng.integers(0, 256, (3 * H, W, 3), dtype=np.uint8)
    image[:H] = rng.choice([0, 255], (H, W, 3))
    brightness, contrast, saturation = (float(factor) for factor in rng.uniform(0.6, 1.4, 3))
    params = CameraParams(brightness=brightness, contrast=contrast, saturation=saturation)
    difference = jitter_colours(image, params) - jittered_in_float(image, params)
    assert np.abs(difference).max() < 0.5 + 0.5 * 1.8 + 0.4  # own rounding, the table's times the matrix, its weights'
    # OpenCV's 8-bit matrix has weights of limited precision: a bias of a few hundredths of a level, less than 0.1 %.
    assert abs(difference[H:].mean()) < 0.2


def test_colour_jitter_takes_crops_and_leaves_the_image_alone() -> None:
    frame = make_frame()
    before = frame.cameras[0].image.copy()
    for flip in (False, True):
        altered = with_camera_params(frame, crop=(3, 5, 8, 7), flip=flip, brightness=1.3, saturation=0.7)
        np.testing.assert_array_equal(frame.cameras[0].image, before)
        alone = np.ascontiguousarray(before[3:11, 5:12][:, :: -1 if flip else 1])
        expected = jitter_colours(alone, CameraParams(brightness=1.3, saturation=0.7))
        np.testing.assert_array_equal(altered.cameras[0].image, expected)


def test_same_seed_same_frame_and_ranges_are_kept() -> None:
    settings = AugmentSettings(
        image=ImageAugmentSettings(flip=0.5, jitter=0.4, crop=CropSettings(min_points=0)),
        points=PointAugmentSettings(noise=0.1, flip="x", rotation=6.28, shift_cells=3),
    )
    frame = make_frame()
    flips, shifts = set(), set()
    for seed in range(40):
        params = [make_params(frame, settings=settings, rng=np.random.default_rng(seed)) for _ in range(2)]
        np.testing.assert_array_equal(apply(frame, params[0]).points, apply(frame, params[1]).points)
        camera = params[0].cameras[0]
        assert camera == params[1].cameras[0]
        assert camera.crop is not None
        top, left, height, width = camera.crop
        assert top + height <= H
        assert left + width <= W
        assert min(camera.crop) >= 0
        assert 0.6 <= camera.brightness <= 1.4
        flips.add(camera.flip)
        shifts.update(params[0].shift.tolist())
    assert flips == {True, False}
    assert shifts == {0, 1, 2, 3}


def test_default_settings_alter_nothing() -> None:
    frame = make_frame()
    params = make_params(frame, settings=AugmentSettings(), rng=np.random.default_rng(0))
    altered = apply(frame, params)
    assert altered.points is frame.points
    np.testing.assert_array_equal(altered.cameras[0].image, frame.cameras[0].image)
    assert not params.shift.any()


def test_bottom_crop_keeps_the_lowest_rows_and_prefers_crops_with_points() -> None:
    frame = make_frame()
    left_half = frame.select(project_frame(frame).uv[:, 0] < 6)
    image = ImageAugmentSettings(bottom_crop=BottomCropSettings(size=(9, 6), min_points=20))
    lefts = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        crop = make_params(left_half, settings=AugmentSettings(image=image), rng=rng).cameras[0].crop
        assert crop is not None
        assert (crop[0], crop[2], crop[3]) == (H - 9, 9, 6)
        lefts.append(crop[1])
    assert sum(left > 5 for left in lefts) <= 1  # crops further right see too few points; half of all draws do


def test_two_kinds_of_crop_are_refused() -> None:
    with pytest.raises(ValidationError, match="at most one of the two"):
        ImageAugmentSettings(crop=CropSettings(), bottom_crop=BottomCropSettings())
