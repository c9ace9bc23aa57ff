# SPDX-License-Identifier: Apache-2.0
"""Training: steps on both domains, validation, checkpoints; on a CPU, a GPU or several.

A run's folder holds `recipe.yaml` (resolved), `state.pt` (to go on from), `last/` and `best/` (checkpoints),
`validation.csv`, `costs.json` and TensorBoard's event files; with `tuning: gate` also `selection.csv` and
`selection.png`. `.lock` is held while it trains.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric, seed_everything
from rich.console import Console
from rich.progress import track
from torch.utils.data import Dataset

from xmodal_seg.checkpoint import load_bank, load_checkpoint, save_checkpoint
from xmodal_seg.metrics import ConfusionMatrix
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.models.tuning.tuned_vit import TunedViT
from xmodal_seg.training.best_banks import BestBanks, backbone_storage
from xmodal_seg.training.data.dataset import Domains, FrameDataset, class_counts, log_class_weights
from xmodal_seg.training.evaluation import Scores, evaluate
from xmodal_seg.training.feature_statistics import set_feature_statistics
from xmodal_seg.training.module_gate import ModuleGate
from xmodal_seg.training.optim import build_optimizer, build_scheduler, sizes_line
from xmodal_seg.training.processes import average_buffers, sum_gradients, sum_over_processes
from xmodal_seg.training.recipe import Recipe, save_recipe
from xmodal_seg.training.run_costs import RunCosts
from xmodal_seg.training.run_log import RunLog
from xmodal_seg.training.run_state import STATE_FILE, load_state, save_state
from xmodal_seg.training.run_streams import RunStreams, Sources
from xmodal_seg.training.sampler import dropout_seed
from xmodal_seg.training.steps import StepResult, source_step, target_step
from xmodal_seg.training.streams import DomainBatch, EvaluationBatches, TrainingSteps, loader

LAST, BEST, RECIPE_FILE = "last", "best", "recipe.yaml"


class NonFiniteLossError(RuntimeError):
    """A loss is NaN or infinite; the weights were not touched by it."""


class Trainer:
    """One training run in the folder `out`; goes on from `state.pt` if that is there.

    Raises ValueError if the folder holds a run of another recipe.
    """

    def __init__(
        self,
        *,
        recipe: Recipe,
        domains: Domains,
        model: SegmentationModel,
        out: Path,
        fabric: Fabric,
        sources: Sources | None = None,
        console: Console | None = None,
    ) -> None:
        self.recipe, self.domains, self.out, self.fabric = recipe, domains, out, fabric
        sources = sources or Sources()
        self._console = console or Console()
        self.model = model.to(fabric.device)
        self._streams = RunStreams(
            recipe=recipe,
            domains=domains,
            model=model,
            sources=sources,
            rank=fabric.global_rank,
            world_size=fabric.world_size,
        )
        self.optimizer = build_optimizer(model, recipe.optim)
        self.scheduler = build_scheduler(self.optimizer, recipe.optim)
        weights = _class_weights(recipe, self._streams.supervised)
        self.class_weights = None if weights is None else weights.to(fabric.device)
        self._run_hash = f"{recipe.result_hash()}-{recipe.seed}-{domains.fingerprint}{sources.pseudo_labels_hash}"
        self.step = 0
        out.mkdir(parents=True, exist_ok=True)
        is_begun = (out / STATE_FILE).is_file()
        if is_begun:
            self.step = load_state(
                out / STATE_FILE,
                model=model,
                optimizer=self.optimizer,
                scheduler=self.scheduler,
                recipe_hash=self._run_hash,
            )
        elif fabric.global_rank == 0:
            save_recipe(recipe, out / RECIPE_FILE)
        if not is_begun and recipe.start_from is None:
            batches = self._streams.for_statistics()
            set_feature_statistics(self.model, self._tracked(batches, "feature statistics of"), device=fabric.device)
        self._check_same_step()
        self._metadata = {"trained": True, "recipe": recipe.model_dump(mode="json"), "data": domains.fingerprint}
        self._gate = self._module_gate()
        self._best = BestBanks(out / BEST, label_space=domains.label_space, metadata=self._metadata, resume=is_begun)

    def fit(self) -> None:
        """Train to the recipe's number of steps; NonFiniteLossError before a step that would spoil the weights."""
        total = self.recipe.optim.steps
        self._say(sizes_line(self.model, self.optimizer))
        if self.step:
            self._say(f"goes on at step {self.step} of {total}" if self.step < total else f"has made its {total} steps")
        if self.step == total:
            return
        steps = self.steps(start=self.step)
        items = iter(self._read(steps))
        costs = RunCosts(self.fabric.device)
        self.model.train()
        with RunLog(self.out, console=self._console, step=self.step, total=total, active=self._is_first) as log:
            while self.step < total:
                start_s = time.perf_counter()
                source, target = next(items)
                wait_s = time.perf_counter() - start_s
                with costs.step():
                    terms = self.train_step(source, target)
                self._log(log, terms, wait_s=wait_s, step_s=time.perf_counter() - start_s)
                self._after_step(log)
        if self._is_first:
            costs.write(self.out)

    def steps(self, *, start: int = 0, stop: int | None = None) -> TrainingSteps:
        """This process's batches of the steps from `start` to `stop`; None: to the recipe's last."""
        return self._streams.steps(start=start, stop=self.recipe.optim.steps if stop is None else stop)

    def batches(self, step: int) -> tuple[DomainBatch, DomainBatch | None]:
        """This process's source and target frames of a step."""
        return self.steps().at_step(step)

    def train_step(self, source: DomainBatch, target: DomainBatch | None) -> dict[str, float]:
        """Both halves and one optimiser step; the losses by name, this process's shares, with their sum as `loss`."""
        if self._gate is not None:
            self._gate.before_step(self.step)
        torch.manual_seed(dropout_seed(step=self.step, seed=self.recipe.seed, rank=self.fabric.global_rank))
        self.optimizer.zero_grad(set_to_none=True)
        reduce = self._reduce if self.fabric.world_size > 1 else None
        losses = self.recipe.losses
        terms = self._backward(
            lambda: source_step(
                self.model,
                source.to(self.fabric.device),
                losses=losses,
                class_weights=self.class_weights,
                sum_over_processes=reduce,
            )
        )
        if target is not None:
            terms |= self._backward(
                lambda: target_step(self.model, target.to(self.fabric.device), losses=losses, sum_over_processes=reduce)
            )
        in_use = (p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad)
        sum_gradients(self.fabric, in_use)  # a module that is off must stay without gradient, or momentum moves it
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        terms["loss"] = sum(value for name, value in terms.items() if name.endswith("/loss"))
        return terms

    def validate(self) -> Scores:
        """Scores of the present weights on the target's validation part, over all processes."""
        average_buffers(self.fabric, self.model)
        items = self._read(self._streams.for_validation())
        scores = evaluate(self.model, items, device=self.fabric.device, autocast=self.fabric.autocast)
        for name, matrix in scores.items():
            counts = self._reduce(matrix.counts.to(self.fabric.device)).cpu()
            scores[name] = ConfusionMatrix(num_classes=matrix.num_classes, counts=counts)
        return scores

    def save(self) -> None:
        """Write what a resumed run needs."""
        average_buffers(self.fabric, self.model)
        if self._is_first:
            save_state(
                self.out / STATE_FILE,
                step=self.step,
                model=self.model,
                optimizer=self.optimizer,
                scheduler=self.scheduler,
                recipe_hash=self._run_hash,
            )

    def _check_same_step(self) -> None:
        """Raises ValueError, in every process, if one does not find the state that another goes on from."""
        if self.fabric.world_size == 1:
            return
        mine = torch.tensor([self.step], device=self.fabric.device)
        steps = cast(torch.Tensor, self.fabric.all_gather(mine)).flatten().tolist()
        if len(set(steps)) > 1:
            raise ValueError(
                f"{self.out / STATE_FILE}: the processes are at steps {steps}; to go on, all machines need the folder "
                "of the run (shared, or copied from the first)"
            )

    def _say(self, line: str) -> None:
        if self._is_first:
            self._console.print(line, highlight=False)

    @property
    def _is_first(self) -> bool:
        return self.fabric.global_rank == 0

    def _module_gate(self) -> ModuleGate | None:
        """What selects the modules of a tuned image backbone, in recipes that ask for it."""
        tuning = self.recipe.model.image_backbone.tuning
        if tuning.kind != "gate":
            return None
        return ModuleGate(
            model=self.model,
            frames=self._streams.frames_to_score(on_source=tuning.scored_on == "source_labels"),
            fabric=self.fabric,
            folder=self.out,
            step=self.step,
            seed=self.recipe.seed,
        )

    def _read(self, items: Dataset) -> Iterable[Any]:
        return loader(items, num_workers=self.recipe.data.num_workers, device=self.fabric.device)

    def _tracked(self, batches: EvaluationBatches, what: str) -> Iterable[DomainBatch]:
        """The batches with a progress bar, in the first process."""
        return track(
            self._read(batches),
            f"{what} {batches.dataset.name}",
            total=len(batches),
            console=self._console,
            disable=not self._is_first,
        )

    def _backward(self, half_step: Callable[[], StepResult]) -> dict[str, float]:
        """Forward and backward of one domain; its losses by name. Raises NonFiniteLossError before backward."""
        with self.fabric.autocast():
            result = half_step()
        names = list(result.terms)
        values = torch.stack([*result.terms.values(), result.loss.detach().float()]).tolist()
        prefix = names[0].split("/")[0]
        if not math.isfinite(values[-1]):
            broken = [name for name, value in zip(names, values, strict=False) if not math.isfinite(value)]
            raise NonFiniteLossError(
                f"step {self.step}: the loss is not finite ({', '.join(broken) or prefix}); nothing was changed by it, "
                f"and the last checkpoint in {self.out} is whole: lower optim.lr or look at the data"
            )
        result.loss.backward()
        return {**dict(zip(names, values, strict=False)), f"{prefix}/loss": values[-1]}

    def _after_step(self, log: RunLog) -> None:
        settings, finished = self.recipe.evaluation, self.step == self.recipe.optim.steps
        if self.step % settings.every == 0 or finished:
            scores = self.validate()
            if self._is_first:
                self._best.update(scores, step=self.step, model=self.model)
                log.validation(self.step, {name: matrix.mean_iou() for name, matrix in scores.items()})
        if finished:
            average_buffers(self.fabric, self.model)
            if self._is_first:
                self._save_last()
            if self._gate is not None:
                self._gate.finish()
        if self.step % settings.checkpoint_every == 0 or finished:
            self.save()

    def _save_last(self) -> None:
        save_checkpoint(
            self.out / LAST,
            self.model,
            label_space=self.domains.label_space,
            metadata={**self._metadata, "step": self.step},
            backbone=backbone_storage(self.model),
        )

    def _log(self, log: RunLog, terms: dict[str, float], *, wait_s: float, step_s: float) -> None:
        wait_percent = 100 * wait_s / step_s
        log.advance(self.step, loss=terms["loss"], wait_percent=wait_percent)
        if self.step % self.recipe.evaluation.log_every:
            return
        values = {name if "/" in name else f"train/{name}": value for name, value in terms.items()}
        rates = {f"rate/{group['name']}": group["lr"] for group in self.optimizer.param_groups}
        log.scalars(self.step, {**values, **rates, "time/step_s": step_s, "time/data_wait_percent": wait_percent})

    def _reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return sum_over_processes(self.fabric, tensor)


