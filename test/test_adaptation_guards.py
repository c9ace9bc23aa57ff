# SPDX-License-Identifier: Apache-2.0
"""When learning pauses, and when it goes on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from xmodal_seg.adaptation.frames import Bin
from xmodal_seg.adaptation.guards import FrameFacts, Guards, range_change, sector_ranges
from xmodal_seg.adaptation.settings import GuardSettings
from xmodal_seg.structures import Predictions

DAY, NIGHT = Bin(bank="day", condition="day"), Bin(bank="night", condition="night")
SECOND_NS = 10**9
SETTINGS = GuardSettings(settle_frames=3, deadline_ms=100.0, min_usual_frames=4)


def facts(number: int, **changes) -> FrameFacts:
    """Of the `number`-th second of a drive on which nothing is wrong."""
    stamp_ns = (100 + number) * SECOND_NS
    usual = FrameFacts(
        stamp_ns=stamp_ns,
        camera_stamps_ns=(stamp_ns + 20_000_000, stamp_ns),
        bin=DAY,
        latency_ms=None,
        moved_m=None,
        ranges_m=np.full(72, 10.0 + number, np.float32),
    )
    return replace(usual, **changes)


@pytest.fixture
def guards() -> Guards:
    found = Guards(settings=SETTINGS)
    assert found.check(facts(0)) == ()
    found.kept(facts(0))
    return found


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"camera_stamps_ns": ()}, "no_camera"),
        ({"bin": None}, "low_confidence"),
        ({"bin": NIGHT}, "condition_change"),
        ({"camera_stamps_ns": (101 * SECOND_NS + 150_000_000,)}, "desync"),
        ({"stamp_ns": 99 * SECOND_NS, "camera_stamps_ns": (99 * SECOND_NS,)}, "clock_jump"),
        ({"stamp_ns": 111 * SECOND_NS, "camera_stamps_ns": (111 * SECOND_NS,)}, "clock_jump"),
        ({"latency_ms": 101.0}, "missed_deadlines"),
    ],
)
def test_a_fault_pauses_until_enough_good_frames_passed(guards: Guards, changes: dict, reason: str) -> None:
    bad = facts(1, **changes)
    assert guards.check(bad) == (reason,)

    after = [
        guards.check(replace(facts(i, latency_ms=None), bin=bad.bin or DAY, stamp_ns=s, camera_stamps_ns=(s,)))
        for i in range(2, 6)
        for s in [bad.stamp_ns + (i - 1) * SECOND_NS]
    ]

    assert after == [("settling",)] * 3 + [()]


def test_lateness_ends_well_below_the_deadline(guards: Guards) -> None:
    assert guards.check(facts(1, latency_ms=150.0)) == ("missed_deadlines",)
    reasons = [guards.check(facts(2 + i, latency_ms=90.0)) for i in range(60)]
    assert all(reason == ("missed_deadlines",) for reason in reasons)  # 90 is above 0.8 of 100
    reasons = [guards.check(facts(62 + i, latency_ms=50.0)) for i in range(60)]
    assert reasons[-1] == ()


def test_a_parked_vehicle_pauses_and_the_first_movement_ends_it(guards: Guards) -> None:
    still = np.full(72, 10.1, np.float32)  # 1 % off what it was
    reasons = [guards.check(facts(i, ranges_m=still)) for i in range(1, 8)]
    assert reasons == [()] * 4 + [("parked",)] * 3
    assert not guards.has_moved
    assert guards.check(facts(8, ranges_m=np.full(72, 10.5, np.float32))) == ()
    assert guards.has_moved


def test_odometry_has_the_last_word(guards: Guards) -> None:
    assert [guards.check(facts(i, moved_m=0.1)) for i in range(1, 8)][-1] == ("parked",)
    assert guards.check(facts(8, moved_m=0.4)) == ()
    assert guards.has_moved  # 1.1 m in all


def test_sectors_see_the_median_range() -> None:
    generator = np.random.default_rng(3)
    angle = np.radians(np.concatenate([np.full(5, 12.0), np.full(7, -91.0)]))
    distance = generator.uniform(5, 40, 12)
    points = np.stack([distance * np.cos(angle), distance * np.sin(angle), np.ones(12)], axis=1).astype(np.float32)
    points = np.concatenate([points, np.full((2, 3), np.nan, np.float32)])

    ranges = sector_ranges(points)

    assert ranges.shape == (72,)
    assert np.isfinite(ranges).sum() == 2
    np.testing.assert_allclose(ranges[36 + 2], np.median(distance[:5]), rtol=1e-5)
    np.testing.assert_allclose(ranges[36 - 19], np.median(distance[5:]), rtol=1e-5)
    assert np.isnan(sector_ranges(np.zeros((0, 3), np.float32))).all()


def test_range_change_is_the_median_of_the_common_sectors() -> None:
    assert range_change([10.0, 20.0, np.nan, 5.0], [11.0, 20.0, 7.0, 10.0]) == pytest.approx(0.1)
    assert range_change([np.nan, 3.0], [3.0, np.nan]) == float("inf")


def said(*, agreeing: float, num_points: int = 40) -> Predictions:
    labels = torch.arange(num_points) % 5
    other = torch.where(torch.arange(num_points) < agreeing * num_points, labels, (labels + 1) % 5)
    one_hot = torch.nn.functional.one_hot
    main = {"2d": one_hot(labels, 5).float(), "3d": one_hot(other, 5).float()}
    return Predictions(main=main, mimic={}, ensemble_heads=("3d",), visible=torch.ones(num_points, dtype=torch.bool))


def test_heads_that_suddenly_disagree_are_a_sensor_fault(guards: Guards) -> None:
    assert not guards.sensors_disagree(DAY, said(agreeing=0.3))  # nothing is usual yet
    for _ in range(9):
        assert not guards.sensors_disagree(DAY, said(agreeing=0.9))
    assert guards.sensors_disagree(DAY, said(agreeing=0.6))
    assert not guards.sensors_disagree(DAY, said(agreeing=0.8))
    assert not guards.sensors_disagree(NIGHT, said(agreeing=0.5))  # each bin has its own
    blind = replace(said(agreeing=0.1), visible=torch.zeros(40, dtype=torch.bool))
    assert not guards.sensors_disagree(DAY, blind)


def hear(guards: Guards, agreements: list[float]) -> list[bool]:
    """Which of these frames, one after the other, are refused."""
    return [guards.sensors_disagree(DAY, said(agreeing=value, num_points=200)) for value in agreements]


def test_a_slow_slide_is_caught() -> None:
    """A lens that gets dirty, or a mount that slips: no frame is much worse than the ones before it."""
    guards = Guards(settings=GuardSettings())
    slide = np.linspace(0.95, 0.1, 1500)
    refused = hear(guards, list(slide))
    assert not any(np.array(refused)[slide > 0.77])
    assert all(np.array(refused)[slide < 0.72])
    assert guards.lasting_disagreement(DAY).startswith("2D and 3D heads agree on 1")


def test_what_is_usual_follows_upwards_only() -> None:
    guards = Guards(settings=GuardSettings())
    assert not any(hear(guards, [0.6] * 60 + [0.9] * 60))
    assert hear(guards, [0.65]) == [True]
    assert not any(hear(guards, [0.75] * 300))
    assert hear(guards, [0.65]) == [True]


def test_a_lasting_new_level_is_not_learned_from_but_told() -> None:
    guards = Guards(settings=GuardSettings())
    assert not any(hear(guards, [0.95] * 8))
    assert all(hear(guards, [0.7] * 50))
    assert guards.lasting_disagreement(DAY) == ""
    assert all(hear(guards, [0.7] * 5000))
    assert guards.lasting_disagreement(DAY) == (
        "2D and 3D heads agree on 70 % of the points, usually on 95 %, in most of the last 100 frames: a fault of "
        "calibration or sensor; where there is none, enable adaptation again"
    )
    assert guards.lasting_disagreement(NIGHT) == ""

    assert not any(hear(guards, [0.95] * 50))
    assert guards.lasting_disagreement(DAY) == ""


def test_who_says_that_nothing_is_wrong_is_believed() -> None:
    guards = Guards(settings=GuardSettings())
    hear(guards, [0.95] * 8 + [0.7] * 200)
    guards.forget_usual()
    assert guards.lasting_disagreement(DAY) == ""
    assert not any(hear(guards, [0.7] * 200))
    assert hear(guards, [0.45]) == [True]


def test_a_number_of_usual_frames_beyond_memory_does_not_end_the_guard() -> None:
    guards = Guards(settings=GuardSettings(min_usual_frames=1000))
    assert not any(hear(guards, [0.95] * 60))
    assert hear(guards, [0.5]) == [True]
