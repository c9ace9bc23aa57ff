# SPDX-License-Identifier: Apache-2.0
"""Arguments that several commands have: the checkpoint, and which topics of a bag are read and how."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xmodal_seg.structures import Frame


def add_checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        help="folder, or the name of a shipped one (default: nuscenes, for a rig like that)",
    )


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the model runs, and in which precision."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of image network and fusion; bfloat16 suits a GPU and a large image network (default: %(default)s)",
    )


def add_bag_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--points-topic", help="default: the one PointCloud2 topic without labels")
    parser.add_argument(
        "--cameras", nargs="*", metavar="CAMERA", help="names or image topics (default: all; none: LiDAR alone)"
    )
    parser.add_argument("--label-topic", help="ground truth (default: /ground_truth/points if the bag has it)")
    parser.add_argument(
        "--rectified", choices=["auto", "yes", "no"], default="auto", help="auto: topics image_rect* are rectified"
    )
    parser.add_argument(
        "--intensity-range", nargs=2, type=float, metavar=("LOW", "HIGH"), help="default: 0 1 or 0 255, as it fits"
    )
    parser.add_argument(
        "--tolerance-ms", type=float, default=60.0, help="of image and sweep stamps (default: %(default)s)"
    )
    parser.add_argument("--calibration-file", help="YAML with camera_T_lidar by frame_id, instead of transforms")


def topic_choice(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `find_topics`."""
    return {
        "points_topic": arguments.points_topic,
        "cameras": arguments.cameras,
        "rectified": {"auto": None, "yes": True, "no": False}[arguments.rectified],
        "label_topic": arguments.label_topic,
    }


def frames_of(arguments: argparse.Namespace) -> Iterator[Frame]:
    """The frames of `arguments.bag`, in order; ValueError as `read_frames` raises it."""
    from xmodal_seg.bags import read_frames
    from xmodal_seg.calibration_file import load_calibration_file

    return read_frames(
        arguments.bag,
        **topic_choice(arguments),
        intensity_range=tuple(arguments.intensity_range) if arguments.intensity_range else None,
        tolerance_s=arguments.tolerance_ms / 1e3,
        calibration_file=load_calibration_file(arguments.calibration_file) if arguments.calibration_file else None,
    )
