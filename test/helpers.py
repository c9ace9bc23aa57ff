# SPDX-License-Identifier: Apache-2.0
"""Small frames and small models that several test modules share; sizes are odd and unequal on purpose."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from xmodal_seg.config import (
    FusionSettings,
    ImageBackboneSettings,
    ModelSettings,
    PointBackboneSettings,
    PreprocessSettings,
)
from xmodal_seg.structures import Calibration, CameraView, Frame

HEIGHT, WIDTH, NUM_CLASSES = 13, 17, 5
# A camera in the LiDAR's origin that looks along the LiDAR's x axis.
FORWARD = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])


def wait_for(condition: Callable[[], bool], *, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def full_disk(*, room_bytes: int = 200) -> Iterator[None]:
    """No file takes more than `room_bytes`, whoever writes it; so nothing should be printed meanwhile."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


@dataclass(frozen=True)
class Seen:
    """What one camera says of the light."""

    darkness: float
    confidence: float = 0.9

    @property
    def guidance(self) -> float:
        return 1 - self.darkness


def make_calibration(*, height: int = HEIGHT, width: int = WIDTH, yaw_rad: float = 0.0) -> Calibration:
    """A rectified camera of about 80 degrees field of view, turned by `yaw_rad` about the LiDAR's z axis."""
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    camera_from_forward = np.array([[cos, sin, 0, 0], [-sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return Calibration(
        camera_matrix=np.array([[0.6 * width, 0, (width - 1) / 2], [0, 0.6 * width, (height - 1) / 2], [0, 0, 1]]),
        camera_T_lidar=FORWARD @ camera_from_forward,
        image_size=(height, width),
    )


def make_frame(*, num_points: int = 101, num_cameras: int = 1, stamp_ns: int = 0, seed: int = 0) -> Frame:
    """Points all around, cameras spread evenly from straight ahead, every class and an ignored label present."""
    generator = np.random.default_rng(seed)
    cameras = tuple(
        CameraView(
            name=f"camera_{number}",
            image=generator.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8),
            calibration=make_calibration(yaw_rad=2 * np.pi * number / num_cameras),
            stamp_ns=stamp_ns,
        )
        for number in range(num_cameras)
    )
    labels = np.arange(num_points) % (NUM_CLASSES + 1)
    return Frame(
        points=generator.uniform((-9, -7, -2), (9, 7, 3), (num_points, 3)).astype(np.float32),
        intensity=generator.random(num_points, dtype=np.float32),
        labels=np.where(labels == NUM_CLASSES, -100, labels),
        cameras=cameras,
        stamp_ns=stamp_ns,
        frame_id="lidar",
    )


def tiny_settings(**changes: Any) -> ModelSettings:
    """A model of every part with a few thousand parameters, random weights and no download."""
    defaults: dict[str, Any] = {
        "num_classes": NUM_CLASSES,
        "preprocess": PreprocessSettings(voxel_size=0.5, image_size=(32, 48)),
        "image_backbone": ImageBackboneSettings(
            name="vit_tiny_patch16_224",
            weights="none",
            model_args={"depth": 1, "embed_dim": 24, "num_heads": 2},
        ),
        "point_backbone": PointBackboneSettings(base_channels=4, num_levels=2),
        "fusion": FusionSettings(hidden=8),
    }
    return ModelSettings(**{**defaults, **changes})
