# SPDX-License-Identifier: Apache-2.0
"""Class weights from point counts, and the published ones, which tell whether prepared data have the right labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.training.data.raw_classes import DatasetName

# A weight is the logarithm of a share: 2 % here is about 6 % of a class's points.
WEIGHT_TOLERANCE = 0.02


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """Weights of the source cross-entropy, in class order, and the splits whose points they were counted over."""

    dataset: DatasetName
    splits: str  # joined with +
    label_space: str
    weights: tuple[float, ...]


# Source: valeoai/xmuda_journal, configs/*/uda/*.yaml, and compute_class_weights of the data loaders for the splits.
PUBLISHED_WEIGHTS = (
    PublishedWeights(
        dataset="nuscenes",
        splits="train_usa+test_usa",
        label_space="nuscenes_6",
        weights=(1.9241476, 1.0, 2.16763851, 2.78254323, 1.54875664, 1.85686537),
    ),
    PublishedWeights(
        dataset="nuscenes",
        splits="train_day+test_day",
        label_space="nuscenes_6",
        weights=(1.97516268, 1.0, 2.10103946, 2.05838738, 1.53985452, 1.54031246),
    ),
    PublishedWeights(
        dataset="virtual_kitti",
        splits="train",
        label_space="virtual_kitti_6",
        weights=(1.0, 2.03402089, 1.20641905, 2.21588055, 2.59745666, 1.82057006),
    ),
    PublishedWeights(
        dataset="a2d2",
        splits="train+test",
        label_space="semantic_kitti_10",
        weights=(
            1.89090012,
            2.0585112,
            3.1970535,
            3.1111633,
            1.0,
            2.93751704,
            1.92053733,
            1.47886874,
            1.04654198,
            1.78266561,
        ),
    ),
)


def class_weights(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(K,) points per class -> (K,) log(5 * total / count), divided by the smallest; inf for a class without points."""
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.log(5.0 * counts.sum() / counts)
    finite = weights[np.isfinite(weights)]
    return weights / finite.min() if finite.size else weights


def compare_weights(counts: NDArray[np.int64], published: PublishedWeights, *, class_names: Sequence[str]) -> list[str]:
    """One sentence for each class whose weight differs from the published one by more than `WEIGHT_TOLERANCE`."""
    weights = class_weights(counts)
    return [
        f"class {name} of {published.splits}: {count} points give the weight {weight:.3f}, published is {expected:.3f}"
        for name, count, weight, expected in zip(class_names, counts, weights, published.weights, strict=True)
        if not abs(weight / expected - 1.0) <= WEIGHT_TOLERANCE
    ]
