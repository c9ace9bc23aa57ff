# SPDX-License-Identifier: Apache-2.0
"""Faults of images, LiDAR health, exposure metadata and the sun."""

from __future__ import annotations

import builtins
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from helpers import make_frame
from light_pictures import day_picture, night_picture

from xmodal_seg.lighting_features import image_facts
from xmodal_seg.lighting_health import (
    Exposure,
    ExposureSettings,
    LidarHealth,
    exposure_logit,
    glare,
    image_faults,
    scene_level,
    seeing_cameras,
    sun_elevation,
    sun_logit,
)
from xmodal_seg.lighting_model import QualityLimits

S = 10**9
LIMITS = QualityLimits()
JUNE_NOON_NS = 1_718_971_200 * 10**9  # 2024-06-21 12:00 UTC


def grey(value: int, deviation: float = 0.0) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, deviation, (90, 131, 3)) if deviation else 0
    return np.clip(value + noise * np.ones((90, 131, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("image", "faults"),
    [
        (grey(0), ("black",)),
        (grey(3, deviation=1), ("black",)),
        (grey(255), ("over-exposed",)),
        (grey(90, deviation=0.6), ("blocked",)),
        (day_picture(), ()),
        (night_picture(), ()),
    ],
)
def test_faults(image: np.ndarray, faults: tuple[str, ...]) -> None:
    assert image_faults(image_facts(image), LIMITS) == faults


def test_glare_grows_from_its_limit_to_over_exposure() -> None:
    image = day_picture()
    shares = []
    for rows in (0, 36, 80, 130):
        image[:rows] = 255
        shares.append(glare(image_facts(image), LIMITS))
    assert shares[0] == shares[1] == 0
    assert 0 < shares[2] < 1
    assert shares[3] == 1


def test_the_scene_level_does_not_change_with_the_exposure() -> None:
    facts = image_facts(day_picture())
    level = scene_level(facts, Exposure(time_s=0.001))
    assert scene_level(facts, Exposure(time_s=0.002, gain_db=-6.02)) == pytest.approx(level)
    assert scene_level(facts, Exposure(time_s=0.002)) == pytest.approx(level - 1)


def test_a_bright_scene_speaks_for_day_up_to_the_limit() -> None:
    settings = ExposureSettings(weight=1.0, middle=2.0, limit=3.0)
    assert [exposure_logit(level, settings) for level in (9.0, 3.0, 2.0, 0.5, -7.0)] == [-3, -1, 0, 1.5, 3]
    assert exposure_logit(9.0, ExposureSettings(weight=0.0)) == 0


@pytest.mark.parametrize("values", [{"time_s": 0.0}, {"time_s": np.nan}, {"time_s": 0.01, "gain_db": np.inf}])
def test_impossible_exposures_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="exposure: expected"):
        Exposure(**values)


@dataclass(frozen=True)
class Reported:
    name: str
    reasons: tuple[str, ...]


@pytest.mark.parametrize("fault", ["black", "over-exposed", "blocked"])
def test_cameras_that_see_nothing_are_left_out(fault: str) -> None:
    frame = make_frame(num_cameras=2)
    first, second = (view.name for view in frame.cameras)
    seen = seeing_cameras(frame, [Reported(first, ("LiDAR degraded", fault)), Reported("another", (fault,))])
    assert [view.name for view in seen.cameras] == [second]
    assert seen.points is frame.points


def test_cameras_that_are_only_unsure_stay() -> None:
    frame = make_frame(num_cameras=1)
    reasons = ("glare", "frozen", "stale", "between day and night", "LiDAR degraded")
    assert seeing_cameras(frame, [Reported(frame.cameras[0].name, reasons)]) is frame
    assert seeing_cameras(frame, []) is frame


def sweep(count: int, distance: float = 20.0) -> np.ndarray:
    angle = np.linspace(0, 6, count)
    return np.stack([distance * np.cos(angle), distance * np.sin(angle), np.zeros(count)], axis=1).astype(np.float32)


def scan(health: LidarHealth, points: np.ndarray, sweeps: range) -> list[float]:
    """Ten sweeps a second."""
    return [health.update(points, i * S // 10) for i in sweeps]


def test_lost_returns_cost_health() -> None:
    health = LidarHealth()
    assert scan(health, sweep(1000), range(8)) == [1.0] * 8
    assert health.update(sweep(600), S) == 1.0
    assert 0 < health.update(sweep(375), S) < 1
    assert health.update(sweep(10), S) == 0
    assert health.update(np.full((1000, 3), np.nan, np.float32), S) == 0


def test_clutter_near_the_sensor_costs_health() -> None:
    health = LidarHealth()
    scan(health, sweep(1000), range(8))
    assert health.update(np.concatenate([sweep(700), sweep(300, distance=1.5)]), S) == pytest.approx(0.4, abs=0.01)
    assert health.update(sweep(1000, distance=1.5), S) == 0


RAIN = np.concatenate([sweep(100), sweep(900, distance=1.5)])


@pytest.mark.parametrize("good", [6, 30, 100])
def test_rain_does_not_become_usual_soon(good: int) -> None:
    health = LidarHealth()
    scan(health, sweep(1000), range(good))
    end = 5800 if good >= 50 else 1000
    assert set(scan(health, RAIN, range(good, end))) == {0.0}
    assert health.update(sweep(1000), end * S // 10) == 1.0


def test_rain_that_begins_slowly_is_no_more_usual() -> None:
    health = LidarHealth()
    scan(health, sweep(1000), range(100))
    for i in range(100, 700):  # a minute
        last = health.update(sweep(1150 - i * 3 // 2), i * S // 10)
    assert last == 0


def test_an_open_field_becomes_usual_after_ten_minutes() -> None:
    health = LidarHealth()
    scan(health, sweep(1000), range(100))
    seen = scan(health, sweep(200), range(100, 9000))
    assert seen[0] == 0
    assert seen.index(1.0) / 10 == pytest.approx(600, abs=60)
    assert set(seen[seen.index(1.0) :]) == {1.0}
    assert health.update(sweep(1000), 900 * S) == 1.0


@pytest.mark.parametrize("to_s", [-3600, 0, 3600])
def test_a_jump_in_time_makes_nothing_usual_and_the_way_back_goes_on(to_s: int) -> None:
    health = LidarHealth()
    scan(health, sweep(1000), range(100))
    assert set(scan(health, sweep(200), range(100, 3000))) == {0.0}
    seen = scan(health, sweep(200), range(to_s * 10, to_s * 10 + 6000))
    assert set(seen[:2000]) == {0.0}
    assert seen[-1] == 1.0


def test_a_robot_that_always_sees_itself_is_healthy() -> None:
    own = np.concatenate([sweep(600), sweep(400, distance=1.0)])
    assert scan(LidarHealth(), own, range(9))[-1] == 1.0


def test_an_empty_sweep_is_no_division_by_zero() -> None:
    assert LidarHealth().update(np.zeros((0, 3), np.float32), 0) == 1.0


def test_the_sun_is_high_at_noon_in_june_and_below_the_horizon_at_midnight() -> None:
    pytest.importorskip("astral", reason="the extra `sun` is not installed")
    greenwich = {"latitude": 51.48, "longitude": 0.0}
    assert sun_elevation(stamp_ns=JUNE_NOON_NS, **greenwich) == pytest.approx(90 - 51.48 + 23.44, abs=0.5)
    assert sun_elevation(stamp_ns=JUNE_NOON_NS + 12 * 3600 * 10**9, **greenwich) < -14
    with pytest.raises(ValueError, match="fix: expected degrees"):
        sun_elevation(latitude=91, longitude=0, stamp_ns=0)


def test_the_suns_log_odds() -> None:
    assert sun_logit(0.0) == pytest.approx(0)
    assert sun_logit(6.0) == pytest.approx(-sun_logit(-6.0))
    assert sun_logit(50.0) == sun_logit(6.0) < -3


def test_without_astral_the_sentence_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("astral"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError, match="extra `sun`"):
        sun_elevation(latitude=0, longitude=0, stamp_ns=0)
