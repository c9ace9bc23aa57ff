# SPDX-License-Identifier: Apache-2.0
"""Sensors that fail, for tests of what must survive them: frame by frame, a frame as the fault leaves it.

A fault is a function from a frame to the spoiled one, or to None where nothing arrives. Some remember former frames, so
each drive needs new ones: `FAULTS` holds their makers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from xmodal_seg.structures import CameraView, Frame

Fault = Callable[[Frame], "Frame | None"]
CLOCK_JUMP_NS = 3600 * 10**9


def black_images(frame: Frame) -> Frame:
    """Every camera sees nothing."""
    return replace(frame, cameras=tuple(replace(view, image=np.zeros_like(view.image)) for view in frame.cameras))


def shuffled_points(frame: Frame) -> Frame:
    """Every coordinate is that of another point."""
    generator = np.random.default_rng(frame.stamp_ns % 2**32)
    columns = [generator.permutation(frame.points[:, axis]) for axis in range(3)]
    return replace(frame, points=np.stack(columns, axis=1))


def turned_cameras(frame: Frame, *, degrees: float = 10.0) -> Frame:
    """The extrinsics are wrong: every camera is taken to look `degrees` further to the left than it does."""
    turn = np.eye(4)
    angle = np.deg2rad(degrees)
    turn[0, 0] = turn[2, 2] = np.cos(angle)
    turn[0, 2], turn[2, 0] = np.sin(angle), -np.sin(angle)  # about the camera's y axis, which points down
    return replace(frame, cameras=tuple(_moved(view, turn) for view in frame.cameras))


class FrozenCameras:
    """The images of the first frame come again and again, with new stamps."""

    def __init__(self) -> None:
        self._images: dict[str, np.ndarray] = {}

    def __call__(self, frame: Frame) -> Frame:
        views = []
        for view in frame.cameras:
            views.append(replace(view, image=self._images.setdefault(view.name, view.image)))
        return replace(frame, cameras=tuple(views))


class LostMessages:
    """Each message, sweep or image, is lost with a probability; without its image a sweep goes on alone."""

    def __init__(self, *, share: float = 0.3, seed: int = 0) -> None:
        self._share = share
        self._generator = np.random.default_rng(seed)

    def __call__(self, frame: Frame) -> Frame | None:
        is_lost = self._generator.random(1 + len(frame.cameras)) < self._share
        if is_lost[0]:
            return None
        left = [view for view, lost in zip(frame.cameras, is_lost[1:], strict=True) if not lost]
        return replace(frame, cameras=tuple(left))


class JumpingClock:
    """All stamps jump an hour ahead, and back again, every so many frames."""

    def __init__(self, *, every: int = 10) -> None:
        self._every = every
        self._frames = 0

    def __call__(self, frame: Frame) -> Frame:
        ahead_ns = CLOCK_JUMP_NS if self._frames // self._every % 2 == 0 else 0
        self._frames += 1
        views = tuple(replace(view, stamp_ns=view.stamp_ns + ahead_ns) for view in frame.cameras)
        return replace(frame, stamp_ns=frame.stamp_ns + ahead_ns, cameras=views)


FAULTS: dict[str, Callable[[], Fault]] = {
    "black images": lambda: black_images,
    "shuffled points": lambda: shuffled_points,
    "frozen cameras": FrozenCameras,
    "wrong extrinsics": lambda: turned_cameras,
    "lost messages": LostMessages,
    "clock jumps": JumpingClock,
}


def _moved(view: CameraView, turn: np.ndarray) -> CameraView:
    pose = turn @ view.calibration.camera_T_lidar
    return replace(view, calibration=replace(view.calibration, camera_T_lidar=pose))
