# SPDX-License-Identifier: Apache-2.0
"""Fisher information of modules: against gradients taken one by one, on every kind of labels."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from model_parts import NUM_CLASSES, make_batch, small_settings

from xmodal_seg.config import ImageBackboneSettings
from xmodal_seg.labels import IGNORE_INDEX
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.models.tuning.selection import ModuleKey
from xmodal_seg.structures import Batch
from xmodal_seg.training.fisher import (
    frame_information,
    ground_truth,
    log_likelihood,
    mean_information,
    own_labels,
    sampled_labels,
)
from xmodal_seg.training.steps import predict
from xmodal_seg.training.streams import DomainBatch

TUNING = {"kind": "gate", "rank": 2, "adapter_width": 3, "frequency_width": 2, "top_k": 2}
KEYS = [ModuleKey(layer, of_type) for layer in (0, 1) for of_type in ("spatial", "semantic", "frequency")]


@pytest.fixture
def model() -> SegmentationModel:
    """Of which every module has learned something."""
    torch.manual_seed(0)
    backbone = ImageBackboneSettings(
        name="vit_tiny_patch16_224",
        weights="none",
        model_args={"depth": 2, "embed_dim": 16, "num_heads": 2},
        tuning=TUNING,
    )
    model = SegmentationModel(settings=small_settings(image_backbone=backbone)).eval()
    with torch.no_grad():
        for parameter in model.image_backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def frame(seed: int = 0, *, labels: torch.Tensor | None = None, num_visible: int | None = None) -> DomainBatch:
    batch = make_batch(num_points=29, num_images=1, seed=seed, num_visible=num_visible)
    coords = batch.voxel_coords.clone()
    coords[:, 0] = 0
    one = replace(batch, voxel_coords=coords, frame_index=torch.zeros_like(batch.frame_index), num_frames=1)
    return DomainBatch(batch=replace(one, labels=labels_for(one, seed) if labels is None else labels))


def labels_for(batch: Batch, seed: int) -> torch.Tensor:
    labels = torch.randint(0, NUM_CLASSES, (batch.num_points,), generator=torch.Generator().manual_seed(seed))
    labels[::5] = IGNORE_INDEX
    return labels


def test_information_is_the_squared_gradient_of_the_log_likelihood(model: SegmentationModel) -> None:
    data = frame()
    batch = data.batch
    predictions = model(batch)
    counted = batch.visible & (batch.labels != IGNORE_INDEX)
    likelihood = sum(
        predictions.main[head].log_softmax(1)[counted, batch.labels[counted]].mean() for head in ("2d", "fused")
    )
    likelihood.backward()
    expected = [
        sum(float(p.grad.double().square().sum()) for p in module.parameters())
        for module in model.image_backbone.modules_by_key().values()
    ]
    model.zero_grad()

    information = frame_information(model, data, labels=ground_truth)

    assert list(model.image_backbone.modules_by_key()) == KEYS
    assert information.dtype == torch.float64
    torch.testing.assert_close(information, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0)
    assert information.min() > 0
    assert all(p.grad is None for p in model.parameters())


def test_a_module_behind_zeros_has_no_information_on_its_first_layer(model: SegmentationModel) -> None:
    """What the warm-up is for."""
    module = model.image_backbone.modules_by_key()[ModuleKey(1, "spatial")]
    torch.nn.init.zeros_(module.query_up.weight)
    torch.nn.init.zeros_(module.value_up.weight)
    predictions = predict(model, frame())
    likelihood = log_likelihood(predictions, ground_truth(predictions, frame()))
    down, up = torch.autograd.grad(likelihood, [module.query_down.weight, module.query_up.weight])
    assert not down.any()
    assert up.any()


def test_order_of_the_frames_does_not_matter_and_their_number_divides(model: SegmentationModel) -> None:
    rows = torch.stack([frame_information(model, frame(seed), labels=ground_truth) for seed in range(5)])
    rows[2] *= 1e9  # sums one after the other would differ in their last digits
    scores = mean_information(KEYS, rows)
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        assert mean_information(KEYS, rows[order]) == scores
    assert scores[KEYS[3]] == pytest.approx(math.fsum(rows[:, 3].tolist()) / 5)
    assert mean_information(KEYS, torch.cat([rows, rows])) == scores


def test_pseudo_labels_are_those_of_the_ensemble(model: SegmentationModel) -> None:
    data = frame()
    best = model(data.batch).ensemble().argmax(1)
    expected = frame_information(model, frame(labels=best), labels=ground_truth)
    unlabelled = DomainBatch(batch=replace(data.batch, labels=None))
    assert torch.equal(frame_information(model, unlabelled, labels=own_labels), expected)
    assert not torch.equal(frame_information(model, data, labels=ground_truth), expected)


def test_sampled_labels_follow_each_heads_probabilities(model: SegmentationModel) -> None:
    data = frame()
    with torch.no_grad():
        model.heads.main["2d"].weight.mul_(8)
        predictions = model(data.batch)
    draw = sampled_labels(torch.Generator().manual_seed(3))
    draws = [draw(predictions, data) for _ in range(800)]
    for head in ("2d", "fused"):
        drawn = torch.stack([labels[head] for labels in draws])
        shares = torch.stack([(drawn == k).float().mean(0) for k in range(NUM_CLASSES)], dim=1)
        torch.testing.assert_close(shares, predictions.main[head].softmax(1), atol=0.08, rtol=0)
    again = sampled_labels(torch.Generator().manual_seed(3))(predictions, data)
    assert all(torch.equal(again[head], draws[0][head]) for head in again)
    assert any(not torch.equal(draws[0][head], draws[1][head]) for head in again)


def test_a_frame_that_no_camera_sees_has_no_information(model: SegmentationModel) -> None:
    assert not frame_information(model, frame(num_visible=0), labels=ground_truth).any()


def test_errors(model: SegmentationModel) -> None:
    unlabelled = DomainBatch(batch=replace(frame().batch, labels=None))
    with pytest.raises(ValueError, match="expected labelled frames, got a frame without labels"):
        frame_information(model, unlabelled, labels=ground_truth)
    with pytest.raises(ValueError, match="expected frames one by one, got 2 at once"):
        frame_information(model, DomainBatch(batch=make_batch()), labels=own_labels)
