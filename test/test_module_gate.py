# SPDX-License-Identifier: Apache-2.0
"""Selection of modules within a run: when, how many, what stays as it is, and going on after a kill."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from lightning_fabric import Fabric
from rich.console import Console
from tiny_world import tiny_recipe, tiny_vfm

from xmodal_seg.checkpoint import backbone_state, bank_state, load_checkpoint
from xmodal_seg.models.tuning.selection import ModuleKey
from xmodal_seg.models.tuning.tuned_vit import TunedViT
from xmodal_seg.training.data.tasks import open_domains
from xmodal_seg.training.optim import sizes_line
from xmodal_seg.training.recipe import Recipe, save_recipe
from xmodal_seg.training.run import train
from xmodal_seg.training.selection_log import MAP_FILE, PICTURE_FILE, SelectionLog
from xmodal_seg.training.trainer import Trainer, build_model

HERE = Path(__file__).parent
QUIET = Console(quiet=True)
SCORINGS = [4, 7, 10]  # of 12 steps
TUNING = {
    "kind": "gate",
    "rank": 2,
    "adapter_width": 3,
    "frequency_width": 2,
    "top_k": 2,
    "warmup": 4,
    "every": 3,
    "samples": 3,
    "max_swaps": 1,
}


def gate_recipe(world: Path, *, steps: int = 12, **tuning: Any) -> Recipe:
    vfm = tiny_vfm()
    backbone = {**vfm, "model_args": {**vfm["model_args"], "depth": 2}, "tuning": {**TUNING, **tuning}}
    return tiny_recipe(
        world,
        model={"image_backbone": backbone},
        optim={"steps": steps, "lr": {"tuning": 0.02}},
        evaluation={"every": 6, "checkpoint_every": 3},
        losses={"guidance": 0.5},
    )


def make_trainer(recipe: Recipe, out: Path, fabric: Fabric | None = None) -> Trainer:
    return Trainer(
        recipe=recipe,
        domains=open_domains(recipe),
        model=build_model(recipe),
        out=out,
        fabric=fabric or Fabric(accelerator="cpu", devices=1),
        console=QUIET,
    )


def run_to(trainer: Trainer, step: int) -> None:
    trainer.model.train()
    while trainer.step < step:
        trainer.train_step(*trainer.batches(trainer.step))


def backbone_of(trainer: Trainer) -> TunedViT:
    backbone = trainer.model.image_backbone
    assert isinstance(backbone, TunedViT)
    return backbone


def values_of(trainer: Trainer) -> dict[Any, list[torch.Tensor]]:
    """The parameters of every module, copied."""
    return {
        key: [p.detach().clone() for p in module.parameters()]
        for key, module in backbone_of(trainer).modules_by_key().items()
    }


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / MAP_FILE).open() as file:
        return list(csv.DictReader(file))


def changed(before: dict[Any, list[torch.Tensor]], after: dict[Any, list[torch.Tensor]]) -> set[Any]:
    return {key for key in before if any(not torch.equal(a, b) for a, b in zip(before[key], after[key], strict=True))}


def assert_same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_all_modules_until_the_first_scoring_and_exactly_k_from_then_on(world: Path, tmp_path: Path) -> None:
    trainer = make_trainer(gate_recipe(world), tmp_path)
    backbone = backbone_of(trainer)
    former = backbone.selection()
    assert len(former) == 6
    for step in range(12):
        run_to(trainer, step + 1)
        selection = backbone.selection()
        on = {k for k, module in backbone.modules_by_key().items() if all(p.requires_grad for p in module.parameters())}
        assert on == selection
        assert len(selection) == (6 if step < 4 else 2)
        if step not in SCORINGS:
            assert selection == former
        former = selection
    rows = rows_of(tmp_path)
    assert [int(row["step"]) for row in rows] == [step for step in SCORINGS for _ in range(6)]
    for step in SCORINGS:
        sums: dict[str, float] = defaultdict(float)
        for row in rows:
            sums[row["type"]] += float(row["score"]) * (int(row["step"]) == step)
        assert sums == pytest.approx({"spatial": 1, "semantic": 1, "frequency": 1}, abs=1e-5)
        assert sum(int(row["on"]) for row in rows if int(row["step"]) == step) == 2
    last = {(int(row["layer"]), row["type"]) for row in rows if row["step"] == "10" and row["on"] == "1"}
    assert last == backbone.selection()


@pytest.mark.parametrize("unselected", ["frozen", "bypassed"])
def test_what_is_off_and_the_network_stay_bit_identical_through_a_round(
    world: Path, tmp_path: Path, unselected: str
) -> None:
    trainer = make_trainer(gate_recipe(world, unselected=unselected), tmp_path)
    network = {name: tensor.clone() for name, tensor in backbone_state(trainer.model).items()}
    run_to(trainer, 4)
    before = values_of(trainer)
    run_to(trainer, 7)
    on = backbone_of(trainer).selection()
    assert changed(before, values_of(trainer)) == on
    assert_same_tensors(network, backbone_state(trainer.model))


def test_a_module_that_comes_back_finds_its_averages_in_the_optimiser(world: Path, tmp_path: Path) -> None:
    trainer = make_trainer(gate_recipe(world, every=100), tmp_path)
    backbone = backbone_of(trainer)
    run_to(trainer, 5)
    off = min(set(backbone.modules_by_key()) - backbone.selection())
    parameter = next(backbone.modules_by_key()[off].parameters())
    state = {name: value.clone() for name, value in trainer.optimizer.state[parameter].items()}
    run_to(trainer, 7)
    assert_same_tensors(state, trainer.optimizer.state[parameter])
    assert state["step"] == 4
    backbone.select([off])
    run_to(trainer, 8)
    assert trainer.optimizer.state[parameter]["step"] == 5


def test_a_scoring_leaves_no_trace_but_the_selection(world: Path, tmp_path: Path) -> None:
    trainer = make_trainer(gate_recipe(world), tmp_path)
    run_to(trainer, 4)
    gate, model = trainer._gate, trainer.model
    assert gate is not None
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    generator = torch.get_rng_state()

    gate.before_step(4)

    selected = before.pop("image_backbone.selected")
    after = dict(model.state_dict())
    assert not torch.equal(after.pop("image_backbone.selected"), selected)
    assert_same_tensors(before, after)
    assert_same_tensors(gradients, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert torch.equal(torch.get_rng_state(), generator)
    assert model.training


@pytest.mark.parametrize("unselected", ["frozen", "bypassed"])
def test_resumed_before_a_scoring_that_was_made_is_bit_equal(world: Path, tmp_path: Path, unselected: str) -> None:
    recipe = gate_recipe(world, unselected=unselected, scored_on="target_sampled_labels")
    train(recipe, tmp_path / "whole", console=QUIET)
    abandoned = make_trainer(recipe, tmp_path / "resumed")
    run_to(abandoned, 6)
    abandoned.save()
    run_to(abandoned, 9)  # beyond the scoring at 7, which is not in the file
    trainer = make_trainer(recipe, tmp_path / "resumed")
    assert trainer.step == 6
    trainer.fit()
    assert len({tuple(row.items()) for row in rows_of(tmp_path / "whole")}) == 18
    assert rows_of(tmp_path / "resumed") == rows_of(tmp_path / "whole")
    one, other = (load_checkpoint(tmp_path / name / "last").bank() for name in ("whole", "resumed"))
    assert_same_tensors(one, other)
    assert int(one["image_backbone.selected"].sum()) == 2


def test_killed_and_resumed_is_bit_equal_to_uninterrupted(world: Path, tmp_path: Path) -> None:
    recipe = gate_recipe(world, steps=22)
    train(recipe, tmp_path / "whole", console=QUIET)
    save_recipe(recipe, tmp_path / "recipe.yaml")
    command = [sys.executable, "-u", str(HERE.parent / "training" / "train.py")]
    command += ["--recipe", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "killed")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        lines = iter(process.stdout)
        assert any(line.startswith("step 6:") for line in lines)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "killed" / "last").exists()
    train(recipe, tmp_path / "killed", console=QUIET)
    banks = (load_checkpoint(tmp_path / name / "last").bank() for name in ("whole", "killed"))
    assert_same_tensors(*banks)
    assert (tmp_path / "killed" / MAP_FILE).read_text() == (tmp_path / "whole" / MAP_FILE).read_text()


class SharedFabric(Fabric):
    """Process `rank` of two."""

    rank = 0

    @property
    def world_size(self) -> int:
        return 2

    @property
    def global_rank(self) -> int:
        return self.rank

    def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        return torch.stack([data, data])


def reduce_by(sums: Callable[[torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.copy_(sums(tensor)))


def test_with_several_processes_momentum_does_not_move_what_is_off(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reduce_by(lambda tensor: 2 * tensor, monkeypatch)
    trainer = make_trainer(gate_recipe(world, every=100), tmp_path, SharedFabric(accelerator="cpu", devices=1))
    run_to(trainer, 5)
    before = values_of(trainer)
    run_to(trainer, 7)
    assert changed(before, values_of(trainer)) == backbone_of(trainer).selection()


def test_processes_share_the_frames_of_a_scoring(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = gate_recipe(world)
    alone = make_trainer(recipe, tmp_path / "alone")
    run_to(alone, 4)
    state = {name: tensor.clone() for name, tensor in bank_state(alone.model).items()}
    run_to(alone, 5)
    tables: list[torch.Tensor] = []
    for rank in (0, 1):
        fabric = SharedFabric(accelerator="cpu", devices=1)
        fabric.rank = rank
        trainer = make_trainer(recipe, tmp_path / str(rank), fabric)
        trainer.model.load_state_dict({**trainer.model.state_dict(), **state})
        trainer.model.train()
        reduce_by(lambda table: tables.append(table.clone()) or table, monkeypatch)
        assert trainer._gate is not None
        trainer._gate.before_step(4) if rank == 0 else trainer._gate._scores(0)
    assert [[bool(row.any()) for row in table] for table in tables] == [[True, False, True], [False, True, False]]
    shares = (tables[0] + tables[1]).mean(0)
    scores = {(int(row["layer"]), row["type"]): float(row["score"]) for row in rows_of(tmp_path / "alone")[:6]}
    keys = list(backbone_of(alone).modules_by_key())
    for place, key in enumerate(keys):
        total = math.fsum(float(shares[i]) for i, other in enumerate(keys) if other.type == key.type)
        assert scores[key] == pytest.approx(float(shares[place]) / total, rel=1e-4)


@pytest.mark.parametrize("scored_on", ["source_labels", "target_pseudo_labels", "target_sampled_labels"])
def test_scores_on_either_domain_and_a_picture_of_them(world: Path, tmp_path: Path, scored_on: str) -> None:
    recipe = gate_recipe(world, scored_on=scored_on)
    trainer = train(recipe, tmp_path, console=QUIET)
    assert len(rows_of(tmp_path)) == 18
    labels = trainer._gate._frames.batch(0).batch.labels  # type: ignore[union-attr]
    assert (labels is not None) == (scored_on == "source_labels")
    picture = cv2.imread(str(tmp_path / PICTURE_FILE))
    assert picture is not None
    assert picture.std() > 20


def test_a_run_that_starts_from_a_gated_one_begins_with_all_modules(world: Path, tmp_path: Path) -> None:
    train(gate_recipe(world), tmp_path / "first", console=QUIET)
    assert len(backbone_of(make_trainer(gate_recipe(world), tmp_path / "first")).selection()) == 2

    again = make_trainer(gate_recipe(world).model_copy(update={"start_from": tmp_path / "first" / "last"}), tmp_path)

    assert len(backbone_of(again).selection()) == 6


def test_a_log_that_a_kill_cut_off_is_taken_up(tmp_path: Path) -> None:
    path = tmp_path / MAP_FILE
    log = SelectionLog(tmp_path)
    path.touch()  # killed between opening and writing
    log.forget_from(3)
    log.add(2, {ModuleKey(0, "spatial"): 0.5}, [])
    log.add(15, {ModuleKey(0, "spatial"): 0.5}, [])
    whole = path.read_text()
    path.write_text(whole[:-9])  # what is left of the line of step 15 begins with a smaller number
    log.forget_from(150)
    assert path.read_text() == "".join(whole.splitlines(keepends=True)[:2])


def test_sizes_are_told(world: Path, tmp_path: Path) -> None:
    trainer = make_trainer(gate_recipe(world), tmp_path)
    sizes = {group["name"]: sum(p.numel() for p in group["params"]) for group in trainer.optimizer.param_groups}
    line = sizes_line(trainer.model, trainer.optimizer)
    assert line.startswith(f"trainable parameters: {sum(sizes.values()):,} (image ")
    assert line.endswith(f"point {sizes['point']:,}; 2 of the 6 modules of tuning at a time)")
    assert f"tuning {sizes['tuning']:,}, " in line
    backbone = backbone_of(trainer)
    assert sizes["tuning"] == sum(p.numel() for p in backbone.tuned_blocks.parameters())
