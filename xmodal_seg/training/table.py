# SPDX-License-Identifier: Apache-2.0
"""The table of a benchmark: one CSV line per run, and Markdown with mean and standard deviation over seeds."""

from __future__ import annotations

import csv
import hashlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xmodal_seg
from xmodal_seg.config import HeadSettings
from xmodal_seg.structures import Head
from xmodal_seg.training.evaluation import ENSEMBLE
from xmodal_seg.training.paper_numbers import PUBLISHED_COLUMNS, published

COLUMNS = ("2d", "vfm", "3d", "2d3d")
TITLES = {"2d": "2D", "vfm": "VFM", "3d": "3D", "2d3d": "2D3D"}
PROTOCOLS = ("best", "best_single", "last")
KEY = ("shift", "method", "size", "seed", "recipe_hash", "data_hash")
FIELDS = (
    *KEY,
    "code_hash",
    "made_with",
    "minutes",
    "trainable_parameters",
    "trainable_on",
    *(f"{protocol}_{column}" for protocol in PROTOCOLS for column in COLUMNS),
    *(f"{protocol}_{column}_absent_zero" for protocol in PROTOCOLS for column in COLUMNS),
)
# What a result depends on; the rest of the package may change without making runs incomparable.
_FILES = (
    "checkpoint.py",
    "config.py",
    "geometry.py",
    "labels.py",
    "losses.py",
    "metrics.py",
    "preprocess.py",
    "structures.py",
    "tensor_files.py",
    "voxels.py",
)
_FOLDERS = ("models", "training", "simulation")

Row = dict[str, str]


def columns_of(heads: HeadSettings) -> dict[str, str]:
    """Column of the table -> name of the score.

    2D is the fused head where there is one beside others (the paper's convention), and the 2D head else; VFM is the 2D
    head beside a fused one. A model with a single fused classifier (xMUDA-Fuse) has 2D3D only.
    """
    main: Sequence[Head] = heads.main
    columns = {"2d3d": ENSEMBLE}
    if "3d" in main:
        columns["3d"] = "3d"
    if "fused" in main and len(main) > 1:
        columns["2d"] = "fused"
        if "2d" in main:
            columns["vfm"] = "2d"
    elif "2d" in main:
        columns["2d"] = "2d"
    return columns


def make_row(
    key: Mapping[str, Any],
    *,
    code_hash: str,
    made_with: str,
    minutes: float,
    heads: HeadSettings,
    results: Mapping[str, Any],
) -> Row:
    """A line of the CSV from a run's results.json."""
    row = dict.fromkeys(FIELDS, "")
    row |= {name: str(key[name]) for name in KEY}
    row |= {"code_hash": code_hash, "made_with": made_with, "minutes": f"{minutes:.1f}"}
    groups, test = dict(results["trainable_parameters"]), results["test"]
    on = groups.pop("tuning_on", groups.get("tuning", 0))
    trained = sum(groups.values())
    row |= {"trainable_parameters": str(trained), "trainable_on": str(trained - groups.get("tuning", 0) + on)}
    for protocol in PROTOCOLS:
        for column, score in columns_of(heads).items():
            row[f"{protocol}_{column}"] = f"{test[protocol][score]['miou']:.3f}"
            row[f"{protocol}_{column}_absent_zero"] = f"{test[protocol][score]['miou_absent_zero']:.3f}"
    return row


def read_rows(path: Path, *, fields: Sequence[str] = FIELDS) -> list[Row]:
    """All lines of the CSV, none if there is no file. Raises ValueError for a file with other columns."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != tuple(fields):
            raise ValueError(f"{path}: has other columns than this version writes; move it away")
        return list(reader)


def find_row(rows: Iterable[Row], key: Mapping[str, Any], *, fields: Sequence[str] = KEY) -> Row | None:
    """The line of a run, or None."""
    wanted = {name: str(key[name]) for name in fields}
    return next((row for row in rows if wanted.items() <= row.items()), None)


def markdown(rows: Sequence[Row], *, shifts: Sequence[str], methods: Sequence[str], protocol: str) -> str:
    """A table: methods down, for each shift 2D, VFM, 3D and 2D3D mIoU; the average is of all but VFM.

    In brackets: what the paper gives for the method on the shift. `trained`: how many thousand numbers, and of those
    how many were on at the end, where that is not all. A range where shifts differ.
    """
    header = [f"{shift} {TITLES[column]}" for shift in shifts for column in COLUMNS]
    lines = [
        "| method | " + " | ".join(header) + " | average | trained | seeds |",
        "|---|" + "---|" * (len(header) + 3),
    ]
    for method in methods:
        of_method = [row for row in rows if row["method"] == method]
        cells = [
            _cell(of_method, shift, f"{protocol}_{column}") + _in_brackets(method, shift, column)
            for shift in shifts
            for column in COLUMNS
        ]
        seeds = _range(sum(row["shift"] == shift for row in of_method) for shift in shifts)
        ending = (_average(of_method, shifts, protocol), _trained(of_method), seeds)
        lines.append(f"| {' | '.join((method, *cells, *ending))} |")
    return "\n".join(lines)


def stages_hash(first: str, second: str) -> str:
    """16 hex digits for a second stage, which depends on the recipe of its first."""
    return hashlib.sha256(f"{first}\n{second}".encode()).hexdigest()[:16]


def code_hash() -> str:
    """16 hex digits over the sources that a result depends on."""
    root = Path(xmodal_seg.__file__).parent
    digest = hashlib.sha256()
    paths = [root / name for name in _FILES]
    for name in _FOLDERS:
        paths += sorted((root / name).rglob("*.py"))
    for path in paths:
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _cell(rows: Sequence[Row], shift: str, field: str) -> str:
    values = [float(row[field]) for row in rows if row["shift"] == shift and row[field]]
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _in_brackets(method: str, shift: str, column: str) -> str:
    columns = published(method, shift)
    value = None if columns is None else dict(zip(PUBLISHED_COLUMNS, columns, strict=True)).get(column)
    return "" if value is None else f" ({value:.1f})"


def _trained(rows: Sequence[Row]) -> str:
    if not rows:
        return "-"
    trained, on = (
        f"{_range(round(int(row[name]) / 1000) for row in rows)}k" for name in ("trainable_parameters", "trainable_on")
    )
    return trained if on == trained else f"{trained} ({on} on)"


def _range(numbers: Iterable[int]) -> str:
    found = sorted(numbers)
    return str(found[0]) if found[0] == found[-1] else f"{found[0]}-{found[-1]}"


def _average(rows: Sequence[Row], shifts: Sequence[str], protocol: str) -> str:
    """Mean over shifts and the paper's three columns; none unless all of them are there."""
    means = []
    for shift in shifts:
        for column in ("2d", "3d", "2d3d"):
            values = [float(row[f"{protocol}_{column}"] or "nan") for row in rows if row["shift"] == shift]
            means.append(statistics.mean(values) if values else float("nan"))
    average = statistics.mean(means)
    return "-" if average != average else f"{average:.1f}"
