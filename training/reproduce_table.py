# SPDX-License-Identifier: Apache-2.0
"""Make the tables: train and score what is missing, one CSV line per run, then print them as Markdown.

    python training/reproduce_table.py --benchmark sim --seeds 0 1 2 --size small --jobs 2
    python training/reproduce_table.py --benchmark real --seeds 0 --size full
    python training/reproduce_table.py --benchmark tuning --seeds 0 1 2 --size coarse --jobs 2
    python training/reproduce_table.py --benchmark weak_vfm --seeds 0 1 2 --size coarse --jobs 2

Stopped and called again it goes on: finished runs are read from the CSV, an interrupted one continues from its last
checkpoint. A second stage (ours_pl, xmuda_pl, ours_lora_pl and others) takes its pseudo-labels from the first stage of
the same seed, which is trained first where it is missing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from xmodal_seg.training.data.tasks import data_fingerprint, open_domains
from xmodal_seg.training.paper_numbers import SHIFTS, others_markdown
from xmodal_seg.training.programs import add_overrides, run_program
from xmodal_seg.training.recipe import Recipe, compose
from xmodal_seg.training.run import RESULTS_FILE
from xmodal_seg.training.run_costs import read_costs
from xmodal_seg.training.run_log import append_row
from xmodal_seg.training.selection_log import MAP_FILE, PICTURE_FILE
from xmodal_seg.training.table import (
    COLUMNS,
    FIELDS,
    TITLES,
    Row,
    find_row,
    gains,
    make_row,
    markdown,
    read_rows,
    stages_hash,
)
from xmodal_seg.training.table_classes import FIELDS as CLASS_FIELDS
from xmodal_seg.training.table_classes import append_classes, classes_markdown, path_beside
from xmodal_seg.training.table_costs import FIELDS as COST_FIELDS
from xmodal_seg.training.table_costs import append_costs, costs_markdown
from xmodal_seg.training.table_costs import path_beside as costs_path
from xmodal_seg.training.table_runs import FIRST_STAGE, LOG_FILE, Finished, Run, make_runs

PROGRAMS = Path(__file__).parent
SIM_SHIFTS = ("sim_usa_singapore", "sim_day_night", "sim_vkitti_semkitti", "sim_a2d2_semkitti")
ROWS = (
    "source_only",
    "target_only",
    "xmuda",
    "xmuda_vfm_fuse",
    "vanilla",
    "vanilla_guidance",
    "mlp",
    "mlp_symal",
    "ours",
    "ours_pl",
)
TUNING_ROWS = ("ours", "ours_lora", "ours_all_modules", "ours_gate")
# Where the foundation model is weak on purpose: besides, what frozen and tuned models allow at most, and second stages,
# in which pseudo-labels of the target reach the modules (`results/tuning.md`: in the first it hardly does).
WEAK_ROWS = (
    "source_only_ours",
    "target_only_ours",
    "target_only_all_modules",
    *TUNING_ROWS,
    "ours_pl",
    "ours_lora_pl",
    "ours_all_modules_pl",
    "ours_gate_pl",
)
BENCHMARKS = {
    "sim": (SIM_SHIFTS, ROWS),
    "real": (SHIFTS, ROWS),
    "tuning": (SIM_SHIFTS, TUNING_ROWS),
    "weak_vfm": (("sim_weak_vfm",), WEAK_ROWS),
}
UNET_ROWS = ("source_only", "target_only", "xmuda", "xmuda_pl", "xmuda_fuse")
ABOUT_UNET = (
    f"The image network of {', '.join(UNET_ROWS)} is a narrow U-Net (width 16, half the resolution) from random "
    "weights, and like all rows it goes without xMUDA's colour jitter. "
)
ABOUT_COARSE = "Images have two thirds of the sides that they have in the size small. "
ABOUT_SMALL = (
    "The foundation model is a stand-in, pre-trained on simulated images. Spreads are over seeds of the training; the "
    "streets are the same."
)
COLUMNS_EXPLAINED = (
    "2D: the fused head, or the head of the image network of a model without one. VFM: the linear head on the "
    "foundation model beside it. 2D3D: the mean of the probabilities of 2D and 3D. average: of 2D, 3D and 2D3D. "
    "trained: thousands of numbers."
)
PROTOCOLS = {
    "best": "Each head's best checkpoint by target validation (the paper's protocol)",
    "best_single": "The one checkpoint with the best ensemble by target validation",
    "last": "Last checkpoint",
}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    try:
        table = Table(arguments)
        failures = [] if arguments.print else table.make_missing()
        table.note_classes()
        table.print()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


class Table:
    """The CSV, what of it was asked for, and how its lines are made."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._csv: Path = arguments.csv or PROGRAMS / "results" / f"{arguments.benchmark}_{arguments.size}.csv"
        self._data_hashes: dict[str, str] = {}

    def make_missing(self) -> list[str]:
        """Run what the CSV lacks; a sentence about each run that failed, which does not stop the others."""
        chains = self._missing_chains()
        for recipe in {run.key["shift"]: run.recipe for chain in chains for run in chain}.values():
            open_domains(recipe)  # a simulated world is rendered before the runs begin, by all processors
        failures: list[str] = []
        if not chains:
            return failures
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(TextColumn("runs"), *columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("runs", total=sum(len(chain) for chain in chains))

            def tell(run: Run) -> None:
                progress.console.print(
                    f"{run.title}: begins, log in {run.folder}/{LOG_FILE}", highlight=False, soft_wrap=True
                )

            for finished in make_runs(chains, jobs=self._arguments.jobs, begins=tell):
                if finished.error is not None:
                    failures.append(finished.error)
                else:
                    self._append(finished)
                    progress.console.print(f"{finished.run.title}: {finished.minutes:.1f} min", highlight=False)
                progress.advance(task)
        return failures

    def note_classes(self) -> None:
        """Write down the IoU by class of runs that were scored before that was done and whose folder is still there."""
        stored = read_rows(self._csv)
        for run in self._asked():
            results = _results_of(run)
            if results is not None and find_row(stored, run.key) is not None:
                append_classes(path_beside(self._csv), run.key, heads=run.recipe.model.heads, results=results)

    def print(self) -> None:
        """The Markdown of the lines asked for, and a warning where they come from different code."""
        arguments, stored = self._arguments, read_rows(self._csv)
        found = (find_row(stored, run.key) for run in self._asked())
        rows = [row for row in found if row is not None]
        for protocol, title in PROTOCOLS.items():
            brackets = " (in brackets: published)" if set(arguments.shifts) & set(SHIFTS) else ""
            print(f"\n{title}, mIoU in percent{brackets}:\n")
            print(markdown(rows, shifts=arguments.shifts, methods=arguments.methods, protocol=protocol))
        if arguments.over is not None:
            self._print_gains(rows)
        print(f"\n{COLUMNS_EXPLAINED}")
        self._print_costs()
        if arguments.classes:
            self._print_classes()
        if others := others_markdown(arguments.shifts):
            print(f"\n{others}")
        if arguments.size in ("small", "coarse"):
            about_coarse = ABOUT_COARSE if arguments.size == "coarse" else ""
            about_unet = ABOUT_UNET if set(UNET_ROWS) & set(arguments.methods) else ""
            print(f"\n{about_coarse}{about_unet}{ABOUT_SMALL}")
        versions = sorted({code for row in rows for code in row["code_hash"].split("+")})
        if len(versions) > 1:
            print(f"\nThese lines come from {len(versions)} versions of the code: {', '.join(versions)}")

    def _print_gains(self, rows: Sequence[Row]) -> None:
        over, shifts = self._arguments.over, self._arguments.shifts
        methods = [method for method in self._arguments.methods if method != over]
        print(f"\n{PROTOCOLS['best']}, mIoU minus that of {over} with the same seed:\n")
        differences = gains(rows, over=over)
        print(markdown(differences, shifts=shifts, methods=methods, protocol="best", with_published=False))

    def _print_costs(self) -> None:
        lines = read_rows(costs_path(self._csv), fields=COST_FIELDS)
        found = [line for run in self._asked() if (line := find_row(lines, run.key)) is not None]
        if found:
            print("\nWhat their steps cost (`step, s` and memory depend on what else the machine did):\n")
            print(costs_markdown(found, methods=self._arguments.methods))

    def _print_classes(self) -> None:
        lines = read_rows(path_beside(self._csv), fields=CLASS_FIELDS)
        found = [line for run in self._asked() for line in lines if find_row([line], run.key) is not None]
        for shift in self._arguments.shifts:
            for column in COLUMNS:
                print(f"\n{shift} {TITLES[column]}, IoU by class in percent ({PROTOCOLS['best']}):\n")
                print(classes_markdown(found, shift=shift, methods=self._arguments.methods, column=column))

    def _asked(self) -> list[Run]:
        """The cells of the table, seeds side by side."""
        shifts, methods, seeds = self._arguments.shifts, self._arguments.methods, self._arguments.seeds
        return [self._run(shift, method, seed) for shift in shifts for method in methods for seed in seeds]

    def _missing_chains(self) -> list[list[Run]]:
        """Runs that must follow each other, in the order in which a table is best left unfinished: seed by seed."""
        rows, arguments = read_rows(self._csv), self._arguments
        chains = []
        for seed, shift, methods in product(arguments.seeds, arguments.shifts, _chains_of(arguments.methods)):
            chain = [self._run(shift, method, seed) for method in methods]
            missing = [run for run in chain if find_row(rows, run.key) is None]
            chains.append([run for run in chain if run in missing or _is_needed(run, missing)])
        return [chain for chain in chains if chain]

    def _run(self, shift: str, method: str, seed: int) -> Run:
        """The run of a cell. Raises ValueError for a bad recipe or missing data."""
        arguments = self._arguments
        folder = arguments.out / arguments.size / shift / method / f"seed_{seed}"
        overrides = [*arguments.overrides, f"seed={seed}"]
        first_stage, first_hash = None, None
        if method in FIRST_STAGE:
            first_hash = self._recipe(shift, FIRST_STAGE[method], overrides).result_hash()
            first_stage = folder.parent.parent / FIRST_STAGE[method] / folder.name
            overrides.append(f"data.pseudo_labels={first_stage / 'pseudo_labels'}")
        recipe = self._recipe(shift, method, overrides)
        if shift not in self._data_hashes:
            self._data_hashes[shift] = data_fingerprint(recipe)
        key = {
            "shift": shift,
            "method": method,
            "size": arguments.size,
            "seed": seed,
            "recipe_hash": recipe.result_hash()
            if first_hash is None
            else stages_hash(first_hash, recipe.result_hash()),
            "data_hash": self._data_hashes[shift],
        }
        return Run(recipe=recipe, key=key, folder=folder, first_stage=first_stage)

    def _recipe(self, shift: str, method: str, overrides: Sequence[str]) -> Recipe:
        size, recipes = self._arguments.size, self._arguments.recipes
        return compose(recipes, shift=shift, method=method, size=size, overrides=overrides)

    def _append(self, finished: Finished) -> None:
        assert finished.results is not None
        if find_row(read_rows(self._csv), finished.run.key) is not None:
            return  # a first stage whose line is there, made again for its second stage
        row = make_row(
            finished.run.key,
            code_hash=finished.code,
            made_with=finished.made_with,
            minutes=finished.minutes,
            heads=finished.run.recipe.model.heads,
            results=finished.results,
        )
        append_row(self._csv, row, fields=FIELDS)
        heads = finished.run.recipe.model.heads
        append_classes(path_beside(self._csv), finished.run.key, heads=heads, results=finished.results)
        costs = read_costs(finished.run.folder)
        append_costs(costs_path(self._csv), finished.run.key, made_with=finished.made_with, costs=costs)
        self._keep_selection(finished.run)

    def _keep_selection(self, run: Run) -> None:
        """Copy which modules of a gate were on, when, beside the table."""
        folder = self._csv.with_name(f"{self._csv.stem}_selection")
        for name in (MAP_FILE, PICTURE_FILE):
            path = run.folder / name
            if path.is_file():
                folder.mkdir(exist_ok=True)
                kept = f"{run.key['shift']}_{run.key['method']}_seed_{run.key['seed']}{path.suffix}"
                shutil.copyfile(path, folder / kept)


def _is_needed(run: Run, missing: Sequence[Run]) -> bool:
    """Whether a missing run learns from the pseudo-labels of this one, of which only the line in the CSV is left."""
    if all(other.first_stage != run.folder for other in missing):
        return False
    return _results_of(run) is None


def _results_of(run: Run) -> dict[str, Any] | None:
    """What a run's folder says of it; None where that was another recipe's or data's, or nothing is there."""
    path = run.folder / RESULTS_FILE
    if not path.is_file():
        return None
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    made_by = (results["recipe_hash"], results["fingerprint"])
    return results if made_by == (run.recipe.result_hash(), run.key["data_hash"]) else None


def _chains_of(methods: Sequence[str]) -> list[list[str]]:
    """Each method, with its second stages behind it that are asked for; a first stage that is missing joins."""
    firsts = dict.fromkeys(FIRST_STAGE.get(method, method) for method in methods)
    return [[first, *(method for method in methods if FIRST_STAGE.get(method) == first)] for first in firsts]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", choices=sorted(BENCHMARKS), default="sim", help="default: %(default)s")
    parser.add_argument("--shifts", nargs="+", help="default: those of the benchmark")
    parser.add_argument("--methods", nargs="+", help="default: those of the benchmark")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    parser.add_argument("--size", default="small", help="a file of recipes/sizes (default: %(default)s)")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time; with more than one, each has one thread (default: 1)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/table"), help="folder of the runs (default: %(default)s)"
    )
    parser.add_argument("--csv", type=Path, help="default: training/results/<benchmark>_<size>.csv")
    parser.add_argument("--print", action="store_true", help="print the lines that there are, and run nothing")
    parser.add_argument("--classes", action="store_true", help="print the IoU by class too")
    parser.add_argument("--over", metavar="METHOD", help="print what the other methods have over this one too")
    parser.add_argument("--recipes", type=Path, default=PROGRAMS / "recipes", help="default: those beside this")
    add_overrides(parser)
    arguments = parser.parse_args(argv)
    shifts, methods = BENCHMARKS[arguments.benchmark]
    arguments.shifts, arguments.methods = arguments.shifts or list(shifts), arguments.methods or list(methods)
    if arguments.over is not None and arguments.over not in arguments.methods:
        parser.error(f"--over: expected one of the methods of the table, got {arguments.over!r}")
    return arguments


if __name__ == "__main__":
    raise SystemExit(run_program(main))
