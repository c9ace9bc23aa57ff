# SPDX-License-Identifier: Apache-2.0
"""Settings of the model and its preprocessing; they travel inside the checkpoint, never in a node's YAML.

Every class is frozen, and an unknown or misspelt key is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from xmodal_seg.structures import Head

PointScope = Literal["visible", "all"]
_LONGEST_GIVEN = 60  # characters
_MESSAGES = {"extra_forbidden": "there is no such setting"}
SettingsT = TypeVar("SettingsT", bound="Settings")


class Settings(BaseModel):
    """Base: frozen, unknown keys refused, defaults validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class PreprocessSettings(Settings):
    """How a Frame becomes a Batch."""

    voxel_size: float = Field(default=0.05, gt=0, description="edge of a voxel, m")
    max_cells: int = Field(default=4096, gt=1, le=32768, description="points outside a cube of this many voxels drop")
    image_size: tuple[int, int] = Field(
        default=(448, 800), description="(height, width) px of the model's input; rounded up to the patch size"
    )
    point_feats: Literal["one", "intensity"] = Field(
        default="one", description="input of the 3D net: the constant 1 (as the papers) or intensity in [0, 1]"
    )
    point_scope: PointScope = Field(
        default="visible", description="keep only the points that a camera sees (as the papers) or all of them"
    )


class TuningSettings(Settings):
    """Small trained modules inside a frozen vision transformer; in YAML a word stands for its kind, as `tuning: lora`.

    Three types, in every block: spatial (low-rank updates of query and value), semantic (a bottleneck beside the MLP)
    and frequency (bottlenecks on the low, the high and all spatial frequencies of the patch tokens).
    """

    kind: Literal["none", "lora", "adapter", "all", "gate"] = Field(
        default="none",
        description="lora: spatial modules; adapter: semantic ones; all: all three types; gate: all three, of which "
        "only the top_k with the most Fisher information are trained at a time",
    )
    rank: int = Field(default=64, gt=0, description="of the spatial modules")
    adapter_width: int = Field(default=64, gt=0, description="of the semantic bottleneck")
    frequency_width: int = Field(default=32, gt=0, description="of each of the three frequency bottlenecks")
    low_pass: float = Field(
        default=0.3, gt=0, lt=1, description="radius of the low frequencies as a share of the highest along one axis"
    )
    checkpointing: bool = Field(
        default=False, description="keep a block's input only and compute the rest again in backward: less memory"
    )
    top_k: int = Field(default=18, gt=0, description="gate: modules that are on, of all types and layers together")
    warmup: int = Field(
        default=100, gt=0, description="gate: steps with all modules on before the first scores; they start as zeros"
    )
    every: int = Field(default=50, gt=0, description="gate: steps from one scoring to the next")
    samples: int = Field(default=8, gt=0, description="gate: frames that a scoring looks at, one by one")
    max_swaps: int = Field(default=6, gt=0, description="gate: modules that may change places in one scoring")
    scored_on: Literal["source_labels", "target_pseudo_labels", "target_sampled_labels"] = Field(
        default="target_pseudo_labels",
        description="gate: whose log-likelihood: ground truth, the model's own best labels, or labels drawn from its "
        "probabilities",
    )
    unselected: Literal["frozen", "bypassed"] = Field(
        default="frozen", description="gate: a module that is off still adds what it has learned, or nothing"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> TuningSettings:
        given = sorted(self.model_dump(exclude_defaults=True))
        if self.kind == "none" and given:
            raise ValueError(f"kind: 'none' has no use for {', '.join(given)}; expected lora, adapter, all or gate")
        return self


class ImageBackboneSettings(Settings):
    """The 2D network: a frozen vision foundation model, or xMUDA's trainable U-Net for the baseline rows."""

    kind: Literal["timm", "radio", "unet"] = "timm"
    name: str = Field(
        default="naflexvit_large_patch16_radio_v3.c_radio",
        description="timm model, or RADIO version such as radio_v2.5-l",
    )
    weights: str = Field(
        default="hub", description="'hub' (download), 'none' (random; the checkpoint holds them), or a local file"
    )
    checkout: str | None = Field(
        default=None, description="radio only: a local checkout of its repository, used instead of torch.hub's download"
    )
    model_args: dict[str, Any] = Field(default_factory=dict, description="further arguments of the model's constructor")
    feature_norm: Literal["none", "fixed", "batch", "layer"] = Field(
        default="none",
        description="normalise the features before heads and fusion (RADIO's are un-normalised): by mean and deviation "
        "of the labelled training frames, measured before the first step ('fixed'), or by layers with a scale and a "
        "shift that the 2D head and the fusion train alike; 'batch' is another function in training than after it",
    )
    cells_per_patch: int = Field(
        default=1,
        gt=0,
        description="timm only, for networks that were pre-trained so: a patch is n x n cells with D / n^2 channels of "
        "their own; a feature has these beside the D of the patches around",
    )
    width: int = Field(default=64, gt=0, description="unet only: channels of the output; 64 as xMUDA")
    tuning: TuningSettings = Field(
        default=TuningSettings(), description="timm only: modules that are trained inside the otherwise frozen network"
    )

    @model_validator(mode="after")
    def _check(self) -> ImageBackboneSettings:
        if self.tuning.kind != "none" and self.kind != "timm":
            raise ValueError(f"tuning: {self.tuning.kind!r} goes with kind 'timm' only, got kind {self.kind!r}")
        if self.feature_norm == "fixed" and self.kind == "unet":
            raise ValueError("feature_norm: 'fixed' goes with a frozen network; kind 'unet' is trained")
        return self


class PointBackboneSettings(Settings):
    """The 3D network: SparseConvNet's U-Net; the defaults are the papers' (2,688,656 parameters)."""

    in_channels: int = Field(default=1, gt=0)
    base_channels: int = Field(default=16, gt=0, description="m: level i has i * m channels; also the output width")
    num_levels: int = Field(default=7, ge=1, le=10)
    block_reps: int = Field(default=1, ge=1)
    bn_eps: float = Field(default=1e-4, gt=0)
    bn_momentum: float = Field(default=0.01, gt=0, le=1, description="PyTorch's convention (SparseConvNet's 0.99)")


class FusionSettings(Settings):
    """How 2D and 3D features meet."""

    kind: Literal["mlp", "vanilla", "xmuda", "none"] = Field(
        default="mlp",
        description="mlp: project 3D to D, concatenate, two hidden layers; vanilla: one linear layer; "
        "xmuda: concatenate unprojected, Linear(64) + ReLU; none: no fused head",
    )
    hidden: int = Field(default=1024, gt=0, description="width of the hidden layers")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="the paper names dropout, not its rate")
    detach_3d: bool = Field(default=False, description="stop the gradient of the fusion losses into the 3D net")


