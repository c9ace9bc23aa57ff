# SPDX-License-Identifier: Apache-2.0
"""The same evaluation through the running nodes over DDS, at the speed of the bag: what comes late is lost."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from xmodal_seg.commands.meeting import NotMetError, playback_has_ended, until_heard, until_they_meet
from xmodal_seg.commands.processes import (
    Child,
    check_running,
    child,
    deferred_interrupts,
    environment_variables,
    free_domain,
)
from xmodal_seg.commands.slow_replay import WAITS, longer_waits

if TYPE_CHECKING:
    from xmodal_seg.bag_evaluation import ScoredFrame
    from xmodal_seg.bag_topics import Conditions
    from xmodal_seg.commands.demo import Input
    from xmodal_seg.labels import LabelSpace
    from xmodal_seg.nodes.recorder import Recorder, Status
    from xmodal_seg.structures import Frame

_OFFLINE = ("bank", "points_topic", "cameras", "calibration_file", "intensity_range")
_QUIET_S = 3.0  # the end: nothing has come for so long after the playback
_LOST = ("dropped_busy", "failed_frames", "camera_problems", "lidar_only_frames")
_PACING = ("pace_input", "pace_topic", "pace_timeout_s")


def play(arguments: argparse.Namespace, mode: str, out: Path) -> Recorder:
    """Play the bag through nodes in mode `mode`; what they published and when. Logs and parameters go into `out`.

    Raises ValueError with the end of its log if a node fails.
    """
    from xmodal_seg.commands.demo import prepare_input

    given = prepare_input(arguments.bag, out)
    parameters = live_parameters(given, arguments, mode=mode)
    folder = out / f"live_{mode}"
    folder.mkdir(exist_ok=True)
    (folder / "parameters.yaml").write_text(yaml.safe_dump(parameters, sort_keys=False), encoding="utf-8")
    # The last sweep may still wait for its camera.
    quiet_s = _QUIET_S + longer_waits(arguments.rate).get("camera_timeout_ms", 0.0) / 1e3
    return until_they_meet(
        lambda patience_s: _play_once(given, folder, mode=mode, patience_s=patience_s, quiet_s=quiet_s)
    )


def _play_once(given: Input, folder: Path, *, mode: str, patience_s: float, quiet_s: float) -> Recorder:
    from xmodal_seg.nodes.recorder import recording

    domain_id = free_domain()
    environment = {"ROS_DOMAIN_ID": str(domain_id), "FASTDDS_BUILTIN_TRANSPORTS": "LARGE_DATA"}
    node_arguments = ["--ros-args", "--params-file", str(folder / "parameters.yaml")]
    nodes_arguments = {"segmentation_node": node_arguments}
    if mode != "off":
        nodes_arguments["lighting_node"] = node_arguments
    nodes_arguments["play_bag_node"] = [*node_arguments, "-p", f"wait_timeout_s:={patience_s}"]
    with ExitStack() as stack:
        check_interrupts = stack.enter_context(deferred_interrupts())
        stack.enter_context(environment_variables(environment))
        recorder = stack.enter_context(recording(domain_id=domain_id, folder=folder, points_topic=given.topics.points))

        def start(name: str) -> Child:
            log = folder / f"{name}.txt"
            return stack.enter_context(
                child(f"xmodal_seg.nodes.{name}", nodes_arguments[name], log=log, environment=environment)
            )

        nodes = [start(name) for name in nodes_arguments if name != "play_bag_node"]
        for _ in until_heard(recorder, nodes, patience_s=patience_s):
            check_interrupts()
        player = start("play_bag_node")  # now, since it waits for the nodes, but not for the recorder
        for _ in _until_quiet(recorder, nodes, player, mode=mode, num_sweeps=given.num_sweeps, quiet_s=quiet_s):
            check_interrupts()
        if recorder.has_missed_the_node:
            raise NotMetError(f"no sweep came back labelled; the nodes' logs are in {folder}")
        if recorder.has_missed_the_light:
            raise NotMetError(f"the lighting node was never heard; the nodes' logs are in {folder}")
    return recorder


def check_arguments(arguments: argparse.Namespace) -> None:
    """ValueError unless rclpy is there and the nodes know every argument."""
    if find_spec("rclpy") is None:
        raise ValueError("--live: rclpy is not installed; source a ROS setup, or: pip install 'xmodal_seg[pip-ros]'")
    if arguments.rate <= 0:
        raise ValueError(f"--rate: expected more than 0, got {arguments.rate:g}")
    given = [f"--{name.replace('_', '-')}" for name in _OFFLINE if getattr(arguments, name) is not None]
    if given:
        raise ValueError(f"--live does not go with {', '.join(given)}: the nodes find these themselves")


def live_parameters(given: Input, arguments: argparse.Namespace, *, mode: str) -> dict[str, Any]:
    """Parameter file of the nodes: those of the demo, but nobody waits for anybody.

    The segmentation node waits for images and transforms as on a robot, longer where the bag is played slowly.
    """
    from xmodal_seg.commands.demo import node_parameters

    parameters = node_parameters(given, arguments)
    segmentation = parameters["/xmodal_seg"]["ros__parameters"]
    player = parameters["/play_bag"]["ros__parameters"]
    for values, names in ((player, _PACING), (segmentation, WAITS)):
        for name in names:
            values.pop(name, None)
    segmentation.update(longer_waits(arguments.rate))
    player["rate"] = arguments.rate
    # The lighting node hears points and images too, so these say nothing about the segmentation node.
    player["wait_for_topics"] += [camera.camera_info for camera in given.topics.cameras]
    segmentation["lighting_topic"] = "" if mode == "off" else "lighting"
    segmentation.update(_adaptation(arguments, mode=mode))
    if mode != "off":
        shared = ("use_sim_time", "autostart", "cameras", "image_topics", "image_transport", "points_topic")
        # Copied, since YAML writes one object in two places as an alias, which rcl does not read.
        lighting = {name: deepcopy(segmentation[name]) for name in (*shared, "reliability")}
        parameters["/lighting"] = {"ros__parameters": {**lighting, "coefficients": arguments.lighting or ""}}
    return parameters


def _adaptation(arguments: argparse.Namespace, *, mode: str) -> dict[str, Any]:
    """Parameters `adaptation.*`: those of the file, every one written out, so that numbers have the types of theirs."""
    from xmodal_seg.adaptation.settings import AdaptationSettings
    from xmodal_seg.config import load_settings
    from xmodal_seg.nodes.parameters import parameter_table

    path = arguments.adaptation
    settings = AdaptationSettings() if path is None else load_settings(AdaptationSettings, Path(path))
    stated, values = settings.model_dump(mode="json"), {}
    for row in parameter_table(AdaptationSettings):
        value: Any = stated
        for part in row.name.split("."):
            value = value[part]
        values[f"adaptation.{row.name}"] = value
    values["adaptation.mode"] = mode
    if arguments.labelled_frames is not None:
        values["adaptation.labelled_frames"] = str(arguments.labelled_frames)
    return values


def scored_answers(
    frames: Iterable[Frame], recorder: Recorder, *, label_space: LabelSpace, conditions: Conditions
) -> Iterator[ScoredFrame]:
    """The frames that were answered, scored; the light is that of the diagnostics at that time.

    Raises ValueError for an answer with another number of points than its sweep.
    """
    from xmodal_seg.bag_evaluation import MINUTE_NS, FrameScore, ScoredFrame, compare
    from xmodal_seg.messages import decode_cloud_labels

    start_ns: int | None = None
    for number, frame in enumerate(frames):
        start_ns = frame.stamp_ns if start_ns is None else start_ns
        answer = recorder.answers.cloud(frame.stamp_ns)
        if answer is None:
            continue
        labels = decode_cloud_labels(answer).astype(np.uint8)
        if len(labels) != frame.num_points:
            raise ValueError(
                f"sweep at {frame.stamp_ns / 1e9:.3f} s: expected {frame.num_points} labels from the node, "
                f"got {len(labels)}"
            )
        status = _status_at(recorder.statuses, recorder.answered_s[frame.stamp_ns])
        light = _light_of(status)
        served = recorder.served.get(frame.stamp_ns, {})
        score = FrameScore(
            number=number,
            stamp_ns=frame.stamp_ns,
            minute=(frame.stamp_ns - start_ns) // MINUTE_NS,
            condition=conditions.at(frame.stamp_ns) or light.condition,
            light=light,
            bank=served.get("bank", ""),
            model_version=served.get("version", ""),
            confusion=compare(frame, labels, num_classes=label_space.num_classes),
            times_ms={},
        )
        yield ScoredFrame(score=score, frame=frame, labels=labels)


def live_facts(recorder: Recorder, *, num_sweeps: int, rate: float) -> dict[str, Any]:
    """Latency (sweep to answer, as seen from outside), age at publishing (in the time of the bag) and losses."""
    from xmodal_seg.commands.demo_report import stage_times

    latencies_ms = [
        (came_s - recorder.asked_s[stamp_ns]) * 1e3
        for stamp_ns, came_s in recorder.answered_s.items()
        if stamp_ns in recorder.asked_s
    ]
    last = recorder.statuses[-1].values if recorder.statuses else {}
    return {
        "rate": rate,
        "sweeps": num_sweeps,
        "answered": len(recorder.answered_s),
        "lost": num_sweeps - len(recorder.answered_s),
        "counted_by_the_node": {
            name: int(value) for name, value in last.items() if name in _LOST or name.startswith("pairing ")
        },
        "latency_ms": _percentiles(latencies_ms),
        "age_ms": _percentiles(recorder.ages_ms),
        "stage_ms": stage_times(recorder.statuses),
        "adaptation": recorder.adaptation[-1].values if recorder.adaptation else {},
    }


def _until_quiet(
    recorder: Recorder, nodes: Sequence[Child], player: Child, *, mode: str, num_sweeps: int, quiet_s: float
) -> Iterator[None]:
    """Record until the playback has ended and nothing has come for `quiet_s`; yields all the time."""
    from rich.progress import Progress

    with Progress() as progress:
        task = progress.add_task(f"live, mode {mode}", total=num_sweeps)
        while True:
            yield
            recorder.spin_once(0.05)
            progress.update(task, completed=len(recorder.answers))
            check_running(nodes)
            if not playback_has_ended(player):
                ended_s = time.monotonic()
            elif time.monotonic() - max(ended_s, *recorder.answered_s.values(), 0.0) > quiet_s:
                return


def _status_at(statuses: Sequence[Status], time_s: float) -> dict[str, str]:
    """The values of the first status from `time_s` on that says more than 'not active', else of the last one."""
    telling = [status for status in statuses if "model" in status.values]
    if not telling:
        return {}
    return next((status.values for status in telling if status.arrived_s >= time_s), telling[-1].values)


def _light_of(values: dict[str, str]) -> Any:
    from xmodal_seg.bag_evaluation import FrameLight

    if "lambda" not in values:
        return FrameLight()
    return FrameLight(
        guidance=float(values["lambda"]),
        confidence=float(values["lighting confidence"]),
        condition=values["condition"],
    )


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    named = {f"p{share}": float(np.percentile(values, share)) for share in (50, 95, 99)}
    return {name: round(value, 1) for name, value in (named | {"max": max(values)}).items()}
