# SPDX-License-Identifier: Apache-2.0
"""Pre-train a stand-in image backbone on simulated views, without a class label.

    python training/pretrain_image_backbone.py --out runs/stand_in --export runs/stand_in/stand_in.safetensors

Called again with the same output folder it goes on where it stopped; once done, it only exports.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from xmodal_seg.devices import resolve_device
from xmodal_seg.training.pretext_recipe import load_pretext_recipe
from xmodal_seg.training.pretext_run import PretextTrainer, export
from xmodal_seg.training.programs import add_overrides, run_program

RECIPE = Path(__file__).parent / "recipes" / "pretext" / "stand_in.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="default: recipes/pretext/stand_in.yaml")
    add_overrides(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--minutes", type=float, help="stop after this time at the latest, with the rate run down")
    parser.add_argument("--workers", type=int, default=1, help="processes that render ahead; 0: none besides this one")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--export", type=Path, help="write the network as this .safetensors, with a .json beside it")
    arguments = parser.parse_args(argv)
    console = Console()
    try:
        recipe = load_pretext_recipe(arguments.recipe, arguments.overrides)
        trainer = PretextTrainer(
            recipe,
            arguments.out,
            minutes=arguments.minutes,
            num_workers=arguments.workers,
            device=resolve_device(arguments.device),
        )
        trainer.train(console)
        if arguments.export is not None:
            export(trainer, arguments.export)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    console.print(f"done: {trainer.step} steps, {trainer.elapsed_s / 60:.1f} minutes", highlight=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_program(main))
