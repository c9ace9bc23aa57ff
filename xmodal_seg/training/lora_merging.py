# SPDX-License-Identifier: Apache-2.0
"""A checkpoint whose image backbone has LoRA -> one with a plain frozen backbone, to serve and to adapt online."""

from __future__ import annotations

from pathlib import Path

from xmodal_seg.checkpoint import bank_state, load_bank, load_checkpoint, save_checkpoint
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.models.tuning.merging import merged_backbone
from xmodal_seg.models.tuning.tuned_vit import TunedViT

_BACKBONE_PREFIX = "image_backbone."


def merge_lora(checkpoint: Path, out: Path, *, bank: str | None = None) -> str:
    """Write `out` with `bank` of the checkpoint folder (its default one if None), LoRA merged; its content hash.

    One bank only: each has a backbone of its own after merging. Raises ValueError for a checkpoint without LoRA.
    """
    stored = load_checkpoint(checkpoint)
    model = merged_model(stored.build_model(bank=bank))
    return save_checkpoint(
        out,
        model,
        label_space=stored.label_space,
        banks={bank or stored.default_bank: bank_state(model)},
        metadata={**stored.metadata, "lora_merged_from": stored.content_hash},
    )


def merged_model(model: SegmentationModel) -> SegmentationModel:
    """The same model around a frozen backbone, in eval mode; ValueError if its backbone has no LoRA to merge."""
    tuned = model.image_backbone
    if not isinstance(tuned, TunedViT):
        raise ValueError("expected a model with image_backbone.tuning 'lora' to merge, got one without tuning")
    frozen = merged_backbone(tuned)
    settings = model.settings.model_copy(update={"image_backbone": frozen.settings})
    merged = SegmentationModel(settings=settings, image_backbone=frozen)
    rest = {name: tensor for name, tensor in bank_state(model).items() if not name.startswith(_BACKBONE_PREFIX)}
    load_bank(merged, rest, where="merged model")
    return merged.to(tuned.mean.device).eval()