class HeadSettings(Settings):
    """Which classifiers the model has. The default is the paper's."""

    main: tuple[Head, ...] = ("2d", "3d", "fused")
    mimic: tuple[tuple[Head, Head], ...] = Field(
        default=(("3d", "fused"), ("fused", "2d"), ("fused", "3d")),
        description="(student, teacher) pairs that a mimicry head serves",
    )
    mimic_head_per: Literal["student", "pair"] = Field(
        default="student",
        description="student: one mimicry head follows all teachers of a student (the paper); "
        "pair: one for each teacher (the symmetric-alignment ablation)",
    )
    ensemble: tuple[Head, ...] = ("fused", "3d")

    @model_validator(mode="after")
    def _check(self) -> HeadSettings:
        if not self.main or len(set(self.main)) != len(self.main):
            raise ValueError(f"main: expected one or more different heads, got {self.main}")
        for head in self.ensemble:
            if head not in self.main:
                raise ValueError(f"ensemble: {head!r} is not among the main heads {self.main}")
        for student, teacher in self.mimic:
            if teacher not in self.main:
                raise ValueError(f"mimic: teacher {teacher!r} is not among the main heads {self.main}")
            if student == teacher:
                raise ValueError(f"mimic: {student!r} cannot mimic itself")
        if len(set(self.mimic)) != len(self.mimic):
            raise ValueError(f"mimic: a (student, teacher) pair stands twice in {self.mimic}")
        return self


class ModelSettings(Settings):
    """Everything needed to build the model and to feed it."""

    num_classes: int = Field(ge=2, lt=255)
    preprocess: PreprocessSettings = PreprocessSettings()
    image_backbone: ImageBackboneSettings = ImageBackboneSettings()
    point_backbone: PointBackboneSettings = PointBackboneSettings()
    fusion: FusionSettings = FusionSettings()
    heads: HeadSettings = HeadSettings()

    @model_validator(mode="after")
    def _check(self) -> ModelSettings:
        has_fused = any("fused" in pair for pair in (self.heads.main, *self.heads.mimic))
        if has_fused and self.fusion.kind == "none":
            raise ValueError("fusion.kind: 'none' does not go with a fused head in heads.main or heads.mimic")
        if self.preprocess.point_scope == "all" and "3d" not in self.heads.main:
            raise ValueError("preprocess.point_scope: 'all' needs a 3d main head for the points that no camera sees")
        return self


def load_settings(cls: type[SettingsT], path: str | Path) -> SettingsT:
    """Read `cls` from a YAML file. Raises ValueError naming the file and the key that is wrong."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    return parse_settings(cls, values, where=str(path))


def given_value(error: Mapping[str, Any]) -> str:
    """What came, where pydantic's message says only what should have come."""
    is_short = isinstance(error["input"], str | int | float) and len(str(error["input"])) <= _LONGEST_GIVEN
    return f", got {error['input']!r}" if is_short and error["msg"].startswith("Input should") else ""


def parse_settings(cls: type[SettingsT], values: dict[str, Any], *, where: str) -> SettingsT:
    """Validate `values`; a ValueError lists each wrong key with its reason in one line, after `where`."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        reasons = [
            f"{'.'.join(map(str, e['loc'])) or 'settings'}: {_MESSAGES.get(e['type'], e['msg'])}{given_value(e)}"
            for e in error.errors()
        ]
        raise ValueError(f"{where}: {'; '.join(reasons)}") from error
