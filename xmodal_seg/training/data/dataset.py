# SPDX-License-Identifier: Apache-2.0
"""What a data set is: an indexed collection of labelled Frames; and the four parts of a domain adaptation task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.labels import LabelSpace
from xmodal_seg.structures import Frame
from xmodal_seg.training.data.class_weights import class_weights


class FrameDataset(Protocol):
    """Frames by index, each with images, points and labels in train ids of `label_space`.

    The same index gives the same frame in every process, so that workers, resumed runs and stored pseudo-labels agree.
    """

    @property
    def name(self) -> str: ...

    @property
    def label_space(self) -> LabelSpace: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Frame: ...

    def labels(self, index: int) -> NDArray[np.int64]:
        """(N,) train ids of a frame, without reading its images."""
        ...


@dataclass(frozen=True, kw_only=True)
class Domains:
    """A domain adaptation task. All parts share one label space."""

    source_train: FrameDataset
    target_train: FrameDataset  # its labels are used by the target-only row alone
    target_val: FrameDataset
    target_test: FrameDataset
    fingerprint: str  # changes when the data does

    def __post_init__(self) -> None:
        spaces = {part.label_space.name for part in (self.source_train, *self.target_parts)}
        if len(spaces) > 1:
            raise ValueError(f"the data sets of a task must share one label space, got {', '.join(sorted(spaces))}")
        for part in (self.source_train, *self.target_parts):
            if len(part) == 0:
                raise ValueError(f"data set {part.name!r} has no frames")

    @property
    def target_parts(self) -> tuple[FrameDataset, FrameDataset, FrameDataset]:
        return self.target_train, self.target_val, self.target_test

    @property
    def label_space(self) -> LabelSpace:
        return self.source_train.label_space


class FixedSubset:
    """At most `max_points` points of each frame, the same at every visit; else the data set as it is.

    Training, evaluation and pseudo-labels see one density; a fresh draw in training alone would be a domain shift.
    """

    def __init__(self, dataset: FrameDataset, *, max_points: int) -> None:
        if max_points < 1:
            raise ValueError(f"max_points: expected at least 1, got {max_points}")
        self.name = dataset.name
        self.label_space = dataset.label_space
        self._dataset = dataset
        self._max_points = max_points

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Frame:
        frame = self._dataset[index]
        return frame if frame.num_points <= self._max_points else frame.select(self._chosen(index, frame.num_points))

    def labels(self, index: int) -> NDArray[np.int64]:
        labels = self._dataset.labels(index)
        return labels if labels.size <= self._max_points else labels[self._chosen(index, labels.size)]

    def _chosen(self, index: int, num_points: int) -> NDArray[np.int64]:
        return np.sort(np.random.default_rng(index).choice(num_points, self._max_points, replace=False))


def class_counts(dataset: FrameDataset) -> NDArray[np.int64]:
    """(K,) how many labelled points of each class the data set has; reads the labels of every frame."""
    counts = np.zeros(dataset.label_space.num_classes, dtype=np.int64)
    for index in range(len(dataset)):
        labels = dataset.labels(index)
        counts += np.bincount(labels[labels >= 0], minlength=counts.size)
    return counts


def log_class_weights(counts: NDArray[np.int64]) -> tuple[float, ...]:
    """xMUDA's weights of the source cross-entropy; a class without points, whose weight is never used, gets 1."""
    if counts.sum() == 0:
        raise ValueError("class weights: the data set has no labelled point")
    weights = class_weights(counts)
    return tuple(float(weight) for weight in np.where(np.isfinite(weights), weights, 1.0))
