# SPDX-License-Identifier: Apache-2.0
"""Make the lighting estimator's default coefficients from simulated pictures alone.

    python training/calibrate_default_lighting.py --images runs/lighting --out xmodal_seg/assets/lighting.yaml

Renders the pictures that `--images` lacks (streets, weather, cameras, exposures and lights drawn at random), varies
each as unknown cameras would, fits the coefficients, derives the limits of the quality cues from healthy pictures and
from made failures, and prints how it does on streets that it did not fit on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from xmodal_seg.simulation.lit_views import LitViewSettings
from xmodal_seg.training.lighting_defaults import DefaultsSettings, make_defaults, render_street
from xmodal_seg.training.programs import run_program

DEFAULT_OUT = Path(__file__).parents[1] / "xmodal_seg" / "assets" / "lighting.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of the simulated pictures; resumed")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="default: the file shipped with the package")
    parser.add_argument("--streets", type=int, default=24, help="random streets, a fifth of them held out")
    parser.add_argument("--first-street", type=int, default=5000, help="seed of the first street")
    parser.add_argument("--only-render", action="store_true", help="stop before fitting")
    arguments = parser.parse_args(argv)
    console = Console()
    streets = range(arguments.first_street, arguments.first_street + arguments.streets)
    try:
        for street in track(streets, description="rendering", console=console):
            render_street(arguments.images, street, LitViewSettings())
        if arguments.only_render:
            return 0
        program = "python training/calibrate_default_lighting.py"
        command = f"{program} --streets {arguments.streets} --first-street {arguments.first_street}"
        report = make_defaults(arguments.images, streets, arguments.out, settings=DefaultsSettings(), command=command)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    console.print(report, highlight=False, markup=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_program(main))
