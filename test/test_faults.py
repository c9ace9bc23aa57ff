# SPDX-License-Identifier: Apache-2.0
"""Sensors that fail, as frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from adaptation_parts import stream_frame

from xmodal_seg.faults import (
    CLOCK_JUMP_NS,
    FAULTS,
    FrozenCameras,
    JumpingClock,
    LostMessages,
    black_images,
    shuffled_points,
    turned_cameras,
)
from xmodal_seg.geometry import NO_CAMERA, project_frame


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_leaves_its_input_alone_and_does_the_same_every_time(name: str) -> None:
    frames = [stream_frame(number) for number in range(4)]
    first, second = FAULTS[name](), FAULTS[name]()
    for frame in frames:
        before = frame.points.copy(), frame.cameras[0].image.copy()
        spoiled, again = first(frame), second(frame)
        np.testing.assert_array_equal(frame.points, before[0])
        np.testing.assert_array_equal(frame.cameras[0].image, before[1])
        assert (spoiled is None) == (again is None)
        if spoiled is not None and again is not None:
            assert spoiled.stamp_ns == again.stamp_ns
            np.testing.assert_array_equal(spoiled.points, again.points)


def test_black_images_are_black() -> None:
    frame = black_images(stream_frame(0))
    assert not frame.cameras[0].image.any()


def test_shuffled_points_keep_each_axis_and_no_point() -> None:
    frame = stream_frame(0)
    points = shuffled_points(frame).points
    assert points.dtype == np.float32
    np.testing.assert_array_equal(np.sort(points, axis=0), np.sort(frame.points, axis=0))
    assert not (points == frame.points).all(axis=1).any()


def test_a_camera_that_is_taken_to_look_left_moves_what_is_seen_to_the_right() -> None:
    frame = stream_frame(0)
    true, wrong = project_frame(frame), project_frame(turned_cameras(frame, degrees=10.0))
    both = (true.camera_index != NO_CAMERA) & (wrong.camera_index != NO_CAMERA)
    assert both.sum() > 10
    assert (wrong.uv[both, 0] > true.uv[both, 0] + 1).all()


def test_frozen_cameras_repeat_the_first_image_with_new_stamps() -> None:
    freeze = FrozenCameras()
    first, later = stream_frame(0), stream_frame(3)
    freeze(first)
    frozen = freeze(later)
    np.testing.assert_array_equal(frozen.cameras[0].image, first.cameras[0].image)
    assert frozen.cameras[0].stamp_ns == later.cameras[0].stamp_ns


def test_lost_messages_lose_their_share_of_sweeps_and_of_images() -> None:
    lose, frame = LostMessages(share=0.3), stream_frame(0)
    left = [spoiled for spoiled in (lose(frame) for _ in range(1000)) if spoiled is not None]
    assert 650 < len(left) < 750
    assert 0.65 < sum(bool(spoiled.cameras) for spoiled in left) / len(left) < 0.75


def test_a_jumping_clock_jumps_ahead_and_back_with_all_its_stamps() -> None:
    jump, frame = JumpingClock(every=2), replace(stream_frame(0), stamp_ns=5)
    stamps = [jump(frame).stamp_ns - 5 for _ in range(5)]
    assert stamps == [CLOCK_JUMP_NS, CLOCK_JUMP_NS, 0, 0, CLOCK_JUMP_NS]
    camera = JumpingClock()(frame).cameras[0]
    assert camera.stamp_ns == frame.cameras[0].stamp_ns + CLOCK_JUMP_NS
