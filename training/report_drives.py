# SPDX-License-Identifier: Apache-2.0
"""Several drives that `xmodal-seg evaluate-bag` has scored in the same modes, as one table over the drives:

python training/report_drives.py evaluation_0 evaluation_1 evaluation_2

mIoU in percent by condition, mean and standard deviation over the drives; then what each mode gains over `off`, drive
by drive. Modes that adapt must have had the same settings, and are also compared minute by minute with `select` (or
`off`) on the same drive. An `on` with fewer than 3,000 steps or 10 publications is marked: it does not count. Distance
is the largest change of a single number that was ever served.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xmodal_seg.training.programs import run_program

LEAST_STEPS, LEAST_PUBLICATIONS = 3000, 10  # of an `on` that counts
BASELINES = ("select", "off")  # what adaptation starts from; the first that was scored
ADAPTING = ("shadow", "on")

Modes = dict[str, dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", type=Path, nargs="+", metavar="FOLDER", help="output of evaluate-bag")
    arguments = parser.parse_args(argv)
    try:
        drives = [read_modes(folder) for folder in arguments.evaluations]
        check_alike(drives, arguments.evaluations)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    tables = [scores_table(drives), gains_table(drives), adaptation_table(drives, arguments.evaluations)]
    print("\n\n".join("\n".join(lines) for lines in tables if lines))
    return 0


def read_modes(folder: Path) -> Modes:
    """mode -> its metrics; ValueError for a folder that is no evaluation."""
    path = folder / "metrics.json"
    if not path.is_file():
        raise ValueError(f"{folder}: expected the output folder of evaluate-bag, found no metrics.json")
    modes: Modes = json.loads(path.read_text(encoding="utf-8"))["modes"]
    return modes


def check_alike(drives: Sequence[Modes], folders: Sequence[Path]) -> None:
    """Raises ValueError unless all drives were scored in the same modes and by the same settings of adaptation."""
    for folder, modes in zip(folders, drives, strict=True):
        if list(modes) != list(drives[0]):
            raise ValueError(f"{folder}: expected the modes {', '.join(drives[0])} as before, got {', '.join(modes)}")
        for name in ADAPTING:
            if name in modes and modes[name]["facts"]["settings"] != drives[0][name]["facts"]["settings"]:
                raise ValueError(
                    f"{folder}: {name}: expected the settings of adaptation of the first drive, got others"
                )


def scores_table(drives: Sequence[Modes]) -> list[str]:
    """A row per mode: overall, by condition, and in the worst minute of each drive."""
    conditions = _conditions(drives)
    lines = [row("mode", "all", *conditions, "worst minute"), row(*["---"] * (len(conditions) + 3))]
    for name in drives[0]:
        metrics = [modes[name] for modes in drives]
        by_condition = [[miou(m["conditions"].get(condition)) for m in metrics] for condition in conditions]
        cells = [[miou(m["overall"]) for m in metrics], *by_condition, [miou(m["worst_minute"]) for m in metrics]]
        lines.append(row(name, *map(spread, cells)))
    return lines


def gains_table(drives: Sequence[Modes]) -> list[str]:
    """A row per mode: mIoU above `off` on the same drive, overall and by condition; empty where nothing compares."""
    others = [name for name in drives[0] if name != "off"]
    if "off" not in drives[0] or not others:
        return []
    conditions = _conditions(drives)
    lines = [row("above off", "all", *conditions), row(*["---"] * (len(conditions) + 2))]
    for name in others:
        overall = [miou(modes[name]["overall"]) - miou(modes["off"]["overall"]) for modes in drives]
        by_condition = [
            [miou(modes[name]["conditions"].get(each)) - miou(modes["off"]["conditions"].get(each)) for modes in drives]
            for each in conditions
        ]
        lines.append(row(name, *(spread(gains, form="+.2f") for gains in (overall, *by_condition))))
    return lines


def adaptation_table(drives: Sequence[Modes], folders: Sequence[Path]) -> list[str]:
    """A row per drive and mode that adapts; empty where none does."""
    baseline = next((name for name in BASELINES if name in drives[0]), None)
    rows = []
    for folder, modes in zip(folders, drives, strict=True):
        for name in ADAPTING:
            if name in modes:
                rows.append(_adaptation_row(folder.name, name, modes, baseline))
    if not rows:
        return []
    head = ("drive", "mode", "steps", "publications", "distance", f"all against {baseline}", "worst minute against it")
    return [row(*head), row(*["---"] * len(head)), *rows]


def _adaptation_row(drive: str, name: str, modes: Modes, baseline: str | None) -> str:
    status = modes[name]["facts"]["status"]
    steps, publications = status["steps"], status["publications"]
    counts = name != "on" or (steps >= LEAST_STEPS and publications >= LEAST_PUBLICATIONS)
    distance = f"{modes[name]['facts']['largest_distance']:.4f}"
    cells = [drive, name if counts else f"{name} (does not count)", steps, publications, distance]
    if baseline is None:
        return row(*cells, "-", "-")
    base = {minute["minute"]: miou(minute) for minute in modes[baseline]["minutes"]}
    gains = [miou(minute) - base[minute["minute"]] for minute in modes[name]["minutes"]]
    known = [gain for gain in gains if gain == gain]  # a minute without ground truth is NaN
    overall = miou(modes[name]["overall"]) - miou(modes[baseline]["overall"])
    return row(*cells, f"{overall:+.2f}", f"{min(known):+.2f}" if known else "-")


def spread(values: Sequence[float], *, form: str = ".1f") -> str:
    """Mean and standard deviation of the drives that have a value."""
    known = [value for value in values if value == value]
    if not known:
        return "-"
    deviation = f" ± {statistics.stdev(known):{form.removeprefix('+')}}" if len(known) > 1 else ""
    return f"{statistics.mean(known):{form}}{deviation}"


def _conditions(drives: Sequence[Modes]) -> list[str]:
    """Those that occur, in their order."""
    return list(dict.fromkeys(c for modes in drives for m in modes.values() for c in m["conditions"]))


def miou(part: dict[str, Any] | None) -> float:
    return float("nan") if part is None or part["miou"] is None else float(part["miou"])


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    raise SystemExit(run_program(main))
