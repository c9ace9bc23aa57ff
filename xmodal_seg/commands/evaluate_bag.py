# SPDX-License-Identifier: Apache-2.0
"""Score a model on a bag with ground truth, over the time of the drive: every sweep, in order, the same numbers each
time. Writes the folder OUT: metrics.json, summary.csv, frames.csv, timeline.png, confusion matrices and panels of the
worst frames; run.json says with what it was made and how long it took."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xmodal_seg.commands.bag_arguments import add_bag_arguments, add_checkpoint_argument, add_device_arguments
from xmodal_seg.commands.environment import versions
from xmodal_seg.commands.evaluation_drive import add_truth_arguments, check_classes, look_into

if TYPE_CHECKING:
    from xmodal_seg.commands.evaluation_results import ModeResult
    from xmodal_seg.inference import Segmenter
    from xmodal_seg.labels import LabelSpace

MODES = ("off", "select", "shadow", "on")  # as in evaluation_modes, which takes seconds to import
_MOST_PANELS = 9  # each keeps a frame with its images in memory
_NUMBERS = ("metrics.json", "summary.csv", "frames.csv", "run.json")
_PICTURES = ("timeline.png", "confusion_*.png", "worst_*_[1-9].png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bag", required=True, help="rosbag2 folder, or one .mcap or .db3 file")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the results go")
    add_checkpoint_argument(parser)
    parser.add_argument(
        "--mode",
        action="append",
        choices=MODES,
        help="off: one bank throughout; select: the bank that the estimated light asks for; shadow: also learn, but "
        "serve nothing of it; on: also serve what was learned. Several are shown side by side (default: off)",
    )
    parser.add_argument("--bank", help="the bank that each mode begins with (default: the checkpoint's default)")
    add_device_arguments(parser)
    parser.add_argument("--lighting", metavar="FILE", help="coefficients of calibrate-lighting (default: shipped)")
    parser.add_argument("--adaptation", metavar="FILE", help="YAML of settings of the adapter, for shadow and on")
    parser.add_argument(
        "--labelled-frames",
        metavar="FOLDER",
        help="of `xmodal-seg labelled-frames`, for the gate of shadow and on (default: those inside the checkpoint)",
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="through the running nodes over DDS, with latency, age and losses",
    )
    parser.add_argument(
        "--worst",
        type=int,
        default=3,
        metavar="N",
        help="panels of the N worst frames of each mode, at least 10 s apart (default: %(default)s)",
    )
    parser.add_argument("--rate", type=float, default=1.0, help="of the playback with --live (default: %(default)s)")
    parser.add_argument("--rerun", metavar="FILE.rrd", help="also write a recording for the rerun viewer (extra: viz)")

    add_truth_arguments(parser)
    add_bag_arguments(parser)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="xmodal-seg evaluate-bag", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(arguments: argparse.Namespace) -> int:
    """0 when all is written; ValueError, one sentence, for what is wrong with the arguments, the bag or the labels."""
    from xmodal_seg.commands.evaluate_live import check_arguments
    from xmodal_seg.commands.evaluation_passes import evaluate_live, evaluate_offline, learning_of
    from xmodal_seg.commands.evaluation_plots import write_plots
    from xmodal_seg.commands.evaluation_results import print_table, write_numbers
    from xmodal_seg.commands.report import UNTRAINED
    from xmodal_seg.evaluation_modes import check_mode

    names = list(dict.fromkeys(arguments.mode or ["off"]))
    if not 0 <= arguments.worst <= _MOST_PANELS:
        raise ValueError(f"--worst: expected 0 to {_MOST_PANELS}, got {arguments.worst}")
    if arguments.live:
        check_arguments(arguments)
    drive = look_into(arguments)
    segmenter = _load(arguments)
    print(segmenter.description)
    check_classes(arguments, drive, segmenter.label_space)
    for name in names:
        check_mode(name, banks=segmenter.banks)
    learning = learning_of(arguments, segmenter)
    out = Path(arguments.out)
    _remove_former_results(out)
    results, seconds = [], {}
    with _recording(arguments.rerun, segmenter.label_space) as recording:
        for name in names:
            begin_s = time.monotonic()
            if arguments.live:
                results.append(evaluate_live(arguments, drive, name, segmenter.label_space, recording))
            else:
                results.append(evaluate_offline(arguments, drive, name, segmenter, learning, recording))
                segmenter = _load(arguments)  # a mode may have changed the weights
            seconds[results[-1].name] = round(time.monotonic() - begin_s, 1)
    title, warning = Path(arguments.bag).name, "" if segmenter.trained else UNTRAINED
    about = {
        "bag": title,
        "checkpoint": {
            "version": segmenter.model_version,
            "trained": segmenter.trained,
            "banks": list(segmenter.banks),
            "first_bank": segmenter.bank,
        },
        "label_space": segmenter.label_space.name,
    }
    write_numbers(out, results, segmenter.label_space, about=about)
    pictures = write_plots(out, results, segmenter.label_space, title=title, warning=warning)
    _write_run(out, arguments, results, seconds=seconds)
    if warning:
        print(warning)
    print_table(results, segmenter.label_space)
    for name in (*_NUMBERS, *pictures):
        print(f"  {out / name}")
    return 0


def _remove_former_results(out: Path) -> None:
    """So that an evaluation that fails leaves nothing that could be taken for its result."""
    out.mkdir(parents=True, exist_ok=True)
    for pattern in (*_NUMBERS, *_PICTURES):
        for path in out.glob(pattern):
            path.unlink()


def _load(arguments: argparse.Namespace) -> Segmenter:
    from xmodal_seg.inference import Segmenter

    segmenter = Segmenter.load(arguments.checkpoint, device=arguments.device, precision=arguments.precision)
    if arguments.bank is not None:
        segmenter.use_bank(arguments.bank)
    return segmenter


def _recording(path: str | None, label_space: LabelSpace) -> Any:
    from contextlib import nullcontext

    if path is None:
        return nullcontext()
    from xmodal_seg.commands.rerun_recording import RerunRecording

    return RerunRecording(path, label_space=label_space)


def _write_run(
    out: Path, arguments: argparse.Namespace, results: Sequence[ModeResult], *, seconds: Mapping[str, float]
) -> None:
    """What differs from run to run: times (`seconds`: of the whole pass, learning included), versions, arguments."""
    stage_ms = {
        result.name: {
            stage: round(float(np.median([score.times_ms[stage] for score in result.scores])), 2)
            for stage in result.scores[0].times_ms
        }
        for result in results
    }
    run = {"seconds": seconds, "median_stage_ms": stage_ms, "arguments": vars(arguments), "versions": versions()}
    (out / "run.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
