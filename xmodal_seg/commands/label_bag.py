# SPDX-License-Identifier: Apache-2.0
"""Label every sweep of a bag, in order and without dropping any; no ROS needed. Writes the folder OUT with the bag
`output` (labelled clouds), metrics.json and summary.png."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xmodal_seg.commands.environment import versions

if TYPE_CHECKING:
    from xmodal_seg.commands.report import LabelReport
    from xmodal_seg.inference import Segmenter
    from xmodal_seg.labels import LabelSpace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bag", help="rosbag2 folder, or one .mcap or .db3 file")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the results go")
    parser.add_argument("--checkpoint", metavar="FOLDER", help="default: the one shipped with the package")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
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
    parser.add_argument(
        "--point-scope", choices=["all", "visible"], default="all", help="visible: only points that a camera sees"
    )
    parser.add_argument("--min-probability", type=float, default=0.0, help="less probable labels become 255")
    parser.add_argument("--storage", choices=["mcap", "sqlite3"], default="mcap")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier output bag")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="xmodal-seg label-bag", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(arguments: argparse.Namespace) -> int:
    from xmodal_seg.commands.report import UNTRAINED, LabelReport
    from xmodal_seg.inference import Segmenter

    out = Path(arguments.out)
    choice = {
        "points_topic": arguments.points_topic,
        "cameras": arguments.cameras,
        "rectified": {"auto": None, "yes": True, "no": False}[arguments.rectified],
        "label_topic": arguments.label_topic,
    }
    if (out / "output").exists() and not arguments.overwrite:
        raise ValueError(f"{out / 'output'} exists already; choose another --out or give --overwrite")
    num_sweeps, truth_space = _look_into(arguments.bag, choice)
    segmenter = Segmenter.load(arguments.checkpoint, device=arguments.device, point_scope=arguments.point_scope)
    print(segmenter.description)
    if not segmenter.trained:
        print(UNTRAINED)
    report = LabelReport(
        label_space=segmenter.label_space, truth_space=truth_space, trained=segmenter.trained, shown=num_sweeps // 2
    )
    times_ms = _label(arguments, choice, segmenter, report, out=out, num_sweeps=num_sweeps)
    details = {
        "bag": str(arguments.bag),
        "checkpoint": {"version": segmenter.model_version, "trained": segmenter.trained, "bank": segmenter.bank},
        "stage_ms": {name: {"median": round(float(np.median(values)), 2)} for name, values in times_ms.items()},
        "arguments": vars(arguments),
        "versions": versions(),
    }
    report.write(out, title=Path(arguments.bag).name, details=details)
    print(f"labelled {report.metrics()['frames']} sweeps: {out}/output, {out}/metrics.json, {out}/summary.png")
    return 0


def _look_into(bag_path: str, choice: dict[str, Any]) -> tuple[int, LabelSpace | None]:
    """Number of sweeps and the classes of the ground truth, None where there is none; prints the topics."""
    from xmodal_seg.bag_topics import find_topics, read_label_space
    from xmodal_seg.bags import open_bag

    with open_bag(bag_path) as bag:
        topics = find_topics(bag, **choice)
        print(f"points {topics.points}; cameras {', '.join(camera.image for camera in topics.cameras) or 'none'}")
        truth_space = read_label_space(bag, topics.labels) if topics.labels is not None else None
        return bag.topics[topics.points].num_messages, truth_space


def _label(
    arguments: argparse.Namespace,
    choice: dict[str, Any],
    segmenter: Segmenter,
    report: LabelReport,
    *,
    out: Path,
    num_sweeps: int,
) -> dict[str, list[float]]:
    """Label every frame into the output bag and the report; times per frame by stage, ms."""
    from rich.progress import track

    from xmodal_seg.bag_writing import LABELLED_TOPIC, labelled_message, write_label_space
    from xmodal_seg.bags import BagWriter, read_frames
    from xmodal_seg.calibration_file import load_calibration_file

    frames = read_frames(
        arguments.bag,
        **choice,
        intensity_range=tuple(arguments.intensity_range) if arguments.intensity_range else None,
        tolerance_s=arguments.tolerance_ms / 1e3,
        calibration_file=load_calibration_file(arguments.calibration_file) if arguments.calibration_file else None,
    )
    times_ms: dict[str, list[float]] = {}
    with BagWriter(out / "output", storage=arguments.storage, overwrite=arguments.overwrite) as writer:
        for number, frame in enumerate(track(frames, description="labelling", total=num_sweeps)):
            labelled = segmenter.predict(frame, min_probability=arguments.min_probability)
            if number == 0:
                write_label_space(writer, LABELLED_TOPIC, segmenter.label_space, frame.stamp_ns)
            message = labelled_message(frame, labelled.labels, labelled.probability, segmenter.label_space)
            writer.write(LABELLED_TOPIC, frame.stamp_ns, message)
            report.add(frame, labelled.labels)
            for name, value in labelled.times_ms.items():
                times_ms.setdefault(name, []).append(value)
    return times_ms
