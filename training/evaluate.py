# SPDX-License-Identifier: Apache-2.0
"""Score finished runs on the target's test part: python training/evaluate.py runs/ours

Writes results.json into the run and prints mIoU of every head for three protocols: each head's best checkpoint by
target validation (the paper's), the single best one, and the last one. With --official also the predictions of the
single best one, in the files that the official evaluation of the data set reads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from xmodal_seg.training.official_formats import write_run_predictions
from xmodal_seg.training.programs import results_table, run_program
from xmodal_seg.training.run import evaluate_run


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--official", type=Path, metavar="FOLDER", help="write official prediction files here, by run")
    arguments = parser.parse_args(argv)
    console = Console()
    try:
        for run in arguments.runs:
            console.print(results_table(evaluate_run(run), title=str(run)))
            if arguments.official is not None:
                num_files = write_run_predictions(run, arguments.official / run.name)
                console.print(f"{arguments.official / run.name}: predictions of {num_files} frames")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(run_program(main))
