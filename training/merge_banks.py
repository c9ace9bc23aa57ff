# SPDX-License-Identifier: Apache-2.0
"""Put the models of several runs into one checkpoint, each as the bank of a condition:

python training/merge_banks.py --bank day=runs/day --bank night=runs/night --out checkpoints/demo

The first bank is the default one. The runs must have the same classes, networks and frozen foundation model, which is
stored once, in float16.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from xmodal_seg.training.bank_merging import merge_runs
from xmodal_seg.training.programs import run_program


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--bank", dest="banks", action="append", required=True, metavar="NAME=RUN", help="folder of a finished run"
    )
    parser.add_argument(
        "--checkpoint",
        choices=["last", "best"],
        default="last",
        help="of each run: the last one, or the best ensemble by the target's validation labels",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the new checkpoint")
    arguments = parser.parse_args(argv)
    try:
        runs = dict(_named(value) for value in arguments.banks)
        if len(runs) < len(arguments.banks):
            raise ValueError(f"--bank: expected every name once, got {' '.join(arguments.banks)}")
        content_hash = merge_runs(runs, which=arguments.checkpoint, out=arguments.out)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    size_mb = sum(path.stat().st_size for path in arguments.out.iterdir()) / 1e6
    print(f"{arguments.out}: banks {', '.join(runs)}, {size_mb:.1f} MB, version {content_hash[:12]}")
    return 0


def _named(value: str) -> tuple[str, Path]:
    name, separator, run = value.partition("=")
    if not (name and separator and run):
        raise ValueError(f"--bank: expected NAME=RUN, got {value!r}")
    return name, Path(run)


if __name__ == "__main__":
    raise SystemExit(run_program(main))
