# SPDX-License-Identifier: Apache-2.0
"""How the default coefficients are made: pictures with known light, their variations, and the whole way in small."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from light_pictures import day_picture, night_picture

pytest.importorskip("embreex", reason="the extra `sim` is not installed")

from xmodal_seg.lighting_features import FEATURES, image_facts
from xmodal_seg.lighting_health import image_faults
from xmodal_seg.lighting_model import QualityLimits, load_coefficients
from xmodal_seg.simulation.dice import Dice, generator
from xmodal_seg.simulation.lit_views import LitViewSettings, lit_pictures
from xmodal_seg.training.lighting_defaults import (
    SIGNS,
    DefaultsSettings,
    Measured,
    darkness_of_sun,
    fit,
    make_defaults,
    render_street,
)
from xmodal_seg.training.lighting_variations import FAILURES, failed, varied

SMALL = LitViewSettings(image_size=(48, 80), moments=1, cameras=1, days=1, twilights=1, nights=1, exposures=2)


def test_pictures_come_in_the_lights_that_were_asked_for_and_twice_the_same() -> None:
    pictures, again = list(lit_pictures(11, SMALL)), list(lit_pictures(11, SMALL))
    assert [p.light.condition for p in pictures] == ["day", "day", "twilight", "twilight", "night", "night"]
    assert all(p.image.shape == (48, 80, 3) for p in pictures)
    assert [p.image.tobytes() for p in pictures] == [p.image.tobytes() for p in again]
    assert pictures[0].image.tobytes() != pictures[1].image.tobytes()
    assert pictures[0].image.mean() > pictures[4].image.mean()


def test_variations_keep_the_hour_and_change_the_picture() -> None:
    dice, draw = Dice(0, "test"), generator(0, "test")
    days = [image_facts(varied(day_picture(i), dice, draw)) for i in range(12)]
    nights = [image_facts(varied(night_picture(i), dice, draw)) for i in range(12)]
    assert np.median([f.mean_level for f in days]) > 3 * np.median([f.mean_level for f in nights])
    assert len({f.fingerprint for f in days}) == 12


@pytest.mark.parametrize("kind", FAILURES)
def test_made_failures_are_what_they_say(kind: str) -> None:
    image = failed(kind, day_picture(), generator(1, "test"))
    assert image_faults(image_facts(image), QualityLimits()) == (kind,)


def test_the_taught_darkness_goes_with_the_sun() -> None:
    np.testing.assert_allclose(darkness_of_sun(np.array([40.0, 3.0, -2.5, -8.0, -18.0])), [0, 0, 0.5, 1, 1])


def test_no_weight_of_the_wrong_sign_is_kept() -> None:
    assert set(SIGNS) == set(FEATURES)
    draw = np.random.default_rng(2)
    features = draw.normal(size=(400, len(FEATURES)))
    night = features[:, 0] + features[:, FEATURES.index("warmth")] > 0  # level_p10 speaks the wrong way
    measured = Measured(
        features=features,
        elevation=np.where(night, -18.0, 40.0),
        street=np.zeros(400, np.int64),
        weight=np.ones(400),
    )
    weights = dict(
        zip(FEATURES, fit(measured, np.ones(400, bool), DefaultsSettings(), QualityLimits()).weights, strict=True)
    )
    assert weights["level_p10"] == weights["noise"] == 0
    assert weights["warmth"] > 0.5
    assert all(weights[name] * SIGNS[name] >= 0 for name in FEATURES)


def test_the_whole_way_in_small(tmp_path: Path) -> None:
    settings = DefaultsSettings(variations=1, held_out=0.5)
    for street in (21, 22):
        render_street(tmp_path, street, SMALL)
    before = (tmp_path / "street_21" / "lights.csv").stat().st_mtime_ns
    render_street(tmp_path, 21, SMALL)
    assert (tmp_path / "street_21" / "lights.csv").stat().st_mtime_ns == before
    report = make_defaults(tmp_path, (21, 22), tmp_path / "lighting.yaml", settings=settings, command="a command")
    made = load_coefficients(tmp_path / "lighting.yaml")
    assert "on held-out streets" in report
    assert made.provenance["pictures"] == 12
    assert made.provenance["rows"] == 24
    assert made.provenance["command"] == "a command"
    (tmp_path / "street_21" / "0000.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"0000\.jpg: expected a picture"):
        make_defaults(tmp_path, (21, 22), tmp_path / "lighting.yaml", settings=settings, command="a command")


def test_the_program_says_what_it_lacks(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location(
        "calibrate_default_lighting", Path(__file__).parents[1] / "training" / "calibrate_default_lighting.py"
    )
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    with pytest.raises(SystemExit):
        program.main(["--out", str(tmp_path / "x.yaml")])
