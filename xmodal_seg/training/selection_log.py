# SPDX-License-Identifier: Apache-2.0
"""Scores and selections of a run's modules over time: a CSV file, and a picture of it."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping
from pathlib import Path

from xmodal_seg.models.tuning.selection import ModuleKey
from xmodal_seg.training.run_log import drop_rows_from

MAP_FILE, PICTURE_FILE = "selection.csv", "selection.png"
FIELDS = ("step", "layer", "type", "score", "on")


class SelectionLog:
    """The files `selection.csv` (a line for each module and scoring) and `selection.png` in the folder of a run."""

    def __init__(self, folder: Path) -> None:
        self._csv, self._picture = folder / MAP_FILE, folder / PICTURE_FILE

    def add(self, step: int, scores: Mapping[ModuleKey, float], selected: Collection[ModuleKey]) -> None:
        """The lines of the scoring before `step`."""
        is_new = not self._csv.is_file()
        with self._csv.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if is_new:
                writer.writerow(FIELDS)
            writer.writerows([step, *key, f"{score:.6g}", int(key in selected)] for key, score in scores.items())

    def forget_from(self, step: int) -> None:
        """Remove the scorings before `step` and later steps: they are about to be made again."""
        drop_rows_from(self._csv, step)

    def draw(self) -> None:
        """Write the picture, if there was any scoring."""
        from xmodal_seg.training.selection_plot import selection_figure  # matplotlib takes a while to import

        if self._csv.is_file():
            selection_figure(self._csv).canvas.print_png(str(self._picture))  # type: ignore[attr-defined]
