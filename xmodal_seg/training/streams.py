# SPDX-License-Identifier: Apache-2.0
"""From data sets to the batches of a step: altered frames, prepared for the model, with what goes beside them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from xmodal_seg.config import PreprocessSettings
from xmodal_seg.labels import IGNORE_INDEX
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.preprocess import prepare
from xmodal_seg.structures import Batch, Frame, Head
from xmodal_seg.training.child_processes import end_with
from xmodal_seg.training.data.dataset import FrameDataset
from xmodal_seg.training.packing import pack, unpack
from xmodal_seg.training.sampler import Domain, batch_indices, frame_rng
from xmodal_seg.training.transforms import AugmentSettings, apply, make_params


class FeatureMaps(Protocol):
    """Stored outputs of the frozen image backbone."""

    def maps(self, index: int, *, flips: Sequence[bool]) -> torch.Tensor:
        """(cameras, D, h, w) of frame `index`, for each camera of the image as it is or of its mirror image."""
        ...


class PseudoLabels(Protocol):
    """Refined labels of the target's training frames."""

    def labels(self, index: int) -> dict[Head, NDArray[np.int64]]:
        """For each head (N,) train ids of the points of frame `index`, IGNORE_INDEX where not trusted."""
        ...


@dataclass(frozen=True, kw_only=True)
class DomainBatch:
    """The frames of one domain in one step."""

    batch: Batch
    feature_map: torch.Tensor | None = None  # (I, D, h, w) instead of running the image backbone
    pseudo_labels: dict[Head, torch.Tensor] | None = None  # head -> (P,)

    def to(self, device: torch.device) -> DomainBatch:
        """The same with every tensor on `device`; copies from page-locked memory run beside the CPU."""

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=True)

        pseudo = self.pseudo_labels
        return DomainBatch(
            batch=self.batch.to(device, non_blocking=True),
            feature_map=None if self.feature_map is None else moved(self.feature_map),
            pseudo_labels=None if pseudo is None else {head: moved(labels) for head, labels in pseudo.items()},
        )


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """What the model takes."""

    preprocess: PreprocessSettings
    image_size: tuple[int, int]  # (height, width) px, a multiple of the model's patch

    @staticmethod
    def of(model: SegmentationModel, *, image_size: tuple[int, int] | None = None) -> InputSettings:
        """For images of that size, rounded up to patches; None: of the size in the model's settings."""
        settings = model.settings.preprocess
        size = image_size or settings.image_size
        backbone = model.image_backbone
        return InputSettings(preprocess=settings, image_size=size if backbone is None else backbone.input_size(size))


