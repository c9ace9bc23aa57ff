# SPDX-License-Identifier: Apache-2.0
"""Batches for pre-training: random windows of simulated views, the same window under both lights."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch.utils.data import DataLoader, Dataset, Sampler

from xmodal_seg.config import Settings
from xmodal_seg.simulation.pretext import ALBEDO_SCALE, NORMAL_SCALE, STRIDE, PretextViews, ViewSettings, random_views

CELL_PX = 4  # of the cropped image, for one cell of the targets
REFERENCE_FOCAL_PX = 250.0  # depth is what it would be at this focal length, as one image cannot tell the two apart


class CropSettings(Settings):
    """How a window of a view becomes an input."""

    size: tuple[int, int] = Field(default=(112, 192), description="(height, width) px of the input")
    scale: tuple[float, float] = Field(default=(0.55, 1.0), description="side of the window as a share of the view's")


class JitterSettings(Settings):
    """Random changes of an image's brightness and colours, on top of the random lights. Zero: none."""

    gain: float = Field(default=0.25, ge=0, description="log of the factor, standard deviation")
    gamma: float = Field(default=0.2, ge=0, description="log of the exponent, standard deviation")
    colour: float = Field(default=0.08, ge=0, description="log of the factor of each channel, standard deviation")
    noise: float = Field(default=0.02, ge=0, description="largest standard deviation of added noise")
    grey: float = Field(default=0.05, ge=0, le=1, description="share of images without colour")


@dataclass(frozen=True, kw_only=True)
class PretextBatch:
    """V windows; targets float32 on cells of CELL_PX, h = H / CELL_PX, w = W / CELL_PX."""

    images: torch.Tensor  # (2 V, 3, H, W) in [0, 1]: all views under one light, then all under the other
    depth: torch.Tensor  # (V, 1, h, w) m at the reference focal length, 0 in the sky
    normal: torch.Tensor  # (V, 3, h, w)
    albedo: torch.Tensor  # (V, 3, h, w) square root of the reflectance
    height: torch.Tensor  # (V, 1, h, w) m
    roughness: torch.Tensor  # (V, 1, h, w)
    extent: torch.Tensor  # (V, 2, h, w) m
    piece: torch.Tensor  # (V, 1, h, w) int64, -1 in the sky

    def to(self, device: torch.device) -> PretextBatch:
        """The same windows and targets on `device`."""
        return PretextBatch(**{name: tensor.to(device) for name, tensor in vars(self).items()})


def make_batch(
    views: list[tuple[PretextViews, int]], draw: np.random.Generator, *, crop: CropSettings, jitter: JitterSettings
) -> PretextBatch:
    """Random windows of (set, number) views, half of them mirrored."""
    windows = [_window(source, number, draw, crop) for source, number in views]
    arrays: dict[str, Any] = {
        name: torch.from_numpy(np.stack([window[name] for window in windows]))
        for name in windows[0]
        if name != "images"
    }
    pairs = np.stack([window["images"] for window in windows], axis=1)  # (2, V, H, W, 3)
    images = _jittered(pairs.reshape(-1, *pairs.shape[2:]), draw, jitter)
    return PretextBatch(
        images=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        depth=arrays["depth"][:, None],
        normal=arrays["normal"].permute(0, 3, 1, 2),
        albedo=arrays["albedo"].permute(0, 3, 1, 2),
        height=arrays["height"][:, None],
        roughness=arrays["roughness"][:, None],
        extent=arrays["extent"].permute(0, 3, 1, 2),
        piece=arrays["piece"][:, None],
    )


