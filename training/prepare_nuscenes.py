# SPDX-License-Identifier: Apache-2.0
"""Prepare nuScenes with nuScenes-lidarseg for training: see docs/datasets.md for what to download."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from xmodal_seg.training.data.nuscenes import DEFAULT_VERSION, NuScenesSource
from xmodal_seg.training.data.prepare_program import main_of
from xmodal_seg.training.programs import run_program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", default=DEFAULT_VERSION, help="folder of the tables, such as v1.0-mini")


def make_source(args: argparse.Namespace) -> NuScenesSource:
    return NuScenesSource(args.root, version=args.version, cameras=args.cameras)


def main(argv: Sequence[str] | None = None) -> int:
    description = "Prepare nuScenes with nuScenes-lidarseg for training, or write a rosbag2 of it."
    return main_of(description, make_source, argv=argv, add_arguments=add_arguments)


if __name__ == "__main__":
    raise SystemExit(run_program(main))
