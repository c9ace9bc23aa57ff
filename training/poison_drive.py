# SPDX-License-Identifier: Apache-2.0
"""Faults in mid-drive: what serves after them, against what was shipped.

    python training/poison_drive.py --bag DRIVE --out FOLDER --adaptation training/recipes/adaptation/drive.yaml

The drive is made once with the shipped weights (mode select), once with adaptation and no fault, and once with each
fault: sensors that fail for a while, and weights of the learner that become NaN. After the fault all frames are good
again; their mIoU is compared with that of the shipped weights, minute by minute. Prints a table and writes
FOLDER/poison.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from xmodal_seg.adaptation.adapter import OnlineAdapter
from xmodal_seg.adaptation.labelled_frames import gate_frames
from xmodal_seg.adaptation.settings import AdaptationSettings
from xmodal_seg.bag_evaluation import MINUTE_NS, Mode, compare
from xmodal_seg.bag_files import open_bag
from xmodal_seg.commands.bag_arguments import add_bag_arguments, add_device_arguments
from xmodal_seg.commands.evaluation_drive import Drive, add_truth_arguments, check_classes, frames_with_truth, look_into
from xmodal_seg.config import load_settings
from xmodal_seg.evaluation_modes import Adapting, LightOfFrames, ModeName, make_mode
from xmodal_seg.faults import FAULTS
from xmodal_seg.inference import Segmenter
from xmodal_seg.lighting import LightingEstimator
from xmodal_seg.lighting_model import load_coefficients
from xmodal_seg.lighting_state import BankSettings
from xmodal_seg.metrics import ConfusionMatrix
from xmodal_seg.structures import Frame
from xmodal_seg.training.programs import run_program

NAN_WEIGHTS = "NaN weights"
SHIPPED, NO_FAULT = "shipped", "no fault"
NS = 10**9


@dataclass(kw_only=True)
class Outcome:
    """One drive, with a fault or without."""

    minutes: dict[int, ConfusionMatrix] = field(default_factory=dict)  # since the end of the fault
    noticed: dict[str, int] = field(default_factory=dict)  # event -> how often, while it lasted
    steps: int = 0  # while the fault lasted
    publications: int = 0  # likewise
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, minute: int, confusion: ConfusionMatrix) -> None:
        """A frame of that minute."""
        sums = self.minutes.setdefault(minute, ConfusionMatrix(num_classes=confusion.num_classes))
        sums.counts += confusion.counts

    def overall(self) -> float:
        """mIoU of all frames after the fault, percent."""
        matrices = list(self.minutes.values())
        whole = ConfusionMatrix(num_classes=matrices[0].num_classes)
        for matrix in matrices:
            whole.counts += matrix.counts
        return whole.mean_iou()

    def least_gain(self, shipped: Outcome) -> float:
        """The worst minute's mIoU minus that of the shipped weights in the same minute."""
        return min(matrix.mean_iou() - shipped.minutes[minute].mean_iou() for minute, matrix in self.minutes.items())


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    try:
        outcomes = drive_all(arguments)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(table(outcomes)))
    return 0


def drive_all(arguments: argparse.Namespace) -> dict[str, Outcome]:
    """The drive with the shipped weights, without a fault and with each; ValueError for what is wrong or missing."""
    drive = look_into(arguments)
    check_length(arguments)
    outcomes: dict[str, Outcome] = {}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in (SHIPPED, NO_FAULT, *arguments.faults):
        outcomes[name] = drive_once(arguments, drive, name)
        write(outcomes, arguments.out / "poison.json")
    return outcomes


def check_length(arguments: argparse.Namespace) -> None:
    """Raises ValueError for a drive that ends before the fault does."""
    with open_bag(arguments.bag) as bag:
        seconds = (bag.end_ns - bag.start_ns) / NS
    end_s = arguments.start_s + arguments.duration_s
    if seconds <= end_s:
        raise ValueError(f"{arguments.bag}: expected more than {end_s:g} s, the fault's end, it lasts {seconds:.0f} s")


def drive_once(arguments: argparse.Namespace, drive: Drive, name: str) -> Outcome:
    """The whole drive with the shipped weights, without a fault, or with the named one."""
    segmenter = Segmenter.load(arguments.checkpoint, device=arguments.device, precision=arguments.precision)
    check_classes(arguments, drive, segmenter.label_space)
    mode = mode_of(arguments, segmenter, "select" if name == SHIPPED else "on")
    watch = Watch(mode.adapter if isinstance(mode, Adapting) else None)
    fault, outcome = FAULTS[name]() if name in FAULTS else None, Outcome()
    light_of = LightOfFrames(estimator=LightingEstimator(coefficients=load_coefficients(None)))
    frames = phases(arguments, frames_with_truth(arguments, drive, segmenter.label_space))
    for phase, minute, frame in track(frames, total=drive.num_sweeps, description=name, console=Console(stderr=True)):
        if watch.enter(phase) and phase == "fault" and name == NAN_WEIGHTS:
            spoil_weights(watch.adapter)
        seen = fault(frame) if fault is not None and phase == "fault" else frame
        if seen is None:
            continue
        light = light_of(seen)
        seen = mode.choose(seen, light)
        said = segmenter.predict(seen, keep=mode.keeps)
        mode.observe(seen, said, light)
        if phase == "after":
            outcome.add(minute, compare(frame, said.labels, num_classes=segmenter.label_space.num_classes))
    if not outcome.minutes:
        raise ValueError(f"{arguments.bag}: expected frames after the fault, but the drive ends before it does")
    outcome.noticed, outcome.steps, outcome.publications = watch.noticed(), watch.steps, watch.publications
    outcome.facts = mode.facts()
    return outcome


