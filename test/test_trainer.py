# SPDX-License-Identifier: Apache-2.0
"""Training: resumed equals uninterrupted, killed loses nothing but steps, two processes equal two half-batches."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from rich.console import Console
from tiny_world import tiny_recipe, tiny_vfm
from two_process_step import SETTINGS

from xmodal_seg.checkpoint import bank_state, load_checkpoint
from xmodal_seg.losses import PointSum
from xmodal_seg.training import steps as step_functions
from xmodal_seg.training.data.tasks import open_domains
from xmodal_seg.training.recipe import Recipe, save_recipe
from xmodal_seg.training.run import train
from xmodal_seg.training.run_state import STATE_FILE
from xmodal_seg.training.streams import DomainStream, InputSettings, make_batch
from xmodal_seg.training.trainer import NonFiniteLossError, Trainer, build_model

HERE = Path(__file__).parent
QUIET = Console(quiet=True)


def make_trainer(recipe: Recipe, out: Path) -> Trainer:
    fabric = Fabric(accelerator="cpu", devices=1)
    return Trainer(
        recipe=recipe, domains=open_domains(recipe), model=build_model(recipe), out=out, fabric=fabric, console=QUIET
    )


def one_step(trainer: Trainer) -> dict[str, float]:
    return trainer.train_step(*trainer.batches(trainer.step))


def last_tensors(out: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(out / "last").bank()


def assert_same_tensors(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_killed_and_resumed_is_bit_equal_to_uninterrupted(world: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        world, optim={"steps": 20}, evaluation={"every": 8, "checkpoint_every": 3}, losses={"guidance": 0.5}
    )
    train(recipe, tmp_path / "whole", console=QUIET)
    save_recipe(recipe, tmp_path / "recipe.yaml")
    command = [sys.executable, "-u", str(HERE.parent / "training" / "train.py")]
    command += ["--recipe", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "killed")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        lines = iter(process.stdout)
        assert any(line.startswith("step 8:") for line in lines)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "killed" / "last").exists()
    resumed = train(recipe, tmp_path / "killed", console=QUIET)
    assert resumed.step == 20
    assert_same_tensors(last_tensors(tmp_path / "whole"), last_tensors(tmp_path / "killed"))
    for name in ("best", "validation.csv"):
        one, other = tmp_path / "whole" / name, tmp_path / "killed" / name
        if one.is_file():
            assert one.read_text() == other.read_text()
        else:
            best, best_resumed = load_checkpoint(one), load_checkpoint(other)
            assert best.metadata["best"] == best_resumed.metadata["best"]
            for bank in best.banks:
                assert_same_tensors(best.bank(bank), best_resumed.bank(bank))


def test_a_run_can_start_from_the_weights_of_another(world: Path, tmp_path: Path) -> None:
    train(tiny_recipe(world, optim={"steps": 2}), tmp_path / "first", console=QUIET)
    recipe = tiny_recipe(world, seed=1, start_from=tmp_path / "first" / "last")
    assert_same_tensors(bank_state(build_model(recipe)), last_tensors(tmp_path / "first"))
    assert recipe.result_hash() != tiny_recipe(world, seed=1).result_hash()
    with pytest.raises(ValueError, match="no checkpoint here"):
        build_model(tiny_recipe(world, start_from=tmp_path))
    others = tiny_recipe(world, model={"fusion": {"hidden": 5}}, start_from=tmp_path / "first" / "last")
    with pytest.raises(ValueError, match=r"start_from: .*tensors do not fit the model"):
        build_model(others)


def test_half_written_state_is_not_seen(world: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(world)
    trainer = make_trainer(recipe, tmp_path)
    one_step(trainer)
    trainer.save()
    (tmp_path / f".{STATE_FILE}.part").write_bytes(b"cut")
    assert make_trainer(recipe, tmp_path).step == 1


def test_damaged_or_foreign_state_is_refused(world: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(world)
    make_trainer(recipe, tmp_path).save()
    for changed in (tiny_recipe(world, seed=1), tiny_recipe(world, losses={"guidance": 0.5})):
        with pytest.raises(ValueError, match="belongs to a run of another recipe"):
            make_trainer(changed, tmp_path)
    (tmp_path / STATE_FILE).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=f"{STATE_FILE}: cannot be read"):
        make_trainer(recipe, tmp_path)


def test_a_run_of_another_recipe_is_told_by_its_keys_before_data_are_opened(world: Path, tmp_path: Path) -> None:
    train(tiny_recipe(world, optim={"steps": 2}), tmp_path, console=QUIET)
    changed = tiny_recipe(world / "nowhere", optim={"steps": 3})
    with pytest.raises(ValueError, match=r"another recipe \(.*optim\.steps is 2 there, 3 here\); choose another"):
        train(changed, tmp_path, console=QUIET)


def test_two_runs_of_a_seed_are_bit_equal_and_workers_do_not_matter(world: Path, tmp_path: Path) -> None:
    train(tiny_recipe(world), tmp_path / "one", console=QUIET)
    train(tiny_recipe(world, data={"num_workers": 1}), tmp_path / "other", console=QUIET)
    train(tiny_recipe(world, seed=5), tmp_path / "seed", console=QUIET)
    assert_same_tensors(last_tensors(tmp_path / "one"), last_tensors(tmp_path / "other"))
    assert not torch.equal(
        last_tensors(tmp_path / "one")["heads.main.3d.weight"], last_tensors(tmp_path / "seed")["heads.main.3d.weight"]
    )


def test_frozen_backbone_is_untouched_and_batch_norm_sees_both_domains(world: Path, tmp_path: Path) -> None:
    counts = {}
    for name, losses in (("both", {}), ("source", {"lambda_source": 0.0, "lambda_target": 0.0})):
        recipe = tiny_recipe(world, losses=losses, optim={"steps": 3})
        before = {key: value.clone() for key, value in build_model(recipe).image_backbone.state_dict().items()}  # type: ignore[union-attr]
        trainer = train(recipe, tmp_path / name, console=QUIET)
        assert trainer.model.image_backbone is not None
        assert_same_tensors(before, trainer.model.image_backbone.state_dict())
        tracked = [b for key, b in trainer.model.named_buffers() if key.endswith("num_batches_tracked")]
        counts[name] = {int(count) for count in tracked}
    assert counts == {"both": {6}, "source": {3}}


def test_fixed_feature_statistics_are_the_labelled_frames_and_stay(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norm = {"image_backbone": {**tiny_vfm(), "feature_norm": "fixed"}}
    for labelled, method in (("source", {}), ("target", {"losses": {"lambda_source": 0.0, "lambda_target": 0.0}})):
        recipe = tiny_recipe(world, model=norm, data={"labelled": labelled}, **method)
        domains, model = open_domains(recipe), build_model(recipe)
        frames = domains.source_train if labelled == "source" else domains.target_train
        inputs = InputSettings.of(model)
        batch = make_batch([frames[i] for i in range(len(frames))], range(len(frames)), inputs=inputs).batch
        with torch.inference_mode():
            feats = model.image_feats(batch).double()

        trainer = train(recipe, tmp_path / labelled, console=QUIET)

        trained = last_tensors(tmp_path / labelled)
        torch.testing.assert_close(trained["feature_norm.mean"].double(), feats.mean(0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(trained["feature_norm.variance"].double(), feats.var(0, correction=0))
        with monkeypatch.context() as patched:  # a tuned backbone has other features by then
            patched.setattr("xmodal_seg.training.trainer.set_feature_statistics", pytest.fail)
            resumed = make_trainer(recipe, tmp_path / labelled).model
        assert torch.equal(resumed.feature_norm.mean, trained["feature_norm.mean"])
        again = tiny_recipe(world, model=norm, start_from=tmp_path / labelled / "last", data={"labelled": "source"})
        started = make_trainer(again, tmp_path / f"{labelled}_again").model
        assert torch.equal(started.feature_norm.mean, trained["feature_norm.mean"])  # the networks learned with these
        assert trainer.step == 4


def test_statistics_of_many_frames_are_those_of_evenly_spaced_ones(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(world, model={"image_backbone": {**tiny_vfm(), "feature_norm": "fixed"}})
    dataset, model = open_domains(recipe).source_train, build_model(recipe)
    assert len(dataset) == 7
    monkeypatch.setattr("xmodal_seg.training.run_streams.MAX_FRAMES", 4)
    batch = make_batch([dataset[i] for i in (0, 2, 4, 6)], (0, 2, 4, 6), inputs=InputSettings.of(model)).batch
    with torch.inference_mode():
        mean = model.image_feats(batch).double().mean(0)
    torch.testing.assert_close(make_trainer(recipe, tmp_path).model.feature_norm.mean.double(), mean, atol=1e-5, rtol=0)


def test_run_folder_has_what_it_should(world: Path, tmp_path: Path) -> None:
    trainer = train(tiny_recipe(world, optim={"steps": 5}), tmp_path, console=QUIET)
    with (tmp_path / "validation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["4", "5"]
    assert set(rows[0]) == {"step", "2d", "3d", "fused", "ensemble"}
    best = load_checkpoint(tmp_path / "best")
    assert set(best.banks) == {"2d", "3d", "fused", "ensemble"}
    assert best.default_bank == "ensemble"
    assert best.metadata["recipe"]["optim"]["steps"] == 5
    assert list(tmp_path.glob("events.*"))
    assert [group["name"] for group in trainer.optimizer.param_groups] == ["image", "fusion", "point"]


def test_rates_fall_at_the_milestones(world: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(world, optim={"steps": 10, "milestones": [0.2, 0.5], "lr": {"point": 0.5}})
    trainer = make_trainer(recipe, tmp_path)
    rates = []
    for _ in range(6):
        rates.append(trainer.optimizer.param_groups[2]["lr"])
        one_step(trainer)
    assert rates == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.05, 0.005])


def test_not_finite_stops_before_the_step(world: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_recipe(world), tmp_path)
    with torch.no_grad():
        trainer.model.heads.main["3d"].weight[0, 0] = torch.nan  # type: ignore[index]
    before = {name: tensor.clone() for name, tensor in trainer.model.named_parameters()}
    with pytest.raises(NonFiniteLossError, match=r"step 0: the loss is not finite \(source/seg_3d\)"):
        one_step(trainer)
    assert trainer.step == 0
    for name, tensor in trainer.model.named_parameters():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num())


def reference_step(world: Path, out: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Gradients of one process that accumulates the two halves, and the mean of each half's own running statistics."""
    recipe = tiny_recipe(world, **SETTINGS)
    trainer = make_trainer(recipe, out)
    model, domains = trainer.model, trainer.domains
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def stream(domain: Any, rank: int) -> DomainStream:
        return DomainStream(
            dataset=domains.source_train if domain == "source" else domains.target_train,
            domain=domain,
            inputs=InputSettings.of(model),
            augment=recipe.data.augment_source,
            batch_size=4,
            seed=recipe.seed,
            keep_labels=domain == "source",
            rank=rank,
            world_size=2,
        )

    statistics: list[dict[str, torch.Tensor]] = []
    model.train()
    for rank in (0, 1):
        model.load_state_dict(initial)
        for domain, function in (("source", step_functions.source_step), ("target", step_functions.target_step)):
            weights: Any = {"class_weights": trainer.class_weights} if domain == "source" else {}
            halves = [stream(domain, r).batch(0) for r in (0, 1)]
            total = common_weights(model, recipe, halves, function, weights)
            result = function(
                model, halves[rank], losses=recipe.losses, sum_over_processes=lambda _, t=total: t, **weights
            )
            result.loss.backward()
        statistics.append({n: b.clone() for n, b in model.named_buffers() if b.is_floating_point()})
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return gradients, {name: (statistics[0][name] + statistics[1][name]) / 2 for name in statistics[0]}


