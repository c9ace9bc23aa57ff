# SPDX-License-Identifier: Apache-2.0
"""One drive that `xmodal-seg evaluate-bag` has scored with several settings of adaptation, as one table:

python training/report_ablations.py BASELINE OTHER [OTHER ...]

BASELINE is scored in the mode `select`, and its other modes get a row each; of every OTHER, scored on the same drive,
the modes that adapt. mIoU in percent over all, above `select`, in the last minute, and in the minute that is worst
against `select`; then publications, candidates that the gate rejected, and the largest change of a single number that
was ever served.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from report_drives import ADAPTING, miou, read_modes, row

from xmodal_seg.training.programs import run_program

HEAD = (
    "what adapts",
    "all",
    "against select",
    "last minute",
    "worst minute against it",
    "publications",
    "rejected",
    "distance",
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("baseline", type=Path, metavar="BASELINE", help="output of evaluate-bag with the mode select")
    parser.add_argument("others", type=Path, nargs="+", metavar="OTHER", help="the same drive with other settings")
    arguments = parser.parse_args(argv)
    try:
        print("\n".join(table(arguments.baseline, arguments.others)))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def table(baseline: Path, others: Sequence[Path]) -> list[str]:
    """Its lines; ValueError for folders that do not go together."""
    modes = read_modes(baseline)
    if "select" not in modes:
        raise ValueError(f"{baseline}: expected the mode select among {', '.join(modes)}")
    base = modes["select"]
    lines = [row(*HEAD), row(*["---"] * len(HEAD))]
    lines += [_line(name if name not in ADAPTING else f"{name}: {baseline.name}", m, base) for name, m in modes.items()]
    for folder in others:
        lines += [_line(f"{name}: {folder.name}", metrics, base) for name, metrics in _adapting(folder, base)]
    return lines


def _adapting(folder: Path, base: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    modes = {name: metrics for name, metrics in read_modes(folder).items() if name in ADAPTING}
    if not modes:
        raise ValueError(f"{folder}: expected a mode that adapts ({', '.join(ADAPTING)})")
    for name, metrics in modes.items():
        if _minutes(metrics).keys() != _minutes(base).keys():
            raise ValueError(f"{folder}: expected the minutes of the baseline's drive, got those of another")
        yield name, metrics


def _line(title: str, metrics: dict[str, Any], base: dict[str, Any]) -> str:
    minutes, before = _minutes(metrics), _minutes(base)
    worst = min(minutes[minute] - before[minute] for minute in minutes)
    scores = (
        f"{miou(metrics['overall']):.1f}",
        f"{miou(metrics['overall']) - miou(base['overall']):+.2f}",
        f"{minutes[max(minutes)]:.1f}",
        f"{worst:+.2f}",
    )
    facts = metrics["facts"]
    if "status" not in facts:
        return row(title, *scores, "", "", "")
    rejected = facts["events"].get("rejected", 0)
    return row(title, *scores, facts["status"]["publications"], rejected, f"{facts['largest_distance']:.2f}")


def _minutes(metrics: dict[str, Any]) -> dict[int, float]:
    """mIoU of each minute that has ground truth."""
    scores = {minute["minute"]: miou(minute) for minute in metrics["minutes"]}
    return {minute: score for minute, score in scores.items() if score == score}


if __name__ == "__main__":
    raise SystemExit(run_program(main))
