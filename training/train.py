# SPDX-License-Identifier: Apache-2.0
"""Train one recipe: python training/train.py --shift sim_dev --method ours --size small --out runs/ours

Stopped (Ctrl-C, kill -9) and called again with the same output folder it goes on from its last checkpoint. With
several GPUs: torchrun --nproc-per-node N.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from xmodal_seg.training.programs import add_overrides, results_table, run_program
from xmodal_seg.training.recipe import Recipe, compose, load_recipe
from xmodal_seg.training.run import evaluate_run, train
from xmodal_seg.training.trainer import NonFiniteLossError

RECIPES = Path(__file__).parent / "recipes"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shift", help="task, a file of recipes/shifts")
    parser.add_argument(
        "--method", default="ours", help="row of the tables, a file of recipes/methods (default: %(default)s)"
    )
    parser.add_argument("--size", default="small", help="a file of recipes/sizes (default: %(default)s)")
    parser.add_argument("--recipe", type=Path, help="a complete recipe instead, such as another run's recipe.yaml")
    parser.add_argument(
        "--recipes", type=Path, default=RECIPES, help="folder of the recipes (default: those beside this)"
    )
    add_overrides(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--test", action="store_true", help="score the finished run, as evaluate.py does")
    arguments = parser.parse_args(argv)
    console = Console()
    try:
        trainer = train(_recipe(arguments), arguments.out, console=console)
        if arguments.test and trainer.fabric.global_rank == 0:
            console.print(results_table(evaluate_run(arguments.out), title=str(arguments.out)))
    except (ValueError, NonFiniteLossError) as error:
        print(error, file=sys.stderr)
        return 1
    console.print(f"done: {arguments.out}/best and {arguments.out}/last", highlight=False)
    return 0


def _recipe(arguments: argparse.Namespace) -> Recipe:
    if (arguments.recipe is None) == (arguments.shift is None):
        raise ValueError("expected either --shift (with --method and --size) or --recipe")
    if arguments.recipe is not None:
        return load_recipe(arguments.recipe, overrides=arguments.overrides)
    return compose(
        arguments.recipes,
        shift=arguments.shift,
        method=arguments.method,
        size=arguments.size,
        overrides=arguments.overrides,
    )


if __name__ == "__main__":
    raise SystemExit(run_program(main))
