# SPDX-License-Identifier: Apache-2.0
"""The estimator over time: what it says by day and night, and what must never become a night."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from light_pictures import day_picture, night_picture

from xmodal_seg.lighting import CameraLighting, Exposure, LightingEstimator, LightingSettings
from xmodal_seg.lighting_features import FEATURES, image_facts
from xmodal_seg.lighting_model import LightingCoefficients
from xmodal_seg.lighting_state import BankSelector, BankSettings, HysteresisSettings

S = 10**9
START_NS = 1_700_000_000 * S
DAY, NIGHT = day_picture(), night_picture()


def clear_cut() -> LightingCoefficients:
    """Coefficients that are sure of the two test pictures, so that these tests stand apart from the shipped ones."""
    day, night = image_facts(DAY).features, image_facts(NIGHT).features
    scale = np.maximum(np.abs(night - day) / 2, 1.0)
    weights = np.sign(night - day) * (np.abs(night - day) > 0.5)
    return LightingCoefficients(
        mean=tuple((day + night) / 2), scale=tuple(scale), weights=tuple(weights * 7 / weights.size), bias=0.0
    )


def estimator(**settings: object) -> LightingEstimator:
    return LightingEstimator(settings=LightingSettings(**settings), coefficients=clear_cut())


def watch(
    estimate: LightingEstimator, image: Callable[[int], np.ndarray], seconds: range, *, step_ns: int = S
) -> list[CameraLighting]:
    return [estimate.update("front", image(t), t * step_ns) for t in seconds]


def day(t: int) -> np.ndarray:
    return day_picture(t % 5)


def night(t: int) -> np.ndarray:
    return night_picture(t % 5)


def test_day_and_night_at_first_sight() -> None:
    by_day, by_night = estimator().update("front", DAY, 0), estimator().update("front", NIGHT, 0)
    assert (by_day.condition, by_night.condition) == ("day", "night")
    assert by_day.darkness < 0.15
    assert by_night.darkness > 0.85
    assert by_day.confidence > 0.5
    assert by_night.confidence > 0.5
    assert by_day.guidance == pytest.approx(1 - by_day.darkness)
    assert by_day.reliability > 0.8
    assert by_night.reliability < 0.2


def test_lambda_spans_its_range_and_goes_to_the_middle_without_confidence() -> None:
    estimate = estimator(lambda_min=0.2, lambda_max=0.6, min_confidence=0.5)
    assert estimate.guidance(0.0, 1.0) == pytest.approx(0.6)
    assert estimate.guidance(1.0, 1.0) == pytest.approx(0.2)
    assert estimate.guidance(1.0, 0.5) == pytest.approx(0.2)
    assert estimate.guidance(1.0, 0.25) == pytest.approx(0.3)
    assert estimate.guidance(1.0, 0.0) == pytest.approx(0.4)


def test_darkness_follows_with_the_time_constant_whatever_the_rate() -> None:
    ends = []
    for step_ns in (S // 10, S // 2):
        estimate = estimator(time_constant_s=2.0)
        estimate.update("front", DAY, 0)
        logit = 0.0
        for stamp_ns in range(step_ns, 2 * S + 1, step_ns):
            image = NIGHT.copy()
            image[:3, :3] = stamp_ns % 251  # no two images are the same
            logit = estimate.update("front", image, stamp_ns).darkness
        ends.append(np.log(logit / (1 - logit)))
    assert ends[0] == pytest.approx(ends[1], abs=0.05)


def test_a_lasting_night_becomes_night_after_its_time() -> None:
    estimate = estimator(hysteresis=HysteresisSettings(enter_s=5))
    watch(estimate, day, range(10))
    seen = watch(estimate, night, range(10, 30))
    conditions = [light.condition for light in seen]
    first = conditions.index("night")
    assert 5 <= first <= 10
    assert set(conditions[first:]) == {"night"}
    assert any("changing" in reason for light in seen[:first] for reason in light.reasons)
    assert min(light.confidence for light in seen[:first]) < 0.5 < seen[-1].confidence


def test_a_bad_image_now_and_then_keeps_no_day_all_night() -> None:
    estimate = estimator(hysteresis=HysteresisSettings(enter_s=5))
    selector = BankSelector(banks=("day", "night"), served="day", settings=BankSettings(hold_s=20))
    seen = []
    for half in range(180):
        stamp_ns = half * S // 2
        image = day(half) if half < 20 else black(half) if half % 8 == 0 else night(half)
        light = estimate.update("front", image, stamp_ns)
        seen.append((light.condition, selector.update([light], stamp_ns)))
    conditions, banks = zip(*seen[20:], strict=True)
    assert 10 <= conditions.index("night") <= 24
    assert 40 <= banks.index("night") <= 64
    assert set(banks[banks.index("night") :]) == {"night"}


def test_a_short_tunnel_changes_no_condition_and_costs_confidence() -> None:
    estimate = estimator()
    watch(estimate, day, range(10))
    seen = watch(estimate, night, range(10, 14))
    assert {light.condition for light in seen} == {"day"}
    assert min(light.confidence for light in seen) < 0.5


def black(t: int) -> np.ndarray:
    return np.full((90, 131, 3), t % 3, np.uint8)


def over_exposed(t: int) -> np.ndarray:
    image = np.full((90, 131, 3), 255, np.uint8)
    image[t % 90] = 200
    return image


def blocked(t: int) -> np.ndarray:
    return np.full((90, 131, 3), 40 + t % 3, np.uint8)


def frozen_night(_: int) -> np.ndarray:
    return NIGHT


@pytest.mark.parametrize(
    ("broken", "reason"),
    [(black, "black"), (over_exposed, "over-exposed"), (blocked, "blocked"), (frozen_night, "frozen")],
)
def test_a_broken_camera_is_unsure_and_never_a_night(broken: Callable[[int], np.ndarray], reason: str) -> None:
    estimate = estimator(frozen_after_s=1.0)
    before = watch(estimate, day, range(10))[-1]
    seen = watch(estimate, broken, range(10, 100))
    for light in seen[3:]:
        assert light.reasons == (reason,)
        assert light.confidence == 0
        assert light.reliability == 0
        assert light.condition == "day"
        assert light.guidance == pytest.approx(0.5)
    if broken is not frozen_night:  # which was a night for a second before it counted as frozen
        assert seen[-1].darkness == before.darkness
    assert watch(estimate, day, range(100, 103))[-1].confidence > 0.5


@pytest.mark.parametrize("broken", [black, over_exposed, blocked])
def test_a_camera_that_is_broken_from_the_start_is_no_night_either(broken: Callable[[int], np.ndarray]) -> None:
    light = watch(estimator(), broken, range(60))[-1]
    assert light.condition == "twilight"
    assert light.confidence == 0


def test_glare_costs_confidence_and_reliability_but_is_no_fault() -> None:
    image = DAY.copy()
    image[:70] = 255
    plain, dazzled = estimator().update("front", DAY, 0), estimator().update("front", image, 0)
    assert dazzled.condition == "day"
    assert dazzled.reasons == ("glare",)
    assert 0 < dazzled.confidence < plain.confidence
    assert 0 < dazzled.reliability < plain.reliability


def test_a_late_camera_is_stale_and_the_others_go_on() -> None:
    estimate = estimator(stale_after_s=0.5)
    estimate.update("front", DAY, 0)
    estimate.update("back", DAY, S)
    front, back = estimate.current(S)
    assert (front.reasons, front.confidence, front.reliability) == (("stale",), 0.0, 0.0)
    assert front.guidance == pytest.approx(0.5)
    assert back.confidence > 0.5
    assert estimate.stale("front", S // 4) == estimate.stale("front", 0)
    with pytest.raises(ValueError, match="expected one of front, back, got 'left'"):
        estimate.stale("left", 0)


@pytest.mark.parametrize("hz", [0.2, 1.0, 2.0])
def test_a_slow_camera_changes_condition_and_bank_though_it_is_asked_all_the_time(hz: float) -> None:
    estimate = estimator()
    selector = BankSelector(banks=("day", "night"), served="night", settings=BankSettings(hold_s=20))
    changed_s: dict[str, float] = {}
    reasons: set[str] = set()
    stamp_ns = START_NS
    for tenth in range(1000 if hz == 0.2 else 600):
        now_ns = tenth * S // 10
        if tenth % round(10 / hz) == 0:
            stamp_ns = START_NS + now_ns
            number = tenth // round(10 / hz)
            image = day(number) if tenth < 100 else night(number)
            light = estimate.update("front", image, stamp_ns, arrived_ns=now_ns)
            changed_s.setdefault(light.condition, tenth / 10)
        elif tenth % 5:
            continue
        said = estimate.current(now_ns)
        changed_s.setdefault("bank of " + selector.update(said, stamp_ns), tenth / 10)
        reasons |= set(said[0].reasons) if tenth > 2 * 10 / hz else set()
    assert changed_s["day"] == 0
    assert 15 <= changed_s["night"] <= 20 + 5 / hz
    assert 30 <= changed_s["bank of night"] <= 40 + 5 / hz
    assert "stale" not in reasons


@pytest.mark.parametrize("hz", [0.2, 1.0, 10.0])
def test_a_camera_that_falls_silent_is_stale_whatever_its_rate(hz: float) -> None:
    estimate = estimator()
    period_ns = round(S / hz)
    for i in range(20):
        estimate.update("front", day(i), START_NS + i * period_ns, arrived_ns=i * period_ns)
    last_ns, limit_ns = 19 * period_ns, max(S // 2, round(2.5 * period_ns))
    (fresh,), (late,) = estimate.current(last_ns + limit_ns), estimate.current(last_ns + limit_ns + 1)
    assert (fresh.confidence > 0.5, fresh.reasons) == (True, ())
    assert (late.confidence, late.reliability, late.reasons) == (0.0, 0.0, ("stale",))
    assert late.guidance == pytest.approx(0.5)
    again = estimate.update("front", day(20), START_NS + 3600 * S, arrived_ns=3600 * S)
    assert again.confidence > 0.5
    assert estimate.stale("front", 3600 * S + limit_ns + 1).reasons == ("stale",)


def test_asking_changes_nothing() -> None:
    asked, plain = estimator(), estimator()
    for estimate in (asked, plain):
        watch(estimate, day, range(10))
    for t in range(10, 30):
        one, other = (estimate.update("front", night(t), t * S) for estimate in (asked, plain))
        assert one == other
        asked.current((t + 100) * S)


def test_after_a_jump_back_condition_and_darkness_go_on_and_follow_in_time() -> None:
    estimate = estimator()
    before = watch(estimate, day, range(100, 110))[-1]
    seen = watch(estimate, night, range(5, 30))
    conditions = [light.condition for light in seen]
    assert seen[0].darkness == pytest.approx(before.darkness, abs=1e-9)
    assert 5 <= conditions.index("night") <= 10
    assert set(conditions[conditions.index("night") :]) == {"night"}


def test_a_jump_back_in_a_tunnel_begins_the_count_anew() -> None:
    estimate = estimator(time_constant_s=0.0)
    watch(estimate, day, range(100, 110))
    assert watch(estimate, night, range(110, 114))[-1].condition == "day"
    again = [light.condition for light in watch(estimate, night, range(50, 60))]
    assert again.index("night") == 5


def test_a_frozen_camera_stays_frozen_over_a_jump_back() -> None:
    estimate = estimator()
    assert watch(estimate, frozen_night, range(100, 110))[-1].reasons == ("frozen",)
    assert watch(estimate, frozen_night, range(5, 8))[-1].reasons == ("frozen",)


def test_metadata_count_for_the_images_of_their_time() -> None:
    dark, bright = Exposure(time_s=0.1, gain_db=30), Exposure(time_s=0.0005)
    expected = {
        name: estimator().update("front", DAY, 0, found) for name, found in (("dark", dark), ("bright", bright))
    }
    estimate = estimator(stale_after_s=0.5, time_constant_s=0.0)
    estimate.update_exposure("front", dark, 100 * S)
    estimate.update_exposure("front", bright, 100 * S + S // 10)
    assert estimate.update("back", DAY, 100 * S).darkness == estimator().update("back", DAY, 0).darkness
    assert estimate.update("front", day(1), 100 * S - S // 50).darkness == pytest.approx(
        expected["dark"].darkness, abs=0.02
    )
    assert estimate.update("front", DAY, 100 * S + S // 10).darkness == expected["bright"].darkness
    later = estimate.update("front", DAY, 200 * S)  # the topic has died
    assert later.image_darkness == estimator().update("front", DAY, 0).image_darkness
    estimate.reset()
    assert estimate.update("front", DAY, 100 * S).darkness == later.image_darkness


def test_exposure_metadata_moves_the_estimate_and_a_contradiction_costs_confidence() -> None:
    plain = estimator().update("front", DAY, 0)
    bright = estimator().update("front", DAY, 0, Exposure(time_s=0.0005))
    dark = estimator().update("front", DAY, 0, Exposure(time_s=0.1, gain_db=30))
    assert bright.darkness < plain.darkness < dark.darkness
    assert dark.confidence < plain.confidence
    assert any("exposure" in reason for reason in dark.reasons)


def test_the_sun_is_a_weak_prior_and_is_ignored_after_a_while() -> None:
    pytest.importorskip("astral", reason="the extra `sun` is not installed")
    noon_ns = 1_718_971_200 * S
    estimate, plain = estimator(sun_patience_s=60, time_constant_s=0.0), estimator(time_constant_s=0.0)
    estimate.update_fix(latitude=51.5, longitude=0.0)
    against = estimate.update("front", NIGHT, noon_ns)
    alone = plain.update("front", NIGHT, noon_ns)
    assert alone.darkness - 0.1 < against.darkness < alone.darkness
    assert against.confidence < alone.confidence
    assert any("sun" in reason for reason in against.reasons)
    for t in range(1, 62):
        against = estimate.update("front", night(t), noon_ns + t * S)
    alone = plain.update("front", night(61), noon_ns + 61 * S)
    assert against.darkness == pytest.approx(alone.darkness)
    assert against.confidence == pytest.approx(alone.confidence)
    assert against.reasons == alone.reasons
    with pytest.raises(ValueError, match="fix: expected degrees"):
        estimate.update_fix(latitude=95, longitude=0)


def test_a_degraded_lidar_costs_confidence_for_two_seconds() -> None:
    estimate = estimator()
    points = np.random.default_rng(0).uniform(5, 30, (500, 3)).astype(np.float32)
    for _ in range(6):
        estimate.update_lidar(points, 0)
    healthy = estimate.update("front", NIGHT, 0)
    assert estimate.update_lidar(points[:20], S) == 0
    lost = estimate.update("front", night(1), S)
    assert (healthy.confidence > 0.5, lost.confidence) == (True, 0.0)
    assert "LiDAR degraded" in lost.reasons
    assert estimate.update("front", night(2), 4 * S).confidence > 0.5


def test_other_settings_apply_at_once_and_a_reset_forgets() -> None:
    estimate = estimator()
    watch(estimate, day, range(5))
    estimate.apply(LightingSettings(hysteresis=HysteresisSettings(enter_s=0), time_constant_s=0))
    assert estimate.update("front", NIGHT, 5 * S).condition == "night"
    estimate.reset()
    assert estimate.current(5 * S) == ()


def test_lambda_min_above_lambda_max_is_refused() -> None:
    with pytest.raises(ValueError, match="lambda_min: expected at most lambda_max"):
        LightingSettings(lambda_min=0.8, lambda_max=0.3)


def test_a_wrong_image_is_refused_and_changes_nothing() -> None:
    estimate = estimator()
    with pytest.raises(ValueError, match="image: expected"):
        estimate.update("front", np.zeros((4, 4), np.uint8), 0)
    assert estimate.current(0) == ()
    assert len(FEATURES) == len(clear_cut().weights)
