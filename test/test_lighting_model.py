# SPDX-License-Identifier: Apache-2.0
"""Coefficients of the lighting estimate: fit, file, and the shipped ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from light_pictures import day_picture, night_picture

from xmodal_seg.lighting_features import FEATURES, image_facts
from xmodal_seg.lighting_model import (
    LOGIT_LIMIT,
    LightingCoefficients,
    fit_weights,
    load_coefficients,
    save_coefficients,
    shipped_coefficients,
)

F = len(FEATURES)


def coefficients(**changes: object) -> LightingCoefficients:
    values = {"mean": (0.5,) * F, "scale": (2.0,) * F, "weights": (0.0,) * F, "bias": 0.25}
    return LightingCoefficients(**(values | changes))


def test_the_logit_is_the_clipped_linear_form() -> None:
    weights = tuple(np.linspace(-1, 1, F))
    model = coefficients(weights=weights)
    features = np.random.default_rng(0).normal(0.5, 3, (7, F))
    z = np.clip((features - 0.5) / 2.0, -3, 3)
    expected = np.clip(z @ np.array(weights) + 0.25, -LOGIT_LIMIT, LOGIT_LIMIT)
    np.testing.assert_allclose(model.logit(features), expected)
    assert model.logit(features[3]) == pytest.approx(expected[3])


def test_unusual_features_are_counted() -> None:
    features = np.full(F, 0.5)
    features[:3] = 100.0
    assert coefficients().unusual_share(features) == pytest.approx(3 / F)


def test_the_fit_is_where_the_gradient_vanishes() -> None:
    draw = np.random.default_rng(1)
    z, target = draw.normal(size=(200, 3)), draw.random(200)
    share = draw.random(200)
    prior = np.array([0.3, -0.2, 0.1])
    weights, bias = fit_weights(z, target, ridge=0.05, prior=prior, sample_weight=share)
    residual = 1 / (1 + np.exp(-(z @ weights + bias))) - target
    gradient = z.T @ (share / share.sum() * residual) + 0.05 * (weights - prior)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    assert abs((share / share.sum()) @ residual) < 1e-5


def test_a_large_ridge_keeps_the_prior_and_separable_classes_stay_finite() -> None:
    z = np.array([[-1.0, 0.5], [1.0, 0.5], [2.0, -0.5]])
    target = np.array([0.0, 1.0, 1.0])
    prior = np.array([0.7, -0.4])
    np.testing.assert_allclose(fit_weights(z, target, ridge=1e6, prior=prior)[0], prior, atol=1e-4)
    weights, bias = fit_weights(z, target, ridge=0.01)
    assert np.isfinite([*weights, bias]).all()
    assert weights[0] > 0


def test_a_file_comes_back(tmp_path: Path) -> None:
    model = coefficients(weights=tuple(np.linspace(-1, 1, F).round(4)), provenance={"source": "test", "pictures": 3})
    save_coefficients(tmp_path / "deep" / "lighting.yaml", model)
    assert load_coefficients(tmp_path / "deep" / "lighting.yaml") == model


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"features": ["level_p10"]}, "features: expected"),
        ({"weights": [0.0] * (F - 1)}, f"weights: expected {F} numbers"),
        ({"scale": [0.0] * F}, "scale: expected positive"),
        ({"typo": 1}, "typo"),
    ],
)
def test_a_wrong_file_is_named(change: dict[str, object], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(coefficients().model_dump(mode="json") | change), encoding="utf-8")
    with pytest.raises(ValueError, match=sentence) as caught:
        load_coefficients(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ValueError, match=r"no such file: /nowhere\.yaml"):
        load_coefficients("/nowhere.yaml")


def test_the_shipped_ones_say_where_they_come_from_and_tell_day_from_night() -> None:
    model = shipped_coefficients()
    assert load_coefficients("") is model
    assert not model.calibrated
    assert "simulated" in str(model.provenance["source"])
    assert str(model.provenance["command"]).startswith("python training/calibrate_default_lighting.py")
    for seed in range(3):
        assert model.logit(image_facts(day_picture(seed)).features) < -1
        assert model.logit(image_facts(night_picture(seed)).features) > 1
