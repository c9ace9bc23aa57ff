# SPDX-License-Identifier: Apache-2.0
"""The best weights so far, for each head by itself and for the ensemble, as banks of one checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from xmodal_seg.checkpoint import BackboneStorage, backbone_state, bank_state, load_checkpoint, save_checkpoint
from xmodal_seg.labels import LabelSpace
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.training.evaluation import ENSEMBLE, Scores


class BestBanks:
    """Keeps, in the checkpoint `folder`, a bank for each head: that of its highest validation mIoU.

    The paper's protocol reads every head from its own bank; the bank `ensemble` (the default one) is the checkpoint one
    would deploy. The score is mIoU with absent classes counted as zero, as the ancestors select. The checkpoint's
    metadata hold score and step of each bank, so an interrupted run goes on from the folder (`resume`); a new one
    replaces what lies there.
    """

    def __init__(self, folder: Path, *, label_space: LabelSpace, metadata: dict[str, Any], resume: bool) -> None:
        self._folder = folder
        self._label_space = label_space
        self._metadata = metadata
        self._banks: dict[str, dict[str, torch.Tensor]] = {}
        self.records: dict[str, dict[str, float]] = {}  # bank -> score, step
        if resume and (folder / "checkpoint.json").is_file():
            stored = load_checkpoint(folder)
            self._banks = dict(stored.banks)
            self.records = dict(stored.metadata["best"])

    def update(self, scores: Scores, *, step: int, model: SegmentationModel) -> list[str]:
        """Take over the model for every head that scores higher than before; their names."""
        improved = []
        for name, matrix in scores.items():
            score = matrix.mean_iou(absent="zero")
            if name not in self.records or score > self.records[name]["score"]:
                self.records[name] = {"score": score, "step": step}
                improved.append(name)
        if improved:
            tensors = {name: tensor.detach().cpu().clone() for name, tensor in bank_state(model).items()}
            self._banks.update(dict.fromkeys(improved, tensors))
            save_checkpoint(
                self._folder,
                model,
                label_space=self._label_space,
                banks=self._banks,
                default_bank=ENSEMBLE,
                metadata={**self._metadata, "best": self.records},
                backbone=backbone_storage(model),
            )
        return improved


def backbone_storage(model: SegmentationModel) -> BackboneStorage:
    """A frozen backbone that came from a hub or a file stays there; training's checkpoints need no copy of it."""
    frozen = bool(backbone_state(model))
    return "omit" if frozen and model.settings.image_backbone.weights != "none" else "float32"
