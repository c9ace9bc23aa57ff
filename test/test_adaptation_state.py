# SPDX-License-Identifier: Apache-2.0
"""What survives on disk: round trips, damage, and processes killed in the middle of a save."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from xmodal_seg.adaptation.frames import Bin
from xmodal_seg.adaptation.state import StateStore

BIN = Bin(bank="night", condition="twilight")
PARENT = "ab" * 32
EXPECTED = {"norm.weight": torch.ones(7), "norm.bias": torch.zeros(7)}


def values_of(number: int) -> dict[str, torch.Tensor]:
    return {name: tensor + number for name, tensor in EXPECTED.items()}


def fill(folder: Path, scores: list[float], *, keep: int = 9, parent: str = PARENT) -> StateStore:
    """A store with a generation for each score."""
    store = StateStore(folder=folder, parent=parent, keep=keep)
    for number, score in enumerate(scores, start=1):
        saved = store.save(BIN, values_of(number), steps=20 * number, metrics={"sure_agreement": score})
        assert saved == number
    return store


def bin_folder(folder: Path) -> Path:
    return folder / PARENT[:16] / "night-twilight"


def numbers(store: StateStore) -> list[int]:
    return [generation.number for generation in store.generations(BIN, expected=EXPECTED)[0]]


def test_what_was_saved_comes_back_newest_first(tmp_path: Path) -> None:
    fill(tmp_path, [0.99, 0.995])

    found, notes = StateStore(folder=tmp_path, parent=PARENT, keep=9).generations(BIN, expected=EXPECTED)

    assert notes == []
    assert [generation.number for generation in found] == [2, 1]
    assert (found[0].steps, found[0].metrics) == (40, {"sure_agreement": 0.995})
    assert all(torch.equal(found[0].values[name], values_of(2)[name]) for name in EXPECTED)


def test_old_generations_go_and_the_best_stays(tmp_path: Path) -> None:
    store = fill(tmp_path, [0.99, 0.999, 0.991, 0.992, 0.993], keep=2)

    assert numbers(store) == [5, 4, 2]
    assert len(list(bin_folder(tmp_path).iterdir())) == 6


def test_nothing_saved_is_nothing_found(tmp_path: Path) -> None:
    store = StateStore(folder=tmp_path / "new", parent=PARENT, keep=1)
    assert store.generations(BIN, expected=EXPECTED) == ([], [])
    assert not (tmp_path / "new").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def change_steps(path: Path) -> None:
    path.write_text(path.read_text().replace('"steps": 60', '"steps": 61'))


def other_format(path: Path) -> None:
    path.write_text(json.dumps({"format": 99}))


def become_a_folder(path: Path) -> None:
    """The disk refuses to read it, as it does a broken sector or a file of another user."""
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("pattern", "damage", "message"),
    [
        ("values_000003.*", cut, "damaged or changed"),
        ("values_000003.*", flip, "damaged or changed"),
        ("values_000003.*", Path.unlink, "missing"),
        ("generation_000003.json", cut, "not valid JSON"),
        ("generation_000003.json", change_steps, "changed after it was written"),
        ("generation_000003.json", other_format, "expected a state of format 1"),
        ("generation_000003.json", lambda path: path.write_bytes(b""), "not valid JSON"),
        ("generation_000003.json", become_a_folder, "Is a directory"),
    ],
)
def test_damage_is_told_and_the_next_older_one_serves(tmp_path: Path, pattern: str, damage, message: str) -> None:
    store = fill(tmp_path, [0.99, 0.99, 0.99])
    (path,) = bin_folder(tmp_path).glob(pattern)
    damage(path)

    found, notes = store.generations(BIN, expected=EXPECTED)

    assert [generation.number for generation in found] == [2, 1]
    assert len(notes) == 1
    assert notes[0].startswith("generation 3 of night-twilight is left out: ")
    assert message in notes[0]
    assert store.save(BIN, values_of(4), steps=1, metrics={}) == 4


def test_states_of_other_weights_bins_and_forms_are_left_out(tmp_path: Path) -> None:
    store = fill(tmp_path, [0.99])
    bin_folder(tmp_path).rename(tmp_path / "moved")
    other = fill(tmp_path, [0.99], parent="cd" * 32)
    assert numbers(other) == [1]
    (tmp_path / "moved").rename(bin_folder(tmp_path))
    assert numbers(store) == [1]

    found, notes = store.generations(BIN, expected={"norm.weight": torch.ones(8), "norm.bias": torch.zeros(7)})
    assert not found
    assert "of another form norm.weight" in notes[0]
    (tmp_path / PARENT[:16]).rename(tmp_path / "x")
    (tmp_path / ("cd" * 8)).rename(tmp_path / PARENT[:16])
    assert "it belongs to other weights (cdcdcdcdcdcdcdcd)" in store.generations(BIN, expected=EXPECTED)[1][0]


def test_a_generation_of_another_bin_is_left_out(tmp_path: Path) -> None:
    store = fill(tmp_path, [0.99])
    bin_folder(tmp_path).rename(tmp_path / PARENT[:16] / "night")
    notes = store.generations(Bin(bank="night", condition="night"), expected=EXPECTED)[1]
    assert "it belongs to night-twilight" in notes[0]


def test_values_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    store = fill(tmp_path, [0.99])
    with pytest.raises(ValueError, match="expected finite values"):
        store.save(BIN, {**values_of(2), "norm.bias": torch.full((7,), float("nan"))}, steps=1, metrics={})
    assert numbers(store) == [1]


def test_a_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    store = StateStore(folder=tmp_path, parent=PARENT, keep=1)
    with pytest.raises(ValueError, match=r"letters, digits, - and _ only, got '\.\./x-day'"):
        store.save(Bin(bank="../x", condition="day"), values_of(1), steps=1, metrics={})


@pytest.mark.parametrize("options", [[], ["--removing"]])
def test_killed_in_the_middle_of_a_save_or_a_removal(options: list[str]) -> None:
    program = Path(__file__).with_name("kill_during_save.py")
    result = subprocess.run(
        [sys.executable, str(program), "--rounds", "40", *options], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "40 kills" in result.stdout