class DomainStream:
    """The batches of a domain by step, this process's share of each.

    Args:
        dataset: frames in a fixed order.
        domain: sets the random numbers of source and target apart.
        inputs: of the model.
        augment: how frames are altered.
        batch_size: over all processes; a multiple of their number.
        keep_labels: False removes the ground truth, so that nothing can learn from the target's.
        rank, world_size: this process and how many there are.
    """

    def __init__(
        self,
        *,
        dataset: FrameDataset,
        domain: Domain,
        inputs: InputSettings,
        augment: AugmentSettings,
        batch_size: int,
        seed: int,
        keep_labels: bool,
        feature_maps: FeatureMaps | None = None,
        pseudo_labels: PseudoLabels | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size % world_size:
            raise ValueError(f"optim.batch_size: expected a multiple of {world_size} processes, got {batch_size}")
        self.dataset = dataset
        self.domain: Domain = domain
        self.inputs = inputs
        self.augment = augment
        self.batch_size = batch_size
        self.seed = seed
        self.keep_labels = keep_labels
        self.feature_maps = feature_maps
        self.pseudo_labels = pseudo_labels
        share = batch_size // world_size
        self.slots = range(rank * share, (rank + 1) * share)

    def batch(self, step: int) -> DomainBatch:
        """This process's frames of `step`; the same at every call."""
        indices = batch_indices(
            num_frames=len(self.dataset), batch_size=self.batch_size, step=step, seed=self.seed, domain=self.domain
        )
        frames, shifts, flips = [], [], []
        for slot in self.slots:
            frame = self.dataset[int(indices[slot])]
            rng = frame_rng(step=step, slot=slot, seed=self.seed, domain=self.domain)
            params = make_params(frame, settings=self.augment, rng=rng)
            frames.append(apply(frame, params))
            shifts.append(params.shift)
            flips.append([camera.flip for camera in params.cameras])
        return make_batch(
            frames if self.keep_labels else [replace(frame, labels=None) for frame in frames],
            [int(indices[slot]) for slot in self.slots],
            inputs=self.inputs,
            voxel_offset=torch.from_numpy(np.stack(shifts)),
            flips=flips,
            feature_maps=self.feature_maps,
            pseudo_labels=self.pseudo_labels,
        )


def make_batch(
    frames: Sequence[Frame],
    indices: Sequence[int],
    *,
    inputs: InputSettings,
    voxel_offset: torch.Tensor | None = None,
    flips: Sequence[Sequence[bool]] | None = None,
    feature_maps: FeatureMaps | None = None,
    pseudo_labels: PseudoLabels | None = None,
) -> DomainBatch:
    """Prepare frames and fetch what is stored about them; `indices` are their places in the data set."""
    batch = prepare(frames, settings=inputs.preprocess, image_size=inputs.image_size, voxel_offset=voxel_offset)
    flips = flips or [[False] * len(frame.cameras) for frame in frames]
    stored = None
    if feature_maps is not None:
        stored = torch.cat(
            [feature_maps.maps(index, flips=mirrored) for index, mirrored in zip(indices, flips, strict=True)]
        )
    taught = None
    if pseudo_labels is not None:
        taught = _gather(batch, frames, [pseudo_labels.labels(index) for index in indices])
    return DomainBatch(batch=batch, feature_map=stored, pseudo_labels=taught)


class TrainingSteps(Dataset):
    """(source, target) of step `start + i`; target is None where nothing is learned from it."""

    def __init__(self, *, source: DomainStream, target: DomainStream | None, start: int, stop: int) -> None:
        self._source, self._target = source, target
        self._range = range(start, stop)

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, item: int) -> tuple[DomainBatch, DomainBatch | None]:
        return self.at_step(self._range[item])

    def at_step(self, step: int) -> tuple[DomainBatch, DomainBatch | None]:
        return self._source.batch(step), None if self._target is None else self._target.batch(step)


class EvaluationBatches(Dataset):
    """Every `every`-th frame of a data set in unaltered batches; of these each `world_size`-th from `rank` on."""

    def __init__(
        self,
        *,
        dataset: FrameDataset,
        inputs: InputSettings,
        batch_size: int,
        feature_maps: FeatureMaps | None = None,
        every: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.dataset = dataset
        self._inputs = inputs
        self._feature_maps = feature_maps
        frames = range(0, len(dataset), every)
        starts = range(0, len(frames), batch_size)[rank::world_size]
        self.indices = [list(frames[start : start + batch_size]) for start in starts]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> DomainBatch:
        indices = self.indices[item]
        frames = [self.dataset[index] for index in indices]
        return make_batch(frames, indices, inputs=self._inputs, feature_maps=self._feature_maps)


def loader(dataset: Dataset, *, num_workers: int, device: torch.device) -> Iterable[Any]:
    """The items of `dataset` in order, read ahead by `num_workers` processes (0: when they are asked for).

    They stay on the CPU, for a GPU in memory from which it copies.
    """
    if num_workers == 0:
        return _in_order(dataset)
    packed = DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=pack,
        worker_init_fn=partial(_begin_reader, os.getpid()),
        prefetch_factor=2,
        pin_memory=device.type == "cuda",
    )
    return map(unpack, packed)


def _in_order(dataset: Any) -> Iterator[Any]:
    for item in range(len(dataset)):
        yield dataset[item]


def _begin_reader(parent: int, worker: int) -> None:
    end_with(parent)
    cv2.setNumThreads(0)


def _gather(
    batch: Batch, frames: Sequence[Frame], by_frame: Sequence[dict[Head, NDArray[np.int64]]]
) -> dict[Head, torch.Tensor]:
    """Labels of the batch's points from those of its frames."""
    for frame, labels in zip(frames, by_frame, strict=True):
        if any(of_head.size != frame.num_points for of_head in labels.values()):
            raise ValueError(
                f"data.pseudo_labels: a frame has {frame.num_points} points but {next(iter(labels.values())).size} "
                "pseudo-labels; were they made with another data.max_points?"
            )
    gathered: dict[Head, torch.Tensor] = {}
    for head in by_frame[0]:
        gathered[head] = torch.full((batch.num_points,), IGNORE_INDEX, dtype=torch.int64)
        for number, labels in enumerate(by_frame):
            here = batch.frame_index == number
            gathered[head][here] = torch.from_numpy(labels[head])[batch.point_index[here]]
    return gathered
