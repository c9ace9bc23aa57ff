# SPDX-License-Identifier: Apache-2.0
"""What is on disk follows what is on offer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers import full_disk

from xmodal_seg.adaptation.archive import Archive
from xmodal_seg.adaptation.frames import Bin
from xmodal_seg.adaptation.publisher import Publisher, Version

DAY, NIGHT = Bin(bank="day", condition="day"), Bin(bank="night", condition="night")
REFERENCE = {"norm.weight": torch.ones(5)}
PARENTS = {"day": "ab" * 32, "night": "cd" * 32}


class Shelf:
    """An archive and its publisher, as one process has them."""

    def __init__(self, folder: Path | None) -> None:
        self.publisher = Publisher(references=dict.fromkeys(PARENTS, REFERENCE), base_version="shipped")
        self.archive = Archive(folder=folder, parents=PARENTS, keep=9, publisher=self.publisher)

    def publish(self, value: float, *, bin: Bin = DAY, saves: int = 1) -> Version:
        version = self.publisher.offer(bin, {"norm.weight": torch.full((5,), value)}, metrics={}, steps=3)
        assert version is not None
        for _ in range(saves):
            assert self.archive.save(version, facts={}) is not None
        return version

    def roll_back(self, bin: Bin = DAY) -> None:
        self.archive.remove_newer(bin, self.publisher.roll_back(bin))

    def values(self, bin: Bin = DAY) -> list[float]:
        """Of what is on disk, newest first."""
        found, notes = self.archive.generations(bin, expected=REFERENCE)
        assert notes == []
        return [float(generation.values["norm.weight"][0]) for generation in found]


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_a_version_comes_back_with_its_number(shelf: Shelf, tmp_path: Path) -> None:
    version = shelf.publish(2.0)
    (generation,) = Shelf(tmp_path).archive.generations(DAY, expected=REFERENCE)[0]
    assert (generation.version_number, generation.facts["version"]) == (version.number, version.name)


def test_a_version_that_was_taken_back_is_not_written(shelf: Shelf) -> None:
    version = shelf.publisher.offer(DAY, REFERENCE, metrics={}, steps=3)
    shelf.publisher.roll_back(DAY)
    assert shelf.archive.save(version, facts={}) is None
    assert shelf.values() == []


def test_rollback_removes_what_is_newer(shelf: Shelf) -> None:
    shelf.publish(2.0)
    shelf.publish(3.0, saves=2)
    shelf.publish(4.0, saves=2)
    shelf.publish(9.0, bin=NIGHT)
    shelf.roll_back()
    assert shelf.values() == [3.0, 3.0, 2.0]
    shelf.publish(5.0)
    shelf.roll_back()
    shelf.roll_back()
    assert shelf.values() == [2.0]
    shelf.roll_back()
    assert shelf.values() == []
    assert shelf.values(NIGHT) == [9.0]


def test_rollback_to_a_version_that_was_not_saved_keeps_what_is_older(shelf: Shelf, tmp_path: Path) -> None:
    shelf.publish(2.0)
    again = Shelf(tmp_path)
    again.publish(3.0, saves=0)
    again.publish(4.0)
    again.roll_back()
    assert again.values() == [2.0]
    again.roll_back()
    assert again.values() == []


def test_rollback_counts_what_a_restart_took_up(shelf: Shelf, tmp_path: Path) -> None:
    for value in (2.0, 3.0, 4.0):
        shelf.publish(value)
    again = Shelf(tmp_path)
    older = again.archive.generations(DAY, expected=REFERENCE)[0][1]  # the newest one was refused
    version = again.publisher.offer(DAY, older.values, metrics={}, steps=3, number=older.version_number)
    assert version is not None
    again.archive.restored(version, older)
    again.publish(5.0)
    again.roll_back()
    assert again.values() == [3.0, 2.0]


def test_numbers_start_over_after_everything_was_removed(shelf: Shelf) -> None:
    for value in (2.0, 3.0, 4.0):
        shelf.publish(value)
    shelf.archive.remove([DAY])
    for value in (5.0, 6.0):
        shelf.publish(value)
    shelf.roll_back()
    assert shelf.values() == [5.0]


def test_what_the_disk_refused_is_remembered_until_it_succeeds(shelf: Shelf) -> None:
    older, version = shelf.publish(2.0), shelf.publish(3.0, saves=0)
    with full_disk(), pytest.raises(OSError, match="File too large"):
        shelf.archive.save(version, facts={})
    assert shelf.archive.save(older, facts={}) is None  # on offer no more: the disk was not asked
    assert shelf.archive.trouble == "not saved: [Errno 27] File too large"
    with full_disk(room_bytes=10), pytest.raises(OSError, match="File too large"):
        shelf.archive.remove([DAY])
    assert shelf.archive.trouble.count("; not removed: [Errno 27] File too large") == 1
    shelf.archive.save(version, facts={})
    assert shelf.archive.trouble == "not removed: [Errno 27] File too large"
    shelf.archive.remove([NIGHT])  # of which there is nothing
    assert shelf.archive.trouble == "not removed: [Errno 27] File too large"
    shelf.roll_back()
    assert shelf.archive.trouble == ""


def test_nothing_is_left_to_remove_where_all_is_gone(shelf: Shelf, tmp_path: Path) -> None:
    shelf.publish(2.0)
    with full_disk(room_bytes=10), pytest.raises(OSError, match="File too large"):
        shelf.archive.remove_all()
    assert shelf.archive.trouble.startswith("not removed")
    shutil.rmtree(next(path for path in tmp_path.iterdir() if path.is_dir()))  # by hand
    shelf.archive.remove_all()
    assert shelf.archive.trouble == ""


def test_all_banks_are_emptied_at_once(shelf: Shelf, tmp_path: Path) -> None:
    shelf.publish(2.0)
    shelf.publish(3.0, bin=NIGHT)
    shelf.archive.remove([NIGHT])
    assert (shelf.values(), shelf.values(NIGHT)) == ([2.0], [])
    shelf.publish(3.0, bin=NIGHT)
    shelf.archive.remove_all()
    assert (shelf.values(), shelf.values(NIGHT)) == ([], [])
    assert list(tmp_path.rglob("*.*")) == []


def test_without_a_folder_nothing_is_kept() -> None:
    shelf = Shelf(None)
    assert not shelf.archive.is_kept
    shelf.publish(2.0, saves=0)
    shelf.roll_back()
    shelf.archive.remove_all()
    assert shelf.values() == []
