# SPDX-License-Identifier: Apache-2.0
"""Adam with one learning rate per parameter group, and milestones."""

from __future__ import annotations

import torch
from torch.optim import Adam
from torch.optim.lr_scheduler import MultiStepLR

from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.models.tuning.tuned_vit import TunedViT
from xmodal_seg.training.recipe_settings import OptimSettings


def build_optimizer(model: SegmentationModel, settings: OptimSettings) -> Adam:
    """Adam (betas 0.9 and 0.999, no weight decay, as xMUDA) over the groups that have parameters."""
    rates = settings.lr.model_dump()
    groups = [
        {"params": parameters, "lr": rates[name], "name": name}
        for name, parameters in model.parameter_groups().items()
        if parameters
    ]
    return Adam(groups)


def sizes_line(model: SegmentationModel, optimizer: torch.optim.Optimizer) -> str:
    """How many numbers are trained, in all and by group, and how many modules take turns."""
    sizes = {group["name"]: sum(p.numel() for p in group["params"]) for group in optimizer.param_groups}
    parts = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    tuning = model.settings.image_backbone.tuning
    backbone = model.image_backbone
    turns = ""
    if isinstance(backbone, TunedViT) and tuning.kind == "gate":
        turns = f"; {tuning.top_k} of the {backbone.selected.numel()} modules of tuning at a time"
    return f"trainable parameters: {sum(sizes.values()):,} ({parts}{turns})"


def build_scheduler(optimizer: torch.optim.Optimizer, settings: OptimSettings) -> MultiStepLR:
    """Every rate times gamma at each milestone, rounded to a step."""
    milestones = [round(share * settings.steps) for share in settings.milestones]
    return MultiStepLR(optimizer, milestones=milestones, gamma=settings.gamma)
