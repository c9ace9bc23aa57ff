# SPDX-License-Identifier: Apache-2.0
"""Faults in mid-drive: each is noticed, pauses learning and does no lasting harm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from adaptation_drive import HELD_OUT, Drive
from adaptation_parts import DAY, NIGHT, Light, score, stream_frame

from xmodal_seg.adaptation.light import CameraLight
from xmodal_seg.evaluation_modes import LightOfFrames
from xmodal_seg.faults import FAULTS, shuffled_points
from xmodal_seg.lighting import LightingEstimator
from xmodal_seg.lighting_model import load_coefficients
from xmodal_seg.structures import Frame


def turned(frame: Frame) -> Frame:
    """Extrinsics that are wrong by a few metres and half a turn of the image."""
    views = []
    for camera in frame.cameras:
        pose = camera.calibration.camera_T_lidar.copy()
        pose[0] *= -1
        pose[1] *= -1
        views.append(replace(camera, calibration=replace(camera.calibration, camera_T_lidar=pose)))
    return replace(frame, cameras=tuple(views))


def late_images(frame: Frame) -> Frame:
    return replace(frame, cameras=tuple(replace(c, stamp_ns=c.stamp_ns - 10**9) for c in frame.cameras))


def jumping(frame: Frame) -> Frame:
    stamp_ns = frame.stamp_ns + (3600 * 10**9 if frame.stamp_ns // 600_000_000 % 2 else 0)
    return replace(frame, stamp_ns=stamp_ns, cameras=tuple(replace(c, stamp_ns=stamp_ns) for c in frame.cameras))


def parked(frame: Frame) -> Frame:
    return replace(stream_frame(0), stamp_ns=frame.stamp_ns, cameras=frame.cameras)


# what happens, what the estimator says, what is to be noticed, and how many steps of 16 are taken nevertheless
POISONS: dict[str, tuple[Callable[[Frame], Frame], dict[str, Light], str, int]] = {
    "camera that stands still": (
        lambda frame: replace(frame, cameras=stream_frame(3).cameras),
        DAY,
        "desync",
        0,
    ),
    "unsure light": (lambda frame: frame, {"front": Light(confidence=0.1)}, "low_confidence", 0),
    "no images": (lambda frame: replace(frame, cameras=()), DAY, "no_camera", 0),
    "shuffled points": (shuffled_points, DAY, "sensors_disagree", 0),
    "wrong extrinsics": (turned, DAY, "sensors_disagree", 0),
    "late images": (late_images, DAY, "desync", 0),
    "clock jumps": (jumping, DAY, "clock_jump", 1),
    "parked": (parked, DAY, "parked", 9),  # until it counts as parked
    "another condition": (lambda frame: frame, NIGHT, "condition_change", 14),
}


@pytest.mark.parametrize("name", POISONS)
def test_poison_pauses_learning_and_does_no_harm(name: str) -> None:
    """Good frames, poison for a while, recovery: what serves is no worse than what was shipped."""
    spoil, lights, kind, most_steps = POISONS[name]
    drive = Drive(guards={"settle_frames": 2, "min_usual_frames": 4})
    shipped = score(drive.segmenter, HELD_OUT)
    drive.go(14)
    before, steps = len(drive.adapter.events.newest), drive.adapter.status().steps
    drive.go(16, spoil=spoil, lights=lights)
    texts = [f"{event.kind} {event.text}" for event in drive.adapter.events.newest[before:]]
    assert any(kind in text for text in texts), texts
    assert drive.adapter.status().steps - steps <= most_steps
    drive.go(8)
    assert drive.served() >= shipped - 0.5
    assert drive.adapter.status().paused == ()


def test_a_lasting_disagreement_is_told_until_it_ends_or_somebody_says_that_all_is_well() -> None:
    drive = Drive(guards={"settle_frames": 0, "min_usual_frames": 4})
    drive.go(14)
    assert drive.adapter.status().disagreement == ""
    drive.go(60, spoil=turned)
    assert "enable adaptation again" in drive.adapter.status().disagreement
    assert len(drive.events("disagreement_lasts")) == 1
    steps = drive.adapter.status().steps
    drive.adapter.enable("on")
    drive.go(12, spoil=turned)
    assert drive.adapter.status().disagreement == ""
    assert drive.adapter.status().steps > steps


class Estimated:
    """The light as the real estimator sees it, frame by frame; these small pictures are night to it."""

    def __init__(self) -> None:
        self._light_of = LightOfFrames(estimator=LightingEstimator(coefficients=load_coefficients(None)))

    def __call__(self, frame: Frame) -> dict[str, CameraLight]:
        return {camera.name: camera for camera in self._light_of(frame).cameras}


@pytest.mark.parametrize(
    ("name", "reason", "most_steps"),
    [
        ("black images", "low_confidence", 0),
        ("frozen cameras", "low_confidence", 3),  # until an equal image is older than a second
        ("lost messages", "no_camera", 8),
        ("clock jumps", "clock_jump", 12),  # it learns on in between
    ],
)
def test_sensors_that_fail_are_noticed_by_the_estimator_and_the_guards(name: str, reason: str, most_steps: int) -> None:
    """With stamps that go on, only the images themselves tell that a camera has stopped."""
    drive, light_of = Drive(guards={"settle_frames": 2}), Estimated()
    shipped = score(drive.segmenter, HELD_OUT)
    drive.go(14, lights=light_of)
    before, steps = len(drive.adapter.events.newest), drive.adapter.status().steps
    assert steps >= 8
    drive.go(16, lights=light_of, spoil=FAULTS[name]())
    paused = {event.text for event in drive.adapter.events.newest[before:] if event.kind == "paused"}
    assert reason in paused
    assert drive.adapter.status().steps - steps <= most_steps
    drive.go(8, lights=light_of)
    assert drive.served() >= shipped - 0.5
    assert drive.adapter.status().paused == ()
