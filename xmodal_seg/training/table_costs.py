# SPDX-License-Identifier: Apache-2.0
"""What the runs of a table cost: one CSV line per run beside the table, and Markdown by method."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xmodal_seg.training.run_log import append_row
from xmodal_seg.training.table import KEY, Row, find_row, read_rows

COSTS = {"step_s": "step, s", "step_cpu_s": "step, CPU s", "peak_mb": "memory, MB"}
FIELDS = (*KEY, "made_with", "steps", *COSTS)


def path_beside(table: Path) -> Path:
    """Where the costs of a table's lines are."""
    return table.with_name(f"{table.stem}_costs{table.suffix}")


def append_costs(path: Path, key: Mapping[str, Any], *, made_with: str, costs: Mapping[str, float]) -> None:
    """Add a run's line if it is missing and the run measured its steps."""
    if not costs or find_row(read_rows(path, fields=FIELDS), key) is not None:
        return
    line = {field: str(key[field]) for field in KEY} | {name: str(costs[name]) for name in ("steps", *COSTS)}
    append_row(path, {**line, "made_with": made_with}, fields=FIELDS)


def costs_markdown(rows: Sequence[Row], *, methods: Sequence[str]) -> str:
    """Methods down: the mean over their runs, each of which counts once; "-" for a method without any."""
    lines = [f"| method | {' | '.join(COSTS.values())} | runs |", "|---" * (len(COSTS) + 2) + "|"]
    for method in methods:
        of_method = [row for row in rows if row["method"] == method]
        cells = [_mean([float(row[name]) for row in of_method], digits=0 if name == "peak_mb" else 2) for name in COSTS]
        lines.append(f"| {' | '.join((method, *cells, str(len(of_method))))} |")
    return "\n".join(lines)


def _mean(values: Sequence[float], *, digits: int) -> str:
    return f"{statistics.mean(values):.{digits}f}" if values else "-"
