# SPDX-License-Identifier: Apache-2.0
"""One pass over a bag for each mode: offline, or through the running nodes."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xmodal_seg.commands.evaluation_drive import frames_with_truth

if TYPE_CHECKING:
    from xmodal_seg.adaptation.settings import AdaptationSettings
    from xmodal_seg.bag_evaluation import FrameScore, ScoredFrame
    from xmodal_seg.commands.evaluation_drive import Drive
    from xmodal_seg.commands.evaluation_results import ModeResult
    from xmodal_seg.commands.rerun_recording import RerunRecording
    from xmodal_seg.evaluation_modes import ModeName
    from xmodal_seg.inference import Segmenter
    from xmodal_seg.labels import LabelSpace
    from xmodal_seg.lighting_model import LightingCoefficients
    from xmodal_seg.structures import Frame


@dataclass(frozen=True, kw_only=True)
class Learning:
    """What the files say by which modes follow the light and learn."""

    coefficients: LightingCoefficients
    adaptation: AdaptationSettings
    labelled: Sequence[Frame]


def learning_of(arguments: argparse.Namespace, segmenter: Segmenter) -> Learning:
    """Read before the first pass; ValueError for what is wrong with --lighting, --adaptation or --labelled-frames."""
    from xmodal_seg.adaptation.labelled_frames import gate_frames
    from xmodal_seg.adaptation.settings import AdaptationSettings
    from xmodal_seg.config import load_settings
    from xmodal_seg.lighting_model import load_coefficients

    file = arguments.adaptation
    return Learning(
        coefficients=load_coefficients(arguments.lighting),
        adaptation=load_settings(AdaptationSettings, file) if file else AdaptationSettings(),
        labelled=gate_frames(
            arguments.labelled_frames, checkpoint=segmenter.folder, label_space=segmenter.label_space.name
        ),
    )


def evaluate_offline(
    arguments: argparse.Namespace,
    drive: Drive,
    name: ModeName,
    segmenter: Segmenter,
    learning: Learning,
    recording: RerunRecording | None,
) -> ModeResult:
    """The whole bag in one mode."""
    from rich.progress import track

    from xmodal_seg.bag_evaluation import evaluate
    from xmodal_seg.commands.evaluation_results import ModeResult
    from xmodal_seg.evaluation_modes import LightOfFrames, make_mode
    from xmodal_seg.lighting import LightingEstimator
    from xmodal_seg.lighting_state import BankSettings

    mode = make_mode(
        name,
        segmenter=segmenter,
        bank=BankSettings(),
        adaptation=learning.adaptation,
        labelled=learning.labelled,
    )
    estimator = LightingEstimator(coefficients=learning.coefficients)
    scored_frames = evaluate(
        frames_with_truth(arguments, drive, segmenter.label_space),
        segmenter=segmenter,
        mode=mode,
        light_of=LightOfFrames(estimator=estimator),
        condition_at=drive.conditions.at,
    )
    tracked = track(scored_frames, description=f"mode {name}", total=drive.num_sweeps)
    scores, worst = _collect(tracked, name, recording, num_worst=arguments.worst)
    facts = mode.facts()
    print(f"mode {name}: {what_happened(scores, facts)}")
    return _checked(ModeResult(name=name, scores=scores, worst=worst, facts=facts), arguments)


def what_happened(scores: Sequence[FrameScore], facts: Mapping[str, Any]) -> str:
    """How often the bank changed and, where the mode learned, how far it came and what held it up at the end."""
    changes = sum(one.bank != following.bank for one, following in pairwise(scores))
    parts = [f"bank changes: {changes}"]
    if status := facts.get("status"):
        parts += [f"{name}: {status[name]}" for name in ("steps", "publications", "strikes")]
        if status["paused"]:
            parts += [f"paused at the end: {' and '.join(status['paused'])}"]
    return ", ".join(parts)


def evaluate_live(
    arguments: argparse.Namespace, drive: Drive, name: str, label_space: LabelSpace, recording: RerunRecording | None
) -> ModeResult:
    """The bag through the nodes, at its own speed."""
    from xmodal_seg.commands.evaluate_live import live_facts, play, scored_answers
    from xmodal_seg.commands.evaluation_results import ModeResult

    recorder = play(arguments, name, Path(arguments.out))
    facts = live_facts(recorder, num_sweeps=drive.num_sweeps, rate=arguments.rate)
    if not facts["answered"]:
        raise ValueError(f"--live: no sweep came back labelled; the nodes' logs are in {arguments.out}/live_{name}")
    print(f"{name}: {facts['answered']} of {facts['sweeps']} sweeps answered, {_latency(facts['latency_ms'])}")
    frames = frames_with_truth(arguments, drive, label_space)
    scored = scored_answers(frames, recorder, label_space=label_space, conditions=drive.conditions)
    scores, worst = _collect(scored, name, recording, num_worst=arguments.worst)
    return _checked(ModeResult(name=f"live_{name}", scores=scores, worst=worst, facts=facts), arguments)


def _latency(latency_ms: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in latency_ms.items()) + " ms from sweep to answer"


def _collect(
    scored_frames: Iterable[ScoredFrame], name: str, recording: RerunRecording | None, *, num_worst: int
) -> tuple[tuple[FrameScore, ...], tuple[ScoredFrame, ...]]:
    """All scores and the worst frames."""
    from xmodal_seg.bag_evaluation import WorstFrames

    scores, worst = [], WorstFrames(number=num_worst)
    for scored in scored_frames:
        scores.append(scored.score)
        worst.add(scored)
        if recording is not None:
            recording.add(name, scored)
    return tuple(scores), worst.frames


def _checked(result: ModeResult, arguments: argparse.Namespace) -> ModeResult:
    if not result.num_scored:
        raise ValueError(f"{arguments.bag}: {result.name}: no labelled point has ground truth of the model's classes")
    return result
