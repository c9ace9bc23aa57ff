# SPDX-License-Identifier: Apache-2.0
"""The diagnostic level follows from limits, silence and problems, on a clock that the test moves."""

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
    health.frame_done(now_s=1.0, frame_ms=frame_ms, age_ms=age_ms, stages_ms={"model": frame_ms / 2})
    return health


@pytest.mark.parametrize(
    ("frame_ms", "age_ms", "level", "word"),
    [
        (20, 50, "OK", "labelling"),
        (101, 50, "WARN", "time per frame"),
        (501, 50, "ERROR", "time per frame"),
        (20, 301, "WARN", "age of the input"),
        (101, 901, "ERROR", "age of the input"),
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
        health.frame_done(now_s=1 + number / 10, frame_ms=20.0, age_ms=30.0, stages_ms={})
    health.sweeps_dropped(dropped)
    found = report(health, 3.0)
    assert found.level == level
    assert ("of the sweeps are dropped" in found.message) == (level != "OK")
    assert found.values["dropped_busy"] == str(dropped)


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