def common_weights(model: Any, recipe: Recipe, halves: Any, function: Any, weights: Any) -> torch.Tensor:
    """The weights of every term summed over both halves, without leaving a trace in the model."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen: list[torch.Tensor] = []

    def remember(totals: torch.Tensor) -> torch.Tensor:
        seen.append(totals)
        return totals

    for half in halves:
        function(model, half, losses=recipe.losses, sum_over_processes=remember, **weights)
    model.load_state_dict(state)
    return seen[0] + seen[1]


def test_two_gloo_processes_equal_two_half_batches(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "two.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(HERE / "two_process_step.py"), str(world), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    two = torch.load(out, weights_only=True)
    gradients, statistics = reference_step(world, tmp_path / "reference")
    assert gradients.keys() == two["gradients"].keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(two["gradients"][name], gradient, rtol=0.0, atol=1e-5, msg=name)
    for name, values in statistics.items():
        torch.testing.assert_close(two["statistics"][name], values, rtol=1e-4, atol=1e-5, msg=name)
    assert all(int(counts.sum()) > 0 for counts in two["counts"].values())


def test_processes_that_the_recipe_asks_for_share_the_folder(world: Path, tmp_path: Path) -> None:
    """Without torchrun: Fabric starts the second one, which must not take the first for a stranger."""
    recipe = tiny_recipe(world, optim={"steps": 2}).model_copy(update={"devices": 2, "accelerator": "cpu"})
    save_recipe(recipe, tmp_path / "recipe.yaml")
    command = [sys.executable, str(HERE.parent / "training" / "train.py"), "--recipe", str(tmp_path / "recipe.yaml")]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_checkpoint(tmp_path / "run" / "last").metadata["step"] == 2


class ApartFabric(Fabric):
    """One of two processes; the other one, on a machine that does not see the run's folder, is at step 0."""

    @property
    def world_size(self) -> int:
        return 2

    def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        return torch.stack([data, torch.zeros_like(data)])


