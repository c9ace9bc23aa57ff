# SPDX-License-Identifier: Apache-2.0
"""Kill a process that saves, at random moments, and see that a valid state is there every time.

    python test/kill_during_save.py --rounds 200
    python test/kill_during_save.py --rounds 200 --removing

Prints how often a save had been cut off half-way; 1 if a state could not be read or went back in time. With
`--removing` the process takes away all that was saved of two banks: 1 if a part was gone and another was not.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from xmodal_seg.adaptation.archive import Archive
from xmodal_seg.adaptation.frames import Bin
from xmodal_seg.adaptation.publisher import Publisher
from xmodal_seg.adaptation.state import StateStore

BIN = Bin(bank="night", condition="night")
PARENT = "0123456789abcdef" * 4
SIZES = {"fusion.weight": 1024, "fusion.bias": 1024, "point.weight": 333}


def values_of(number: int) -> dict[str, torch.Tensor]:
    """Of the generation with this number, so that a mixture would show."""
    return {name: torch.full((size,), float(number)) for name, size in SIZES.items()}


def open_store(folder: Path) -> StateStore:
    return StateStore(folder=folder, parent=PARENT, keep=3)


def save_for_ever(folder: Path) -> None:
    """Generation after generation, each with its own number as the value."""
    store = open_store(folder)
    known = store.generations(BIN, expected=values_of(0))[0]
    number = known[0].number if known else 0
    while True:
        number += 1
        store.save(BIN, values_of(number), steps=number, metrics={"sure_agreement": 1.0})


def newest_number(folder: Path) -> int:
    """Of what a start would take up; ValueError for anything but whole generations."""
    found, notes = open_store(folder).generations(BIN, expected=values_of(0))
    if notes or not found:
        raise ValueError(f"{len(found)} valid generations, {notes}")
    for generation in found:
        if any(
            not torch.equal(tensor, values_of(generation.number)[name]) for name, tensor in generation.values.items()
        ):
            raise ValueError(f"generation {generation.number} holds other values than it was given")
    return found[0].number


def leftovers(folder: Path) -> set[str]:
    """Names of files of a save that was cut off: not renamed yet, or not named by an index yet."""
    named = {path.stem.removeprefix("generation_") for path in folder.rglob("generation_*.json")}
    values = [path for path in folder.rglob("values_*.safetensors") if path.name.split(".")[0][7:] not in named]
    return {path.name for path in [*values, *folder.rglob(".*.tmp")]}


DAY = Bin(bank="day", condition="day")
PARENTS = {"day": "fedcba9876543210" * 4, "night": PARENT}
MANY = 40  # generations of each bank, so that there is a middle of their removal


def open_archive(folder: Path) -> Archive:
    publisher = Publisher(references=dict.fromkeys(PARENTS, values_of(0)), base_version="shipped")
    return Archive(folder=folder, parents=PARENTS, keep=MANY, publisher=publisher)


def fill(folder: Path) -> None:
    """Both banks with as many generations as there may be."""
    for bin in (DAY, BIN):
        store = StateStore(folder=folder, parent=PARENTS[bin.bank], keep=MANY)
        for number in range(1, MANY + 1):
            store.save(bin, values_of(number), steps=number, metrics={})


def kill_removals(folder: Path, *, rounds: int, chance: random.Random) -> int:
    """0 if all or nothing was gone every time, and some removals were cut off."""
    fill(folder / "full")
    seen = Counter[str]()
    for number in range(rounds):
        copied = shutil.copytree(folder / "full", folder / str(number))
        archive = open_archive(copied)
        child = os.fork()
        if child == 0:
            archive.remove_all()
            signal.pause()
        time.sleep(chance.uniform(0.0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        seen["cut off"] += (copied / "removed.json").exists()
        found = [open_archive(copied).generations(bin, expected=values_of(0)) for bin in (DAY, BIN)]
        counts = [len(generations) for generations, _ in found]
        if counts not in ([0, 0], [MANY, MANY]) or any(notes for _, notes in found):
            print(f"round {number}: {counts} generations of {MANY} each, {[notes for _, notes in found]}")
            return 1
        seen["gone" if counts == [0, 0] else "still there"] += 1
        shutil.rmtree(copied)
    print(f"{rounds} kills: {dict(seen)}, never a part of them")
    return 0 if seen["cut off"] and seen["gone"] else 1


def main(argv: list[str] | None = None) -> int:
    """0 if every state could be read."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--removing", action="store_true", help="kill a process that takes states away")
    arguments = parser.parse_args(argv)
    chance = random.Random(arguments.seed)
    if arguments.removing:
        with tempfile.TemporaryDirectory() as name:
            return kill_removals(Path(name), rounds=arguments.rounds, chance=chance)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        open_store(folder).save(BIN, values_of(1), steps=1, metrics={})
        newest, cut_off, former = 1, 0, set[str]()
        for number in range(arguments.rounds):
            child = os.fork()
            if child == 0:
                save_for_ever(folder)
            time.sleep(chance.uniform(0.005, 0.06))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if os.WTERMSIG(status) != signal.SIGKILL:
                print(f"round {number}: the saving process ended by itself")
                return 1
            now = leftovers(folder)
            cut_off += bool(now - former)
            former = now
            try:
                found = newest_number(folder)
            except ValueError as error:
                print(f"round {number}: {error}")
                return 1
            if found < newest:
                print(f"round {number}: generation {found} after {newest}")
                return 1
            newest = found
    print(f"{arguments.rounds} kills, {cut_off} of them in the middle of a save, {newest} generations, none damaged")
    return 0 if cut_off and newest > 1 else 1


if __name__ == "__main__":
    sys.exit(main())
