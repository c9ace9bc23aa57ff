# SPDX-License-Identifier: Apache-2.0
"""What replay.launch.py hands to seg.launch.py for a bag and a rate, as JSON: topics, cameras, scale of the
intensities, and longer waits where it is played slowly.

A program of its own, because `ros2 launch` runs on the system's Python, which has none of what reads a bag.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from xmodal_seg.commands.slow_replay import longer_waits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bag", help="rosbag2 folder, or one .mcap or .db3 file")
    parser.add_argument("--points-topic", default="", help="default: the one PointCloud2 topic without labels")
    parser.add_argument("--cameras", default="", help="names, separated by commas; none: LiDAR alone (default: all)")
    parser.add_argument("--image-topics", default="", help="the same by image topic; cameras may then have any name")
    parser.add_argument("--rate", type=float, default=1.0, help="of the playback (default: %(default)s)")
    parser.add_argument("--params-file", type=Path, metavar="FILE", help="parameter file of the segmentation node")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="xmodal-seg replay-arguments", description=__doc__)
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    wanted = _wanted_cameras(names=_split(arguments.cameras), image_topics=_split(arguments.image_topics))
    of_bag = _arguments_of_bag(arguments.bag, points_topic=arguments.points_topic or None, cameras=wanted)
    waits = longer_waits(arguments.rate, params_file=arguments.params_file)
    print(json.dumps({**of_bag, **{name: str(value) for name, value in waits.items()}}))
    return 0


def _arguments_of_bag(bag_path: str, *, points_topic: str | None, cameras: Sequence[str] | None) -> dict[str, str]:
    """By name, as they are written on the command line; ValueError for what the bag lacks or the node cannot take."""
    from xmodal_seg.bag_files import open_bag
    from xmodal_seg.bag_topics import find_topics, intensity_range_of

    with open_bag(bag_path) as bag:
        topics = find_topics(bag, points_topic=points_topic, cameras=cameras)
        intensity_min, intensity_max = intensity_range_of(bag, topics.points)
    images = [camera.image for camera in topics.cameras]
    compressed = {image.endswith("/compressed") for image in images}
    if len(compressed) > 1:
        raise ValueError(
            f"{bag_path} has raw and compressed images; the node takes one kind: name them by image_topics"
        )
    return {
        "points_topic": topics.points,
        "cameras": ",".join(camera.name for camera in topics.cameras) or "none",
        "image_topics": ",".join(image.removesuffix("/compressed") for image in images),
        "camera_info_topics": ",".join(camera.camera_info for camera in topics.cameras),
        "image_transport": "compressed" if compressed == {True} else "raw",
        "intensity_min": str(intensity_min),
        "intensity_max": str(intensity_max),
    }


def _wanted_cameras(*, names: Sequence[str], image_topics: Sequence[str]) -> list[str] | None:
    """Which of the bag's cameras to find, by image topic or by name; None: all.

    Where image topics are given, cameras may have any name, and are as many: each goes with the topic at its place.
    """
    if image_topics and names and len(image_topics) != len(names):
        raise ValueError(
            f"image_topics: expected one for each of the cameras {', '.join(names)}, got {len(image_topics)}"
        )
    if not names and not image_topics:
        return None
    return list(image_topics) or [name for name in names if name != "none"]


def _split(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
