# SPDX-License-Identifier: Apache-2.0
"""What the demo hands over: the answers of the nodes compared with the bag, numbers, a picture and a bag."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xmodal_seg.commands.environment import versions

if TYPE_CHECKING:
    from xmodal_seg.commands.demo import Input
    from xmodal_seg.inference import Segmenter
    from xmodal_seg.nodes.answers import Answers
    from xmodal_seg.nodes.recorder import Status
    from xmodal_seg.structures import Frame


def report(given: Input, out: Path, *, segmenter: Segmenter, answers: Answers, statuses: list[Status]) -> int:
    """Compare the answers with the bag's sweeps, write the results; 1 if a sweep is missing or came back changed."""
    from xmodal_seg.bag_topics import read_label_space
    from xmodal_seg.bags import open_bag, read_frames
    from xmodal_seg.commands.report import LabelReport
    from xmodal_seg.messages import decode_cloud_labels

    _write_output(out / "output", answers, segmenter)
    with open_bag(given.path) as bag:
        truth_space = read_label_space(bag, given.topics.labels) if given.topics.labels is not None else None
    labels_report = LabelReport(
        label_space=segmenter.label_space,
        truth_space=truth_space,
        trained=segmenter.trained,
        shown=given.num_sweeps // 2,
    )
    num_again = len(answers) - answers.num_stamps
    faults = [f"{num_again} sweeps came back more than once"] if num_again else []
    num_missing_views = 0
    for frame in read_frames(given.path, intensity_range=given.intensity_range):
        num_missing_views += len(given.topics.cameras) - len(frame.cameras)
        answer = answers.cloud(frame.stamp_ns)
        fault = _fault(frame, answer)
        if fault:
            faults.append(f"sweep at {frame.stamp_ns / 1e9:.3f} s {fault}")
        else:
            labels_report.add(frame, decode_cloud_labels(answer).astype(np.uint8))
    # The first status after the last frame: later ones only say that nothing comes any more.
    frames = [status.values.get("frames") for status in statuses]
    last = statuses[frames.index(frames[-1])] if statuses else None
    if last is not None and int(last.values.get("camera_problems", 0)) > num_missing_views:
        faults.append(f"the node missed images that the bag holds: {last.values['camera_problems']} camera problems")
    details = {
        "bag": str(given.path),
        "generated": given.generated,
        "checkpoint": {"version": segmenter.model_version, "trained": segmenter.trained, "bank": segmenter.bank},
        "stage_ms": stage_times(statuses),
        "diagnostics": None if last is None else {"message": last.message, **last.values},
        "faults": faults,
        "versions": versions(),
    }
    labels_report.write(out, title="simulated drive" if given.generated else given.path.name, details=details)
    _announce(out, labels_report.metrics(), faults, num_sweeps=given.num_sweeps, trained=segmenter.trained)
    return 1 if faults else 0


def _announce(out: Path, metrics: dict[str, Any], faults: list[str], *, num_sweeps: int, trained: bool) -> None:
    from xmodal_seg.commands.report import UNTRAINED

    if not trained:
        print(UNTRAINED)
    for fault in faults:
        print(f"FAILED: {fault}")
    parts = {"all": "miou", "seen by a camera": "miou_seen_by_a_camera", "seen by none": "miou_seen_by_none"}
    known = {name: metrics[key] for name, key in parts.items() if metrics[key] is not None}
    score = "".join(f"; mIoU of points {name}: {value:.1f} %" for name, value in known.items())
    print(f"{metrics['frames']} of {num_sweeps} sweeps labelled, {metrics['points']:,} points{score}")
    for name in ("summary.png", "metrics.json", "output", "parameters.yaml", "logs"):
        print(f"  {(out / name).resolve()}")


def stage_times(statuses: list[Status]) -> dict[str, dict[str, float]]:
    """Median, largest and number of the times per frame that the diagnostics reported, ms by stage."""
    samples: dict[str, list[float]] = {}
    seen = "0"
    for status in statuses:
        if status.values.get("frames", "0") == seen:
            continue
        seen = status.values["frames"]
        for name, value in status.values.items():
            if name.startswith("stage "):
                samples.setdefault(name.removeprefix("stage "), []).append(float(value))
    return {
        name: {"median": round(float(np.median(values)), 1), "max": max(values), "samples": len(values)}
        for name, values in samples.items()
    }


def _write_output(path: Path, answers: Answers, segmenter: Segmenter) -> None:
    """The output bag: the first answer to each sweep."""
    from xmodal_seg.bag_files import BagWriter
    from xmodal_seg.bag_writing import LABELLED_TOPIC, write_label_space
    from xmodal_seg.nodes.answers import CLOUD_TYPE

    with BagWriter(path, overwrite=True) as writer:
        for number, (stamp_ns, data) in enumerate(answers.firsts()):
            if number == 0:
                write_label_space(writer, LABELLED_TOPIC, segmenter.label_space, stamp_ns)
            writer.write_raw(LABELLED_TOPIC, CLOUD_TYPE, stamp_ns, data)


def _fault(frame: Frame, answer: Any | None) -> str:
    """What is wrong with the answer to a sweep; empty if nothing is."""
    from xmodal_seg.messages import LABELLED_FIELDS, decode_cloud

    if answer is None:
        return "did not come back"
    fields = [field.name for field in answer.fields]
    if fields != [field.name for field in LABELLED_FIELDS]:
        return f"came back with the fields {', '.join(fields)}"
    if answer.header.frame_id != frame.frame_id:
        return f"came back in the frame {answer.header.frame_id!r} instead of {frame.frame_id!r}"
    points = decode_cloud(answer, intensity_range=None).points
    if not np.array_equal(points, frame.points, equal_nan=True):
        return f"came back with other points ({len(points)} for {frame.num_points})"
    return ""
