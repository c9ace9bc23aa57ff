# SPDX-License-Identifier: Apache-2.0
"""The diagnostic level follows from limits, silence and problems, on a clock that the test moves."""

from collections.abc import Callable
from typing import Any

import pytest

from xmodal_seg.nodes.health import Health, HealthReport
from xmodal_seg.nodes.segmentation_settings import SegmentationNodeSettings

SETTINGS = SegmentationNodeSettings(
    warn_frame_time_ms=100, error_frame_time_ms=500, warn_input_age_ms=300, error_input_age_ms=900, stale_after_s=2
)


def report(health: Health, now_s: float, notes: tuple[str, ...] = ()) -> HealthReport:
    return health.report(now_s=now_s, settings=SETTINGS, extra={"model": "m"}, notes=list(notes))


def running(frame_ms: float = 20.0, age_ms: float = 50.0) -> Health:
    health = Health(now_s=0.0)
    health.input_arrived(1.0)
    done(health, 1.0, frame_ms=frame_ms, age_ms=age_ms, stages_ms={"model": frame_ms / 2})
    return health


def done(health: Health, now_s: float, **changes: Any) -> None:
    values = {"frame_ms": 20.0, "age_ms": 30.0, "stages_ms": {}, "num_points": 100, "num_left_out": 0}
    health.frame_done(now_s=now_s, **{**values, **changes})


@pytest.mark.parametrize(
    ("frame_ms", "age_ms", "level", "word"),
    [
        (20, 50, "OK", "labelling"),
        (101, 50, "WARN", "time per frame"),
        (501, 50, "ERROR", "time per frame"),
        (20, 301, "WARN", "age of the input"),
        (101, 901, "ERROR", "age of the input"),
        (20, -200, "OK", "labelling"),
        (20, -301, "WARN", "301 ms ahead of this computer's clock"),
        (20, -3_600_000, "ERROR", "ahead of this computer's clock"),
    ],
)
def test_limits(frame_ms: float, age_ms: float, level: str, word: str) -> None:
    found = report(running(frame_ms, age_ms), 1.5)
    assert found.level == level
    assert word in found.message


def test_silence_is_stale_before_and_after_the_first_sweep() -> None:
    assert report(Health(now_s=0.0), 1.9).level == "OK"
    assert report(Health(now_s=0.0), 2.1).level == "STALE"
    assert "no sweep on 'points' for 4.0 s" in report(running(), 5.0).message


def test_sweeps_that_come_and_are_not_labelled_are_an_error() -> None:
    health = running()
    for tick in range(40):
        health.input_arrived(1.1 + tick / 10)
        found = report(health, 1.15 + tick / 10)
        assert (found.level == "ERROR") == (tick >= 20), tick
    assert found.message == "sweeps come, but none has been labelled for 3.9 s"
    done(health, 5.1)
    health.input_arrived(5.2)
    assert report(health, 5.3).level == "OK"


def test_a_pause_of_the_input_is_no_sweep_that_waits() -> None:
    health = running()
    health.input_arrived(1.1)  # dropped, as the last of a bag may be
    health.input_arrived(3600.0)
    assert report(health, 3600.1).level == "OK"


def test_a_slow_computer_is_told_by_its_time_per_frame_alone() -> None:
    health = running(frame_ms=2500.0)
    for now_s in (1.1, 2.0, 3.0, 3.5):
        health.input_arrived(now_s)
    assert report(health, 3.6).message == "time per frame 2500 ms"


@pytest.mark.parametrize(
    ("num_points", "num_left_out", "level"), [(100, 90, "OK"), (100, 91, "WARN"), (0, 0, "WARN"), (100, 100, "WARN")]
)
def test_points_that_are_left_out_and_sweeps_without_any_are_told(
    num_points: int, num_left_out: int, level: str
) -> None:
    health = Health(now_s=0.0)
    health.input_arrived(1.0)
    done(health, 1.0, num_points=num_points, num_left_out=num_left_out)
    found = report(health, 1.5)
    assert found.level == level
    assert ("of the points are left out" in found.message) == (level == "WARN")
    assert found.values["points_left_out"] == str(num_left_out)
    visible = SETTINGS.model_copy(update={"point_scope": "visible"})  # most of a sweep is out of a camera's sight
    assert health.report(now_s=1.5, settings=visible, extra={}, notes=[]).level == "OK"


