# SPDX-License-Identifier: Apache-2.0
"""Label every sweep of a bag, in order and without dropping any; no ROS needed. An image or a sweep that cannot be
read is left out, counted and said. Writes the folder OUT with the bag `output` (labelled clouds), metrics.json and
summary.png."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xmodal_seg.commands.bag_arguments import (
    add_bag_arguments,
    add_checkpoint_argument,
    add_device_arguments,
    frames_of,
    topic_choice,
)
from xmodal_seg.commands.environment import versions

if TYPE_CHECKING:
    from xmodal_seg.commands.report import LabelReport
    from xmodal_seg.inference import Segmenter
    from xmodal_seg.labels import LabelSpace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bag", help="rosbag2 folder, or one .mcap or .db3 file")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the results go")
    add_checkpoint_argument(parser)
    add_device_arguments(parser)
    add_bag_arguments(parser)
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
    if (out / "output").exists() and not arguments.overwrite:
        raise ValueError(f"{out / 'output'} exists already; choose another --out or give --overwrite")
    num_sweeps, truth_space = _look_into(arguments)
    segmenter = Segmenter.load(
        arguments.checkpoint,
        device=arguments.device,
        point_scope=arguments.point_scope,
        precision=arguments.precision,
    )
    print(segmenter.description)
    if not segmenter.trained:
        print(UNTRAINED)
    report = LabelReport(
        label_space=segmenter.label_space, truth_space=truth_space, trained=segmenter.trained, shown=num_sweeps // 2
    )
    times_ms = _label(arguments, segmenter, report, out=out, num_sweeps=num_sweeps)
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


def _look_into(arguments: argparse.Namespace) -> tuple[int, LabelSpace | None]:
    """Number of sweeps and the classes of the ground truth, None where there is none; prints the topics."""
    from xmodal_seg.bag_topics import find_topics, read_label_space
    from xmodal_seg.bags import open_bag

    with open_bag(arguments.bag) as bag:
        topics = find_topics(bag, **topic_choice(arguments))
        print(f"points {topics.points}; cameras {', '.join(camera.image for camera in topics.cameras) or 'none'}")
        truth_space = read_label_space(bag, topics.labels) if topics.labels is not None else None
        return bag.topics[topics.points].num_messages, truth_space


def _label(
    arguments: argparse.Namespace,
    segmenter: Segmenter,
    report: LabelReport,
    *,
    out: Path,
    num_sweeps: int,
) -> dict[str, list[float]]:
    """Label every frame into the output bag and the report; times per frame by stage, ms."""
    from rich.progress import track

    from xmodal_seg.bag_writing import LABELLED_TOPIC, labelled_message, write_label_space
    from xmodal_seg.bags import BagWriter

    times_ms: dict[str, list[float]] = {}
    with BagWriter(out / "output", storage=arguments.storage, overwrite=arguments.overwrite) as writer:
        for number, frame in enumerate(track(frames_of(arguments), description="labelling", total=num_sweeps)):
            labelled = segmenter.predict(frame, min_probability=arguments.min_probability)
            if number == 0:
                write_label_space(writer, LABELLED_TOPIC, segmenter.label_space, frame.stamp_ns)
            message = labelled_message(frame, labelled.labels, labelled.probability, segmenter.label_space)
            writer.write(LABELLED_TOPIC, frame.stamp_ns, message)
            report.add(frame, labelled.labels)
            for name, value in labelled.times_ms.items():
                times_ms.setdefault(name, []).append(value)
    return times_ms
