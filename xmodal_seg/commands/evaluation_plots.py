# SPDX-License-Identifier: Apache-2.0
"""Scores of a drive as pictures: a timeline of all modes, a confusion matrix of each, panels of its worst frames."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from xmodal_seg.bag_evaluation import FrameScore, by_minute, total
from xmodal_seg.commands.evaluation_results import ModeResult, time_s, weight_changes
from xmodal_seg.labels import LabelSpace
from xmodal_seg.visualize import summary_panel, write_png

_CONDITION_COLOURS = {"day": "#fff2c4", "twilight": "#e3cfe8", "night": "#b9c4dd"}
_UNKNOWN_COLOUR = "#eeeeee"
_MODE_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#555555")
_DPI = 110


def write_plots(
    out: Path, results: Sequence[ModeResult], label_space: LabelSpace, *, title: str, warning: str = ""
) -> list[str]:
    """Write timeline.png, `confusion_<mode>.png` and `worst_<mode>_<rank>.png`; their names."""
    names = ["timeline.png"]
    _save(out / names[0], timeline(results, label_space, title=title, warning=warning))
    for result in results:
        names.append(f"confusion_{result.name}.png")
        _save(out / names[-1], confusion_figure(result, label_space, title=title))
        for rank, worst in enumerate(result.worst, start=1):
            names.append(f"worst_{result.name}_{rank}.png")
            write_png(
                out / names[-1],
                summary_panel(
                    worst.frame,
                    worst.labels,
                    label_space,
                    title=f"{title}   {result.name}: {_describe(worst.score, result)}",
                    warning=warning,
                ),
            )
    return names


def timeline(results: Sequence[ModeResult], label_space: LabelSpace, *, title: str, warning: str = "") -> Figure:
    """mIoU, guidance and weights of every mode over the time of the bag, on the colours of the conditions.

    mIoU: dots are frames, lines are minutes, whose points count together.
    """
    figure = Figure(figsize=(14, 8.5), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    upper, middle, lower = figure.subplots(3, 1, sharex=True, height_ratios=[5, 1.6, 0.5 + 0.45 * len(results)])
    scores = results[0].scores
    unit_s, unit = (60.0, "min") if time_s(scores[-1], scores) > 180 else (1.0, "s")
    for axes in (upper, middle, lower):
        conditions = _shade_conditions(axes, scores, unit_s)
    for place, (result, colour) in enumerate(zip(results, _colours(len(results)), strict=True)):
        width = 1.6 + 2.2 * (len(results) - 1 - place)  # thinner ones on top: equal curves are all seen
        _draw_miou(upper, result, label_space, colour=colour, width=width, unit_s=unit_s)
    _draw_guidance(middle, results, unit_s)
    _draw_weights(lower, results, unit_s)
    upper.set_ylabel("mIoU, %")
    upper.set_ylim(0, 100)
    upper.grid(alpha=0.3)
    # Above the axes: every height of the curves is possible.
    above = {"borderaxespad": 0.2, "frameon": False}
    first = upper.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(results), **above)
    upper.legend(handles=conditions, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(conditions), **above)
    upper.add_artist(first)
    lower.set_xlabel(f"time of the bag, {unit}")
    figure.suptitle(f"{title}{'   ' + warning if warning else ''}", color="crimson" if warning else "black")
    return figure


def confusion_figure(result: ModeResult, label_space: LabelSpace, *, title: str) -> Figure:
    """Share of each true class's points that every class was said of, percent."""
    confusion = total(result.scores, num_classes=label_space.num_classes)
    counts = confusion.counts.numpy().astype(np.float64)
    sums = counts.sum(axis=1, keepdims=True)
    share = np.divide(100 * counts, sums, out=np.full_like(counts, np.nan), where=sums > 0)
    num_classes = label_space.num_classes
    figure = Figure(figsize=(3.2 + 0.75 * num_classes, 2.6 + 0.6 * num_classes), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for row, column in np.ndindex(share.shape):
        value = share[row, column]
        text = "" if np.isnan(value) else f"{value:.1f}" if value < 9.95 else f"{value:.0f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if value > 60 else "black")
    iou = confusion.iou()
    axes.set_xticks(range(num_classes + 1), [*label_space.class_names, "nothing"], rotation=40, ha="right")
    axes.set_yticks(
        range(num_classes),
        [
            f"{name}\nIoU {'-' if np.isnan(value) else f'{100 * value:.1f}'}"
            for name, value in zip(label_space.class_names, iou, strict=True)
        ],
    )
    axes.set_xlabel("labelled as")
    axes.set_ylabel("true class")
    axes.set_title(
        f"{title}\n{result.name}: mIoU {confusion.mean_iou():.1f} %; share of a true class's points, %", fontsize=11
    )
    return figure


def _shade_conditions(axes: Any, scores: Sequence[FrameScore], unit_s: float) -> list[Patch]:
    """Coloured stretches behind the curves; one legend entry for each condition."""
    stretches = [
        (condition, list(group)) for condition, group in groupby(scores, key=lambda score: score.condition or "unknown")
    ]
    starts = [time_s(group[0], scores) / unit_s for _, group in stretches]
    ends = [*starts[1:], time_s(scores[-1], scores) / unit_s]
    for (condition, _), start, end in zip(stretches, starts, ends, strict=True):
        axes.axvspan(start, end, color=_CONDITION_COLOURS.get(condition, _UNKNOWN_COLOUR), zorder=0, linewidth=0)
    names = dict.fromkeys(condition for condition, _ in stretches)
    return [Patch(color=_CONDITION_COLOURS.get(name, _UNKNOWN_COLOUR), label=name) for name in names]


def _draw_miou(
    axes: Any, result: ModeResult, label_space: LabelSpace, *, colour: str, width: float, unit_s: float
) -> None:
    times = [time_s(score, result.scores) / unit_s for score in result.scores]
    frames = [score.confusion.mean_iou() for score in result.scores]
    axes.plot(times, frames, ".", color=colour, markersize=2 + width, alpha=0.45)
    minutes = by_minute(result.scores)
    means = [total(group, num_classes=label_space.num_classes).mean_iou() for group in minutes.values()]
    last = times[-1]
    starts = [minute * 60 / unit_s for minute in minutes]
    ends = [min((minute + 1) * 60 / unit_s, last) for minute in minutes]
    x = np.column_stack([starts, ends, np.full(len(starts), np.nan)]).ravel()
    y = np.column_stack([means, means, np.full(len(means), np.nan)]).ravel()
    whole = total(result.scores, num_classes=label_space.num_classes).mean_iou()
    axes.plot(x, y, color=colour, linewidth=width, label=f"{result.name}: {whole:.1f} % in all")


def _draw_guidance(axes: Any, results: Sequence[ModeResult], unit_s: float) -> None:
    """Of the first mode that has an estimate: offline it is the same for all."""
    estimated = [result for result in results if any(score.light.confidence is not None for score in result.scores)]
    scores = (estimated or results)[0].scores
    times = [time_s(score, scores) / unit_s for score in scores]
    for name, style in (("guidance", "-"), ("confidence", ":")):
        values = [getattr(score.light, name) for score in scores]
        if any(value is not None for value in values):
            shown = [np.nan if value is None else value for value in values]
            label = "guidance (lambda)" if name == "guidance" else "its confidence"
            axes.plot(times, shown, style, color="black", linewidth=1.4, label=label)
    if axes.lines:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=9, borderaxespad=0.1, frameon=False)
    else:
        axes.text(0.5, 0.5, "no lighting estimate", transform=axes.transAxes, ha="center", va="center")
    axes.set_ylim(-0.05, 1.05)
    axes.set_ylabel("lambda")