def test_a_clock_that_keeps_jumping_is_told_and_a_loop_is_not() -> None:
    health = running()
    for loop in range(30):  # of a bag of three seconds
        health.time_jumped(3.0 * loop)
        health.input_arrived(3.0 * loop)
        done(health, 3.0 * loop)
        assert report(health, 3.0 * loop).level == "OK"
    for tick in range(4):
        health.time_jumped(88.0 + tick)
    health.input_arrived(91.0)
    done(health, 91.0)
    assert "keep going back" in report(health, 91.0).message


def test_sweeps_that_are_seldom_and_never_labelled_are_an_error_too() -> None:
    health = Health(now_s=0.0)
    for tick in range(10):
        health.input_arrived(tick * 1.5)
    assert report(health, 14.0).level == "ERROR"


def test_a_problem_shows_and_fades() -> None:
    health = running()
    assert health.problem("camera 'front'", "no camera_info", now_s=1.2, level="WARN")
    assert health.problem("sweep not labelled", "point_step", now_s=1.2)
    assert report(health, 1.5).message == "sweep not labelled: point_step"
    assert report(health, 1.5).level == "ERROR"
    health.input_arrived(7.0)
    assert report(health, 7.0).level == "OK"


def test_each_source_is_logged_now_and_then_and_shows_its_newest_problem() -> None:
    health = running()
    due = [health.problem("camera 'left'", f"no transform at {i}", now_s=1.0 + i) for i in range(8)]
    assert due == [True] + 4 * [False] + [True] + 2 * [False]
    assert health.problem("camera 'right'", "no camera_info", now_s=8.0)
    assert report(health, 8.0).message == "camera 'left': no transform at 7; camera 'right': no camera_info"


def test_lasting_notes_warn() -> None:
    found = report(running(), 1.5, notes=("the weights are untrained",))
    assert (found.level, found.message) == ("WARN", "the weights are untrained")


@pytest.mark.parametrize(("dropped", "level"), [(0, "OK"), (4, "OK"), (10, "WARN"), (400, "ERROR")])
def test_dropped_sweeps_raise_the_level(dropped: int, level: str) -> None:
    health = running()
    for number in range(20):
        done(health, 1 + number / 10)
    health.sweeps_dropped(dropped)
    found = report(health, 3.0)
    assert found.level == level
    assert ("of the sweeps are dropped" in found.message) == (level != "OK")
    assert found.values["dropped_busy"] == str(dropped)


def fed(old: Callable[[int], bool], *, num_sweeps: int = 200) -> Health:
    """Labels at once all sweeps but those with old stamps."""
    health = Health(now_s=0.0)
    for number in range(num_sweeps):
        health.input_arrived(number / 10, has_old_stamp=old(number))
        if not old(number):
            done(health, number / 10)
    return health


@pytest.mark.parametrize(
    ("old", "level", "share"),
    [
        (lambda _: False, "OK", ""),
        (lambda number: number % 50 == 0, "OK", ""),  # of a clock that is set now and then
        (lambda number: number % 11 == 0, "WARN", "10 % of the sweeps"),  # a second, slower LiDAR
        (lambda number: number % 2 == 1, "WARN", "50 % of the sweeps"),  # two alike
        (lambda number: number < 100, "OK", ""),  # mended since
    ],
)
def test_sweeps_with_old_stamps_are_told_by_their_share(old: Callable[[int], bool], level: str, share: str) -> None:
    found = report(fed(old), 20.0)
    assert found.level == level
    assert share in found.message
    why = "came with old or repeated stamps and were dropped (stamp 0? two publishers on 'points'?)"
    assert (why in found.message) == bool(share)


def test_a_lidar_without_stamps_is_told_beside_what_follows_from_it() -> None:
    message = report(fed(lambda number: number > 0), 20.0).message
    assert "sweeps come, but none has been labelled for 19.9 s" in message
    assert "100 % of the sweeps came with old or repeated stamps" in message


def test_a_few_sweeps_make_no_share() -> None:
    assert report(fed(lambda number: number % 2 == 1, num_sweeps=19), 2.0).level == "OK"


def test_values_hold_counts_percentiles_stages_and_extras() -> None:
    health = running()
    health.sweeps_dropped(3)
    values = report(health, 2.0).values
    assert values["frames"] == "1"
    assert values["dropped_busy"] == "3"
    assert values["frame_ms p95"] == "20.0"
    assert values["stage model"] == "10.0"
    assert values["last output s ago"] == "1.0"
    assert values["model"] == "m"
