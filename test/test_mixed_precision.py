# SPDX-License-Identifier: Apache-2.0
"""bf16-mixed, as the size `full` trains: what is computed in 16 bits, and that nothing is kept in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console
from test_module_gate import gate_recipe, rows_of

from xmodal_seg.training.data.tasks import open_domains
from xmodal_seg.training.recipe import Recipe
from xmodal_seg.training.trainer import Trainer, build_fabric, build_model


def trainer_of(recipe: Recipe, precision: str, out: Path) -> Trainer:
    recipe = recipe.model_copy(update={"precision": precision})
    return Trainer(
        recipe=recipe,
        domains=open_domains(recipe),
        model=build_model(recipe),
        out=out,
        fabric=build_fabric(recipe),
        console=Console(quiet=True),
    )


def test_a_gated_run(world: Path, tmp_path: Path) -> None:
    recipe = gate_recipe(world, steps=6)
    exact, mixed = (trainer_of(recipe, precision, tmp_path / precision) for precision in ("32-true", "bf16-mixed"))
    for trainer in (exact, mixed):
        trainer.model.train()
    expected, losses = (
        [trainer.train_step(*trainer.batches(step))["loss"] for step in range(5)] for trainer in (exact, mixed)
    )
    assert losses == pytest.approx(expected, rel=5e-3)
    assert losses != expected  # 8 bits of fraction leave their trace
    wanted, scored = (rows_of(trainer.out) for trainer in (exact, mixed))
    assert [row["step"] for row in scored] == ["4"] * 6
    assert [float(row["score"]) for row in scored] == pytest.approx([float(row["score"]) for row in wanted], rel=0.02)
    kept = [*mixed.model.parameters(), *mixed.model.buffers()]
    kept += [value for state in mixed.optimizer.state.values() for value in state.values()]
    assert {tensor.dtype for tensor in kept if tensor.is_floating_point()} == {torch.float32}
    assert {p.grad.dtype for p in mixed.model.parameters() if p.grad is not None} == {torch.float32}
