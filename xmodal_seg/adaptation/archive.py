# SPDX-License-Identifier: Apache-2.0
"""Archive: what is on offer, on disk; what is taken back leaves the disk as well, so that no restart brings it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from xmodal_seg.adaptation.frames import Bin
from xmodal_seg.adaptation.publisher import Publisher, Version
from xmodal_seg.adaptation.removals import Removals
from xmodal_seg.adaptation.state import Generation, StateStore

_Failure = Literal["not saved", "not removed"]


class Archive:
    """The states of every bank. Thread-safe; nothing here waits for more than the disk.

    Args:
        folder: of all states; None: nothing is kept.
        parents: by bank, the SHA-256 of the deployed weights.
        keep: newest generations of a bin that stay.
        publisher: knows what is on offer.
    """

    def __init__(self, *, folder: Path | None, parents: Mapping[str, str], keep: int, publisher: Publisher) -> None:
        self._publisher = publisher
        self._stores: dict[str, StateStore] = {}
        self._removals: Removals | None = None
        if folder is not None:
            self._stores = {bank: StateStore(folder=folder, parent=parents[bank], keep=keep) for bank in parents}
            self._removals = Removals(folder=folder)
        self._lock = threading.Lock()
        self._written: dict[Bin, dict[int, int]] = {}  # the newest generation of each version's number
        self._failures: dict[_Failure, str] = {}  # since the last success, and why; replaced, never changed

    @property
    def is_kept(self) -> bool:
        """Whether anything is kept at all."""
        return bool(self._stores)

    @property
    def trouble(self) -> str:
        """What could not be saved or removed the last time, and why: a sentence, until it succeeds; else ''."""
        return "; ".join(f"{what}: {why}" for what, why in self._failures.items())

    def save(self, version: Version, *, facts: Mapping[str, Any]) -> int | None:
        """Write a version and return its generation's number; None where it is on offer no more.

        Raises ValueError for a list of removals that cannot be read, OSError where the disk refuses.
        """
        with self._lock:
            if self._publisher.newest(version.bin) is not version:
                return None
            with self._noting("not saved"):
                number = self._stores[version.bin.bank].save(
                    version.bin,
                    version.values,
                    steps=version.steps,
                    metrics=version.metrics,
                    facts={**facts, "version": version.name, "number": version.number},
                )
            self._has_succeeded("not saved")
            self._note(version, number)
        return number

    def restored(self, version: Version, generation: Generation) -> None:
        """The version holds the values of a generation, unchanged: it is on disk already."""
        with self._lock:
            self._note(version, generation.number)

    def generations(self, bin: Bin, *, expected: Mapping[str, torch.Tensor]) -> tuple[list[Generation], list[str]]:
        """Of the bin, newest first, and a sentence for each that is not whole; nothing where nothing is kept."""
        if bin.bank not in self._stores:
            return [], []
        with self._lock:
            return self._stores[bin.bank].generations(bin, expected=expected)

    def remove_all(self) -> None:
        """Of every bank and every condition, in one step. Raises as `Removals.remove`."""
        with self._lock, self._noting("not removed"):
            self._remove([path for store in self._stores.values() for path in store.indexes()])
            self._has_succeeded("not removed")  # nothing is left
            self._written.clear()

    def remove(self, bins: Sequence[Bin]) -> None:
        """All that there is of these bins, in one step. Raises as `Removals.remove`."""
        with self._lock, self._noting("not removed"):
            self._remove([path for bin in bins for path in self._indexes(bin, after=0)])
            for bin in bins:
                self._written.pop(bin, None)

    def remove_newer(self, bin: Bin, than: Version | None) -> None:
        """All generations of the bin that are newer than a version; all of them if it is None, the reference.

        Raises as `Removals.remove`.
        """
        with self._lock, self._noting("not removed"):
            self._remove(self._indexes(bin, after=0 if than is None else self._newest_until(than)))
            written, last = self._written.get(bin, {}), 0 if than is None else than.number
            self._written[bin] = {number: written[number] for number in written if number <= last}

    def _remove(self, indexes: Sequence[Path]) -> None:
        if self._removals is not None:
            self._removals.remove(indexes)
        if indexes:  # else nothing was written, and what was refused before may still be there
            self._has_succeeded("not removed")

    @contextmanager
    def _noting(self, what: _Failure) -> Iterator[None]:
        """Keep in mind why the disk refuses."""
        try:
            yield
        except (OSError, ValueError) as error:
            self._failures = {**self._failures, what: str(error)}
            raise

    def _has_succeeded(self, what: _Failure) -> None:
        self._failures = {other: why for other, why in self._failures.items() if other != what}

    def _indexes(self, bin: Bin, *, after: int) -> list[Path]:
        return self._stores[bin.bank].indexes(bin, after=after) if bin.bank in self._stores else []

    def _note(self, version: Version, generation: int) -> None:
        self._written.setdefault(version.bin, {})[version.number] = generation

    def _newest_until(self, version: Version) -> int:
        """The newest generation that is no newer than the version.

        Generations of which nothing is known are older than what was published since the start.
        """
        written = self._written.get(version.bin, {})
        newer = [generation for number, generation in written.items() if number > version.number]
        older = [generation for number, generation in written.items() if number <= version.number]
        return max(older) if older else min(newer, default=sys.maxsize) - 1
