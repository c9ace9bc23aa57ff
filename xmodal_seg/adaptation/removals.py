# SPDX-License-Identifier: Apache-2.0
"""Generations that are taken off the disk: all that are meant or none, whenever the process dies.

First a list of them is written in one step, then they are deleted, then the list. From the first step on they count as
gone: whoever reads leaves out what is on the list, and whoever writes deletes the rest of it before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from xmodal_seg.tensor_files import flush, write_text

_LIST = "removed.json"
_INDEX = re.compile(r"[0-9a-f]+/[A-Za-z0-9_-]+/generation_(\d{6})\.json")


class Removals:
    """Of all states under one folder. Not thread-safe."""

    def __init__(self, *, folder: Path) -> None:
        self._folder = folder
        self._list = folder / _LIST

    def remove(self, indexes: Sequence[Path]) -> None:
        """Delete the generations that these files describe, with their values.

        Raises OSError where the disk refuses; they are gone nevertheless if their list could be written. Raises
        ValueError for a list of an earlier removal that cannot be read.
        """
        self.finish()
        if indexes:
            names = sorted({path.relative_to(self._folder).as_posix() for path in indexes})
            write_text(self._list, json.dumps({"removed": names}, indent=1) + "\n")
            self.finish()

    def pending(self) -> frozenset[Path]:
        """What counts as gone and may still be there; ValueError for a list that cannot be read."""
        try:
            listed = json.loads(self._list.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return frozenset()
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{self._list}: damaged: not valid JSON ({error})") from error
        names = listed.get("removed") if isinstance(listed, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) and _INDEX.fullmatch(name) for name in names):
            raise ValueError(f"{self._list}: damaged: expected names of generations under 'removed'")
        return frozenset(self._folder / name for name in names)

    def finish(self) -> None:
        """Delete what a process that died had not come to."""
        pending = self.pending()
        for index in pending:
            index.unlink(missing_ok=True)
            for values in index.parent.glob(f"{index.stem.replace('generation', 'values')}.*.safetensors"):
                values.unlink(missing_ok=True)
        for folder in {index.parent for index in pending if index.parent.is_dir()}:
            flush(folder)  # before the list goes: a power cut must not bring a generation back without it
        self._list.unlink(missing_ok=True)
