# SPDX-License-Identifier: Apache-2.0
"""Scores of a drive as numbers: metrics.json, summary.csv with a row per part of the drive, frames.csv per frame."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_seg.bag_evaluation import FrameScore, ScoredFrame, by_condition, by_minute, total, worst_minute
from xmodal_seg.labels import LabelSpace
from xmodal_seg.metrics import ConfusionMatrix

_DIGITS = 3


@dataclass(frozen=True, kw_only=True)
class ModeResult:
    """What came of one mode."""

    name: str
    scores: tuple[FrameScore, ...]
    worst: tuple[ScoredFrame, ...]  # the worst frame first
    facts: dict[str, Any]  # what the mode says about itself

    @property
    def num_scored(self) -> int:
        """Frames with ground truth."""
        return sum(score.num_scored > 0 for score in self.scores)


def metrics_of(result: ModeResult, label_space: LabelSpace) -> dict[str, Any]:
    """Everything about one mode that JSON holds; mIoU, accuracy and IoU in percent, None where nothing was scored."""
    num_classes = label_space.num_classes
    whole = total(result.scores, num_classes=num_classes)
    minutes = [
        {"minute": minute, "condition": prevailing_condition(group), **_part(group, label_space)}
        for minute, group in by_minute(result.scores).items()
    ]
    worst = worst_minute(result.scores, num_classes=num_classes)
    return {
        "overall": _part(result.scores, label_space),
        "conditions": {name: _part(group, label_space) for name, group in by_condition(result.scores).items()},
        "minutes": minutes,
        "worst_minute": next((entry for entry in minutes if entry["minute"] == worst), None),
        "confusion": {
            "rows": list(label_space.class_names),
            "columns": [*label_space.class_names, "nothing"],
            "points": whole.counts.tolist(),
        },
        "weights": [
            {"frame": score.number, "time_s": time_s(score, result.scores), **_weights(score)}
            for score in weight_changes(result.scores)
        ],
        "worst_frames": [
            {"frame": worst.score.number, "miou": rounded(worst.score.confusion.mean_iou())} for worst in result.worst
        ],
        "facts": result.facts,
    }


def weight_changes(scores: Sequence[FrameScore]) -> list[FrameScore]:
    """The first frame, and each one that other weights labelled than the one before it."""
    return [
        score for number, score in enumerate(scores) if number == 0 or _weights(score) != _weights(scores[number - 1])
    ]


def prevailing_condition(scores: Sequence[FrameScore]) -> str:
    """The most frequent condition, `unknown` where there is none."""
    return Counter(score.condition or "unknown" for score in scores).most_common(1)[0][0]


def time_s(score: FrameScore, scores: Sequence[FrameScore]) -> float:
    """Seconds since the first frame, in the time of the bag."""
    return round((score.stamp_ns - scores[0].stamp_ns) / 1e9, _DIGITS)


def rounded(value: float | None) -> float | None:
    """NaN and None become None, which JSON has and which an empty CSV cell stands for."""
    return None if value is None or np.isnan(value) else round(float(value), _DIGITS)


def write_numbers(out: Path, results: Sequence[ModeResult], label_space: LabelSpace, *, about: dict[str, Any]) -> None:
    """metrics.json with `about` besides, summary.csv and frames.csv; the same scores give the same bytes."""
    modes = {result.name: metrics_of(result, label_space) for result in results}
    text = json.dumps({**about, "unit": "percent", "modes": modes}, indent=1)
    (out / "metrics.json").write_text(text + "\n", encoding="utf-8")
    _write_csv(out / "summary.csv", _summary_rows(modes))
    _write_csv(out / "frames.csv", (row for result in results for row in _frame_rows(result, label_space)))


def print_table(results: Sequence[ModeResult], label_space: LabelSpace) -> None:
    """A table of the modes: mIoU over all, by condition and in the worst minute."""
    from rich.console import Console
    from rich.table import Table

    def mean_iou(scores: Sequence[Any]) -> str:
        return f"{total(scores, num_classes=label_space.num_classes).mean_iou():.1f}"

    conditions = list(by_condition(results[0].scores))
    table = Table("mIoU, %", "frames", "all", *conditions, "worst minute")
    for result in results:
        groups = by_condition(result.scores)
        minute = worst_minute(result.scores, num_classes=label_space.num_classes)
        worst = "-" if minute is None else f"{mean_iou(by_minute(result.scores)[minute])} (minute {minute})"
        shares = [mean_iou(groups[name]) if name in groups else "-" for name in conditions]
        table.add_row(result.name, str(result.num_scored), mean_iou(result.scores), *shares, worst)
    Console().print(table)


def _part(scores: Sequence[FrameScore], label_space: LabelSpace) -> dict[str, Any]:
    confusion = total(scores, num_classes=label_space.num_classes)
    return {
        "frames": len(scores),
        "points": int(confusion.counts.sum()),
        "miou": rounded(confusion.mean_iou()),
        "accuracy": rounded(confusion.accuracy()),
        "iou": _iou(confusion, label_space),
    }


def _iou(confusion: ConfusionMatrix, label_space: LabelSpace) -> dict[str, float | None]:
    return {name: rounded(100 * value) for name, value in zip(label_space.class_names, confusion.iou(), strict=True)}


def _weights(score: FrameScore) -> dict[str, str]:
    return {"bank": score.bank, "version": score.model_version}


def _summary_rows(modes: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for mode, metrics in modes.items():
        parts = {"overall": metrics["overall"]}
        parts |= {f"condition {name}": part for name, part in metrics["conditions"].items()}
        parts |= {f"minute {part['minute']}": part for part in metrics["minutes"]}
        if metrics["worst_minute"] is not None:
            parts["worst minute"] = metrics["worst_minute"]
        for name, part in parts.items():
            yield {
                "mode": mode,
                "part": name,
                "frames": part["frames"],
                "points": part["points"],
                "miou": part["miou"],
                "accuracy": part["accuracy"],
                **{f"iou {class_name}": value for class_name, value in part["iou"].items()},
            }


def _frame_rows(result: ModeResult, label_space: LabelSpace) -> Iterator[dict[str, Any]]:
    for score in result.scores:
        yield {
            "mode": result.name,
            "frame": score.number,
            "stamp_ns": score.stamp_ns,
            "time_s": time_s(score, result.scores),
            "minute": score.minute,
            "condition": score.condition,
            "estimated_condition": score.light.condition,
            "guidance": rounded(score.light.guidance),
            "confidence": rounded(score.light.confidence),
            **_weights(score),
            "points": score.num_scored,
            "miou": rounded(score.confusion.mean_iou()),
            **{f"iou {name}": value for name, value in _iou(score.confusion, label_space).items()},
        }


def _write_csv(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    rows_list = list(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows_list[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows_list)
