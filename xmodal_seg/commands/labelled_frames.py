# SPDX-License-Identifier: Apache-2.0
"""Keep some frames with ground truth of a drive, spread over its conditions of light, for the gate of continued
adaptation. Lay the folder into the checkpoint's as `labelled_frames`, and it is used wherever the checkpoint is."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from xmodal_seg.commands.bag_arguments import add_bag_arguments
from xmodal_seg.commands.evaluation_drive import add_truth_arguments, check_classes, frames_with_truth, look_into

if TYPE_CHECKING:
    from xmodal_seg.commands.evaluation_drive import Drive
    from xmodal_seg.labels import LabelSpace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bag", required=True, help="rosbag2 folder, or one .mcap or .db3 file, with ground truth")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the frames go")
    parser.add_argument(
        "--checkpoint", help="whose classes they have: folder, or the name of a shipped one (default: nuscenes)"
    )
    parser.add_argument(
        "--per-condition", type=int, default=3, metavar="N", help="frames of each condition (default: %(default)s)"
    )
    add_truth_arguments(parser)
    add_bag_arguments(parser)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="xmodal-seg labelled-frames", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(arguments: argparse.Namespace) -> int:
    """0 when all is written; ValueError, one sentence, for what is wrong with the arguments, the bag or the labels."""
    from xmodal_seg.adaptation.labelled_frames import save_labelled_frames
    from xmodal_seg.inference import Segmenter

    if arguments.per_condition < 1:
        raise ValueError(f"--per-condition: expected a positive number, got {arguments.per_condition}")
    drive = look_into(arguments)
    label_space = Segmenter.load(arguments.checkpoint, device="cpu").label_space
    check_classes(arguments, drive, label_space)
    chosen = _choose(arguments, drive, label_space)
    frames = [
        frame
        for number, frame in enumerate(frames_with_truth(arguments, drive, label_space))
        if number in chosen  # their images and points, and no others', stay in memory
    ]
    save_labelled_frames(arguments.out, frames, label_space=label_space.name)
    print(f"{arguments.out}: {len(frames)} frames, {', '.join(sorted(set(chosen.values())))}")
    return 0


def _choose(arguments: argparse.Namespace, drive: Drive, label_space: LabelSpace) -> dict[int, str]:
    """Number of the frame -> its condition; evenly over the time of each condition. ValueError if none has labels."""
    groups: dict[str, list[int]] = {}
    for number, frame in enumerate(frames_with_truth(arguments, drive, label_space)):
        if frame.labels is not None and (frame.labels >= 0).any():
            groups.setdefault(drive.conditions.at(frame.stamp_ns) or "unknown", []).append(number)
    if not groups:
        raise ValueError(f"{arguments.bag}: no frame has ground truth of the checkpoint's classes")
    chosen: dict[int, str] = {}
    for condition, numbers in groups.items():
        wanted = min(arguments.per_condition, len(numbers))
        middles = (np.arange(wanted) + 0.5) * len(numbers) / wanted
        chosen.update({numbers[int(middle)]: condition for middle in middles})
    return chosen
