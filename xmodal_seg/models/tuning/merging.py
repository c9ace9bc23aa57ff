# SPDX-License-Identifier: Apache-2.0
"""Spatial modules folded into the weights that they update: a frozen backbone of the usual kind, at its usual speed."""

from __future__ import annotations

import torch

from xmodal_seg.config import TuningSettings
from xmodal_seg.models.image_backbone import FrozenViT
from xmodal_seg.models.tuning.modules import LowRank
from xmodal_seg.models.tuning.tuned_vit import TunedViT


def merged_backbone(tuned: TunedViT) -> FrozenViT:
    """A frozen backbone with the weights W + B A; it gives the same features but for rounding.

    Raises ValueError for modules of another type, which no weight of the network could stand for.
    """
    if tuned.types != ("spatial",):
        others = " and ".join(of_type for of_type in tuned.types if of_type != "spatial")
        raise ValueError(
            f"expected image_backbone.tuning 'lora' to merge, got {tuned.settings.tuning.kind!r}, whose {others} "
            "modules are no part of a weight"
        )
    changes = {"tuning": TuningSettings(), "weights": "none", "model_args": tuned.model_args}
    with torch.random.fork_rng(devices=[]):  # the values drawn here are overwritten
        frozen = FrozenViT(settings=tuned.settings.model_copy(update=changes))
    weights = tuned.network.state_dict()
    for key, module in tuned.modules_by_key().items():
        assert isinstance(module, LowRank)
        for name, update in _updates(module, is_fused=tuned.network.blocks[key.layer].attn.qkv is not None).items():
            name = f"blocks.{key.layer}.attn.{name}.weight"
            weights[name] = weights[name] + update.detach()
    frozen.network.load_state_dict(weights)
    return frozen.to(tuned.mean.device)


def _updates(module: LowRank, *, is_fused: bool) -> dict[str, torch.Tensor]:
    """What the weight of each projection has to grow by, by the projection's name."""
    query, value = module.query_update(), module.value_update()
    if is_fused:
        return {"qkv": torch.cat([query, torch.zeros_like(query), value])}
    return {"q_proj": query, "v_proj": value}