def _window(
    source: PretextViews, number: int, draw: np.random.Generator, crop: CropSettings
) -> dict[str, NDArray[Any]]:
    """One window, resized to the crop's size, and its targets at the cell centres."""
    height, width = source.images.shape[2:4]
    H, W = crop.size
    # The greatest window of the crop's shape, times a random scale.
    zoom = float(draw.uniform(*crop.scale)) * min(height / H, width / W)
    h, w = int(H * zoom), int(W * zoom)
    top, left = int(draw.integers(0, height - h + 1)), int(draw.integers(0, width - w + 1))
    rows = _nearest(top, h, H // CELL_PX, source.depth.shape[1])
    columns = _nearest(left, w, W // CELL_PX, source.depth.shape[2])
    mirrored = draw.random() < 0.5

    def cells(values: NDArray[Any], scale: float = 1.0) -> NDArray[np.float32]:
        picked = values[number][np.ix_(rows, columns)].astype(np.float32) / scale
        return np.ascontiguousarray(picked[:, ::-1] if mirrored else picked)

    method = cv2.INTER_AREA if zoom > 1 else cv2.INTER_LINEAR
    images = np.stack(
        [
            cv2.resize(image[top : top + h, left : left + w], (W, H), interpolation=method)
            for image in source.images[number]
        ]
    )
    normal = cells(source.normal, NORMAL_SCALE)
    if mirrored:
        normal[..., 1] *= -1
    return {
        "images": images[:, :, ::-1] if mirrored else images,
        "depth": cells(source.depth) * np.float32(REFERENCE_FOCAL_PX * zoom / source.focal[number]),
        "normal": normal,
        "albedo": cells(source.albedo, ALBEDO_SCALE),
        "height": cells(source.height),
        "roughness": cells(source.roughness, 255.0),
        "extent": cells(source.extent),
        "piece": cells(source.piece).astype(np.int64),
    }


def _nearest(start: int, length: int, count: int, limit: int) -> NDArray[np.int64]:
    """Cells of a view nearest to the middles of `count` equal parts of the pixels [start, start + length)."""
    middle = start + (np.arange(count) + 0.5) * length / count
    return np.clip(middle // STRIDE, 0, limit - 1).astype(np.int64)


def _jittered(images: NDArray[np.uint8], draw: np.random.Generator, jitter: JitterSettings) -> NDArray[np.float32]:
    """Images (I, H, W, 3) in [0, 1], each changed in its own way."""
    result = images.astype(np.float32) / np.float32(255)
    shape = (len(images), 1, 1, 1)
    gamma = np.exp(jitter.gamma * draw.standard_normal(shape))
    gain = np.exp(jitter.gain * draw.standard_normal(shape) + jitter.colour * draw.standard_normal((*shape[:3], 3)))
    result = np.power(result, gamma.astype(np.float32)) * gain.astype(np.float32)
    grey = draw.random(len(images)) < jitter.grey
    result[grey] = result[grey].mean(axis=-1, keepdims=True)
    deviation = (jitter.noise * draw.random(shape)).astype(np.float32)
    result += deviation * draw.standard_normal(result.shape, np.float32)
    return np.clip(result, 0, 1)


class _Streets(Dataset[PretextViews]):
    """Item i: the views of street `first + i`."""

    def __init__(self, settings: ViewSettings, first: int) -> None:
        self._settings, self._first = settings, first

    def __getitem__(self, index: int) -> PretextViews:
        cv2.setNumThreads(1)
        return random_views(self._first + index, self._settings)


class ViewStream:
    """The views of a window of streets that moves on as training does.

    Which views step n draws depends on n and the seed alone, so a resumed run sees what an uninterrupted one would.
    """

    def __init__(
        self,
        settings: ViewSettings,
        *,
        first_street: int,
        open_streets: int,
        views_per_step: int,
        reuse: float,
        start_step: int,
        num_workers: int,
    ) -> None:
        self._open: deque[PretextViews] = deque(maxlen=open_streets)
        self._per_street = settings.moments * settings.cameras * reuse / views_per_step  # steps
        self._next = int(start_step / self._per_street)
        loader: DataLoader[PretextViews] = DataLoader(
            _Streets(settings, first_street),
            batch_size=None,
            sampler=_CountFrom(self._next),
            num_workers=num_workers,
            collate_fn=_as_it_is,
            prefetch_factor=4 if num_workers else None,
        )
        self._source: Iterator[PretextViews] = iter(loader)

    def at(self, step: int) -> list[tuple[PretextViews, int]]:
        """All views that step may draw from, rendered by now; steps are asked for in order."""
        last = int(step / self._per_street) + (self._open.maxlen or 0)
        while self._next < last:
            self._open.append(next(self._source))
            self._next += 1
        return [(views, number) for views in self._open for number in range(len(views))]


class _CountFrom(Sampler[int]):
    """Endless street numbers."""

    def __init__(self, start: int) -> None:
        self._start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self._start)


def _as_it_is(views: Any) -> Any:
    return views
