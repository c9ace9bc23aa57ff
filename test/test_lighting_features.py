# SPDX-License-Identifier: Apache-2.0
"""Photometric features: values on pictures that can be reckoned by hand, any size, and what they tell apart."""

from __future__ import annotations

import numpy as np
import pytest
from light_pictures import day_picture, night_picture

from xmodal_seg.lighting_features import (
    FEATURES,
    LEVEL_FLOOR,
    MIN_SIZE,
    TARGET_HEIGHT,
    image_facts,
    linear_light,
    strided,
)


def feature(image: np.ndarray, name: str) -> float:
    return float(image_facts(image).features[FEATURES.index(name)])


def two_halves(upper: int, lower: int, *, size: tuple[int, int] = (48, 72)) -> np.ndarray:
    image = np.full((*size, 3), lower, np.uint8)
    image[: size[0] // 2] = upper
    return image


def test_shares_and_levels_of_two_halves() -> None:
    image = two_halves(200, 10)
    bright, dark = float(linear_light()[200]), float(linear_light()[10])
    assert feature(image, "dark_share") == pytest.approx(0.5)
    assert feature(image, "bright_share") == pytest.approx(0.5)
    assert feature(image, "saturated_share") == 0
    assert feature(image, "level_p10") == pytest.approx(np.log2(dark + LEVEL_FLOOR))
    assert feature(image, "level_p90") == pytest.approx(np.log2(bright + LEVEL_FLOOR))
    expected = np.log2((bright + dark) / 2 + LEVEL_FLOOR) - np.log2(bright + LEVEL_FLOOR)
    assert feature(image, "coverage") == pytest.approx(expected)
    assert feature(image, "sky_ratio") == pytest.approx(np.log2(bright + LEVEL_FLOOR) - np.log2(dark + LEVEL_FLOOR))
    assert feature(image, "chroma") == 0
    assert feature(image, "detail_share") == 0
    assert image_facts(image).mean_level == pytest.approx((bright + dark) / 2)


def test_burnt_out_pixels_are_counted() -> None:
    image = two_halves(255, 90)
    assert image_facts(image).saturated_share == pytest.approx(0.5)
    assert feature(image, "saturated_share") == pytest.approx(np.sqrt(0.5))


def test_warm_light_is_warm_and_cold_light_cold() -> None:
    image = two_halves(40, 30)
    image[:12] = (240, 180, 90)
    assert feature(image, "warmth") > 0.3
    assert feature(image[..., ::-1].copy(), "warmth") < -0.3


def test_a_lamp_fills_less_of_its_block_than_a_sky() -> None:
    lamp = two_halves(12, 12)
    lamp[10:12, 10:12] = 250
    lamp[30:32, 50:53] = 250
    assert feature(lamp, "lamp_extent") < -2
    assert feature(two_halves(250, 12), "lamp_extent") == pytest.approx(0.0, abs=1e-6)
    assert feature(lamp, "lamp_ratio") > 5


def test_noise_in_the_dark_is_seen() -> None:
    clean, noisy = two_halves(80, 20), two_halves(80, 20).astype(float)
    noisy += np.random.default_rng(3).normal(0, 4, noisy.shape)
    assert feature(np.clip(noisy, 0, 255).astype(np.uint8), "noise") > feature(clean, "noise") + 3


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (161, 97), (900, 1600), (2160, 40)])
def test_any_size_is_measured_on_at_most_a_few_rows(size: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    facts = image_facts(image)
    assert facts.features.shape == (len(FEATURES),)
    assert np.isfinite(facts.features).all()
    assert strided(image).shape[0] <= TARGET_HEIGHT or strided(image).shape[1] < 2 * MIN_SIZE


def test_size_changes_little() -> None:
    small, large = day_picture(1, size=(150, 260)), day_picture(1, size=(900, 1560))
    levels = [FEATURES.index(name) for name in ("level_p10", "level_p50", "level_p90", "bright_area", "sky_ratio")]
    np.testing.assert_allclose(image_facts(small).features[levels], image_facts(large).features[levels], atol=0.4)


def test_day_and_night_differ_in_the_direction_of_each_name() -> None:
    day, night = image_facts(day_picture(2)).features, image_facts(night_picture(2)).features
    for name, night_is_higher in {
        "level_p50": False,
        "bright_area": False,
        "coverage": False,
        "lamp_extent": False,
        "sky_ratio": False,
        "dark_share": True,
        "lamp_ratio": True,
        "noise": True,
        "warmth": True,
    }.items():
        number = FEATURES.index(name)
        assert (night[number] > day[number]) == night_is_higher, name


def test_equal_pictures_have_equal_fingerprints() -> None:
    image = day_picture(4)
    assert image_facts(image).fingerprint == image_facts(image.copy()).fingerprint
    assert image_facts(image).fingerprint != image_facts(day_picture(5)).fingerprint


@pytest.mark.parametrize(
    "image", [np.zeros((20, 30), np.uint8), np.zeros((20, 30, 3), np.float32), np.zeros((15, 40, 3), np.uint8)]
)
def test_what_is_no_image_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="image: expected"):
        image_facts(image)
