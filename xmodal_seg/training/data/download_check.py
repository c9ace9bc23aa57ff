# SPDX-License-Identifier: Apache-2.0
"""Which files of a download are missing, in one list."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

MISSING_FILE_LIST = "missing_files.txt"
_FOLDERS_SHOWN = 30


class IncompleteDownload(ValueError):  # noqa: N818 - it is a state of the disk, not a fault of the program
    """Files of a download that are not there; paths relative to its root."""

    def __init__(self, root: Path, missing: Sequence[str], *, hint: str = "") -> None:
        first = f"{root}: {len(missing)} files of the download are missing"
        super().__init__(f"{first}{f' ({hint})' if hint else ''}:\n{describe(missing)}")
        self.missing = tuple(missing)


def find_missing(root: Path, files: Iterable[str]) -> list[str]:
    """Those of `files` (relative to `root`) that are not there, each once, in order."""
    return [name for name in dict.fromkeys(files) if not (root / name).is_file()]


def describe(missing: Sequence[str]) -> str:
    """A line for each folder: how many files it lacks, and the first of them."""
    folders: dict[str, list[str]] = defaultdict(list)
    for name in missing:
        folders[str(PurePosixPath(name).parent)].append(PurePosixPath(name).name)
    lines = [
        f"  {PurePosixPath(folder, names[0])}"
        if len(names) == 1
        else f"  {folder}/: {len(names)} files, the first is {names[0]}"
        for folder, names in folders.items()
    ]
    hidden = len(lines) - _FOLDERS_SHOWN
    return "\n".join(lines[:_FOLDERS_SHOWN] + ([f"  and in {hidden} more folders"] if hidden > 0 else []))
