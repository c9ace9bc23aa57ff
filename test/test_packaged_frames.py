# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from adaptation_drive import HELD_OUT, Drive
from adaptation_parts import CPU

from xmodal_seg.adaptation.driving import AdapterThread
from xmodal_seg.adaptation.packaged_frames import PackagedFrames


def packaged(drive: Drive, bank: str) -> PackagedFrames:
    return drive.adapter._parts[bank].packaged


def test_they_are_made_ready_one_by_one_and_bank_by_bank() -> None:
    drive = Drive(banks=("day", "night"), labelled=HELD_OUT[:2])
    assert [len(packaged(drive, bank)._ready) for bank in ("day", "night")] == [0, 0]
    numbers = []
    while drive.adapter.make_packaged_frame_ready():
        numbers.append([len(packaged(drive, bank)._ready) for bank in ("day", "night")])
    assert numbers == [[1, 0], [2, 0], [2, 1], [2, 2]]
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


def test_one_without_labels_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="expected ground truth in every packaged frame"):
        Drive(labelled=[HELD_OUT[0], replace(HELD_OUT[1], labels=None)])
