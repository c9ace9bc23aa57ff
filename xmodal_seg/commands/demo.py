# SPDX-License-Identifier: Apache-2.0
"""Label a bag with the real nodes, each in its own process, over DDS; check that every sweep came back; show the
result. Writes the folder OUT: summary.png, metrics.json, the bag `output`, the nodes' parameters and logs.

The playback waits for each labelled cloud, so a slow computer loses nothing; it is not a measure of real-time speed.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from xmodal_seg.commands.bag_arguments import add_checkpoint_argument, add_device_arguments
from xmodal_seg.commands.meeting import NotMetError, playback_has_ended, until_heard, until_they_meet
from xmodal_seg.commands.processes import (
    Child,
    check_running,
    child,
    deferred_interrupts,
    environment_variables,
    free_domain,
)

if TYPE_CHECKING:
    from xmodal_seg.bag_topics import SensorTopics
    from xmodal_seg.nodes.answers import Answers
    from xmodal_seg.nodes.recorder import Recorder, Status

LABELLED_TOPIC = "/xmodal_seg/points"
_SEED, _NUM_FRAMES = 7, 10  # of the generated bag
_FRAME_TIMEOUT_S = 120.0
_GRACE_S = 5.0  # for what is still on its way when the playback has ended


@dataclass(frozen=True, kw_only=True)
class Input:
    """The bag to label."""

    path: Path
    topics: SensorTopics
    played: list[str]  # everything but the ground truth and what the nodes publish themselves
    num_sweeps: int
    intensity_range: tuple[float, float]
    generated: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bag", help="rosbag2 with points, images, camera infos and transforms (default: simulated)")
    parser.add_argument("--points-topic", help="default: the one PointCloud2 topic without labels")
    parser.add_argument("--cameras", nargs="*", metavar="CAMERA", help="names or image topics (default: all)")
    parser.add_argument("--out", default="demo", metavar="FOLDER", help="where the results go (default: %(default)s)")
    add_checkpoint_argument(parser)
    add_device_arguments(parser)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="xmodal-seg demo", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(arguments: argparse.Namespace) -> int:
    """0 if every sweep came back labelled and the nodes ended in order; ValueError, one sentence, otherwise."""
    if find_spec("rclpy") is None:
        raise ValueError("rclpy is not installed; source a ROS setup, or: pip install 'xmodal_seg[pip-ros]'")
    from xmodal_seg.commands.demo_report import report
    from xmodal_seg.inference import Segmenter  # here, so that --help is quick

    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    _remove_former_results(out)
    given = prepare_input(arguments.bag, out, points_topic=arguments.points_topic, cameras=arguments.cameras)
    # Loaded here as well, only to know its classes and where it comes from; the node loads its own.
    segmenter = Segmenter.load(arguments.checkpoint, device="cpu")
    parameters = node_parameters(given, arguments)
    (out / "parameters.yaml").write_text(yaml.safe_dump(parameters, sort_keys=False), encoding="utf-8")
    cameras = ", ".join(camera.image for camera in given.topics.cameras)
    print(f"{given.path}: {given.num_sweeps} sweeps on {given.topics.points}, images on {cameras}", flush=True)
    answers, statuses = play_through_nodes(given, out)
    return report(given, out, segmenter=segmenter, answers=answers, statuses=statuses)


def _remove_former_results(out: Path) -> None:
    """So that a demo that fails leaves nothing that could be taken for its result."""
    for name in ("summary.png", "metrics.json", "parameters.yaml"):
        (out / name).unlink(missing_ok=True)
    for name in ("output", "input", "logs"):
        shutil.rmtree(out / name, ignore_errors=True)


def prepare_input(
    bag_path: str | None, out: Path, *, points_topic: str | None = None, cameras: Sequence[str] | None = None
) -> Input:
    """The bag named, or a generated one in `out`; ValueError if it lacks something that the demo needs.

    Prints what of it is not played because the nodes publish it anew.
    """
    from xmodal_seg.bag_topics import find_topics, intensity_range_of
    from xmodal_seg.bags import open_bag
    from xmodal_seg.nodes.own_topics import own_topics

    path = Path(bag_path) if bag_path is not None else _generate(out / "input")
    with open_bag(path) as bag:
        topics = find_topics(bag, points_topic=points_topic, cameras=cameras)
        if not topics.cameras:
            raise ValueError(f"{path} has no images with a camera_info beside them; it has {bag.describe_topics()}")
        compressed = {camera.image.endswith("/compressed") for camera in topics.cameras}
        if len(compressed) > 1:
            raise ValueError(f"{path} has raw and compressed images; the node takes one kind: choose by --cameras")
        left_out = own_topics(bag.topics)
        if left_out:
            print(f"{path}: not played, as the nodes publish it anew: {', '.join(left_out)}", flush=True)
        return Input(
            path=path,
            topics=topics,
            played=[
                name
                for name in bag.topics
                if not name.startswith("/ground_truth/") and name not in (topics.labels, *left_out)
            ],
            num_sweeps=bag.topics[topics.points].num_messages,
            intensity_range=intensity_range_of(bag, topics.points),
            generated=bag_path is None,
        )


def node_parameters(given: Input, arguments: argparse.Namespace) -> dict[str, Any]:
    """Parameter file of both nodes; of `arguments` it takes checkpoint, device and precision."""
    from xmodal_seg.bag_writing import LABELLED_TOPIC

    cameras = given.topics.cameras
    images = [camera.image.removesuffix("/compressed") for camera in cameras]
    segmentation = {
        "use_sim_time": True,
        "autostart": True,
        "cameras": [camera.name for camera in cameras],
        "image_topics": images,
        "camera_info_topics": [camera.camera_info for camera in cameras],
        "points_topic": given.topics.points,
        "image_transport": "raw" if images[0] == cameras[0].image else "compressed",
        "intensity_min": given.intensity_range[0],
        "intensity_max": given.intensity_range[1],
        "reliability": "reliable",
        "transform_timeout_s": 5.0,
        "camera_timeout_ms": 2000.0,  # the playback waits for each answer, so a busy computer must not cost an image
        "checkpoint": arguments.checkpoint or "",
        "device": arguments.device,
        "precision": arguments.precision,
        "diagnostics_period_s": 0.2,
    }
    player = {
        "bag": str(given.path),
        "topics": given.played,
        "wait_for_topics": [given.topics.points, *(camera.image for camera in cameras)],
        "pace_input": given.topics.points,
        "pace_topic": LABELLED_TOPIC,
        "pace_timeout_s": _FRAME_TIMEOUT_S,
    }
    return {"/xmodal_seg": {"ros__parameters": segmentation}, "/play_bag": {"ros__parameters": player}}


def play_through_nodes(given: Input, out: Path) -> tuple[Answers, list[Status]]:
    """Start both nodes, watch until the bag has been played, stop them; labelled clouds and diagnostics.

    Raises ValueError with the end of its log if a node fails.
    """
    return until_they_meet(lambda patience_s: _play_once(given, out, patience_s=patience_s))


def _play_once(given: Input, out: Path, *, patience_s: float) -> tuple[Answers, list[Status]]:
    from xmodal_seg.nodes.recorder import recording

    domain_id = free_domain()  # away from the robots that may be on this network
    environment = {"ROS_DOMAIN_ID": str(domain_id), "FASTDDS_BUILTIN_TRANSPORTS": "LARGE_DATA"}
    logs = out / "logs"
    logs.mkdir(exist_ok=True)
    arguments = ["--ros-args", "--params-file", str(out / "parameters.yaml")]
    with ExitStack() as stack:
        check_interrupts = stack.enter_context(deferred_interrupts())
        stack.enter_context(environment_variables(environment))
        recorder = stack.enter_context(recording(domain_id=domain_id, folder=out))

        def start(name: str, *more: str) -> Child:
            log = logs / f"{name}.txt"
            return stack.enter_context(
                child(f"xmodal_seg.nodes.{name}", [*arguments, *more], log=log, environment=environment)
            )

        segmentation = start("segmentation_node")
        for _ in until_heard(recorder, [segmentation], patience_s=patience_s):
            check_interrupts()
        player = start("play_bag_node", "-p", f"wait_timeout_s:={patience_s}")  # waits for the node, not the recorder
        for _ in _until_labelled(recorder, segmentation, player, num_sweeps=given.num_sweeps):
            check_interrupts()
        if recorder.has_missed_the_node:
            raise NotMetError(f"no sweep came back labelled; the nodes' logs are in {logs}")
        code = segmentation.stop()
        if code != 0:
            raise ValueError(f"{segmentation.name} ended with exit code {code}:\n{segmentation.last_lines()}")
    return recorder.answers, recorder.statuses


def _until_labelled(recorder: Recorder, segmentation: Child, player: Child, *, num_sweeps: int) -> Iterator[None]:
    """Record until the playback has ended and what is on its way has come; yields all the time."""
    from rich.progress import Progress

    with Progress() as progress:
        task = progress.add_task("labelling", total=num_sweeps)
        end_s = None
        while end_s is None or time.monotonic() < end_s:
            yield
            recorder.spin_once(0.1)
            progress.update(task, completed=len(recorder.answers))
            check_running([segmentation])
            if playback_has_ended(player) and end_s is None:
                end_s = time.monotonic() + _GRACE_S
            if end_s is not None and len(recorder.answers) >= num_sweeps and _num_frames(recorder) >= num_sweeps:
                return


def _num_frames(recorder: Recorder) -> int:
    return int(recorder.statuses[-1].values.get("frames", 0)) if recorder.statuses else 0


def _generate(path: Path) -> Path:
    """A short simulated drive with ground truth; the same every time."""
    from rich.progress import track

    from xmodal_seg.bags import write_bag
    from xmodal_seg.labels import NUSCENES_6
    from xmodal_seg.simulation.drive import DriveSettings, drive_frames
    from xmodal_seg.simulation.rigs import NUSCENES

    # Half the pixels of each side, so that a laptop renders and labels it in a minute.
    settings = DriveSettings(seed=_SEED, num_frames=_NUM_FRAMES, fps=2.0, rig=NUSCENES.scaled(image=0.5))
    frames = track(drive_frames(settings), description="simulating a drive", total=_NUM_FRAMES)
    write_bag(path, frames, label_space=NUSCENES_6, overwrite=True)
    return path
