# SPDX-License-Identifier: Apache-2.0
"""The settings of a recipe, and which combinations of them make no sense."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from xmodal_seg.config import ModelSettings, Settings
from xmodal_seg.losses import MimicTerm
from xmodal_seg.structures import Head
from xmodal_seg.training.transforms import AugmentSettings

Weight = float | Literal["guidance", "1 - guidance"]

# What the code makes of a recipe. Raised by one with every change of code or shipped weights that changes results, so
# that neither a finished line of a table nor an interrupted run is taken for one of the new code. 2: the narrow U-Net
# standardises images.
RESULTS_VERSION = 2


class DataSettings(Settings):
    """Which task, where its files are, and how frames are altered on the way to the model."""

    shift: str = Field(description="name of the task, such as sim_day_night or usa_singapore")
    reader: Literal["simulated", "prepared", "frame_stores"] = Field(description="what opens the data")
    root: Path = Field(
        default=Path("runs/data"), description="folder of the data; a simulated world is made there once"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="what else the reader of this task takes")
    labelled: Literal["source", "target"] = Field(
        default="source", description="the domain that is supervised; target is the target-only row"
    )
    image_size_source: tuple[int, int] | None = Field(
        default=None, description="(height, width) px of the source's images at the model; None: as in its settings"
    )
    image_size_target_train: tuple[int, int] | None = Field(
        default=None, description="of the target's training images, where they are crops; it is scored as in use"
    )
    max_points: int | None = Field(default=None, gt=0, description="a fixed random subset of each frame's points")
    augment_source: AugmentSettings = AugmentSettings()
    augment_target: AugmentSettings = AugmentSettings()
    pseudo_labels: Path | None = Field(default=None, description="folder written by make_pseudo_labels.py")
    num_workers: int = Field(default=0, ge=0, description="processes that read ahead; the result does not depend on it")


class TermSettings(Settings):
    """One cross-modal term: weight * KL(main head of teacher || mimicry head of student)."""

    teacher: Head
    student: Head
    weight: Weight = Field(default=1.0, description="a number, or 'guidance' or '1 - guidance' for the paper's lambda")


class LossSettings(Settings):
    """What is minimised: segmentation on labels, the cross-modal terms on both domains, pseudo-labels on the target."""

    terms: tuple[TermSettings, ...] = (
        TermSettings(teacher="fused", student="3d"),
        TermSettings(teacher="2d", student="fused", weight="guidance"),
        TermSettings(teacher="3d", student="fused", weight="1 - guidance"),
    )
    guidance: float = Field(default=1.0, ge=0, le=1, description="lambda of L_guide: 1 follows 2D (day), 0 3D (night)")
    lambda_source: float = Field(default=1.0, ge=0)
    lambda_target: float = Field(default=0.1, ge=0)
    lambda_pl: float = Field(default=0.0, ge=0, description="weight of the pseudo-label loss; 0 in the first stage")
    pseudo_label_teacher: Literal["ensemble", "own_head"] = Field(
        default="ensemble", description="one pseudo-label for all heads (the paper), or each head its own (xMUDA)"
    )
    class_weights: Literal["log", "none"] | tuple[float, ...] = Field(
        default="log", description="of the source labels only; log: xMUDA's formula on the training labels"
    )

    def mimic_terms(self) -> tuple[MimicTerm, ...]:
        """The terms with numbers for weights, those of weight zero left out."""
        values = {"guidance": self.guidance, "1 - guidance": 1.0 - self.guidance}
        terms = [
            MimicTerm(
                teacher=term.teacher,
                student=term.student,
                weight=values[term.weight] if isinstance(term.weight, str) else term.weight,
            )
            for term in self.terms
        ]
        return tuple(term for term in terms if not term.is_zero)


class LearningRates(Settings):
    """By group of `SegmentationModel.parameter_groups`."""

    image: float = Field(default=1e-3, gt=0, description="2D head, feature norm and a trainable 2D network")
    tuning: float = Field(default=1e-3, gt=0, description="modules inside the image backbone")
    fusion: float = Field(default=1e-3, gt=0, description="projection, fusion and its heads")
    point: float = Field(default=3e-3, gt=0, description="3D network and its heads")


class OptimSettings(Settings):
    """Adam, one rate per group, divided by ten at the milestones."""

    lr: LearningRates = LearningRates()
    steps: int = Field(gt=0)
    milestones: tuple[float, ...] = Field(default=(0.8, 0.9), description="as shares of the steps")
    gamma: float = Field(default=0.1, gt=0, le=1)
    batch_size: int = Field(gt=0, description="frames of each domain in a step, over all processes")

    @model_validator(mode="after")
    def _check(self) -> OptimSettings:
        if list(self.milestones) != sorted(self.milestones) or not all(0 < share < 1 for share in self.milestones):
            raise ValueError(f"milestones: expected rising shares between 0 and 1, got {list(self.milestones)}")
        return self


class EvaluationSettings(Settings):
    """When the target's validation part is looked at, and what a batch of it is."""

    every: int = Field(gt=0, description="steps between validations; a last one follows the last step")
    batch_size: int = Field(default=8, gt=0)
    checkpoint_every: int = Field(default=200, gt=0, description="steps that a kill may cost at most")
    log_every: int = Field(default=20, gt=0)