def _draw_weights(axes: Any, results: Sequence[ModeResult], unit_s: float) -> None:
    """A bar per mode, cut where other weights took over, with the bank's name in it."""
    for row, (result, colour) in enumerate(zip(results, _colours(len(results)), strict=True)):
        changes = weight_changes(result.scores)
        starts = [time_s(score, result.scores) / unit_s for score in changes]
        ends = [*starts[1:], time_s(result.scores[-1], result.scores) / unit_s]
        axes.barh([row] * len(starts), np.subtract(ends, starts), left=starts, height=0.6, color="white", alpha=0.7)
        axes.plot(starts, [row] * len(starts), "|", color=colour, markersize=16, markeredgewidth=1.6)
        for bank, stretch in groupby(zip(changes, starts, strict=True), key=lambda change: change[0].bank):
            axes.annotate(bank, (next(stretch)[1], row), xytext=(5, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(results)), [result.name for result in results])
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_ylabel("weights")


def _describe(score: FrameScore, result: ModeResult) -> str:
    return (
        f"frame {score.number}, {time_s(score, result.scores):.1f} s, {score.condition or 'condition unknown'}, "
        f"bank {score.bank}, mIoU {score.confusion.mean_iou():.1f} %"
    )


def _colours(number: int) -> list[str]:
    return [_MODE_COLOURS[index % len(_MODE_COLOURS)] for index in range(number)]


def _save(path: Path, figure: Figure) -> None:
    figure.canvas.print_png(str(path))  # type: ignore[attr-defined]
