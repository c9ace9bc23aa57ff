# SPDX-License-Identifier: Apache-2.0
"""The picture of a run's selections: which modules of the image backbone had information, and which were on."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_DPI = 110
_FRAME: dict[str, Any] = {"aspect": "auto", "origin": "lower", "interpolation": "nearest"}


def selection_figure(path: Path) -> Figure:
    """For each type of module, layers up and scorings to the right: on the left scores, on the right what was on."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    types, steps = list(dict.fromkeys(row["type"] for row in rows)), sorted({int(row["step"]) for row in rows})
    num_layers = 1 + max(int(row["layer"]) for row in rows)
    scores = np.full((len(types), num_layers, len(steps)), np.nan)
    on = np.zeros_like(scores)
    for row in rows:
        place = types.index(row["type"]), int(row["layer"]), steps.index(int(row["step"]))
        scores[place], on[place] = float(row["score"]), int(row["on"])
    figure = Figure(figsize=(12, 1.5 + len(types) * (1.2 + 0.16 * num_layers)), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(types), 2, sharex=True, sharey=True, squeeze=False)
    for of_type, (left, right), score, is_on in zip(types, axes, scores, on, strict=True):
        shares = left.imshow(100 * score, vmin=0, vmax=100 * np.nanmax(scores), cmap="viridis", **_FRAME)
        right.imshow(is_on, vmin=0, vmax=1.3, cmap="Greens", **_FRAME)
        left.set_ylabel(f"{of_type}\nlayer")
        left.set_yticks(range(num_layers))
        right.set_title(f"on in {100 * is_on.mean():.0f} % of layers and scorings", fontsize=9)
        left.set_title("score: percent of its type", fontsize=9)
    shown = np.unique(np.linspace(0, len(steps) - 1, 8).round().astype(int))
    for lowest in axes[-1]:
        lowest.set_xticks(shown, [str(steps[i]) for i in shown])
        lowest.set_xlabel("step of the scoring")
    figure.colorbar(shares, ax=axes[:, 0], shrink=0.8, label="%")
    figure.suptitle(f"modules of the image backbone: {int(on[..., -1].sum())} of {on[..., -1].size} on")
    return figure
