# SPDX-License-Identifier: Apache-2.0
"""A small model that has learned the world of coloured boxes, and streams of frames to adapt it on."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from tiny_world import tiny_frame
from torch import nn

from xmodal_seg.adaptation.settings import AdaptationSettings
from xmodal_seg.config import (
    FusionSettings,
    ImageBackboneSettings,
    ModelSettings,
    PointBackboneSettings,
    PreprocessSettings,
)
from xmodal_seg.inference import Segmenter
from xmodal_seg.labels import NUSCENES_6
from xmodal_seg.losses import mimic_losses, paper_terms, segmentation_losses
from xmodal_seg.metrics import ConfusionMatrix
from xmodal_seg.models.image_backbone import FrozenBackbone
from xmodal_seg.models.lifting import LiftMode
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.preprocess import prepare
from xmodal_seg.structures import Frame

CPU = torch.device("cpu")
VERSION = "shipped"
PERIOD_NS = 600_000_000
START_NS = 1_700_000_000 * 10**9
SETTINGS = ModelSettings(
    num_classes=NUSCENES_6.num_classes,
    preprocess=PreprocessSettings(voxel_size=0.5, image_size=(32, 56), max_cells=64),
    image_backbone=ImageBackboneSettings(
        name="vit_tiny_patch16_224",
        weights="none",
        model_args={"depth": 1, "embed_dim": 12, "num_heads": 2, "patch_size": 8},
    ),
    point_backbone=PointBackboneSettings(base_channels=4, num_levels=2),
    fusion=FusionSettings(hidden=9, dropout=0.1),
)


class CoordinateNet(nn.Module):
    """A point backbone that sees where a voxel is, which decides its class here, and takes microseconds."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 8), nn.BatchNorm1d(8), nn.ReLU()
        )

    def forward(self, voxel_coords, voxel_feats, *, spatial_shape, num_frames):
        return self.layers(voxel_coords[:, 1:].float() / 5 - 2)


class ColourNet(FrozenBackbone):
    """An image backbone that is the image itself: the colour of a point's pixel is the colour of its class."""

    out_channels = 3
    patch_size = 1
    lift_mode: LiftMode = "nearest"
    normalisation = None

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.model_args = {}

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        return images


@dataclass(frozen=True, kw_only=True)
class Light:
    """A camera's light, as the estimator gives it."""

    guidance: float = 0.8
    condition: str = "day"
    confidence: float = 1.0


DAY = {"front": Light()}
NIGHT = {"front": Light(guidance=0.0, condition="night")}


@cache
def trained_model(*, steps: int = 150, seed: int = 0) -> SegmentationModel:
    """A model after `steps` steps on labelled bright frames; not to be changed, take a copy."""
    torch.manual_seed(seed)
    model = SegmentationModel(settings=SETTINGS, image_backbone=ColourNet(), point_backbone=CoordinateNet()).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    batches = [
        prepare(
            [tiny_frame(1000 + 4 * number + i) for i in range(4)],
            settings=SETTINGS.preprocess,
            image_size=model.image_size,
        )
        for number in range(6)
    ]
    feats_2d = [model.image_feats(batch).detach() for batch in batches]
    for number in range(steps):
        batch = batches[number % len(batches)]
        predictions = model(batch, feats_2d=feats_2d[number % len(batches)])
        assert batch.labels is not None
        losses = [each.mean() for each in segmentation_losses(predictions, batch.labels).values()]
        losses += [0.1 * each.mean() for each in mimic_losses(predictions, paper_terms(0.5)).values()]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
    return model.eval()


def make_segmenter(*banks: str, trained: bool = False) -> Segmenter:
    """One that serves copies of the model as `banks` ('default' if none), sharing the image backbone."""
    if trained:
        model = trained_model()
    else:
        torch.manual_seed(7)
        model = SegmentationModel(settings=SETTINGS, image_backbone=ColourNet(), point_backbone=CoordinateNet()).eval()
    backbone = {id(model.image_backbone): model.image_backbone}
    models = {bank: copy.deepcopy(model, dict(backbone)) for bank in banks or ("default",)}
    for number, each in enumerate(list(models.values())[1:]):
        with torch.no_grad():
            each.heads.main["3d"].bias += 0.1 * (number + 1)
    return Segmenter(
        models=models,
        label_space=NUSCENES_6,
        device=CPU,
        bank=next(iter(models)),
        model_version=VERSION,
        trained=trained,
        point_scope="all",
    )


def stream_frame(number: int, *, brightness: float = 1.0, seed: int = 0, stretch: float = 1.0) -> Frame:
    """The `number`-th frame of a drive: another scene each time, stamps that go on."""
    frame = tiny_frame(10_000 + 100_000 * seed + number, brightness=brightness)
    stamp_ns = START_NS + number * PERIOD_NS
    points = (frame.points * np.array([stretch, stretch, 1], np.float32)).astype(np.float32)
    cameras = tuple(replace(camera, stamp_ns=stamp_ns) for camera in frame.cameras)
    return replace(frame, points=points, stamp_ns=stamp_ns, cameras=cameras)


def make_settings(**changes: Any) -> AdaptationSettings:
    """Quick to begin: a step for every frame, few frames in memory; `changes` as nested mappings."""
    values: dict[str, Any] = {
        "mode": "on",
        "period_frames": 1,
        "min_interval_s": 0.0,
        "memory": {"capacity": 8, "probe_capacity": 5, "min_frames": 3, "min_probes": 1, "points_per_frame": 128},
        "guards": {"settle_frames": 2},
        "gate": {"every_steps": 5},
    }
    for name, value in changes.items():
        values[name] = {**values.get(name, {}), **value} if isinstance(value, dict) else value
    return AdaptationSettings(**values)


def score(segmenter: Segmenter, frames: list[Frame]) -> float:
    """mIoU in percent of what serves."""
    confusion = ConfusionMatrix(num_classes=NUSCENES_6.num_classes)
    for frame in frames:
        assert frame.labels is not None
        confusion.update(frame.labels, segmenter.predict(frame).labels.astype(np.int64))
    return confusion.mean_iou()
