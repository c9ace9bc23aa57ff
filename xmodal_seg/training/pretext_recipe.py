# SPDX-License-Identifier: Apache-2.0
"""The recipe of a pre-training run: everything that decides its result, read from YAML."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from xmodal_seg.config import ImageBackboneSettings, Settings, parse_settings
from xmodal_seg.simulation.pretext import ViewSettings
from xmodal_seg.training.pretext import ObjectiveWeights
from xmodal_seg.training.pretext_batches import CropSettings, JitterSettings
from xmodal_seg.training.recipe import merge, read_mapping


class Phase(Settings):
    """A part of the training with its own image size: small images first, the size of use at the end."""

    until: float = Field(gt=0, le=1, description="share of the training at which the phase ends")
    crop: CropSettings = CropSettings()
    views_per_step: int = Field(default=8, gt=0, description="each is seen under its two lights")


class PretextOptim(Settings):
    """AdamW with a linear rise and a cosine fall of the rate."""

    steps: int = Field(gt=0)
    lr: float = Field(default=1.2e-3, gt=0)
    warmup: float = Field(default=0.03, ge=0, lt=1, description="share of the training")
    weight_decay: float = Field(default=0.03, ge=0)
    clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient")


class PretextRecipe(Settings):
    """A pre-training run."""

    name: str
    network: str = Field(description="timm model, a vit_*")
    model_args: dict[str, Any] = Field(description="of its constructor, as ImageBackboneSettings.model_args")
    cells_per_patch: int = Field(default=1, gt=0, description="as ImageBackboneSettings.cells_per_patch")
    seed: int = Field(default=0, ge=0)
    first_street: int = Field(default=0, ge=0, description="number of the first random street")
    open_streets: int = Field(default=12, gt=0, description="streets whose views are drawn from at a time")
    reuse: float = Field(default=2.0, gt=0, description="how often a view is drawn on average")
    views: ViewSettings = ViewSettings()
    phases: tuple[Phase, ...] = Field(min_length=1)
    jitter: JitterSettings = JitterSettings()
    weights: ObjectiveWeights = ObjectiveWeights()
    optim: PretextOptim
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    log_every: int = Field(default=20, gt=0)
    checkpoint_every: int = Field(default=200, gt=0)

    @model_validator(mode="after")
    def _check(self) -> PretextRecipe:
        ends = [phase.until for phase in self.phases]
        if ends != sorted(set(ends)) or ends[-1] != 1.0:
            raise ValueError(f"phases: expected rising values of until, the last 1, got {ends}")
        if not self.network.startswith("vit_"):
            raise ValueError(f"network: expected a timm model vit_*, got {self.network!r}")
        return self

    def phase(self, progress: float) -> Phase:
        return next(phase for phase in self.phases if progress < phase.until or phase is self.phases[-1])

    def backbone(self, weights: str = "none") -> ImageBackboneSettings:
        """What builds this network elsewhere."""
        return ImageBackboneSettings(
            kind="timm",
            name=self.network,
            weights=weights,
            model_args=self.model_args,
            cells_per_patch=self.cells_per_patch,
        )

    def digest(self) -> str:
        """SHA-256 of everything that decides the result."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def load_pretext_recipe(path: Path, overrides: Sequence[str] = ()) -> PretextRecipe:
    """A recipe from a YAML file with `key.key=value` laid over it. ValueError in one sentence for what is wrong."""
    values = read_mapping(path)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ValueError(f"--set: expected key=value such as optim.steps=100, got {text!r}")
        layer: Any = yaml.safe_load(value)
        for part in reversed(key.split(".")):
            layer = {part: layer}
        values = merge(values, layer)
    return parse_settings(PretextRecipe, values, where=str(path))
