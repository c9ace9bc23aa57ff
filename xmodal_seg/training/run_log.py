# SPDX-License-Identifier: Apache-2.0
"""What a run tells: a progress bar, validation scores in a CSV file, and everything else to TensorBoard."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from xmodal_seg.training.data.prepared import write_text

VALIDATION_FILE = "validation.csv"


class RunLog:
    """The log of a run in its folder, as a context; an inactive one (any process but the first) says nothing.

    Args:
        folder: of the run.
        step: that the run has reached; what an earlier, killed process told about later steps is taken back.
        total: steps of the run.
    """

    def __init__(self, folder: Path, *, console: Console, step: int, total: int, active: bool) -> None:
        self._folder, self._console, self._active = folder, console, active
        self._writer: SummaryWriter | None = None
        self._step, self._total = step, total
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.3f}, waiting for data {task.fields[wait]:.0f} %"),
            console=console,
            disable=not active,
        )

    def __enter__(self) -> RunLog:
        if self._active:
            drop_rows_from(self._folder / VALIDATION_FILE, self._step + 1)
            self._writer = SummaryWriter(str(self._folder), purge_step=self._step)
        self._progress.start()
        self._task = self._progress.add_task("", total=self._total, completed=self._step, loss=math.nan, wait=0.0)
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        if self._writer is not None:
            self._writer.close()

    def advance(self, step: int, *, loss: float, wait_percent: float) -> None:
        """Move the progress bar."""
        self._progress.update(self._task, completed=step, loss=loss, wait=wait_percent)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step by name, for TensorBoard."""
        for name, value in values.items():
            if self._writer is not None:
                self._writer.add_scalar(name, value, step)

    def validation(self, step: int, percent: Mapping[str, float]) -> None:
        """mIoU of every head on the target's validation part."""
        if not self._active:
            return
        append_row(self._folder / VALIDATION_FILE, {"step": step, **percent}, fields=["step", *percent])
        self.scalars(step, {f"validation/{name}": value for name, value in percent.items()})
        line = "  ".join(f"{name} {value:.1f}" for name, value in percent.items())
        self._console.print(f"step {step}: validation mIoU {line}", highlight=False)


def append_row(path: Path, row: Mapping[str, Any], *, fields: Sequence[str]) -> None:
    """Add a line to a CSV file, made with a header where it is missing."""
    is_new = not path.is_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(fields), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def drop_rows_from(path: Path, step: int) -> None:
    """Remove lines whose first column is `step` or later, which are about to be made again, and one that is cut off."""
    if not path.is_file():
        return
    lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    if not lines:  # a kill came before the header was written
        path.unlink()
        return
    header, *rows = lines
    write_text(path, header + "".join(row for row in rows if int(row.split(",")[0]) < step))