def build_fabric(recipe: Recipe, *, single: bool = False) -> Fabric:
    """One process, or as many as the recipe or torchrun says unless `single`; launched."""
    devices, nodes = 1 if single else recipe.devices, 1
    if "LOCAL_WORLD_SIZE" in os.environ and not single:  # torchrun
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    several = devices * nodes > 1
    fabric = Fabric(
        accelerator=recipe.accelerator,
        strategy="ddp" if several else "auto",
        devices=devices,
        num_nodes=nodes,
        precision=cast(Any, recipe.precision),
    )
    fabric.launch()
    return fabric


def build_model(recipe: Recipe) -> SegmentationModel:
    """The recipe's model with weights drawn from its seed, or those of the checkpoint that it starts from.

    Raises ValueError for a checkpoint that is not there or whose tensors do not fit the recipe's model.
    """
    seed_everything(recipe.seed, verbose=False)
    model = SegmentationModel(settings=recipe.model)
    if recipe.start_from is not None:
        load_bank(model, load_checkpoint(recipe.start_from).bank(), where=f"start_from: {recipe.start_from}")
        if isinstance(model.image_backbone, TunedViT):  # which modules were on there is not for this run
            model.image_backbone.select(model.image_backbone.modules_by_key())
    return model


def _class_weights(recipe: Recipe, dataset: FrameDataset) -> torch.Tensor | None:
    weights = recipe.losses.class_weights
    if weights == "none":
        return None
    values = log_class_weights(class_counts(dataset)) if weights == "log" else weights
    return torch.tensor(values, dtype=torch.float32)
