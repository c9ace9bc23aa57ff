# SPDX-License-Identifier: Apache-2.0
"""A training step by part: `python test/benchmark/bench_training.py`.

`sim_dev` in the size `small`, one thread, medians of one step on both domains in ms of the process's CPU time (on a GPU
of the clock, waiting for the GPU at the end of each part):
reading, altering, projecting and voxelising (`data`), the image network, the 3D network, fusion and heads, the rest of
the forward pass (lifting, losses), backward, optimiser. The 3D network alone, forward and backward on one domain, is
measured beside them. `wait` is the share of the wall time that a run with one reading process spends waiting for data.
The image network has random weights, which cost the same; the feature cache holds its maps.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from xmodal_seg.structures import Batch
from xmodal_seg.training.recipe import Recipe, compose
from xmodal_seg.training.run import make_trainer, set_up
from xmodal_seg.training.steps import source_step, target_step
from xmodal_seg.training.streams import loader
from xmodal_seg.training.trainer import Trainer

RECIPES = Path(__file__).parents[2] / "training" / "recipes"
FRAMES = {"source_train": 24, "target_train": 24, "target_val": 8, "target_test": 8}
WARM_UP = 3
MODULES = ("image network", "3D forward", "fusion", "heads")
PARTS = ("data", *MODULES, "losses and rest", "backward", "optimiser", "step")
VARIANTS: dict[str, tuple[str, ...]] = {
    "ours, cached features": ("ours", "feature_cache=true"),
    "ours, features on the fly": ("ours", "feature_cache=false"),
    "mlp, cached features": ("mlp",),
    "source only, our networks, cached": ("source_only_ours",),
    "xmuda, narrow U-Net": ("xmuda",),
}


def now_s() -> float:
    """Of the process's CPU time; on a GPU the clock's, once the GPU has done all that was asked of it."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class Clock:
    """Time by part, ms, of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def next_step(self) -> None:
        self.steps.append(defaultdict(float))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start_s = now_s()
        yield
        self.steps[-1][name] += (now_s() - start_s) * 1e3

    def watch(self, module: nn.Module | None, name: str) -> None:
        """Count the module's forward pass as a part."""
        if module is None:
            return
        starts: list[float] = []
        module.register_forward_pre_hook(lambda *_: starts.append(now_s()))

        def stop(*_: Any) -> None:
            self.steps[-1][name] += (now_s() - starts.pop()) * 1e3

        module.register_forward_hook(stop)

    def median(self, name: str) -> float:
        return statistics.median(step.get(name, 0.0) for step in self.steps[WARM_UP:])


def run(*, repeats: int = 20, root: Path | None = None) -> list[dict[str, Any]]:
    """One row per variant; ratios are to the first."""
    with tempfile.TemporaryDirectory() as temporary:
        data = root or Path(temporary) / "data"
        rows: list[dict[str, Any]] = []
        for name, (method, *overrides) in VARIANTS.items():
            setup = set_up(recipe_of(method, data, overrides))
            trainer = make_trainer(setup, Path(temporary) / method / str(len(rows)), console=Console(quiet=True))
            rows.append({"": name, **measure(trainer, repeats=repeats)})
        for row in rows:
            row["step / first"] = row["step"] / rows[0]["step"]
    return rows


def recipe_of(method: str, data: Path, overrides: list[str]) -> Recipe:
    fixed = [f"data.options.frames.{part}={number}" for part, number in FRAMES.items()]
    if "xmuda" not in method:
        fixed.append("model.image_backbone.weights=none")
    return compose(
        RECIPES, shift="sim_dev", method=method, size="small", overrides=[*fixed, f"data.root={data}", *overrides]
    )


def measure(trainer: Trainer, *, repeats: int) -> dict[str, float]:
    clock = Clock()
    model = trainer.model.train()
    for name, module in zip(
        MODULES, (model.image_backbone, model.point_backbone, model.fusion, model.heads), strict=True
    ):
        clock.watch(module, name)
    for _ in range(repeats + WARM_UP):
        clock.next_step()
        with clock.part("step"):
            batch = timed_step(trainer, clock)
    row = {part: clock.median(part) for part in PARTS}
    row["3D alone"] = point_backbone_ms(trainer, batch, repeats=repeats)
    row["wait %"] = wait_percent(trainer, steps=repeats)
    row["points of a domain"] = float(batch.num_points)
    row["voxels of a domain"] = float(batch.voxel_coords.shape[0])
    return row


def timed_step(trainer: Trainer, clock: Clock) -> Batch:
    """What Trainer.train_step does, part by part; the source's batch."""
    losses, fabric = trainer.recipe.losses, trainer.fabric
    with clock.part("data"):
        source, target = trainer.batches(trainer.step)
        source = source.to(fabric.device)
        target = None if target is None else target.to(fabric.device)
    trainer.optimizer.zero_grad(set_to_none=True)
    with clock.part("forward"), fabric.autocast():
        result = source_step(trainer.model, source, losses=losses, class_weights=trainer.class_weights)
    with clock.part("backward"):
        result.loss.backward()
    if target is not None:
        with clock.part("forward"), fabric.autocast():
            result = target_step(trainer.model, target, losses=losses)
        with clock.part("backward"):
            result.loss.backward()
    with clock.part("optimiser"):
        trainer.optimizer.step()
    trainer.step += 1
    of_step = clock.steps[-1]
    of_step["losses and rest"] = of_step["forward"] - sum(of_step[name] for name in MODULES)
    return source.batch


def point_backbone_ms(trainer: Trainer, batch: Batch, *, repeats: int) -> float:
    """Forward and backward of the 3D network alone on one domain's voxels, ms."""
    backbone = trainer.model.point_backbone
    assert backbone is not None
    times = []
    for _ in range(repeats + WARM_UP):
        start_s = now_s()
        feats = backbone(
            batch.voxel_coords, batch.voxel_feats, spatial_shape=batch.spatial_shape, num_frames=batch.num_frames
        )
        feats.square().mean().backward()
        times.append((now_s() - start_s) * 1e3)
    return statistics.median(times[WARM_UP:])


def wait_percent(trainer: Trainer, *, steps: int) -> float:
    """Share of the time of a run that its training process waits for one reading process."""
    total = trainer.step + steps + WARM_UP
    device = trainer.fabric.device
    items = iter(loader(trainer.steps(start=trainer.step, stop=total), num_workers=1, device=device))
    waits_s, steps_s = [], []
    while trainer.step < total:
        start_s = time.perf_counter()
        source, target = next(items)
        waits_s.append(time.perf_counter() - start_s)
        trainer.train_step(source, target)
        steps_s.append(time.perf_counter() - start_s)
    return 100 * sum(waits_s[WARM_UP:]) / sum(steps_s[WARM_UP:])


if __name__ == "__main__":
    torch.set_num_threads(1)
    table = Table()
    measured = run()
    for column in measured[0]:
        table.add_column(column, justify="right" if column else "left")
    for row in measured:
        table.add_row(*(value if isinstance(value, str) else f"{value:.2f}" for value in row.values()))
    Console(width=250).print(table)
