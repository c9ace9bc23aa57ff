# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from adaptation_drive import HELD_OUT, Drive
from adaptation_parts import CPU, make_settings
from helpers import wait_for

from xmodal_seg.adaptation.driving import AdapterThread
from xmodal_seg.adaptation.packaged_frames import PackagedFrames
from xmodal_seg.labels import IGNORE_INDEX


def packaged(drive: Drive, bank: str) -> PackagedFrames:
    return drive.adapter._parts[bank].packaged


def test_they_are_made_ready_one_by_one_and_those_of_the_bank_in_use_first() -> None:
    drive = Drive(banks=("day", "night"), labelled=HELD_OUT[:2])
    drive.segmenter.use_bank("night")
    drive.go(1)
    assert [len(packaged(drive, bank)._ready) for bank in ("day", "night")] == [0, 0]
    numbers = []
    while drive.adapter.make_packaged_frame_ready():
        numbers.append([len(packaged(drive, bank)._ready) for bank in ("day", "night")])
    assert numbers == [[0, 1], [0, 2], [1, 2], [2, 2]]
    assert len(packaged(drive, "day")) == 2


def test_without_preparation_the_first_judgement_makes_them() -> None:
    drive = Drive(labelled=HELD_OUT[:3])
    drive.go(16)
    assert len(packaged(drive, "default")._ready) == 3
    assert drive.adapter.status().labelled_loss == drive.adapter.status().labelled_loss  # it is a number


def test_it_does_not_matter_when() -> None:
    early, late = Drive(labelled=HELD_OUT[:3]), Drive(labelled=HELD_OUT[:3])
    while early.adapter.make_packaged_frame_ready():
        pass
    early.go(20)
    late.go(20)
    assert early.versions == late.versions
    assert early.versions[-1] != early.versions[0]
    for one, other in zip(packaged(early, "default"), packaged(late, "default"), strict=True):
        assert torch.equal(one.sample.feats_2d, other.sample.feats_2d)
        assert torch.equal(one.sample.batch.point_index, other.sample.batch.point_index)
        for head, logits in one.reference.items():
            assert torch.equal(logits, other.reference[head])


def test_the_thread_prepares_while_nothing_is_due_and_can_be_stopped_in_between() -> None:
    drive = Drive(labelled=HELD_OUT[:4])
    frames, at_second, may_go_on = packaged(drive, "default"), threading.Event(), threading.Event()
    see = frames._see

    def slowly(frame):
        if len(frames._ready) == 1:
            at_second.set()
            assert may_go_on.wait(60)
        return see(frame)

    frames._see = slowly
    thread = AdapterThread(drive.adapter, device=CPU, idle=lambda: True, num_threads=1, min_interval_s=0.0)
    thread.start()
    assert at_second.wait(60)
    assert not thread.stop(timeout_s=0.0)
    may_go_on.set()
    assert thread.stop(timeout_s=60)
    assert len(frames._ready) == 2


@pytest.mark.parametrize("settings", [{"mode": "select"}, {"experiment": True, "gate": {"enabled": False}}])
def test_they_are_left_alone_where_nobody_wants_them(settings: dict[str, Any]) -> None:
    assert not Drive(labelled=HELD_OUT[:2], **settings).adapter.make_packaged_frame_ready()


def test_every_pass_of_a_network_waits_for_inference() -> None:
    drive, breaths = Drive(labelled=HELD_OUT[:1]), []
    drive.adapter.before_forward = lambda: breaths.append(1)
    assert drive.adapter.make_packaged_frame_ready()
    assert len(breaths) == 2  # the image backbone and the rest


def test_who_tries_again_after_a_failure_draws_the_same_points(monkeypatch: pytest.MonkeyPatch) -> None:
    smooth, drive = Drive(labelled=HELD_OUT[:2]), Drive(labelled=HELD_OUT[:2])

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr("xmodal_seg.adaptation.packaged_frames.referred", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            drive.adapter.make_packaged_frame_ready()
    for one, other in zip(packaged(drive, "default"), packaged(smooth, "default"), strict=True):
        assert torch.equal(one.sample.batch.point_index, other.sample.batch.point_index)


def test_a_failure_in_the_thread_leaves_the_shipped_weights_to_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    drive = Drive(labelled=HELD_OUT[:2])

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("xmodal_seg.adaptation.packaged_frames.referred", fail)
    thread = AdapterThread(drive.adapter, device=CPU, idle=lambda: True, num_threads=1, min_interval_s=0.0)
    thread.start()
    wait_for(lambda: not thread.is_alive)
    assert drive.adapter.mode == "select"
    assert [event.text for event in drive.events("failed")] == ["RuntimeError: out of memory"]


def test_what_can_be_seen_without_a_network_is_said_at_once() -> None:
    first, second = HELD_OUT[:2]
    with pytest.raises(ValueError, match="expected ground truth in every packaged frame"):
        Drive(labelled=[first, replace(second, labels=None)])
    nothing_known = replace(first, labels=np.full_like(first.labels, IGNORE_INDEX))
    with pytest.raises(ValueError, match="needs packaged labelled frames to calibrate on"):
        Drive(labelled=[nothing_known], step={"point_guidance_span": 0.2})
    base = Drive().adapter._parts["default"].base
    with pytest.raises(ValueError, match="takes LiDAR intensity, and a packaged frame has none"):
        PackagedFrames(
            [replace(first, intensity=None)],
            base=base,
            reference={},
            bank="default",
            preprocess=base.settings.preprocess.model_copy(update={"point_feats": "intensity"}),
            settings=make_settings(),
            device=CPU,
            breathe=lambda: None,
        )
