# SPDX-License-Identifier: Apache-2.0
"""The table of a benchmark: one CSV line per run, and Markdown with mean and standard deviation over seeds."""

from __future__ import annotations

import csv
import hashlib
import math
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


def gains(rows: Sequence[Row], *, over: str) -> list[Row]:
    """The lines with their scores minus those of the method `over` on the same shift with the same seed.

    Lines for which that method has none are left out. Seeds are paired, because a seed draws the same frames and first
    weights for all methods, so that a part of what differs between seeds falls out.
    """
    scores = [name for protocol in PROTOCOLS for name in _names(protocol).values()]
    found = []
    for row in rows:
        place = {name: row[name] for name in ("shift", "size", "seed", "data_hash")}
        other = find_row(rows, {**place, "method": over}, fields=(*place, "method"))
        if other is not None and row["method"] != over:
            both = {name: row[name] and other[name] for name in scores}
            values = {name: f"{float(row[name]) - float(other[name]):.3f}" if both[name] else "" for name in scores}
            found.append({**row, **values})
    return found


def markdown(
    rows: Sequence[Row], *, shifts: Sequence[str], methods: Sequence[str], protocol: str, with_published: bool = True
) -> str:
    """A table for each shift, methods down, and behind several one of their means.

    In brackets: what the paper gives for the method on the shift. `average`: of all columns but VFM. `trained`: how
    many thousand numbers, and of those how many were on at the end, where that is not all.
    """
    tables = []
    for shift in shifts:
        of_shift = [row for row in rows if row["shift"] == shift]
        tables.append(_of_shift(of_shift, shift, methods, protocol, with_published=with_published))
    if len(shifts) > 1:
        tables.append(_of_means(rows, shifts, methods, protocol))
    return "\n\n".join(tables)


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


def _of_shift(rows: Sequence[Row], shift: str, methods: Sequence[str], protocol: str, *, with_published: bool) -> str:
    lines = _header(shift, *TITLES.values(), "average", "trained", "seeds")
    for method in methods:
        of_method = [row for row in rows if row["method"] == method]
        cells = [
            _cell([float(row[name]) for row in of_method if row[name]])
            + (_in_brackets(method, shift, column) if with_published else "")
            for column, name in _names(protocol).items()
        ]
        average = _plain(_mean_of_columns(of_method, [shift], protocol))
        lines.append(f"| {' | '.join((method, *cells, average, _trained(of_method), str(len(of_method))))} |")
    return "\n".join(lines)


def _of_means(rows: Sequence[Row], shifts: Sequence[str], methods: Sequence[str], protocol: str) -> str:
    """Each shift counts once, however many seeds it has; nothing where one lacks."""
    lines = _header(f"mean of {len(shifts)} shifts", *TITLES.values(), "average")
    for method in methods:
        of_method = [row for row in rows if row["method"] == method]
        cells = [_plain(_mean_over_shifts(of_method, shifts, name)) for name in _names(protocol).values()]
        average = _plain(_mean_of_columns(of_method, shifts, protocol))
        lines.append(f"| {' | '.join((method, *cells, average))} |")
    return "\n".join(lines)


def _header(*titles: str) -> list[str]:
    return [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]


def _names(protocol: str) -> dict[str, str]:
    """Column of the table -> column of the CSV."""
    return {column: f"{protocol}_{column}" for column in COLUMNS}


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return _plain(statistics.mean(values)) + spread


def _plain(value: float) -> str:
    return "-" if math.isnan(value) else f"{round(value, 1) + 0.0:.1f}"  # + 0.0: of -0.0 it makes 0.0


def _mean_over_shifts(rows: Sequence[Row], shifts: Sequence[str], name: str) -> float:
    """Of the means over seeds; NaN where a shift has no value."""
    of_shifts = [[float(row[name]) for row in rows if row["shift"] == shift and row[name]] for shift in shifts]
    return statistics.mean(statistics.mean(values) if values else math.nan for values in of_shifts)


def _mean_of_columns(rows: Sequence[Row], shifts: Sequence[str], protocol: str) -> float:
    """Over the paper's three columns."""
    return statistics.mean(
        _mean_over_shifts(rows, shifts, name) for column, name in _names(protocol).items() if column != "vfm"
    )


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
