# SPDX-License-Identifier: Apache-2.0
"""Pre-training of a stand-in image backbone: loop, resumption and export."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from xmodal_seg.config import ImageBackboneSettings
from xmodal_seg.models.image_backbone import cell_channels, cells_of, create_timm_model, patch_tokens
from xmodal_seg.tensor_files import write_tensor_file, write_text
from xmodal_seg.training.pretext import ObjectiveWeights, PretextHeads, pretext_losses, weighted_sum
from xmodal_seg.training.pretext_batches import CELL_PX, ViewStream, make_batch
from xmodal_seg.training.pretext_recipe import PretextRecipe

MAX_PARAMETERS = 6_000_000
STATE_FILE, LOSS_FILE, RECIPE_FILE = "state.pt", "losses.csv", "recipe.json"
TERMS = tuple(ObjectiveWeights.model_fields)
_CPU = torch.device("cpu")
_LEARNED_FROM = {
    "depth": "depth",
    "normal": "normals",
    "albedo": "reflectance",
    "height": "height above the road",
    "roughness": "roughness",
    "extent": "extents of objects",
    "edge": "borders of objects and of strips of ground (which strip is which is not told)",
    "affinity": "which places belong to one object",
    "agreement": "agreement between two lights",
}
WHAT_IT_IS_NOT = (
    "It has seen no photograph and no class label, and it does not stand for what DINOv2, DINOv3 or C-RADIO can do; "
    "its places, palettes, object models and lights were random and are none of the named ones."
)


class TrainableViT(nn.Module):
    """The network of `FrozenViT` without its freeze. Raises ValueError for one that has too many parameters."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, settings: ImageBackboneSettings) -> None:
        super().__init__()
        network: Any = create_timm_model(settings, dynamic_img_size=True)
        network.reset_classifier(0)
        self.cells_per_patch = settings.cells_per_patch
        self.width = cell_channels(network.feature_info[-1]["num_chs"], settings)
        self.cell_px: float = network.feature_info[-1]["reduction"] / settings.cells_per_patch
        number = sum(parameter.numel() for parameter in network.parameters())
        if number > MAX_PARAMETERS:
            raise ValueError(f"model_args: expected at most {MAX_PARAMETERS} parameters, got {number}")
        mean, std = network.pretrained_cfg["mean"], network.pretrained_cfg["std"]
        self.network: Any = network
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(I, 3, H, W) in [0, 1] -> (I, D, h, w), on cells of CELL_PX."""
        return cells_of(patch_tokens(self.network, (images - self.mean) / self.std), self.cells_per_patch)


class PretextTrainer:
    """Trains until the steps of the recipe are made, or the minutes are over.

    With a time limit the schedule follows whichever of the two is further on, so that the rate has fallen when time
    is up; the result then depends on the speed of the machine, and the export says how many steps were made.
    """

    def __init__(
        self,
        recipe: PretextRecipe,
        folder: Path,
        *,
        minutes: float | None = None,
        num_workers: int = 1,
        device: torch.device = _CPU,
    ) -> None:
        self.recipe, self.folder, self.minutes, self.device = recipe, folder, minutes, device
        torch.manual_seed(recipe.seed)
        self.network = TrainableViT(recipe.backbone()).to(device)
        if self.network.cell_px != CELL_PX:
            raise ValueError(f"cells_per_patch: expected cells of {CELL_PX} px, got {self.network.cell_px:g}")
        self.heads = PretextHeads(width=self.network.width).to(device)
        self.optimizer = torch.optim.AdamW(self._groups(), lr=recipe.optim.lr, betas=(0.9, 0.98))
        self.step, self.images, self.elapsed_s, self.wait_s = 0, 0, 0.0, 0.0
        folder.mkdir(parents=True, exist_ok=True)
        self._resume()
        self._num_workers = num_workers

    @property
    def progress(self) -> float:
        """Share of the training that is done, 0 to 1."""
        by_time = 0.0 if self.minutes is None else self.elapsed_s / (60 * self.minutes)
        return min(1.0, max(self.step / self.recipe.optim.steps, by_time))

    def train(self, console: Console) -> None:
        """Run to the end. A kill loses the steps since the last checkpoint."""
        recipe = self.recipe
        per_step = recipe.phases[0].views_per_step
        stream = ViewStream(
            recipe.views,
            first_street=recipe.first_street,
            open_streets=recipe.open_streets,
            views_per_step=per_step,
            reuse=recipe.reuse,
            start_step=self.step,
            num_workers=self._num_workers,
        )
        since: list[dict[str, float]] = []  # terms of the steps since the last row of the CSV
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:.1f} %"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("pre-training", total=1.0)
            while self.progress < 1.0:
                since.append(self._advance(stream))
                if self.step % recipe.log_every == 0:
                    self._log({name: sum(terms[name] for terms in since) / len(since) for name in since[0]}, console)
                    since.clear()
                if self.step % recipe.checkpoint_every == 0:
                    self.save()
                bar.update(task, completed=self.progress)
        self.save()

    def _advance(self, stream: ViewStream) -> dict[str, float]:
        """One step; its unweighted loss terms."""
        begin = time.monotonic()
        views = stream.at(self.step)
        self.wait_s += time.monotonic() - begin
        recipe, phase = self.recipe, self.recipe.phase(self.progress)
        draw = np.random.default_rng([recipe.seed, self.step])
        chosen = draw.choice(len(views), min(phase.views_per_step, len(views)), replace=False)
        batch = make_batch([views[i] for i in chosen], draw, crop=phase.crop, jitter=recipe.jitter).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.precision == "bf16-mixed"):
            cells = self.network(batch.images)
        losses = pretext_losses(cells.float(), self.heads, batch, recipe.weights)
        self._update(weighted_sum(losses, recipe.weights))
        self.step += 1
        self.images += len(batch.images)
        self.elapsed_s += time.monotonic() - begin
        return {name: float(loss.detach()) for name, loss in losses.items()}

    def _update(self, loss: torch.Tensor) -> None:
        optim = self.recipe.optim
        for group in self.optimizer.param_groups:
            group["lr"] = optim.lr * rate(self.progress, warmup=optim.warmup)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*self.network.parameters(), *self.heads.parameters()], optim.clip)
        self.optimizer.step()

    def _groups(self) -> list[dict[str, Any]]:
        """Weight decay on matrices only."""
        named = [*self.network.named_parameters(), *self.heads.named_parameters()]
        matrices = [p for name, p in named if p.ndim > 1 and "pos_embed" not in name and "cls_token" not in name]
        rest = [p for name, p in named if p.ndim <= 1 or "pos_embed" in name or "cls_token" in name]
        return [
            {"params": matrices, "weight_decay": self.recipe.optim.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ]

    def _log(self, means: dict[str, float], console: Console) -> None:
        path = self.folder / LOSS_FILE
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(["step", "elapsed_s", "wait_s", *TERMS])
            values = [f"{means[name]:.4f}" if name in means else "" for name in TERMS]
            writer.writerow([self.step, f"{self.elapsed_s:.1f}", f"{self.wait_s:.1f}", *values])
        if self.step % (10 * self.recipe.log_every) == 0:
            terms = " ".join(f"{name} {value:.3f}" for name, value in means.items())
            console.print(
                f"{self.step} steps, {self.elapsed_s:.0f} s (waited {self.wait_s:.0f}): {terms}", highlight=False
            )

    def save(self) -> None:
        """Replace the state in one step, so that a kill at any moment leaves this one or the former, whole."""
        state = {
            "recipe": self.recipe.digest(),
            "step": self.step,
            "images": self.images,
            "elapsed_s": self.elapsed_s,
            "wait_s": self.wait_s,
            "network": self.network.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        temporary = self.folder / f".{STATE_FILE}.part"
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.folder / STATE_FILE)
        write_text(self.folder / RECIPE_FILE, self.recipe.model_dump_json(indent=2) + "\n")

    def _resume(self) -> None:
        path = self.folder / STATE_FILE
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["recipe"] != self.recipe.digest():
            raise ValueError(f"{path}: belongs to another recipe; choose another output folder, or remove this one")
        self.network.load_state_dict(state["network"])
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.images = state["step"], state["images"]
        self.elapsed_s, self.wait_s = state["elapsed_s"], state["wait_s"]
        _drop_rows_after(self.folder / LOSS_FILE, self.step)


def rate(progress: float, *, warmup: float) -> float:
    """Factor of the learning rate: linear up to 1 during `warmup`, then half a cosine down to 0.01."""
    if progress < warmup:
        return max(progress / warmup, 0.02)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def export(trainer: PretextTrainer, path: Path) -> None:
    """Write the network alone in float16 as `path` (.safetensors) and what it is beside it (.json).

    Raises ValueError for another file name ending and OSError where the disk refuses.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"export: expected a file that ends in .safetensors, got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.half() for name, tensor in trainer.network.network.state_dict().items()}
    sha256 = write_tensor_file(path, weights)
    recipe = trainer.recipe
    facts = {
        "what": what_it_is(recipe.weights),
        "what_not": WHAT_IT_IS_NOT,
        "image_backbone": recipe.backbone(path.name).model_dump(mode="json"),
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "steps": trainer.step,
        "images": trainer.images,
        "minutes": round(trainer.elapsed_s / 60, 1),
        "sha256": sha256,
        "recipe_hash": recipe.digest(),
        "recipe": recipe.model_dump(mode="json"),
    }
    write_text(path.with_suffix(".json"), json.dumps(facts, indent=2) + "\n")


def what_it_is(weights: ObjectiveWeights) -> str:
    """One sentence about a network that was pre-trained with these weights."""
    terms = [text for name, text in _LEARNED_FROM.items() if getattr(weights, name) > 0]
    return (
        "A stand-in for a vision foundation model: a small ViT pre-trained on simulated streets only, on "
        f"{', '.join(terms[:-1])}, and {terms[-1]}."
    )


def _drop_rows_after(path: Path, step: int) -> None:
    """Rows of steps that a kill undid."""
    if not path.exists():
        return
    header, *rows = path.read_text().splitlines()
    kept = [row for row in rows if int(row.split(",")[0]) <= step]
    write_text(path, "\n".join([header, *kept]) + "\n")
