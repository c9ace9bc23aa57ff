# SPDX-License-Identifier: Apache-2.0
"""The table by class: one CSV line per run and class, with the IoU of every column by the paper's protocol."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xmodal_seg.config import HeadSettings
from xmodal_seg.training.run_log import append_row
from xmodal_seg.training.table import COLUMNS, KEY, Row, columns_of, find_row, read_rows

PROTOCOL = "best"
FIELDS = (*KEY, "class", *COLUMNS)


def path_beside(table: Path) -> Path:
    """Where the lines by class of a table are."""
    return table.with_name(f"{table.stem}_classes{table.suffix}")


def append_classes(path: Path, key: Mapping[str, Any], *, heads: HeadSettings, results: Mapping[str, Any]) -> None:
    """Add a run's lines that are missing, from its results.json; a class that the test part lacks has no IoU."""
    rows = read_rows(path, fields=FIELDS)
    test = results["test"][PROTOCOL]
    for i, name in enumerate(results["class_names"]):
        line = dict.fromkeys(FIELDS, "") | {field: str(key[field]) for field in KEY} | {"class": name}
        if find_row(rows, line, fields=(*KEY, "class")) is not None:
            continue
        for column, score in columns_of(heads).items():
            iou = test[score]["iou"][i]
            line[column] = "" if iou is None else f"{iou:.2f}"
        append_row(path, line, fields=FIELDS)


def classes_markdown(rows: Sequence[Row], *, shift: str, methods: Sequence[str], column: str) -> str:
    """Methods down, classes across: the mean IoU over seeds; "-" for what has none."""
    of_shift = [row for row in rows if row["shift"] == shift]
    names = list(dict.fromkeys(row["class"] for row in of_shift))
    lines = [f"| method | {' | '.join(names)} | seeds |", "|---|" + "---|" * (len(names) + 1)]
    for method in methods:
        of_method = [row for row in of_shift if row["method"] == method]
        cells = [_mean([row[column] for row in of_method if row["class"] == name]) for name in names]
        seeds = len({row["seed"] for row in of_method})
        lines.append(f"| {' | '.join((method, *cells, str(seeds)))} |")
    return "\n".join(lines)


def _mean(values: Sequence[str]) -> str:
    numbers = [float(value) for value in values if value]
    return f"{statistics.mean(numbers):.1f}" if numbers else "-"
