# SPDX-License-Identifier: Apache-2.0
"""The two halves of a step: what they compute, and which parameter groups their gradients reach."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_world import tiny_frame, tiny_recipe

from xmodal_seg.models.segmenter import ParameterGroup, SegmentationModel
from xmodal_seg.preprocess import prepare
from xmodal_seg.training.recipe import Recipe
from xmodal_seg.training.steps import StepResult, source_step, target_step
from xmodal_seg.training.streams import DomainBatch

ROOT = Path("unused")


def make_model(recipe: Recipe) -> SegmentationModel:
    torch.manual_seed(0)
    return SegmentationModel(settings=recipe.model)


def make_batch(recipe: Recipe, *, labelled: bool) -> DomainBatch:
    frames = [tiny_frame(seed) for seed in (1, 2)]
    if not labelled:
        frames = [replace(frame, labels=None) for frame in frames]
    return DomainBatch(batch=prepare(frames, settings=recipe.model.preprocess))


def gradient_by_part(model: SegmentationModel, result: StepResult) -> dict[str, bool]:
    """For each part of the model, whether any of its parameters got a gradient that is not zero."""
    model.zero_grad()
    result.loss.backward()

    def reached(parameters: Any) -> bool:
        return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in parameters)

    parts: dict[str, Any] = {
        "image_backbone": model.image_backbone,
        "point_backbone": model.point_backbone,
        "fusion": model.fusion,
        **{f"main_{head}": module for head, module in model.heads.main.items()},
        **{f"mimic_{head}": module for head, module in model.heads.mimic.items()},
    }
    return {name: reached(module.parameters()) for name, module in parts.items() if module is not None}


def test_source_step_reaches_everything_but_the_foundation_model() -> None:
    recipe = tiny_recipe(ROOT)
    model = make_model(recipe)
    result = source_step(model, make_batch(recipe, labelled=True), losses=recipe.losses)
    reached = gradient_by_part(model, result)
    assert reached.pop("image_backbone") is False
    assert all(reached.values()), reached
    names = {"seg_2d", "seg_3d", "seg_fused", "mimic_3d_from_fused", "mimic_fused_from_2d"}
    assert set(result.terms) == {f"source/{name}" for name in names}
    assert not any(term.requires_grad for term in result.terms.values())


@pytest.mark.parametrize("detach_3d", [False, True])
def test_target_step_never_reaches_the_main_heads(detach_3d: bool) -> None:
    recipe = tiny_recipe(ROOT, model={"fusion": {"detach_3d": detach_3d}})
    model = make_model(recipe)
    result = target_step(model, make_batch(recipe, labelled=False), losses=recipe.losses)
    reached = gradient_by_part(model, result)
    expected = {"point_backbone", "fusion", "mimic_3d", "mimic_fused"}
    assert {name for name, got in reached.items() if got} == expected


@pytest.mark.parametrize(("detach_3d", "expected"), [(False, {"fusion", "point"}), (True, {"fusion"})])
def test_guidance_alone_reaches_fusion_and_through_it_the_3d_net(
    detach_3d: bool, expected: set[ParameterGroup]
) -> None:
    recipe = tiny_recipe(
        ROOT,
        model={"fusion": {"detach_3d": detach_3d}},
        losses={"terms": [{"teacher": "2d", "student": "fused", "weight": "guidance"}]},
    )
    model = make_model(recipe)
    target_step(model, make_batch(recipe, labelled=False), losses=recipe.losses).loss.backward()
    groups = model.parameter_groups()
    reached = {name for name, group in groups.items() if any(p.grad is not None and p.grad.any() for p in group)}
    assert reached == expected


def test_align_alone_reaches_the_3d_net_only() -> None:
    recipe = tiny_recipe(ROOT, losses={"terms": [{"teacher": "fused", "student": "3d"}]})
    model = make_model(recipe)
    target_step(model, make_batch(recipe, labelled=False), losses=recipe.losses).loss.backward()
    groups = model.parameter_groups()
    reached = {name for name, group in groups.items() if any(p.grad is not None and p.grad.any() for p in group)}
    assert reached == {"point"}


def test_loss_is_the_weighted_sum_of_its_terms() -> None:
    recipe = tiny_recipe(ROOT, losses={"lambda_source": 0.7, "lambda_target": 0.3, "guidance": 0.25})
    model = make_model(recipe).eval()
    source = source_step(model, make_batch(recipe, labelled=True), losses=recipe.losses)
    expected = sum((1.0 if "/seg" in name else 0.7) * term.item() for name, term in source.terms.items())
    assert source.loss.item() == pytest.approx(expected, rel=1e-5)
    target = target_step(model, make_batch(recipe, labelled=False), losses=recipe.losses)
    assert target.loss.item() == pytest.approx(0.3 * sum(t.item() for t in target.terms.values()), rel=1e-5)


@pytest.mark.parametrize(("guidance", "teacher"), [(1.0, "2d"), (0.0, "3d")])
def test_lambda_one_and_zero_equal_single_term_recipes(guidance: float, teacher: str) -> None:
    guided = tiny_recipe(ROOT, losses={"guidance": guidance})
    single = tiny_recipe(
        ROOT, losses={"terms": [{"teacher": "fused", "student": "3d"}, {"teacher": teacher, "student": "fused"}]}
    )
    model = make_model(guided).eval()
    batch = make_batch(guided, labelled=False)
    results = [target_step(model, batch, losses=recipe.losses).loss for recipe in (guided, single)]
    assert torch.equal(*results)


def test_pseudo_labels_teach_every_main_head_without_weights() -> None:
    recipe = tiny_recipe(ROOT, losses={"lambda_pl": 2.0}, data={"pseudo_labels": "somewhere"})
    model = make_model(recipe).eval()
    batch = make_batch(recipe, labelled=True)
    labels = batch.batch.labels
    assert labels is not None
    taught = replace(
        batch, batch=replace(batch.batch, labels=None), pseudo_labels={"2d": labels, "3d": labels, "fused": labels}
    )
    result = target_step(model, taught, losses=recipe.losses)
    supervised = source_step(model, batch, losses=recipe.losses)
    for head in ("2d", "3d", "fused"):
        assert result.terms[f"target/pl_{head}"] == pytest.approx(supervised.terms[f"source/seg_{head}"].item())
    reached = gradient_by_part(model, result)
    assert [reached[f"main_{head}"] for head in ("2d", "3d", "fused")] == [True] * 3


def test_stored_features_give_the_same_loss() -> None:
    recipe = tiny_recipe(ROOT)
    model = make_model(recipe).eval()
    batch = make_batch(recipe, labelled=True)
    assert model.image_backbone is not None
    stored = replace(batch, feature_map=model.image_backbone(batch.batch.images))
    losses = [source_step(model, data, losses=recipe.losses).loss.item() for data in (batch, stored)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)


def test_what_is_missing_is_said() -> None:
    recipe = tiny_recipe(ROOT)
    model = make_model(recipe)
    unlabelled = make_batch(recipe, labelled=False)
    with pytest.raises(ValueError, match="source step: expected labelled frames"):
        source_step(model, unlabelled, losses=recipe.losses)
    second_stage = recipe.losses.model_copy(update={"lambda_pl": 1.0})
    with pytest.raises(ValueError, match="the batch has no pseudo-labels"):
        target_step(model, unlabelled, losses=second_stage)
    nothing = recipe.losses.model_copy(update={"lambda_target": 0.0})
    with pytest.raises(ValueError, match="leaves no loss term"):
        target_step(model, unlabelled, losses=nothing)
