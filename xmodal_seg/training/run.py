# SPDX-License-Identifier: Apache-2.0
"""From a recipe to a trained run, and from a run to its scores and pseudo-labels."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.progress import track

from xmodal_seg.checkpoint import Checkpoint, load_checkpoint
from xmodal_seg.models.image_backbone import ImageBackbone
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.models.tuning.tuned_vit import TunedViT
from xmodal_seg.structures import Head
from xmodal_seg.training.data.dataset import Domains, FrameDataset
from xmodal_seg.training.data.prepared import write_text
from xmodal_seg.training.data.tasks import open_domains
from xmodal_seg.training.evaluation import ENSEMBLE, Scores, evaluate_selections, whole
from xmodal_seg.training.feature_cache import FeatureCache, open_feature_cache
from xmodal_seg.training.locks import alone
from xmodal_seg.training.pseudo_labels import PseudoLabelStore, make_pseudo_labels, read_index
from xmodal_seg.training.recipe import Recipe, check_same_result, load_recipe
from xmodal_seg.training.run_state import STATE_FILE
from xmodal_seg.training.run_streams import Sources
from xmodal_seg.training.streams import DomainBatch, EvaluationBatches, InputSettings, loader
from xmodal_seg.training.teachers import HeadComparison, compare_with_student
from xmodal_seg.training.trainer import BEST, LAST, RECIPE_FILE, Trainer, build_fabric, build_model

RESULTS_FILE = "results.json"
TargetPart = Literal["train", "val", "test"]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A recipe with everything that it needs, opened."""

    recipe: Recipe
    domains: Domains
    model: SegmentationModel
    fabric: Fabric

    @property
    def frozen_backbone(self) -> ImageBackbone | None:
        """The model's image backbone if no training changes it: models of the same run can share it."""
        backbone = self.model.image_backbone
        return backbone if backbone is not None and backbone.frozen else None

    def features(
        self, dataset: FrameDataset, *, mirrored: bool = False, image_size: tuple[int, int] | None = None
    ) -> FeatureCache | None:
        """The feature cache of a data set, filled where needed; None where the recipe uses none."""
        if not self.recipe.feature_cache:
            return None
        return open_feature_cache(
            self.recipe.data.root / "features",
            model=self.model,
            dataset=dataset,
            image_size=InputSettings.of(self.model, image_size=image_size).image_size,
            fingerprint=self.domains.fingerprint,
            mirrored=mirrored,
        )

    def batches(self, dataset: FrameDataset) -> EvaluationBatches:
        """All of a data set, unaltered."""
        return EvaluationBatches(
            dataset=dataset,
            inputs=InputSettings.of(self.model),
            batch_size=self.recipe.evaluation.batch_size,
            feature_maps=self.features(dataset),
        )

    def items(self, batches: EvaluationBatches, *, what: str, console: Console | None = None) -> Iterable[DomainBatch]:
        """The batches, read ahead; a progress bar on stderr, or on `console`, says `what` is done with them."""
        return track(
            loader(batches, num_workers=self.recipe.data.num_workers, device=self.fabric.device),
            description=f"{what} {batches.dataset.name}",
            total=len(batches),
            console=console or Console(stderr=True),
        )


def set_up(recipe: Recipe, *, single: bool = False) -> Setup:
    """Open the data and build the model, for one process alone if `single`.

    Raises ValueError for whatever is missing or does not fit.
    """
    if recipe.accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError("accelerator: 'gpu' asked for, but torch sees none")
    domains = open_domains(recipe)
    fabric = build_fabric(recipe, single=single)
    model = build_model(recipe).to(fabric.device)
    return Setup(recipe=recipe, domains=domains, model=model, fabric=fabric)


def make_trainer(setup: Setup, out: Path, *, console: Console | None = None) -> Trainer:
    """Everything that a run needs, with the feature cache filled; at the step that the folder `out` has reached."""
    return Trainer(
        recipe=setup.recipe,
        domains=setup.domains,
        model=setup.model,
        out=out,
        fabric=setup.fabric,
        sources=_sources(setup),
        console=console,
    )


def train(recipe: Recipe, out: Path, *, console: Console | None = None) -> Trainer:
    """Train a recipe in the folder `out`, or go on with what is there; ValueError while another process does so.

    Also where the folder has a run of another recipe, which is said before any data are opened.
    """
    if (out / STATE_FILE).is_file() and (out / RECIPE_FILE).is_file():
        check_same_result(load_recipe(out / RECIPE_FILE), recipe, where=out)
    _check_former_stage(recipe)
    setup = set_up(recipe)
    with alone(out) if setup.fabric.global_rank == 0 else nullcontext():
        trainer = make_trainer(setup, out, console=console)
        trainer.fit()
    return trainer


def _check_former_stage(recipe: Recipe) -> None:
    """Raises ValueError for what is wrong with weights and labels to begin with, before a world is made."""
    if recipe.start_from is not None:
        load_checkpoint(recipe.start_from)
    if recipe.losses.lambda_pl > 0 and recipe.data.pseudo_labels is not None:
        read_index(recipe.data.pseudo_labels)


