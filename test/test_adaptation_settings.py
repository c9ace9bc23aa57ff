# SPDX-License-Identifier: Apache-2.0
"""What the settings of adaptation refuse."""

from __future__ import annotations

import pytest

from xmodal_seg.adaptation.settings import AdaptationSettings
from xmodal_seg.config import parse_settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step": {"reference_weight": 0.0}}, r"lambda may fall below 0\.25 .* reference term of at least 1, got 0\.0"),
        ({"step": {"reference_weight": 0.9, "min_guidance": 0.2}}, r"step\.reference_weight"),
        ({"step": {"norm_statistics": "moving"}}, "moving statistics collapse"),
        ({"gate": {"enabled": False}}, "nothing is served unjudged"),
        ({"gate": {"reject_sure_agreement": 0.995}}, r"reject_sure_agreement \(0\.995\) must not be above"),
        ({"step": {"learning_rate": 0.01}}, r"step\.learning_rate"),
        ({"mdoe": "on"}, "mdoe"),
    ],
)
def test_dangerous_and_unknown_settings_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_settings(AdaptationSettings, values, where="adaptation.yaml")


def test_lambda_kept_high_needs_no_reference_term() -> None:
    settings = AdaptationSettings(step={"reference_weight": 0.0, "min_guidance": 0.25})
    assert settings.step.reference_weight == 0


def test_an_experiment_may_remove_every_guard() -> None:
    step = {"reference_weight": 0.0, "norm_statistics": "moving"}
    assert AdaptationSettings(experiment=True, step=step, gate={"enabled": False}).experiment


def test_it_is_off_by_default() -> None:
    assert AdaptationSettings().mode == "off"