def mode_of(arguments: argparse.Namespace, segmenter: Segmenter, name: ModeName) -> Mode:
    """The mode with the settings asked for and the labelled frames of the checkpoint."""
    labelled = gate_frames(None, checkpoint=segmenter.folder, label_space=segmenter.label_space.name)
    adaptation = load_settings(AdaptationSettings, arguments.adaptation)
    return make_mode(name, segmenter=segmenter, bank=BankSettings(), adaptation=adaptation, labelled=labelled)


class Watch:
    """What the adapter, if there is one, did and noticed while the fault lasted."""

    def __init__(self, adapter: OnlineAdapter | None) -> None:
        self.adapter = adapter
        self.steps = self.publications = 0
        self._phase = ""
        self._first_frame = self._last_frame = 0

    def enter(self, phase: str) -> bool:
        """Whether the phase is a new one."""
        if phase == self._phase:
            return False
        self._phase = phase
        if self.adapter is not None and phase in ("fault", "after"):
            status, sign = self.adapter.status(), -1 if phase == "fault" else 1
            self.steps += sign * status.steps
            self.publications += sign * status.publications
            if phase == "fault":
                self._first_frame = status.frames + 1
            else:
                self._last_frame = status.frames + 1
        return True

    def noticed(self) -> dict[str, int]:
        """Events from the first spoiled frame to the first good one after them; a pause is named by its reason."""
        events = () if self.adapter is None else self.adapter.events.newest
        texts = [
            event.text if event.kind == "paused" else event.kind
            for event in events
            if self._first_frame <= event.frame <= self._last_frame and event.kind not in ("resumed", "published")
        ]
        return dict(Counter(texts))


def phases(arguments: argparse.Namespace, frames: Iterator[Frame]) -> Iterator[tuple[str, int, Frame]]:
    """Each frame with its phase (before, fault, after) and the minute since the fault's end, by the true stamps."""
    start_ns = None
    for frame in frames:
        start_ns = frame.stamp_ns if start_ns is None else start_ns
        since_ns = frame.stamp_ns - start_ns
        end_ns = round((arguments.start_s + arguments.duration_s) * NS)
        if since_ns < arguments.start_s * NS:
            yield "before", -1, frame
        elif since_ns < end_ns:
            yield "fault", -1, frame
        else:
            yield "after", (since_ns - end_ns) // MINUTE_NS, frame


def spoil_weights(adapter: OnlineAdapter | None) -> None:
    """Every weight of every learner, and its average, becomes NaN; no input could do that, so this reaches inside."""
    assert adapter is not None
    for learner in adapter._turns.learners.values():
        learner.restart({name: torch.full_like(tensor, float("nan")) for name, tensor in learner.reference.items()})


def table(outcomes: dict[str, Outcome]) -> list[str]:
    """A row per fault."""
    shipped = outcomes[SHIPPED]
    head = ("fault", "noticed as (times)", "steps during", "publications", "after: all against shipped", "worst minute")
    lines = [_row(*head), _row(*["---"] * len(head))]
    for name, outcome in outcomes.items():
        if name != SHIPPED:
            noticed = ", ".join(f"{text} ({count})" for text, count in outcome.noticed.items()) or "-"
            gain = f"{outcome.overall() - shipped.overall():+.2f}"
            cells = (noticed, outcome.steps, outcome.publications, gain, f"{outcome.least_gain(shipped):+.2f}")
            lines.append(_row(name, *cells))
    return lines


def write(outcomes: dict[str, Outcome], path: Path) -> None:
    report = {
        name: {
            "minutes": {minute: round(matrix.mean_iou(), 3) for minute, matrix in outcome.minutes.items()},
            "noticed": outcome.noticed,
            "steps": outcome.steps,
            "publications": outcome.publications,
            "facts": outcome.facts,
        }
        for name, outcome in outcomes.items()
    }
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bag", required=True, help="rosbag2 folder, or one .mcap or .db3 file, with ground truth")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="where poison.json goes")
    parser.add_argument("--adaptation", required=True, metavar="FILE", help="YAML of settings of the adapter")
    parser.add_argument("--checkpoint", help="folder, or the name of a shipped one (default: nuscenes)")
    add_device_arguments(parser)
    parser.add_argument("--start-s", type=float, default=120.0, help="begin of the fault (default: %(default)s)")
    parser.add_argument("--duration-s", type=float, default=60.0, help="of the fault (default: %(default)s)")
    parser.add_argument(
        "--faults", nargs="+", default=[*FAULTS, NAN_WEIGHTS], choices=[*FAULTS, NAN_WEIGHTS], help="default: all"
    )
    add_truth_arguments(parser)
    add_bag_arguments(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(run_program(main))
