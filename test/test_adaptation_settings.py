# SPDX-License-Identifier: Apache-2.0
"""What the settings of adaptation refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from xmodal_seg.adaptation.settings import AdaptationSettings
from xmodal_seg.config import load_settings, parse_settings
from xmodal_seg.nodes.adaptation_settings import NodeAdaptationSettings

RECIPES = Path(__file__).parents[1] / "training" / "recipes" / "adaptation"


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


@pytest.mark.parametrize("word", ["on", "off", "shadow"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_a_mode_needs_no_quotes(tmp_path: Path, word: str, quote: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(f"mode: {quote}{word}{quote}\n")
    assert load_settings(AdaptationSettings, path).mode == word
    assert load_settings(NodeAdaptationSettings, path).mode == word


@pytest.mark.parametrize(
    ("name", "removed"),
    [
        ("without_reference", {"step": {"reference_weight": 0.0}}),
        ("without_gate", {"gate": {"enabled": False}}),
        ("without_frozen_statistics", {"step": {"norm_statistics": "moving"}}),
        ("without_pull_back", {"step": {"pull_back": 0.0}}),
        (
            "without_all_four",
            {
                "step": {"reference_weight": 0.0, "norm_statistics": "moving", "pull_back": 0.0},
                "gate": {"enabled": False},
            },
        ),
    ],
)
def test_recipes_without_a_guard_differ_from_the_drive_in_nothing_else(name: str, removed: dict) -> None:
    drive = load_settings(AdaptationSettings, RECIPES / "drive.yaml")
    parts = {part: getattr(drive, part).model_copy(update=changes) for part, changes in removed.items()}
    expected = drive.model_copy(update={"experiment": True, **parts})
    assert load_settings(AdaptationSettings, RECIPES / f"{name}.yaml") == expected


def test_every_recipe_of_adaptation_is_valid() -> None:
    recipes = sorted(RECIPES.glob("*.yaml"))
    assert len(recipes) >= 7
    for path in recipes:
        assert load_settings(AdaptationSettings, path).mode == "on"