def evaluate_run(run: Path, *, console: Console | None = None) -> dict[str, Any]:
    """Score a finished run on the target's test part, and write `results.json` beside its recipe.

    Three protocols: `best`, the paper's, reads each head from the checkpoint with its own best validation score and
    averages those of the ensemble; `best_single` is the one checkpoint with the best ensemble; `last` the last one.
    """
    setup = _set_up_finished(run)
    batches = setup.batches(setup.domains.target_test)
    best = load_checkpoint(run / BEST, device=setup.fabric.device)
    models = _models_by_bank(best, image_backbone=setup.frozen_backbone)
    last = _last_model(run, setup)
    selections = {
        "best": {name: model for name, model in models.items() if name != ENSEMBLE},
        "best_single": whole(models[ENSEMBLE]),
        "last": whole(last),
    }
    scores = evaluate_selections(
        selections,
        setup.items(batches, what="scoring", console=console),
        device=setup.fabric.device,
        autocast=setup.fabric.autocast,
    )
    results = {
        "data": setup.domains.target_test.name,
        "fingerprint": setup.domains.fingerprint,
        "recipe_hash": setup.recipe.result_hash(),
        "trainable_parameters": trainable_parameters(setup.model, last),
        "class_names": list(setup.domains.label_space.class_names),
        "validation": best.metadata["best"],
        "test": {protocol: summarise(of_protocol) for protocol, of_protocol in scores.items()},
    }
    write_text(run / RESULTS_FILE, json.dumps(results, indent=1) + "\n")
    return results


def make_run_pseudo_labels(run: Path, folder: Path, *, console: Console | None = None) -> dict[str, float]:
    """Pseudo-labels of the target's training part by the last checkpoint of a run; percent of points kept, by head."""
    setup = _set_up_finished(run)
    dataset = setup.domains.target_train
    batches = setup.batches(dataset)
    return make_pseudo_labels(
        _last_model(run, setup),
        dataset,
        batches,
        folder=folder,
        fingerprint=setup.domains.fingerprint,
        device=setup.fabric.device,
        autocast=setup.fabric.autocast,
        items=setup.items(batches, what="labelling", console=console),
    )


def compare_run_heads(
    run: Path, *, part: TargetPart = "val", console: Console | None = None
) -> dict[Head, HeadComparison]:
    """By teacher: the other main heads of a run's last checkpoint against its fused one, on labelled target frames."""
    setup = _set_up_finished(run)
    datasets = {"train": setup.domains.target_train, "val": setup.domains.target_val, "test": setup.domains.target_test}
    batches = setup.batches(datasets[part])
    try:
        return compare_with_student(
            _last_model(run, setup),
            setup.items(batches, what="comparing", console=console),
            device=setup.fabric.device,
            autocast=setup.fabric.autocast,
        )
    except ValueError as error:
        raise ValueError(f"{run}: {error}") from error


def trainable_parameters(model: SegmentationModel, last: SegmentationModel) -> dict[str, int]:
    """By group of the new `model`; `tuning_on`: those of the modules that were on in the `last` one."""
    sizes = {str(name): size for name, size in model.group_sizes().items()}
    tuned = last.image_backbone
    if isinstance(tuned, TunedViT):
        tuned.select(tuned.selection())
        sizes["tuning_on"] = last.group_sizes()["tuning"]
    return sizes


def summarise(scores: Scores) -> dict[str, Any]:
    """For each head: mIoU in percent as is usual and as the ancestors count, and IoU of every class (None: absent)."""
    return {
        name: {
            "miou": matrix.mean_iou(),
            "miou_absent_zero": matrix.mean_iou(absent="zero"),
            "iou": [None if value != value else round(100 * float(value), 2) for value in matrix.iou()],
        }
        for name, matrix in scores.items()
    }


def _sources(setup: Setup) -> Sources:
    recipe, domains = setup.recipe, setup.domains
    pseudo_labels, pseudo_labels_hash = None, ""
    if recipe.losses.lambda_pl > 0:
        assert recipe.data.pseudo_labels is not None
        pseudo_labels = PseudoLabelStore(
            recipe.data.pseudo_labels,
            heads=recipe.model.heads.main,
            teacher=recipe.losses.pseudo_label_teacher,
            fingerprint=domains.fingerprint,
            num_frames=len(domains.target_train),
        )
        pseudo_labels_hash = f"-{pseudo_labels.content_hash}"
    data = recipe.data
    source_features = target_features = None  # of a domain that no step runs on, none are made
    if data.labelled == "source":
        source_features = setup.features(
            domains.source_train, mirrored=data.augment_source.image.flip > 0, image_size=data.image_size_source
        )
    if data.labelled == "target" or recipe.uses_target:
        target_features = setup.features(
            domains.target_train, mirrored=data.augment_target.image.flip > 0, image_size=data.image_size_target_train
        )
    return Sources(
        source_features=source_features,
        target_features=target_features,
        validation_features=setup.features(domains.target_val),
        pseudo_labels=pseudo_labels,
        pseudo_labels_hash=pseudo_labels_hash,
    )


def _last_model(run: Path, setup: Setup) -> SegmentationModel:
    checkpoint = load_checkpoint(run / LAST, device=setup.fabric.device)
    return checkpoint.build_model(image_backbone=setup.frozen_backbone)


def _models_by_bank(checkpoint: Checkpoint, *, image_backbone: ImageBackbone | None) -> dict[str, SegmentationModel]:
    """The model of every bank; banks of the same step share one."""
    by_step: dict[int, SegmentationModel] = {}
    models = {}
    for bank, record in checkpoint.metadata["best"].items():
        step = int(record["step"])
        if step not in by_step:
            by_step[step] = checkpoint.build_model(bank=bank, image_backbone=image_backbone)
        models[bank] = by_step[step]
    return models


def _set_up_finished(run: Path) -> Setup:
    """For one process; ValueError where there is no run, or one that is not finished."""
    if not (run / RECIPE_FILE).is_file():
        raise ValueError(f"{run}: no run here ({RECIPE_FILE} is missing)")
    if not (run / LAST).is_dir():
        raise ValueError(f"{run}: the run has not finished ({LAST} is missing); call train.py with this folder again")
    return set_up(load_recipe(run / RECIPE_FILE), single=True)
