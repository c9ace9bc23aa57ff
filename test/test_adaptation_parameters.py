# SPDX-License-Identifier: Apache-2.0
"""What adapts, by name and number."""

from __future__ import annotations

import pytest
import torch
from helpers import tiny_settings
from torch import nn

from xmodal_seg.adaptation.parameters import NORMS, adapted_parameters, are_finite, distance, separate_copy
from xmodal_seg.config import FusionSettings, HeadSettings, ImageBackboneSettings, ModelSettings
from xmodal_seg.models.image_backbone import ImageBackbone
from xmodal_seg.models.segmenter import SegmentationModel


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    return SegmentationModel(settings=tiny_settings()).eval()


def test_names_and_number_are_those_of_the_norms(model: SegmentationModel) -> None:
    found = adapted_parameters(model, scopes=("point_norms", "fusion_norms"))

    fusion = {f"fusion.mix.{layer}.{name}" for layer in (1, 5) for name in ("weight", "bias")}
    assert {name for name in found.weights if name.startswith("fusion")} == fusion
    norms = [m for part in (model.point_backbone, model.fusion) for m in part.modules() if isinstance(m, NORMS)]
    assert len(found.weights) == 2 * len(norms)
    assert len(found.statistics) == 2 * len(norms)
    # levels of 4 and 8 channels; before each of six convolutions and at the end, and twice 8 hidden units
    widths = [4, 8, 4, 8, 8, 4]
    assert found.count == sum(2 * norm.num_features for norm in norms) == 2 * (sum(widths) + 2 * 8)


def test_no_norm_layer_of_these_parts_is_overlooked(model: SegmentationModel) -> None:
    """A norm class that the list lacks would silently not adapt; only a norm has a scale for each channel."""
    found = adapted_parameters(model, scopes=("point_norms", "fusion_norms"))
    scales = {
        name
        for name, parameter in model.named_parameters()
        if name.startswith(("point_backbone.", "fusion.")) and name.endswith("weight") and parameter.ndim == 1
    }
    assert scales == {name for name in found.weights if name.endswith("weight")}


def test_the_papers_model_adapts_a_few_thousand_numbers() -> None:
    class WideBackbone(ImageBackbone):
        out_channels = 1024
        frozen = True

    model = SegmentationModel(settings=ModelSettings(num_classes=6), image_backbone=WideBackbone())

    fusion = adapted_parameters(model, scopes=("fusion_norms",))
    both = adapted_parameters(model, scopes=("point_norms", "fusion_norms"))

    assert fusion.count == 2 * (1024 + 1024)
    point = sum(
        m.weight.numel() + m.bias.numel() for m in model.point_backbone.modules() if isinstance(m, nn.BatchNorm1d)
    )
    assert both.count == fusion.count + point
    assert both.count < 10_000


def test_parts_without_norms_are_refused() -> None:
    vanilla = SegmentationModel(settings=tiny_settings(fusion=FusionSettings(kind="vanilla")))
    with pytest.raises(ValueError, match="fusion_norms: the model's fusion has no norm layers"):
        adapted_parameters(vanilla, scopes=("fusion_norms",))
    camera = HeadSettings(main=("2d",), mimic=(), ensemble=("2d",))
    blind = SegmentationModel(settings=tiny_settings(heads=camera, fusion=FusionSettings(kind="none")))
    with pytest.raises(ValueError, match="point_norms: the model's point_backbone has no norm layers"):
        adapted_parameters(blind, scopes=("point_norms",))
    with pytest.raises(ValueError, match="expected at least one of point_norms and fusion_norms"):
        adapted_parameters(vanilla, scopes=())


def test_a_copy_has_weights_of_its_own_but_the_frozen_backbone(model: SegmentationModel) -> None:
    other = separate_copy(model)

    assert other.image_backbone is model.image_backbone
    assert not any(parameter.requires_grad for parameter in other.parameters())
    theirs = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        assert (theirs[name] is parameter) == name.startswith("image_backbone.")
        assert torch.equal(theirs[name], parameter)
    assert any(parameter.requires_grad for parameter in model.fusion.parameters())


def test_a_trainable_backbone_is_copied() -> None:
    narrow = ImageBackboneSettings(kind="unet", name="narrow", weights="none", width=5)
    model = SegmentationModel(settings=tiny_settings(image_backbone=narrow))
    assert separate_copy(model).image_backbone is not model.image_backbone


def test_distance_and_finiteness() -> None:
    reference = {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(3)}
    moved = {"a": torch.tensor([1.0, 1.5]), "b": torch.tensor([0.0, 0.75, 0.0])}
    assert distance(moved, reference) == 0.75
    assert are_finite(moved)
    assert not are_finite({**moved, "b": torch.tensor([float("nan")])})
