# SPDX-License-Identifier: Apache-2.0
"""Cameras whose clocks differ have one time, so that the bank follows the light as with one clock."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from helpers import Seen

from xmodal_seg.lighting_state import BankSelector, BankSettings
from xmodal_seg.nodes.camera_time import CameraTime

S = 10**9
START_NS = 1_700_000_000 * S
HOLD_S = 20


class Robot:
    """Cameras of 10 Hz, one after the other, and the bank that follows them; `ahead_s` is how far a clock is ahead."""

    def __init__(self, ahead_s: Mapping[str, float]) -> None:
        self.ahead_s = dict(ahead_s)
        self.silent: set[str] = set()
        self.now_s = 0.0
        self.time = CameraTime()
        self.selector = BankSelector(banks=("day", "night"), served="day", settings=BankSettings(hold_s=HOLD_S))

    def tick(self, darkness: float) -> None:
        """A tenth of a second."""
        sending = [camera for camera in self.ahead_s if camera not in self.silent]
        for camera in sending:
            stamp_ns = START_NS + round((self.now_s + self.ahead_s[camera]) * S)
            time_ns = self.time.update(camera, stamp_ns, heard=sending)
            self.selector.update([Seen(darkness)] * len(sending), time_ns)
        self.now_s += 0.1

    def drive(self, seconds: float, darkness: float) -> None:
        for _ in range(round(seconds * 10)):
            self.tick(darkness)

    def night_after_s(self) -> float:
        """How long it takes the bank to follow a night from now on."""
        for tenth in range(400):
            if self.selector.bank == "night":
                return tenth / 10
            self.tick(0.98)
        raise AssertionError("the bank does not follow")


def by_day(*ahead_s: float, seconds: float = 10) -> Robot:
    robot = Robot({f"camera_{number}": ahead for number, ahead in enumerate(ahead_s)})
    robot.drive(seconds, 0.02)
    return robot


@pytest.mark.parametrize("ahead_s", [0.0, -0.7, 2.5, 10.0, -10.0, 3600.0, -3600.0])
def test_a_camera_whose_clock_is_off_holds_no_bank(ahead_s: float) -> None:
    for clocks in ((0.0, ahead_s), (ahead_s, 0.0, 0.1)):
        assert by_day(*clocks).night_after_s() == pytest.approx(HOLD_S, abs=0.3)


@pytest.mark.parametrize("ahead_s", [(0.0,), (0.0, 0.05), (0.0, 10.0), (0.0, -3600.0, 2.5)])
@pytest.mark.parametrize("by_s", [-100, -25, 30])
def test_a_jump_of_all_cameras_begins_the_count_anew(ahead_s: tuple[float, ...], by_s: float) -> None:
    robot = by_day(*ahead_s)
    robot.drive(HOLD_S - 1, 0.98)
    robot.now_s += by_s  # a bag that loops
    assert robot.night_after_s() == pytest.approx(HOLD_S, abs=0.3)


def test_a_jump_counts_once_the_cameras_that_still_send_have_made_it() -> None:
    robot = by_day(0.0, 0.0)
    robot.drive(HOLD_S - 1, 0.98)
    robot.silent.add("camera_1")
    robot.now_s -= 25
    assert robot.night_after_s() == pytest.approx(HOLD_S, abs=0.3)


def test_a_camera_that_jumps_alone_changes_nothing() -> None:
    robot = by_day(0.0, 0.0)
    for number in range(10 * (HOLD_S - 1)):
        robot.ahead_s["camera_1"] = -60.0 * (number % 2)  # two drivers on one topic
        robot.tick(0.98)
    assert robot.selector.bank == "day"
    assert robot.night_after_s() == pytest.approx(1.0, abs=0.3)


def test_clocks_that_were_set_apart_cost_one_count_however_often_a_camera_falls_silent() -> None:
    robot = by_day(0.0, 0.0)
    robot.ahead_s["camera_1"] = 3600.0
    robot.drive(5, 0.02)
    for camera in ("camera_0", "camera_1"):
        robot.silent = {camera}
        robot.drive(1, 0.02)
        robot.silent = set()
        robot.drive(1, 0.02)
    for tenth in range(200):
        robot.silent = {f"camera_{tenth // 20 % 2}"} if tenth % 20 < 6 else set()
        robot.tick(0.98)
    assert robot.night_after_s() == pytest.approx(0.0, abs=1.0)


def test_stamps_of_one_clock_stay_as_they_are() -> None:
    time = CameraTime()
    assert time.newest_ns is None
    stamps = [("front", 0.0), ("rear", 0.05), ("front", 0.1), ("rear", 0.02), ("rear", 0.15)]
    seen = [time.update(name, START_NS + round(at * S), heard=("front", "rear")) - START_NS for name, at in stamps]
    assert seen == [0, 50_000_000, 100_000_000, 100_000_000, 150_000_000]
    assert time.newest_ns == START_NS + 150_000_000
