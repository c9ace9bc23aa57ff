# SPDX-License-Identifier: Apache-2.0
"""Mean and variance of the 2D features at the points, for a model that standardises them by fixed statistics."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from xmodal_seg.models.fixed_norm import FixedNorm
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.training.streams import DomainBatch

MAX_FRAMES = 256  # evenly spaced; 1,000 points of each already give a mean to a few thousandths of a deviation


def set_feature_statistics(model: SegmentationModel, batches: Iterable[DomainBatch], *, device: torch.device) -> None:
    """Give the model's `feature_norm` the statistics of these batches; nothing to do for one that has none.

    Per point and not per cell: statistics then weigh the image by where the points are, as the heads see it.

    Raises ValueError if no point of the batches is seen by a camera.
    """
    norm = model.feature_norm
    if not isinstance(norm, FixedNorm):
        return
    count, total = 0, torch.zeros_like(norm.mean, dtype=torch.float64)
    squares = torch.zeros_like(total)
    with torch.inference_mode():
        for data in batches:
            moved = data.to(device)
            stored = None if moved.feature_map is None else moved.feature_map.float()
            feats = model.image_feats(moved.batch, feature_map=stored).double()
            count += feats.shape[0]
            total += feats.sum(0)
            squares += feats.square().sum(0)
    if count == 0:
        raise ValueError(
            "model.image_backbone.feature_norm: fixed needs frames with points that a camera sees, got none"
        )
    mean = total / count
    norm.set_statistics(mean, (squares / count - mean.square()).clamp_min(0))
