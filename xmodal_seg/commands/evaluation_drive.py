# SPDX-License-Identifier: Apache-2.0
"""A drive with ground truth: what its bag holds, whether its classes are the model's, and its frames."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xmodal_seg.commands.bag_arguments import frames_of, topic_choice
from xmodal_seg.commands.evaluation_truth import LABEL_FORMATS

if TYPE_CHECKING:
    from xmodal_seg.bag_topics import Conditions
    from xmodal_seg.labels import LabelSpace
    from xmodal_seg.structures import Frame


@dataclass(frozen=True, kw_only=True)
class Drive:
    """What is known of the bag before its frames are read."""

    num_sweeps: int
    label_topic: str | None
    truth_space: LabelSpace | None  # of the label topic, None where the bag does not say
    conditions: Conditions


def add_truth_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("ground truth from files, where the bag has no label topic")
    group.add_argument(
        "--labels",
        metavar="FOLDER",
        help="semantic_kitti: a folder of .label files, the n-th for the n-th sweep; nuscenes: the download with "
        "lidarseg, matched by stamp",
    )
    group.add_argument("--label-format", choices=LABEL_FORMATS, help="of --labels")
    group.add_argument(
        "--same-classes",
        action="store_true",
        help="the labels of --label-topic are the checkpoint's classes although no label_info beside it says so",
    )


def look_into(arguments: argparse.Namespace) -> Drive:
    """Prints the topics. Raises ValueError for a bag without sweeps or without ground truth."""
    from xmodal_seg.bag_topics import find_topics, read_conditions, read_label_space
    from xmodal_seg.bags import open_bag

    if (arguments.labels is None) != (arguments.label_format is None):
        raise ValueError("--labels and --label-format: expected both or neither")
    with open_bag(arguments.bag) as bag:
        topics = find_topics(bag, **topic_choice(arguments))
        num_sweeps = bag.topics[topics.points].num_messages
        if not num_sweeps:
            raise ValueError(f"{arguments.bag}: {topics.points} has no messages")
        if topics.labels is None and arguments.labels is None:
            raise ValueError(
                f"{arguments.bag} has no ground truth: expected --label-topic, or --labels with label files; "
                f"it has {bag.describe_topics()}"
            )
        images = ", ".join(camera.image for camera in topics.cameras) or "none"
        truth = arguments.labels or topics.labels
        print(f"{num_sweeps} sweeps on {topics.points}; images {images}; ground truth {truth}")
        return Drive(
            num_sweeps=num_sweeps,
            label_topic=topics.labels,
            truth_space=None if topics.labels is None else read_label_space(bag, topics.labels),
            conditions=read_conditions(bag),
        )


def check_classes(arguments: argparse.Namespace, drive: Drive, label_space: LabelSpace) -> None:
    """Raises ValueError unless ground truth and checkpoint speak of the same classes; label files are merged later."""
    if arguments.labels is not None:
        return
    if drive.truth_space is None:
        if not arguments.same_classes:
            raise ValueError(
                f"{arguments.bag}: no label_info beside {drive.label_topic} says what its labels mean; "
                "--same-classes takes them for the checkpoint's"
            )
    elif drive.truth_space.class_names != label_space.class_names:
        raise ValueError(
            f"{drive.label_topic} has the classes {', '.join(drive.truth_space.class_names)}, "
            f"the checkpoint {', '.join(label_space.class_names)}"
        )


def frames_with_truth(arguments: argparse.Namespace, drive: Drive, label_space: LabelSpace) -> Iterator[Frame]:
    """The frames of the bag in order, with the labels of its topic or of the files."""
    from xmodal_seg.commands.evaluation_truth import KittiLabels, NuScenesLabels

    frames = frames_of(arguments)
    if arguments.label_format == "semantic_kitti":
        kitti = KittiLabels(arguments.labels, label_space=label_space, num_sweeps=drive.num_sweeps)
        return kitti.added_to(frames)
    if arguments.label_format == "nuscenes":
        return NuScenesLabels(arguments.labels, label_space=label_space).added_to(frames)
    return frames
