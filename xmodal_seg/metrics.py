# SPDX-License-Identifier: Apache-2.0
"""Confusion matrix -> IoU per class and mIoU; for torch tensors on any device and for numpy arrays."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

AbsentClasses = Literal["zero", "exclude"]
ArrayOrTensor = torch.Tensor | NDArray[np.integer]


class ConfusionMatrix:
    """Counts of (true class, predicted class) over any number of frames.

    `counts` is (K, K + 1) int64; its last column holds labelled points about which nothing was predicted: a miss of
    their class, a false alarm of none.
    """

    def __init__(self, *, num_classes: int, counts: torch.Tensor | None = None) -> None:
        shape = (num_classes, num_classes + 1)
        self.num_classes = num_classes
        self.counts = torch.zeros(shape, dtype=torch.int64) if counts is None else counts
        if tuple(self.counts.shape) != shape:
            raise ValueError(f"confusion matrix: expected {shape}, got {tuple(self.counts.shape)}")

    def update(self, labels: ArrayOrTensor, predicted: ArrayOrTensor) -> None:
        """Add points: true and predicted train ids of the same shape.

        A label outside [0, K) (IGNORE_INDEX, UNLABELED) counts nowhere; a prediction outside is no prediction.
        """
        labels, predicted = torch.as_tensor(labels), torch.as_tensor(predicted)
        if labels.shape != predicted.shape:
            raise ValueError(f"expected as many predictions as labels, got {predicted.numel()} and {labels.numel()}")
        known = (labels >= 0) & (labels < self.num_classes)
        labels, predicted = labels[known].long(), predicted[known].long()
        predicted = torch.where((predicted >= 0) & (predicted < self.num_classes), predicted, self.num_classes)
        cells = torch.bincount(labels * (self.num_classes + 1) + predicted, minlength=self.counts.numel())
        self.counts += cells.view_as(self.counts).to(self.counts.device)

    def iou(self) -> NDArray[np.float64]:
        """(K,) intersection over union; NaN for a class that neither occurs nor is predicted."""
        counts = self.counts.cpu().numpy().astype(np.float64)
        hits = np.diagonal(counts)
        union = counts.sum(axis=1) + counts[:, : self.num_classes].sum(axis=0) - hits
        return np.divide(hits, union, out=np.full(self.num_classes, np.nan), where=union > 0)

    def mean_iou(self, *, absent: AbsentClasses = "exclude") -> float:
        """Mean IoU in percent; NaN without a single point.

        absent: 'exclude' leaves classes that neither occur nor are predicted out of the mean, as is usual; 'zero'
        counts them as 0, as xMUDA and its descendants do.
        """
        iou = self.iou()
        if np.isnan(iou).all():
            return float("nan")
        return float(100 * (np.nan_to_num(iou).mean() if absent == "zero" else np.nanmean(iou)))

    def accuracy(self) -> float:
        """Share of labelled points with the right class, percent; NaN without a single point."""
        total = int(self.counts.sum())
        return 100 * int(self.counts.diagonal().sum()) / total if total else float("nan")
