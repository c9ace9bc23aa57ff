# SPDX-License-Identifier: Apache-2.0
"""Prepare A2D2 for training: see docs/datasets.md for what to download and how long it takes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from xmodal_seg.training.data.a2d2 import A2D2Source
from xmodal_seg.training.data.prepare_program import main_of
from xmodal_seg.training.programs import run_program


def make_source(args: argparse.Namespace) -> A2D2Source:
    return A2D2Source(args.root, cameras=args.cameras, partial=args.partial)


def main(argv: Sequence[str] | None = None) -> int:
    return main_of("Prepare A2D2 for training, or write a rosbag2 of it.", make_source, argv=argv)


if __name__ == "__main__":
    raise SystemExit(run_program(main))
