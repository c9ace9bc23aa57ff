# SPDX-License-Identifier: Apache-2.0
"""Prepare SemanticKITTI for training: see docs/datasets.md for what to download and how long it takes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from xmodal_seg.training.data.prepare_program import main_of
from xmodal_seg.training.data.semantic_kitti import SemanticKittiSource
from xmodal_seg.training.programs import run_program


def make_source(args: argparse.Namespace) -> SemanticKittiSource:
    return SemanticKittiSource(args.root, cameras=args.cameras, partial=args.partial, hidden_test=args.hidden_test)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hidden-test",
        action="store_true",
        help="also sequences 11 to 21, which have no published labels; for a --bag of one, too",
    )


def main(argv: Sequence[str] | None = None) -> int:
    description = "Prepare SemanticKITTI for training, or write a rosbag2 of it."
    return main_of(description, make_source, argv=argv, add_arguments=add_arguments)


if __name__ == "__main__":
    raise SystemExit(run_program(main))
