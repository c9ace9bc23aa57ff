# SPDX-License-Identifier: Apache-2.0
"""Several runs -> one checkpoint with a bank for each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xmodal_seg.checkpoint import Checkpoint, backbone_state, load_checkpoint, save_checkpoint
from xmodal_seg.training.recipe import load_recipe
from xmodal_seg.training.run import RECIPE_FILE, RESULTS_FILE


def merge_runs(runs: Mapping[str, Path], *, which: str, out: Path) -> str:
    """Write the checkpoint `out` with a bank per run, the first one the default, and return its content hash.

    Args:
        runs: bank -> folder of a finished run.
        which: the run's checkpoint, 'last' or 'best' (its bank of the best ensemble).

    Raises ValueError for a folder that is no finished run, and for runs whose classes, networks or frozen image
    backbone differ: a Segmenter changes between banks of one model.
    """
    checkpoints = {bank: _load(run, which) for bank, run in runs.items()}
    first_bank, first = next(iter(checkpoints.items()))
    for other in checkpoints.values():
        for what, mine, theirs in (
            ("classes", first.label_space, other.label_space),
            ("networks", first.settings, other.settings),
            ("foundation model", first.backbone_hash, other.backbone_hash),
        ):
            if mine != theirs:
                raise ValueError(f"{other.path}: its {what} are not those of {first.path}: {theirs} and {mine}")
    model = first.build_model()
    return save_checkpoint(
        out,
        model,
        label_space=first.label_space,
        banks={bank: checkpoint.bank() for bank, checkpoint in checkpoints.items()},
        default_bank=first_bank,
        metadata={
            "trained": True,
            "banks": {bank: _origin(run, which) for bank, run in runs.items()},
            "image_backbone": _about_backbone(first),
        },
        backbone="float16" if backbone_state(model) else "float32",
    )


def _load(run: Path, which: str) -> Checkpoint:
    if not (run / RESULTS_FILE).is_file():
        raise ValueError(f"{run}: expected the folder of a run that was trained and scored ({RESULTS_FILE} is missing)")
    return load_checkpoint(run / which)


def _about_backbone(checkpoint: Checkpoint) -> dict[str, str]:
    """What the program that pre-trained the image backbone says of it, in a file beside its weights; often nothing."""
    weights = checkpoint.settings.image_backbone.weights
    path = Path(weights).with_suffix(".json")
    if weights in ("none", "hub") or not path.is_file():
        return {}
    facts = json.loads(path.read_text(encoding="utf-8"))
    return {name: facts[name] for name in ("what", "what_not") if name in facts}


def _origin(run: Path, which: str) -> dict[str, Any]:
    """What made a bank, and how it scored on its target's test part."""
    recipe = load_recipe(run / RECIPE_FILE)
    results = json.loads((run / RESULTS_FILE).read_text(encoding="utf-8"))
    scores = results["test"]["last" if which == "last" else "best_single"]
    return {
        "shift": recipe.data.shift,
        "method": recipe.name,
        "seed": recipe.seed,
        "steps": recipe.optim.steps,
        "guidance": recipe.losses.guidance,
        "recipe_hash": recipe.result_hash(),
        "checkpoint": which,
        "test_mean_iou": {head: values["miou"] for head, values in scores.items()},  # percent
    }