class Recipe(Settings):
    """A training run."""

    name: str = Field(description="of the method: a row of the tables")
    model: ModelSettings
    data: DataSettings
    losses: LossSettings = LossSettings()
    optim: OptimSettings
    evaluation: EvaluationSettings
    seed: int = Field(default=0, ge=0)
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = Field(default=1, gt=0, description="processes, one for each GPU; torchrun's own number wins")
    feature_cache: bool = Field(default=False, description="keep the frozen image features on disk")
    start_from: Path | None = Field(
        default=None, description="checkpoint folder whose default bank training begins with; None: drawn from the seed"
    )

    @property
    def uses_target(self) -> bool:
        """The target domain enters training: no step runs on it when nothing would be minimised there."""
        return bool(self.losses.lambda_target and self.losses.mimic_terms()) or self.losses.lambda_pl > 0

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> list[str]:
        return [
            *_term_problems(self),
            *_pseudo_label_problems(self),
            *_feature_cache_problems(self),
            *_tuning_problems(self),
            *_class_weight_problems(self),
        ]

    def result_hash(self) -> str:
        """16 hex digits over all that changes the result, RESULTS_VERSION too: not over folders, workers or the seed.

        Of a local file of weights it is the content that counts.

        Nor over what keeps its default, so that a setting added later leaves the hashes of earlier results alone; a
        default that changes what comes out must therefore not be changed, but set in the recipes.
        """
        values = self.model_dump(mode="json", exclude_defaults=True)
        for key in ("seed", "devices", "accelerator"):
            values.pop(key, None)
        for key in ("root", "pseudo_labels", "num_workers"):
            values["data"].pop(key, None)
        values["data"].get("options", {}).pop("num_processes", None)  # which render the same world
        for key in ("log_every", "checkpoint_every"):
            values.get("evaluation", {}).pop(key, None)
        weights = Path(self.model.image_backbone.weights)
        if weights.is_file():
            values["model"]["image_backbone"]["weights"] = hashlib.sha256(weights.read_bytes()).hexdigest()
        values["results_version"] = RESULTS_VERSION
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _term_problems(recipe: Recipe) -> list[str]:
    """Terms must find the heads that they compare."""
    problems = []
    heads = recipe.model.heads
    for term in recipe.losses.terms:
        if term.teacher not in heads.main:
            problems.append(f"losses.terms: teacher {term.teacher!r} is not among model.heads.main {list(heads.main)}")
        elif (term.student, term.teacher) not in heads.mimic:
            problems.append(
                f"losses.terms: {term.student!r} from {term.teacher!r} needs the pair [{term.student}, {term.teacher}] "
                "in model.heads.mimic"
            )
    return problems


def _pseudo_label_problems(recipe: Recipe) -> list[str]:
    if recipe.losses.lambda_pl > 0 and recipe.data.pseudo_labels is None:
        return ["data.pseudo_labels: missing, but losses.lambda_pl > 0; make them with make_pseudo_labels.py"]
    if recipe.losses.lambda_pl > 0 and recipe.data.labelled == "target":
        return ["losses.lambda_pl: pseudo-labels make no sense where data.labelled is 'target'"]
    return []


def _feature_cache_problems(recipe: Recipe) -> list[str]:
    """Cached features are those of the unaltered image and of its mirror image."""
    if not recipe.feature_cache:
        return []
    if recipe.model.image_backbone.kind == "unet":
        return ["feature_cache: model.image_backbone.kind 'unet' is trained, so its features change with every step"]
    tuning = recipe.model.image_backbone.tuning.kind
    if tuning != "none":
        return [
            f"feature_cache: model.image_backbone.tuning is {tuning!r}, so the features change with every step; switch "
            "feature_cache off or set model.image_backbone.tuning to none"
        ]
    problems = []
    for name, augment in (("source", recipe.data.augment_source), ("target", recipe.data.augment_target)):
        for key in ("jitter", "crop", "bottom_crop"):
            if getattr(augment.image, key):
                problems.append(
                    f"feature_cache: data.augment_{name}.image.{key} alters images at every visit, so stored features "
                    "would be those of other images; switch one of the two off"
                )
    return problems


def _tuning_problems(recipe: Recipe) -> list[str]:
    """The gate's scores need a 2D or fused main head, and frames of a domain that the recipe trains on."""
    tuning = recipe.model.image_backbone.tuning
    if tuning.kind != "gate":
        return []
    problems = []
    if not {"2d", "fused"} & set(recipe.model.heads.main):
        problems.append("model.image_backbone.tuning: 'gate' scores with a 2d or fused head in model.heads.main")
    if tuning.scored_on != "source_labels" and not recipe.uses_target:
        problems.append(
            f"model.image_backbone.tuning.scored_on: {tuning.scored_on!r}, but nothing is minimised on the target; "
            "expected source_labels"
        )
    return problems


def _class_weight_problems(recipe: Recipe) -> list[str]:
    weights = recipe.losses.class_weights
    if isinstance(weights, tuple) and len(weights) != recipe.model.num_classes:
        return [f"losses.class_weights: expected {recipe.model.num_classes} numbers, one per class, got {len(weights)}"]
    return []
