# SPDX-License-Identifier: Apache-2.0
"""Linear probe: how well pooled features of a foundation model tell day from night, beside the photometric estimate.

It needs labelled pictures and serves nothing by itself: the lighting node runs no foundation model. It says whether the
photometric estimate leaves something on the table for the cameras at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from xmodal_seg.lighting_calibration import Labelled, Verdict, class_shares, leave_out, verdict_of
from xmodal_seg.lighting_model import LOGIT_LIMIT, QualityLimits, fit_weights, sigmoid
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.preprocess import resize_image

PROBE_RIDGE = 0.1  # on standardised features; not searched for
_LEAST_DEVIATION = 1e-6


@dataclass(frozen=True, kw_only=True)
class LightingProbe:
    """darkness = sigmoid(weights . (features - mean) / scale + bias)."""

    mean: NDArray[np.float64]  # (D,)
    scale: NDArray[np.float64]  # (D,)
    weights: NDArray[np.float64]  # (D,)
    bias: float

    def darkness(self, pooled: NDArray[np.float64]) -> float:
        """In (0, 1), of pooled features (D,)."""
        logit = float((pooled - self.mean) / self.scale @ self.weights) + self.bias
        return sigmoid(float(np.clip(logit, -LOGIT_LIMIT, LOGIT_LIMIT)))


def pooling(model: SegmentationModel) -> Callable[[NDArray[np.uint8]], NDArray[np.float64]]:
    """(H, W, 3) RGB -> (D,) mean over the cells of the model's frozen image backbone.

    Raises ValueError for a model without one, or with one that is trained.
    """
    backbone = model.image_backbone
    if backbone is None or not backbone.frozen:
        raise ValueError("probe: expected a checkpoint with a frozen image backbone, it has none")
    size = model.image_size

    def pooled(image: NDArray[np.uint8]) -> NDArray[np.float64]:
        with torch.inference_mode():
            cells = backbone(resize_image(image, size)[None])
        return np.asarray(cells[0].mean(dim=(1, 2)).double().numpy())

    return pooled


def fit_probe(pictures: Sequence[Labelled], *, ridge: float = PROBE_RIDGE) -> LightingProbe:
    """The probe of these pictures, the classes weighted alike.

    Raises ValueError for pictures without pooled features, and where day or night is missing.
    """
    pooled = _pooled(pictures)
    mean, scale = pooled.mean(axis=0), np.maximum(pooled.std(axis=0), _LEAST_DEVIATION)
    targets = np.array([picture.target for picture in pictures])
    weights, bias = fit_weights((pooled - mean) / scale, targets, ridge=ridge, sample_weight=class_shares(targets))
    return LightingProbe(mean=mean, scale=scale, weights=weights, bias=bias)


def judge_by_probe(pictures: Sequence[Labelled], probe: LightingProbe, *, limits: QualityLimits) -> list[Verdict]:
    """What `probe` says about each picture; faults are found as ever."""
    rows = zip(pictures, _pooled(pictures), strict=True)
    return [verdict_of(picture, probe.darkness(pooled), limits=limits) for picture, pooled in rows]


def probe_left_out(
    pictures: Sequence[Labelled], *, group_of: Callable[[Labelled], str], limits: QualityLimits
) -> list[Verdict]:
    """Each group judged by a probe of the others. Raises ValueError as `leave_out` does."""
    return leave_out(
        pictures,
        group_of=group_of,
        judge_by=lambda kept, left: judge_by_probe(left, fit_probe(kept), limits=limits),
    )


def _pooled(pictures: Sequence[Labelled]) -> NDArray[np.float64]:
    """(n, D)"""
    found = [picture.pooled for picture in pictures if picture.pooled is not None]
    if len(found) < len(pictures):
        raise ValueError(f"probe: expected pooled features of {len(pictures)} pictures, got {len(found)}")
    return np.stack(found)
