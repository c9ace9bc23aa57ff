# SPDX-License-Identifier: Apache-2.0
"""Scores of several models in one pass: a frozen image backbone that they share is asked once."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from helpers import make_frame, tiny_settings

from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.training.evaluation import evaluate_selections, whole
from xmodal_seg.training.streams import DomainBatch, InputSettings, make_batch

CPU = torch.device("cpu")


def batch_of(model: SegmentationModel) -> DomainBatch:
    return make_batch([make_frame(num_points=157), make_frame(num_points=211)], [0, 1], inputs=InputSettings.of(model))


@pytest.mark.parametrize("shared", [True, False])
def test_a_shared_backbone_runs_once_and_changes_no_score(shared: bool) -> None:
    torch.manual_seed(3)
    first = SegmentationModel(settings=tiny_settings())
    second = SegmentationModel(settings=tiny_settings(), image_backbone=first.image_backbone)
    if not shared:
        second.image_backbone = copy.deepcopy(first.image_backbone)
    calls = []
    for backbone in {id(model.image_backbone): model.image_backbone for model in (first, second)}.values():
        assert backbone is not None
        backbone.register_forward_hook(lambda *_: calls.append(1))
    data = batch_of(first)

    together = evaluate_selections({"a": whole(first), "b": whole(second)}, [data, data], device=CPU)

    assert len(calls) == (2 if shared else 4)
    for name, model in (("a", first), ("b", second)):
        alone = evaluate_selections({name: whole(model)}, [data, data], device=CPU)[name]
        for head, matrix in alone.items():
            np.testing.assert_array_equal(together[name][head].iou(), matrix.iou())
