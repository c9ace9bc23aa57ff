# SPDX-License-Identifier: Apache-2.0
"""What tuning inside the image backbone costs: `python test/benchmark/run.py --only tuning`.

`sim_dev` in the size `small`, one thread, random weights in the image network: numbers that are trained (`on`: at a
time), the median of a step on both domains, a scoring of the gate (ms as in bench_training), and the tensors that
the forward pass of the source half keeps for backward, MB. On a GPU `peak` is the most memory that a step allocated.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from bench_training import now_s, recipe_of
from rich.console import Console

from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.models.tuning.tuned_vit import TunedViT
from xmodal_seg.training.run import make_trainer, set_up
from xmodal_seg.training.steps import source_step
from xmodal_seg.training.trainer import Trainer

WARM_UP = 2
NO_SCORING = "model.image_backbone.tuning.warmup=100000"
VARIANTS: dict[str, tuple[str, ...]] = {
    "ours, cached features": ("ours", "feature_cache=true"),
    "ours, features on the fly": ("ours", "feature_cache=false"),
    "LoRA": ("ours_lora",),
    "all modules": ("ours_all_modules",),
    "all modules, checkpointing": ("ours_all_modules", "model.image_backbone.tuning.checkpointing=true"),
    "gate": ("ours_gate", NO_SCORING),
    "gate, unselected bypassed": ("ours_gate", NO_SCORING, "model.image_backbone.tuning.unselected=bypassed"),
}


def run(*, repeats: int = 8) -> list[dict[str, Any]]:
    """One row per variant; ratios are to the second, which computes the same features without tuning."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, (method, *overrides) in VARIANTS.items():
            recipe = recipe_of(method, Path(temporary) / "data", overrides)
            trainer = make_trainer(set_up(recipe), Path(temporary) / str(len(rows)), console=Console(quiet=True))
            rows.append({"": name, **measure(trainer, repeats=repeats)})
    for row in rows:
        row["step / on the fly"] = row["step"] / rows[1]["step"]
    return rows


def measure(trainer: Trainer, *, repeats: int) -> dict[str, float]:
    model = trainer.model.train()
    trained = model.num_trainable()
    scoring_ms = 0.0
    if trainer._gate is not None:
        leave_the_identity(model)
        start_s = now_s()
        trainer._gate.before_step(trainer.recipe.model.image_backbone.tuning.warmup)
        scoring_ms = (now_s() - start_s) * 1e3
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats + WARM_UP):
        batches = trainer.batches(trainer.step)
        start_s = now_s()
        trainer.train_step(*batches)
        times.append((now_s() - start_s) * 1e3)
    row = {
        "trained": float(trained),
        "on": float(model.num_trainable()),
        "step": statistics.median(times[WARM_UP:]),
        "scoring": scoring_ms,
        "kept MB": kept_bytes(trainer) / 1e6,
    }
    if torch.cuda.is_available():
        row["peak MB"] = torch.cuda.max_memory_allocated() / 1e6
    return row


def leave_the_identity(model: SegmentationModel) -> None:
    """Give modules that begin as the identity some effect, or the first layers have no information and none is on."""
    generator = torch.Generator().manual_seed(0)
    assert isinstance(model.image_backbone, TunedViT)
    for module in model.image_backbone.modules_by_key().values():
        for weight in module.parameters():
            if not weight.any():
                weight.data.normal_(std=0.02, generator=generator)


def kept_bytes(trainer: Trainer) -> int:
    """Memory of all tensors that the graph of the source half holds, each storage once, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
    storages: dict[int, int] = {}
    alive = []  # or a freed one's address could be taken by another

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    source, _ = trainer.batches(trainer.step)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        source_step(trainer.model, source.to(trainer.fabric.device), losses=trainer.recipe.losses)
    return sum(storages.values())


if __name__ == "__main__":
    for line in run():
        print(line)
