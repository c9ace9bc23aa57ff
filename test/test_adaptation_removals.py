# SPDX-License-Identifier: Apache-2.0
"""Generations that are taken away: all that are meant or none, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from xmodal_seg.adaptation.frames import Bin
from xmodal_seg.adaptation.removals import Removals
from xmodal_seg.adaptation.state import StateStore

DAY, NIGHT = Bin(bank="day", condition="day"), Bin(bank="night", condition="night")
PARENT = "ab" * 32
EXPECTED = {"norm.weight": torch.ones(7)}


def make_store(folder: Path, *, parent: str = PARENT) -> StateStore:
    """Three generations by day, two at night."""
    store = StateStore(folder=folder, parent=parent, keep=9)
    for bin, number in ((DAY, 3), (NIGHT, 2)):
        for steps in range(number):
            store.save(bin, EXPECTED, steps=steps, metrics={})
    return store


def numbers(store: StateStore, bin: Bin = DAY) -> list[int]:
    found, notes = store.generations(bin, expected=EXPECTED)
    assert notes == []
    return [generation.number for generation in found]


def write_list(folder: Path, paths: list[Path]) -> None:
    """As a process leaves it that died before it deleted anything."""
    names = [path.relative_to(folder).as_posix() for path in paths]
    (folder / "removed.json").write_text(json.dumps({"removed": names}))


def test_what_is_named_goes_with_its_values_and_nothing_else(tmp_path: Path) -> None:
    store, other = make_store(tmp_path), make_store(tmp_path, parent="cd" * 32)

    Removals(folder=tmp_path).remove([*store.indexes(DAY, after=1), *store.indexes(NIGHT)])

    assert numbers(store) == [1]
    assert numbers(store, NIGHT) == []
    assert (numbers(other), numbers(other, NIGHT)) == ([3, 2, 1], [2, 1])
    left = sorted(path.name.split(".")[0] for path in (tmp_path / PARENT[:16]).rglob("*.*"))
    assert left == ["generation_000001", "values_000001"]
    assert not (tmp_path / "removed.json").exists()


def test_nothing_to_remove_leaves_nothing_behind(tmp_path: Path) -> None:
    Removals(folder=tmp_path / "new").remove([])
    assert not (tmp_path / "new").exists()


def test_what_a_process_that_died_was_removing_counts_as_gone(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    write_list(tmp_path, [*store.indexes(DAY), *store.indexes(NIGHT, after=1)])

    assert (numbers(store), numbers(store, NIGHT)) == ([], [1])
    assert (tmp_path / "removed.json").exists()  # reading changes nothing

    assert store.save(DAY, EXPECTED, steps=9, metrics={}) == 1
    assert (numbers(store), numbers(store, NIGHT)) == ([1], [1])
    assert not (tmp_path / "removed.json").exists()


def test_half_of_it_deleted_is_finished_by_the_next_removal(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    write_list(tmp_path, store.indexes(DAY))
    store.indexes(DAY)[1].unlink()

    Removals(folder=tmp_path).remove(store.indexes(NIGHT, after=1))

    assert (numbers(store), numbers(store, NIGHT)) == ([], [1])
    assert len(list(tmp_path.rglob("values_*"))) == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"removed": ["../../somewhere/else"]}', '{"removed": 3}'])
def test_a_list_that_cannot_be_read_keeps_everything_from_being_taken_up(tmp_path: Path, text: str) -> None:
    store = make_store(tmp_path)
    (tmp_path / "removed.json").write_text(text)

    found, notes = store.generations(DAY, expected=EXPECTED)

    assert found == []
    assert notes[0].startswith("the states of day are left out: ")
    for act in (
        lambda: store.save(DAY, EXPECTED, steps=1, metrics={}),
        lambda: Removals(folder=tmp_path).remove(store.indexes(NIGHT)),
    ):
        with pytest.raises(ValueError, match="damaged"):
            act()
    assert len(store.indexes()) == 5