def test_machines_that_do_not_share_the_folder_cannot_go_on(world: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(world)

    def start() -> Trainer:
        return Trainer(
            recipe=recipe,
            domains=open_domains(recipe),
            model=build_model(recipe),
            out=tmp_path,
            fabric=ApartFabric(accelerator="cpu", devices=1),
        )

    assert start().step == 0
    train(recipe, tmp_path, console=QUIET)
    with pytest.raises(ValueError, match=r"state.pt: the processes are at steps \[4, 0\]; to go on, all machines need"):
        start()


def test_batch_must_divide_by_processes() -> None:
    recipe = tiny_recipe(Path("unused"))
    with pytest.raises(ValueError, match="expected a multiple of 2 processes, got 3"):
        DomainStream(
            dataset=None,  # type: ignore[arg-type]
            domain="source",
            inputs=InputSettings(preprocess=recipe.model.preprocess, image_size=(8, 8)),
            augment=recipe.data.augment_source,
            batch_size=3,
            seed=0,
            keep_labels=True,
            world_size=2,
        )


def test_mean_over_all_processes_counts_points_not_processes() -> None:
    shares = [PointSum(value=torch.tensor(v), weight=torch.tensor(w)) for v, w in ((6.0, 3.0), (1.0, 1.0))]
    total = shares[0].weight + shares[1].weight
    assert sum(share.mean(total_weight=total).item() for share in shares) == pytest.approx(7 / 4)


def test_bank_state_leaves_the_frozen_backbone_out_of_the_state_file(world: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_recipe(world), tmp_path)
    trainer.save()
    stored = torch.load(tmp_path / STATE_FILE, weights_only=True)["model"]
    assert stored.keys() == bank_state(trainer.model).keys()
    assert not any(name.startswith("image_backbone.") for name in stored)
