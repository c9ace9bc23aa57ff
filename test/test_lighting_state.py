# SPDX-License-Identifier: Apache-2.0
"""Hysteresis of the condition, the light that cameras have in common, and the bank that follows it."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from helpers import Seen

from xmodal_seg.lighting_state import (
    BankSelector,
    BankSettings,
    Hysteresis,
    HysteresisSettings,
    Rhythm,
    common_light,
)

S = 10**9


def test_the_first_value_decides_at_once() -> None:
    for darkness, condition in ((0.05, "day"), (0.5, "twilight"), (0.95, "night")):
        assert Hysteresis(HysteresisSettings()).update(darkness, 0) == condition


def test_night_is_entered_after_it_has_held() -> None:
    hysteresis = Hysteresis(HysteresisSettings(enter_s=5))
    hysteresis.update(0.1, 0)
    assert [hysteresis.update(0.9, t * S) for t in (1, 3, 5, 6)] == ["day", "day", "day", "night"]


def test_an_interruption_begins_anew() -> None:
    hysteresis = Hysteresis(HysteresisSettings(enter_s=5))
    hysteresis.update(0.1, 0)
    hysteresis.update(0.9, 1 * S)
    hysteresis.update(0.1, 4 * S)
    assert hysteresis.update(0.9, 5 * S) == "day"
    assert hysteresis.is_changing
    hysteresis.interrupt()
    assert [hysteresis.update(0.9, t * S) for t in (8, 10, 12, 13)] == ["day", "day", "day", "night"]


def test_an_unsure_sample_pauses_the_count() -> None:
    hysteresis = Hysteresis(HysteresisSettings(enter_s=5))
    hysteresis.update(0.1, 0)
    assert [hysteresis.update(0.9, t * S) for t in (1, 3)] == ["day", "day"]
    hysteresis.pause(4 * S)  # 3 s so far
    hysteresis.pause(14 * S)
    assert hysteresis.is_changing
    assert [hysteresis.update(0.9, round(t * S)) for t in (20, 21.9, 22.1)] == ["day", "day", "night"]


def test_every_second_sample_unsure_takes_twice_as_long() -> None:
    hysteresis = Hysteresis(HysteresisSettings(enter_s=5))
    hysteresis.update(0.1, 0)
    seen = []
    for t in range(1, 14, 2):
        seen.append(hysteresis.update(0.9, t * S))
        hysteresis.pause((t + 1) * S)
    assert seen == ["day"] * 5 + ["night"] * 2


@pytest.mark.parametrize(("unsure_s", "after"), [(29, 2), (31, 5)])
def test_over_half_a_minute_without_a_sure_sample_begins_the_count_anew(unsure_s: int, after: int) -> None:
    hysteresis = Hysteresis(HysteresisSettings(enter_s=5))
    hysteresis.update(0.1, 0)
    for t in (1, 2, 3):
        hysteresis.update(0.9, t * S)
    for t in range(4, 4 + unsure_s):
        hysteresis.pause(t * S)
        assert hysteresis.condition == "day"
    assert [hysteresis.update(0.9, (4 + unsure_s + t) * S) for t in range(8)].index("night") == after


def test_a_jump_during_a_pause_begins_the_count_anew() -> None:
    hysteresis = Hysteresis(HysteresisSettings(enter_s=5))
    hysteresis.update(0.1, 100 * S)
    for t in range(101, 106):
        assert hysteresis.update(0.9, t * S) == "day"
    hysteresis.pause(50 * S)
    assert not hysteresis.is_changing
    assert [hysteresis.update(0.9, t * S) for t in range(51, 58)].index("night") == 5


@pytest.mark.parametrize("other", [0.15, 0.25])
def test_day_and_twilight_by_turns_end_a_night(other: float) -> None:
    hysteresis = Hysteresis(HysteresisSettings(leave_s=10))
    hysteresis.update(0.95, 0)
    seen = [hysteresis.update(0.4 - other if t % 2 else other, t * S) for t in range(1, 30)]
    assert seen == ["night"] * 10 + ["twilight"] * 19


def test_a_moment_of_night_begins_the_count_of_its_end_anew() -> None:
    hysteresis = Hysteresis(HysteresisSettings(leave_s=10))
    seen = [hysteresis.update(0.95 if t % 10 == 0 else (0.15, 0.25)[t % 2], t * S) for t in range(60)]
    assert set(seen) == {"night"}


def test_what_was_counted_for_day_goes_on_over_the_step_to_twilight() -> None:
    hysteresis = Hysteresis(HysteresisSettings(enter_s=20, leave_s=20))
    hysteresis.update(0.95, 0)
    seen = [hysteresis.update(0.4 if t < 5 else 0.05, t * S) for t in range(1, 30)]
    assert seen == ["night"] * 20 + ["twilight"] * 4 + ["day"] * 5


def test_levels_between_leaving_and_entering_keep_the_condition() -> None:
    night, day = Hysteresis(HysteresisSettings()), Hysteresis(HysteresisSettings())
    night.update(0.9, 0), day.update(0.1, 0)
    assert night.update(0.65, 100 * S) == "night"
    assert day.update(0.35, 100 * S) == "day"
    assert not night.is_changing
    seen = [night.update(0.55, t * S) for t in range(101, 112)]
    assert seen == ["night"] * 10 + ["twilight"]


def test_levels_that_cross_are_refused() -> None:
    with pytest.raises(ValueError, match=r"night_leave: expected 0\.5 to night_enter"):
        HysteresisSettings(night_enter=0.7, night_leave=0.75)


def test_common_light_is_the_median_of_the_sure_cameras() -> None:
    light = common_light([Seen(0.1), Seen(0.3), Seen(0.2), Seen(0.99, confidence=0.0)], min_confidence=0.3)
    assert light is not None
    assert (light.darkness, light.guidance, light.num_healthy) == (0.2, 0.8, 3)
    assert common_light([Seen(0.9, confidence=0.1)], min_confidence=0.3) is None
    assert common_light([], min_confidence=0.3) is None


def test_the_bank_follows_a_night_that_lasts_and_no_tunnel() -> None:
    selector = BankSelector(banks=("day", "night"), served="day", settings=BankSettings(hold_s=20))
    for t in range(10):
        assert selector.update([Seen(0.02)], t * S) == "day"
    for t in range(10, 25):  # a tunnel
        assert selector.update([Seen(0.97)], t * S) == "day"
    for t in range(25, 40):
        assert selector.update([Seen(0.02)], t * S) == "day"
    banks = [selector.update([Seen(0.97)], t * S) for t in range(40, 70)]
    assert banks.index("night") == 20
    assert selector.condition == "night"


def test_the_bank_stays_by_twilight_and_while_nobody_is_sure() -> None:
    selector = BankSelector(banks=("day", "night"), served="night", settings=BankSettings(hold_s=0))
    assert selector.update([Seen(0.5)], 0) == "night"
    assert selector.update([Seen(0.01, confidence=0.0)], S) == "night"
    assert selector.update([Seen(0.01)], 2 * S) == "day"


@pytest.mark.parametrize("unsure_s", [0.1, 0.5, 2.0])
def test_a_night_with_an_unsure_sample_now_and_then_is_followed(unsure_s: float) -> None:
    selector = BankSelector(banks=("day", "night"), served="day", settings=BankSettings(hold_s=20))
    selector.update([Seen(0.02)], 0)
    banks = [
        selector.update([Seen(0.98, confidence=0.0 if t % 150 < unsure_s * 10 else 0.9)], t * S // 10)
        for t in range(1, 400)
    ]
    assert banks.index("night") / 10 == pytest.approx(20 + 2 * unsure_s, abs=0.4)


def test_a_bank_that_is_not_there_is_never_asked_for() -> None:
    selector = BankSelector(banks=("ensemble",), served="ensemble", settings=BankSettings(hold_s=0))
    assert selector.update([Seen(0.99)], 0) == "ensemble"


def by_day_until(second: int) -> BankSelector:
    selector = BankSelector(banks=("day", "night"), served="night", settings=BankSettings(hold_s=20))
    for t in range(second - 10, second):
        assert selector.update([Seen(0.02)], t * S) == "day"
    return selector


def in_the_dark(selector: BankSelector, seconds: Iterable[float]) -> list[str]:
    return [selector.update([Seen(0.98)], round(t * S)) for t in seconds]


def test_after_a_reset_bank_and_condition_stay_and_the_count_begins_anew() -> None:
    selector = by_day_until(100)
    assert in_the_dark(selector, range(100, 119)) == ["day"] * 19
    selector.reset()  # a clock that is set, in a tunnel
    assert selector.condition == "day"
    banks = in_the_dark(selector, [118.5 + t for t in range(30)])
    assert banks.index("night") == 20


@pytest.mark.parametrize("to_s", [-3600, 0, 95, 3700])
def test_a_jump_in_time_decides_nothing_and_the_bank_follows_after_its_time(to_s: int) -> None:
    selector = by_day_until(100)
    assert set(in_the_dark(selector, range(100, 119))) == {"day"}
    banks = in_the_dark(selector, range(to_s, to_s + 50))
    assert banks.index("night") == 20
    assert in_the_dark(by_day_until(100), (100, 3700)) == ["day", "day"]


@pytest.mark.parametrize(("period_s", "after_s"), [(0.1, 20), (1.0, 20), (5.0, 20), (10.0, 40)])
def test_slow_lights_are_followed_as_well(period_s: float, after_s: float) -> None:
    selector = by_day_until(100)
    banks = in_the_dark(selector, [100 + i * period_s for i in range(round(60 / period_s))])
    assert banks.index("night") * period_s == pytest.approx(after_s, abs=period_s)


def test_a_clock_that_steps_ahead_counts_for_five_seconds_where_lights_come_each_second() -> None:
    selector = by_day_until(100)
    in_the_dark(selector, range(100, 105))
    assert in_the_dark(selector, range(116, 140)).index("night") == 11  # 4 s before, 5 s for the step


def test_frames_ten_seconds_apart_are_followed_as_fast_as_others() -> None:
    selector = BankSelector(banks=("day", "night"), served="night", settings=BankSettings(hold_s=20))
    for t in range(0, 100, 10):
        selector.update([Seen(0.02)], t * S)
    assert in_the_dark(selector, range(100, 200, 10)).index("night") == 2


def test_cameras_whose_stamps_come_out_of_order_are_counted_once() -> None:
    selector = by_day_until(100)
    banks = in_the_dark(selector, [100 + t + late for t in range(30) for late in (0, -0.7)])
    assert banks.index("night") == 2 * 20


def test_a_rhythm_tells_silence_from_a_slow_period() -> None:
    rhythm = Rhythm()
    assert rhythm.limit_ns(least_s=0.5) == 0.5 * S
    for t in (0, 1, 2, 30, 31, 33, 33.01, 34):  # with a pause, a gap and a pair
        rhythm.note(round(t * S))
    assert rhythm.limit_ns(least_s=0.5) == pytest.approx(2.5 * S)
    for t in range(40):
        rhythm.note(35 * S + t * S // 10)
    assert rhythm.limit_ns(least_s=0.5) == 0.5 * S
