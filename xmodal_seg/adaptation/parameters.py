# SPDX-License-Identifier: Apache-2.0
"""Which numbers adapt: an explicit, counted list of norm scales and shifts, kept apart from the model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from xmodal_seg.adaptation.settings import Scope
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.tensor_files import Tensors

# Every class of norm layer that the project's networks use, subclasses included.
NORMS = (nn.BatchNorm1d, nn.LayerNorm)
STATISTICS = ("running_mean", "running_var")
_PARTS: dict[Scope, str] = {"point_norms": "point_backbone", "fusion_norms": "fusion"}


@dataclass(frozen=True, kw_only=True)
class AdaptedParameters:
    """Names of what adapts, as they stand in the model's bank."""

    weights: tuple[str, ...]  # scales and shifts: these get gradients
    statistics: tuple[str, ...]  # running means and variances: frozen unless an experiment moves them
    count: int  # numbers in `weights`

    def values(self, model: nn.Module, *, with_statistics: bool = False) -> Tensors:
        """Copies of the model's present values, by name."""
        state = model.state_dict()
        names = self.weights + (self.statistics if with_statistics else ())
        return {name: state[name].detach().clone() for name in names}


def adapted_parameters(model: SegmentationModel, *, scopes: Sequence[Scope]) -> AdaptedParameters:
    """The norms of the parts that `scopes` name.

    Raises ValueError for a part that the model lacks or that has no norm, and where no scope is given.
    """
    if not scopes:
        raise ValueError("step.adapted: expected at least one of point_norms and fusion_norms, got none")
    weights: list[str] = []
    statistics: list[str] = []
    for scope in scopes:
        found = _norms(model, part=_PARTS[scope])
        if not found:
            raise ValueError(f"step.adapted: {scope}: the model's {_PARTS[scope]} has no norm layers to adapt")
        for prefix, norm in found.items():
            weights += [f"{prefix}.{name}" for name, _ in norm.named_parameters(recurse=False)]
            statistics += [f"{prefix}.{name}" for name, _ in norm.named_buffers(recurse=False) if name in STATISTICS]
    sizes = model.state_dict()
    return AdaptedParameters(
        weights=tuple(weights), statistics=tuple(statistics), count=sum(sizes[name].numel() for name in weights)
    )


def separate_copy(model: SegmentationModel) -> SegmentationModel:
    """A copy with weights of its own, in eval mode and without gradients; a frozen image backbone stays shared."""
    backbone = model.image_backbone
    shared = {id(backbone): backbone} if backbone is not None and backbone.frozen else {}
    return copy.deepcopy(model, shared).eval().requires_grad_(False)


def distance(values: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor]) -> float:
    """Largest absolute difference of a single number; NaN if one is not a number."""
    return float(torch.stack([(values[name] - reference[name]).abs().max() for name in reference]).max())


def are_finite(values: Mapping[str, torch.Tensor]) -> bool:
    """Whether every number is one."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in values.values())


def _norms(model: nn.Module, *, part: str) -> dict[str, nn.Module]:
    module = getattr(model, part)
    if module is None:
        return {}
    return {f"{part}.{name}": norm for name, norm in module.named_modules() if isinstance(norm, NORMS)}
