# SPDX-License-Identifier: Apache-2.0
"""What adaptation has learned, on disk: several generations for each bank and condition.

    <folder>/<parent hash>/<bin>/generation_<number>.json          says what it is; written last
    <folder>/<parent hash>/<bin>/values_<number>.<hash>.safetensors  the adapted values alone
    <folder>/removed.json                                          while generations are being taken away

Every file is written under another name, flushed and renamed, so that a process that dies at any moment leaves the
former generation whole and at most a file that nothing names.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xmodal_seg.adaptation.frames import Bin
from xmodal_seg.adaptation.parameters import are_finite
from xmodal_seg.adaptation.removals import Removals
from xmodal_seg.tensor_files import Tensors, check_tensors, read_tensors, write_tensors, write_text

FORMAT = 1
_INDEX = re.compile(r"generation_(\d{6})\.json")
_DIGITS = 16  # of the parent's hash in its folder's name
_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One saved set of values."""

    number: int
    values: Tensors
    steps: int
    metrics: dict[str, float]
    facts: dict[str, Any]  # whatever else was saved: name and number of the version, lambda

    @property
    def version_number(self) -> int | None:
        """That of the version that it holds; None where it was not written down."""
        number = self.facts.get("number")
        return number if isinstance(number, int) else None


class StateStore:
    """The generations of one deployed bank under all conditions.

    Args:
        folder: of all states; made when something is saved.
        parent: SHA-256 of the deployed bank that the values belong to.
        keep: newest generations that stay, besides the one with the best metric `sure_agreement`.
    """

    def __init__(self, *, folder: Path, parent: str, keep: int) -> None:
        self._folder = folder / parent[:_DIGITS]
        self._removals = Removals(folder=folder)
        self._parent = parent
        self._keep = keep

    def save(
        self,
        bin: Bin,
        values: Mapping[str, torch.Tensor],
        *,
        steps: int,
        metrics: Mapping[str, float],
        facts: Mapping[str, Any] | None = None,
    ) -> int:
        """Write the next generation and return its number; older ones beyond `keep` go.

        Raises ValueError for values that are not finite and for a list of removals that cannot be read, OSError where
        the disk refuses.
        """
        if not are_finite(values):
            raise ValueError(f"state of {bin}: expected finite values, one is not a number")
        self._removals.finish()  # else the new generation might have the number of one that is to go
        folder = self._folder_of(bin)
        folder.mkdir(parents=True, exist_ok=True)
        number = max(self._numbers(folder), default=0) + 1
        entry = write_tensors(folder, f"values_{number:06d}", values)
        index = {
            "format": FORMAT,
            "parent": self._parent,
            "bank": bin.bank,
            "condition": bin.condition,
            "number": number,
            "steps": steps,
            "metrics": dict(metrics),
            "facts": dict(facts or {}),
            "values": entry,
        }
        write_text(_index(folder, number), json.dumps({**index, "hash": _hash(index)}, indent=1) + "\n")
        self._tidy(folder)
        return number

    def generations(self, bin: Bin, *, expected: Mapping[str, torch.Tensor]) -> tuple[list[Generation], list[str]]:
        """Every generation that is whole and fits, newest first, and a sentence for each that is not.

        `expected` gives names and shapes of what adapts. Nothing is taken from a folder whose list of removals cannot
        be read: any generation might be on it. What the disk refuses to read is left out like what is damaged.
        """
        folder = self._folder_of(bin)
        found: list[Generation] = []
        notes: list[str] = []
        try:
            gone = self._removals.pending()
            numbers = sorted(self._numbers(folder), reverse=True)
        except (OSError, ValueError) as error:
            return [], [f"the states of {bin} are left out: {error}"]
        for number in numbers:
            if _index(folder, number) in gone:
                continue
            try:
                found.append(self._read(folder, number, bin=bin, expected=expected))
            except (OSError, ValueError) as error:
                notes.append(f"generation {number} of {bin} is left out: {error}")
        return found, notes

    def indexes(self, bin: Bin | None = None, *, after: int = 0) -> list[Path]:
        """The files that say what each generation is: of a bin, those with a number above `after`, or of all bins."""
        folders = [path for path in self._folder.glob("*") if path.is_dir()] if bin is None else [self._folder_of(bin)]
        return [_index(folder, number) for folder in folders for number in self._numbers(folder) if number > after]

    def _read(self, folder: Path, number: int, *, bin: Bin, expected: Mapping[str, torch.Tensor]) -> Generation:
        path = _index(folder, number)
        index = _read_index(path)
        if index["parent"] != self._parent:
            raise ValueError(f"{path}: it belongs to other weights ({index['parent'][:_DIGITS]})")
        if (index["bank"], index["condition"]) != (bin.bank, bin.condition):
            raise ValueError(f"{path}: it belongs to {index['bank']}-{index['condition']}")
        values = read_tensors(folder, index["values"], device=torch.device("cpu"))
        check_tensors(values, expected, where=str(folder / index["values"]["file"]))
        if not are_finite(values):
            raise ValueError(f"{path}: a value is not a number")
        return Generation(
            number=number, values=values, steps=index["steps"], metrics=index["metrics"], facts=index["facts"]
        )

    def _folder_of(self, bin: Bin) -> Path:
        if not _NAME.fullmatch(str(bin)):
            raise ValueError(f"state: a bank and a condition have letters, digits, - and _ only, got {str(bin)!r}")
        return self._folder / str(bin)

    def _numbers(self, folder: Path) -> list[int]:
        matches = (_INDEX.fullmatch(path.name) for path in folder.glob("generation_*.json"))
        return [int(match[1]) for match in matches if match]

    def _tidy(self, folder: Path) -> None:
        """Delete older generations: first the file that names the values, so that none is left without its values."""
        numbers = sorted(self._numbers(folder))
        kept = {*numbers[-self._keep :], *self._best(folder, numbers)}
        for number in numbers:
            if number not in kept:
                _index(folder, number).unlink()
        named = {f"values_{number:06d}" for number in kept}
        for path in [*folder.glob("values_*.safetensors"), *folder.glob(".*.tmp")]:
            if path.name.split(".")[0] not in named:
                path.unlink(missing_ok=True)

    def _best(self, folder: Path, numbers: list[int]) -> list[int]:
        """The generation that the gate liked best; none where none can be read."""
        scores: dict[int, float] = {}
        for number in numbers:
            try:
                metrics = _read_index(_index(folder, number))["metrics"]
            except (OSError, ValueError):
                continue  # damaged: it is no candidate, and it is reported when it is read at start
            scores[number] = metrics.get("sure_agreement", 0.0)
        return [max(scores, key=lambda number: (scores[number], number))] if scores else []


def _index(folder: Path, number: int) -> Path:
    return folder / f"generation_{number:06d}.json"


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged: not valid JSON ({error})") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"{path}: expected a state of format {FORMAT}")
    stated = index.pop("hash", None)
    if stated != _hash(index):
        raise ValueError(f"{path}: changed after it was written")
    return index


def _hash(index: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
