# SPDX-License-Identifier: Apache-2.0
"""Score a model on a data set: one confusion matrix for each main head, and one for the ensemble."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch

from xmodal_seg.metrics import ConfusionMatrix
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.structures import Head, Predictions
from xmodal_seg.training.steps import predict
from xmodal_seg.training.streams import DomainBatch

ENSEMBLE = "ensemble"
NO_ANSWER = -1
Scores = dict[str, ConfusionMatrix]  # head name or ENSEMBLE
Selection = Mapping[str, SegmentationModel]
Autocast = Callable[[], AbstractContextManager]


def evaluate(
    model: SegmentationModel,
    batches: Iterable[DomainBatch],
    *,
    device: torch.device,
    autocast: Autocast = nullcontext,
) -> Scores:
    """Confusion matrices of the model in eval mode over labelled batches; the model's mode is put back."""
    return evaluate_selections({"": whole(model)}, batches, device=device, autocast=autocast)[""]


def whole(model: SegmentationModel) -> Selection:
    """Every head and the ensemble from one model."""
    return dict.fromkeys([*model.settings.heads.main, ENSEMBLE], model)


def evaluate_selections(
    selections: Mapping[str, Selection],
    batches: Iterable[DomainBatch],
    *,
    device: torch.device,
    autocast: Autocast = nullcontext,
) -> dict[str, Scores]:
    """Scores of several selections in one pass over the data.

    Every model runs once a batch, a frozen image backbone that they share once for all of them.

    Args:
        selections: name -> main head -> the model that it is read from, as xMUDA's per-head best checkpoints are; under
            ENSEMBLE a model for the ensemble, without which it is the mean softmax of its heads, each from its own.
    """
    models = {id(model): model for selection in selections.values() for model in selection.values()}
    scores = {name: _empty_scores(next(iter(selection.values()))) for name, selection in selections.items()}
    modes = {key: model.training for key, model in models.items()}
    try:
        for model in models.values():
            model.eval()
        for data in batches:
            moved = data.to(device)
            with torch.inference_mode(), autocast():
                moved = _with_common_features(moved, list(models.values()))
                predictions = {key: predict(model, moved) for key, model in models.items()}
            for name, selection in selections.items():
                _score(scores[name], {head: predictions[id(model)] for head, model in selection.items()}, moved)
    finally:
        for key, model in models.items():
            model.train(modes[key])
    return scores


def _with_common_features(data: DomainBatch, models: Sequence[SegmentationModel]) -> DomainBatch:
    backbone = models[0].image_backbone
    is_common = backbone is not None and backbone.frozen and all(model.image_backbone is backbone for model in models)
    if data.feature_map is not None or not is_common or len(models) == 1 or not len(data.batch.images):
        return data
    assert backbone is not None
    return replace(data, feature_map=backbone(data.batch.images))


def _empty_scores(model: SegmentationModel) -> Scores:
    settings = model.settings
    return {name: ConfusionMatrix(num_classes=settings.num_classes) for name in (*settings.heads.main, ENSEMBLE)}


def _score(scores: Scores, by_head: Mapping[str, Predictions], data: DomainBatch) -> None:
    """Add the points of a batch; `by_head` gives the predictions that each head is read from."""
    labels = data.batch.labels
    if labels is None:
        raise ValueError("evaluation: expected labelled frames, got a batch without labels")
    first = next(iter(by_head.values()))
    main: dict[Head, torch.Tensor] = {head: by_head[head].main[head] for head in first.main}
    combined = Predictions(main=main, mimic={}, ensemble_heads=first.ensemble_heads, visible=first.visible)
    for head, logits in main.items():
        answers = logits.argmax(dim=1)
        scores[head].update(labels, answers if head == "3d" else torch.where(first.visible, answers, NO_ANSWER))
    probs = by_head.get(ENSEMBLE, combined).ensemble()
    said = probs.amax(dim=1) > 0  # an all-zero row is a point about which the model says nothing
    scores[ENSEMBLE].update(labels, torch.where(said, probs.argmax(dim=1), NO_ANSWER))
