# SPDX-License-Identifier: Apache-2.0
"""A world of a few coloured boxes on a plane: labelled frames and recipes that train in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from xmodal_seg.geometry import project_points
from xmodal_seg.labels import IGNORE_INDEX, NUSCENES_6, UNLABELED
from xmodal_seg.structures import Calibration, CameraView, Frame
from xmodal_seg.training.data.frame_store import StoredFrame, write_frame_store
from xmodal_seg.training.data.tasks import PARTS
from xmodal_seg.training.recipe import Recipe, merge, parse_recipe

IMAGE_SIZE = (32, 56)
SHIFT = "tiny"
NUM_FRAMES = {"source_train": 7, "target_train": 5, "target_val": 3, "target_test": 3}


def tiny_frame(seed: int, *, brightness: float = 1.0, num_points: int = 150) -> Frame:
    """Points in front of one camera; the class follows height and side, and the image shows its colour."""
    rng = np.random.default_rng(seed)
    points = np.stack(
        [rng.uniform(3, 15, num_points), rng.uniform(-6, 6, num_points), rng.uniform(-1.5, 3, num_points)], axis=1
    ).astype(np.float32)
    labels = (3 * (points[:, 2] > 0) + np.digitize(points[:, 1], [-2, 2])).astype(np.int64)
    calibration = Calibration(
        camera_matrix=np.array([[30.0, 0, 27.5], [0, 30.0, 15.5], [0, 0, 1]]),
        camera_T_lidar=np.array([[0.0, -1, 0, 0.1], [0, 0, -1, 0.2], [1, 0, 0, -0.3], [0, 0, 0, 1]]),
        image_size=IMAGE_SIZE,
    )
    image = rng.integers(0, 40, (*IMAGE_SIZE, 3)).astype(np.float64)
    index, uv, _ = project_points(points, calibration)
    u, v = np.rint(uv).astype(int).T
    image[v.clip(0, IMAGE_SIZE[0] - 1), u.clip(0, IMAGE_SIZE[1] - 1)] += (
        np.array(NUSCENES_6.colours)[labels[index]] * 0.8
    )
    labels[::29] = IGNORE_INDEX
    view = CameraView(name="front", image=np.clip(brightness * image, 0, 255).astype(np.uint8), calibration=calibration)
    return Frame(points=points, labels=labels, cameras=(view,), stamp_ns=seed)


def stored(frame: Frame) -> StoredFrame:
    assert frame.labels is not None
    return StoredFrame(frame=frame, labels=np.where(frame.labels >= 0, frame.labels, UNLABELED).astype(np.uint8))


def write_tiny_world(root: Path) -> None:
    """The four stores of the task `SHIFT`."""
    for number, part in enumerate(PARTS):
        brightness = 1.0 if part.startswith("source") else 0.5
        frames = (stored(tiny_frame(100 * number + i, brightness=brightness)) for i in range(NUM_FRAMES[part]))
        write_frame_store(
            root / SHIFT / part,
            frames,
            num_frames=NUM_FRAMES[part],
            name=part,
            labels=NUSCENES_6.name,
        )


def tiny_values(root: Path) -> dict[str, Any]:
    """Settings laid over any recipe to make it run on the tiny world."""
    return {
        "model": {
            "num_classes": 6,
            "preprocess": {"voxel_size": 0.5, "image_size": list(IMAGE_SIZE), "max_cells": 64},
            "point_backbone": {"base_channels": 4, "num_levels": 2},
            "fusion": {"hidden": 8},
        },
        "data": {
            "shift": SHIFT,
            "reader": "frame_stores",
            "root": str(root),
            "options": {"label_space": "nuscenes_6"},
            "max_points": 140,
            "num_workers": 0,
        },
        "optim": {"steps": 4, "batch_size": 2},
        "evaluation": {"every": 4, "batch_size": 2, "checkpoint_every": 4, "log_every": 2},
        "accelerator": "cpu",
        "devices": 1,
        "precision": "32-true",
    }


def tiny_vfm() -> dict[str, Any]:
    """Settings of a frozen ViT with random weights."""
    arguments = {"depth": 1, "embed_dim": 12, "num_heads": 2, "patch_size": 8}
    return {"kind": "timm", "name": "vit_tiny_patch16_224", "weights": "none", "model_args": arguments}


def tiny_recipe(root: Path, **values: Any) -> Recipe:
    """The paper's method on the tiny world; `values` are laid over it."""
    base = {"name": "ours", "model": {"image_backbone": tiny_vfm()}}
    return parse_recipe(merge(tiny_values(root), base, values), where="tiny recipe")
