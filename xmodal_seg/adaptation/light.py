# SPDX-License-Identifier: Apache-2.0
"""What the adapter needs of a lighting estimate: lambda of each camera and of each point, and one condition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from xmodal_seg.structures import NO_CAMERA, Predictions

_NEWTON_STEPS = 25
_RIDGE = 1e-3  # keeps the fit finite where a head is always right
_LEAST_ODDS = 1e-4


class CameraLight(Protocol):
    """The estimate for one camera."""

    @property
    def guidance(self) -> float:
        """Lambda in [0, 1]."""
        ...

    @property
    def condition(self) -> str:
        """Such as day, twilight, night."""
        ...

    @property
    def confidence(self) -> float:
        """In [0, 1]; low for a blocked, frozen or over-exposed camera."""
        ...


@dataclass(frozen=True, kw_only=True)
class FrameLight:
    """The light of a frame."""

    condition: str  # of the healthy camera with the (lower) median lambda
    guidance: float  # its lambda
    by_camera: tuple[float, ...]  # lambda in the frame's order of cameras; NaN where the camera is not to be trusted

    @property
    def healthy(self) -> tuple[bool, ...]:
        return tuple(not math.isnan(value) for value in self.by_camera)


def frame_light(
    cameras: Sequence[str], lights: Mapping[str, CameraLight], *, min_confidence: float
) -> FrameLight | None:
    """The light of a frame with these cameras, by name; None if no camera has an estimate that can be trusted."""
    trusted = {
        name: lights[name]
        for name in cameras
        if name in lights and lights[name].confidence >= min_confidence and 0 <= lights[name].guidance <= 1
    }
    if not trusted:
        return None
    ordered = sorted(trusted.values(), key=lambda light: light.guidance)
    median = ordered[(len(ordered) - 1) // 2]
    return FrameLight(
        condition=median.condition,
        guidance=median.guidance,
        by_camera=tuple(trusted[name].guidance if name in trusted else math.nan for name in cameras),
    )


def camera_guidance(image_index: torch.Tensor, light: FrameLight, *, minimum: float) -> torch.Tensor:
    """(P,) rows of cameras -> (P,) float32 lambda of each point's camera; the frame's own for a point unseen."""
    values = [light.guidance if math.isnan(value) else value for value in light.by_camera]
    table = torch.tensor([*values, light.guidance], device=image_index.device)  # the last one is row NO_CAMERA
    assert NO_CAMERA == -1
    return table[image_index].clamp(min=minimum)


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """P(the head is right) = 1 / (1 + exp(-(slope * log-odds of its greatest probability + offset)))."""

    slope: float
    offset: float

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """(P, K) logits -> (P,) float32 in (0, 1)."""
        return torch.sigmoid(self.slope * _log_odds(logits) + self.offset)


def fit_reliability(logits: torch.Tensor, labels: torch.Tensor) -> Reliability:
    """Logistic regression, by Newton's method, of 'the head is right' on labelled points.

    Args:
        logits: (P, K).
        labels: (P,) train ids, negative where unknown.

    Raises ValueError without a labelled point.
    """
    known = labels >= 0
    if not bool(known.any()):
        raise ValueError("reliability of a head: expected labelled points to fit it on, got none")
    odds = _log_odds(logits[known]).double()
    right = (logits[known].argmax(dim=1) == labels[known]).double()
    inputs = torch.stack([odds, torch.ones_like(odds)], dim=1)
    weights = torch.zeros(2, dtype=torch.float64, device=logits.device)
    for _ in range(_NEWTON_STEPS):
        probs = torch.sigmoid(inputs @ weights)
        gradient = inputs.t() @ (probs - right) / len(right) + _RIDGE * weights
        curvature = (inputs * (probs * (1 - probs))[:, None]).t() @ inputs / len(right)
        weights = weights - torch.linalg.solve(curvature + _RIDGE * torch.eye(2, device=logits.device), gradient)
    slope, offset = weights.tolist()
    return Reliability(slope=slope, offset=offset)


def point_guidance(
    of_camera: torch.Tensor,
    predictions: Predictions,
    reliability: Mapping[str, Reliability],
    *,
    span: float,
) -> torch.Tensor:
    """(P,) lambda_i = lambda of the camera + span * (reliability of 2D - reliability of 3D), within span and [0, 1].

    A point whose image says more than its surroundings in the cloud leans on the image, and the other way round.
    """
    difference = reliability["2d"](predictions.main["2d"]) - reliability["3d"](predictions.main["3d"])
    return (of_camera + span * difference.clamp(-1, 1)).clamp(0, 1)


def _log_odds(logits: torch.Tensor) -> torch.Tensor:
    greatest = logits.float().softmax(dim=1).amax(dim=1).clamp(_LEAST_ODDS, 1 - _LEAST_ODDS)
    return torch.log(greatest / (1 - greatest))
