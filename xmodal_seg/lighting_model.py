# SPDX-License-Identifier: Apache-2.0
"""Logistic regression from photometric features to darkness: coefficients in a YAML file, and their fit."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field, model_validator

from xmodal_seg.config import Settings, load_settings
from xmodal_seg.lighting_features import FEATURES

SHIPPED_COEFFICIENTS = Path(__file__).parent / "assets" / "lighting.yaml"
Z_LIMIT = 3.0  # standard deviations; no single feature of an unknown camera shall decide alone
LOGIT_LIMIT = 6.0
_NEWTON_STEPS = 50
_TOLERANCE = 1e-10


class QualityLimits(Settings):
    """Where an image stops being usable."""

    black_peak: float = Field(default=0.004, gt=0, lt=1, description="peak linear luminance below which it is black")
    over_share: float = Field(default=0.6, gt=0, le=1, description="saturated share above which it is over-exposed")
    glare_share: float = Field(default=0.2, gt=0, le=1, description="saturated share above which there is glare")
    blocked_sharpness: float = Field(
        default=1.5, ge=0, description="90th percentile of the blocks' deviation below which it is blocked, of 255"
    )


class LightingCoefficients(Settings):
    """darkness = sigmoid(weights . clip((features - mean) / scale) + bias), and the limits of the quality cues."""

    features: tuple[str, ...] = FEATURES
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    limits: QualityLimits = QualityLimits()
    calibrated: bool = Field(default=False, description="fitted on labelled pictures of the cameras in use")
    provenance: dict[str, str | int | float] = Field(default={}, description="how these numbers were made")

    @model_validator(mode="after")
    def _check(self) -> LightingCoefficients:
        if self.features != FEATURES:
            raise ValueError(f"features: expected {', '.join(FEATURES)}, got {', '.join(self.features)}")
        for name in ("mean", "scale", "weights"):
            if len(getattr(self, name)) != len(FEATURES):
                raise ValueError(f"{name}: expected {len(FEATURES)} numbers, got {len(getattr(self, name))}")
        if min(self.scale) <= 0:
            raise ValueError(f"scale: expected positive numbers, got {min(self.scale):g}")
        return self

    def standardized(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., F) z-scores, clipped at Z_LIMIT."""
        z = (features - np.asarray(self.mean)) / np.asarray(self.scale)
        return np.asarray(np.clip(z, -Z_LIMIT, Z_LIMIT))

    def logit(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """(...,) log-odds of darkness of features (..., F)."""
        raw = self.standardized(features) @ np.asarray(self.weights) + self.bias
        return np.asarray(np.clip(raw, -LOGIT_LIMIT, LOGIT_LIMIT))

    def unusual_share(self, features: NDArray[np.float64]) -> float:
        """Share of the features (F,) that lie farther out than almost anything fitted on."""
        return float((np.abs(self.standardized(features)) >= Z_LIMIT).mean())


def sigmoid(logit: float) -> float:
    return float(1.0 / (1.0 + np.exp(-logit)))


def fit_weights(
    z: NDArray[np.float64],
    target: NDArray[np.float64],
    *,
    ridge: float,
    prior: NDArray[np.float64] | None = None,
    prior_bias: float | None = None,
    sample_weight: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], float]:
    """Weights (F,) and bias of the logistic regression of `target` (n,) in [0, 1] on z (n, F), by Newton's method.

    Minimises mean cross-entropy + ridge / 2 * |weights - prior|^2. `prior` (F,) is 0 if not given; the bias is free
    unless `prior_bias` is given, towards which it is then drawn in the same way.
    """
    n, F = z.shape
    design = np.hstack([z, np.ones((n, 1))])
    centre = np.append(np.zeros(F) if prior is None else prior, prior_bias or 0.0)
    penalty = np.append(np.full(F, ridge), 1e-6 if prior_bias is None else ridge)
    share = np.full(n, 1.0 / n) if sample_weight is None else sample_weight / sample_weight.sum()
    theta = centre.copy()
    for _ in range(_NEWTON_STEPS):
        probability = 1.0 / (1.0 + np.exp(-np.clip(design @ theta, -30, 30)))
        gradient = design.T @ (share * (probability - target)) + penalty * (theta - centre)
        curvature = share * np.maximum(probability * (1 - probability), 1e-6)
        step = np.linalg.solve(design.T @ (design * curvature[:, None]) + np.diag(penalty), gradient)
        theta = theta - step
        if float(step @ step) < _TOLERANCE:
            break
    return theta[:F], float(theta[F])


@lru_cache(maxsize=1)
def shipped_coefficients() -> LightingCoefficients:
    """The defaults, made from simulated pictures (training/calibrate_default_lighting.py)."""
    return load_settings(LightingCoefficients, SHIPPED_COEFFICIENTS)


def load_coefficients(path: str | Path | None) -> LightingCoefficients:
    """From a YAML file of `xmodal-seg calibrate-lighting`; None or '': the shipped ones. Raises ValueError."""
    if not path:
        return shipped_coefficients()
    if not Path(path).is_file():
        raise ValueError(f"lighting coefficients: no such file: {path}")
    return load_settings(LightingCoefficients, path)


def save_coefficients(path: str | Path, coefficients: LightingCoefficients) -> None:
    """Write a YAML file that `load_coefficients` reads."""
    values = coefficients.model_dump(mode="json")
    for name in ("mean", "scale", "weights"):
        values[name] = [round(value, 6) for value in values[name]]
    values["bias"] = round(values["bias"], 6)
    text = "# Coefficients of the lighting estimator; see xmodal_seg/lighting_model.py\n"
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text + yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=110), "utf-8")
