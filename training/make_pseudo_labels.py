# SPDX-License-Identifier: Apache-2.0
r"""Label the target's training part with the last checkpoint of a run, for the second stage:

    python training/make_pseudo_labels.py runs/ours --out runs/ours/pseudo_labels
    python training/train.py --shift sim_dev --method ours_pl --out runs/ours_pl \
        --set data.pseudo_labels=runs/ours/pseudo_labels
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from xmodal_seg.training.programs import run_program
from xmodal_seg.training.run import make_run_pseudo_labels


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pseudo-labels")
    arguments = parser.parse_args(argv)
    try:
        kept = make_run_pseudo_labels(arguments.run, arguments.out)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print("points kept: " + ", ".join(f"{name} {percent:.1f} %" for name, percent in kept.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_program(main))
