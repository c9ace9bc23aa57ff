# SPDX-License-Identifier: Apache-2.0
"""Weights of xMUDA's 3D network (SparseConvNet) for this project's 3D network, number for number.

SparseConvNet numbers its layers: `sparseModel.1` is the first convolution, `sparseModel.2` the U-Net, `sparseModel.3`
the last norm. A level of the U-Net is a list: its blocks, then (unless it is the deepest) `[skip, way down and up]`,
the concatenation, and its blocks again. A convolution weight is (k^3, 1, in, out) with the offsets in the order
x, y, z; spconv's is (out, k, k, k, in), and this project's cells are [z, y, x].
Source: facebookresearch/SparseConvNet networkArchitectures.py; valeoai/xmuda_journal models/{scn_unet,xmuda_arch}.py.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from xmodal_seg.config import FusionSettings, HeadSettings, ModelSettings, PointBackboneSettings, PreprocessSettings
from xmodal_seg.labels import LabelSpace
from xmodal_seg.models.point_backbone import PointBackbone
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.tensor_files import Tensors, check_tensors, copy_tensors

_NET_PREFIX = "net_3d."
_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")
_HEADS = {"linear": "main", "linear2": "mimic"}


@dataclass(frozen=True, kw_only=True)
class ImportedWeights:
    """What was in a checkpoint, in this project's layout."""

    settings: PointBackboneSettings
    backbone: Tensors  # state dict of PointBackbone
    heads: dict[str, Tensors]  # main, mimic -> weight (K, 16) and bias (K,)


def import_xmuda(path: Path) -> ImportedWeights:
    """Read a `model_3d_*.pth` of xMUDA (or a bare state dict of its 3D network).

    Raises ValueError if it is no such file, or a tensor is missing, left over or of the wrong shape.
    """
    state = read_state(path)
    prefix = _NET_PREFIX if any(name.startswith(_NET_PREFIX) for name in state) else ""
    settings = find_settings(state, prefix=f"{prefix}sparseModel.", where=str(path))
    names = dict(layer_names(settings, prefix=f"{prefix}sparseModel."))
    heads = {role: _head(state, name) for name, role in _HEADS.items() if f"{name}.weight" in state}
    used = {*names.values(), *(f"{name}.{tensor}" for name in _HEADS for tensor in ("weight", "bias"))}
    missing, left_over = sorted(set(names.values()) - state.keys()), sorted(state.keys() - used)
    if missing or left_over:
        raise ValueError(f"{path}: not xMUDA's 3D network: missing {missing[:3]}, left over {left_over[:3]}")
    backbone = {ours: convert(state[theirs]) for ours, theirs in names.items()}
    expected = PointBackbone(settings=settings).state_dict()
    # PyTorch's batch norm counts its batches; SparseConvNet's does not.
    backbone |= {name: value for name, value in expected.items() if name.endswith("num_batches_tracked")}
    check_tensors(backbone, expected, where=str(path))
    return ImportedWeights(settings=settings, backbone=backbone, heads=heads)


def convert(tensor: torch.Tensor) -> torch.Tensor:
    """A convolution weight (k^3, 1, in, out), x slowest -> (out, k, k, k, in) over z, y, x; norms stay as they are."""
    if tensor.ndim != 4:
        return tensor.clone()
    volume, _, num_in, num_out = tensor.shape
    size = round(volume ** (1 / 3))
    return tensor.reshape(size, size, size, num_in, num_out).permute(4, 2, 1, 0, 3).contiguous()


def layer_names(settings: PointBackboneSettings, *, prefix: str) -> Iterator[tuple[str, str]]:
    """(name in PointBackbone, name in the SparseConvNet checkpoint) of every tensor that both have."""
    yield "stem.weight", f"{prefix}1.weight"
    yield from _level_names(settings, level=0, theirs=f"{prefix}2")
    yield from _norm_names("norm", f"{prefix}3")


def find_settings(state: Mapping[str, torch.Tensor], *, prefix: str, where: str) -> PointBackboneSettings:
    """Channels, levels and repetitions that the shapes tell."""
    stem = state.get(f"{prefix}1.weight")
    if stem is None or stem.ndim != 4:
        raise ValueError(f"{where}: has no {prefix}1.weight; is it a model_3d_*.pth of xMUDA?")
    reps = 0
    while f"{prefix}2.{reps}.1.weight" in state:
        reps += 1
    levels, level = 1, f"{prefix}2"
    while f"{level}.{reps}.1.1.weight" in state:
        levels, level = levels + 1, f"{level}.{reps}.1.2"
    return PointBackboneSettings(
        in_channels=stem.shape[2], base_channels=stem.shape[3], num_levels=levels, block_reps=max(reps, 1)
    )


def read_state(path: Path) -> Tensors:
    """The state dict of a checkpoint file, without running what a pickle may hold."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read as a checkpoint: {' '.join(str(error).split())[:200]}") from error
    state = loaded.get("model", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path}: expected a state dict, or one under 'model'")
    return {name.removeprefix("module."): value for name, value in state.items()}


def build_model(weights: ImportedWeights, *, label_space: LabelSpace) -> SegmentationModel:
    """A model of nothing but the 3D network and its head, which labels a cloud without any camera.

    Raises ValueError if the checkpoint had no head, or one for another number of classes.
    """
    head = weights.heads.get("main")
    if head is None or len(head["bias"]) != label_space.num_classes:
        found = "no head" if head is None else f"a head for {len(head['bias'])} classes"
        raise ValueError(f"{label_space.name} has {label_space.num_classes} classes, the checkpoint has {found}")
    settings = ModelSettings(
        num_classes=label_space.num_classes,
        preprocess=PreprocessSettings(point_scope="all"),
        point_backbone=weights.settings,
        fusion=FusionSettings(kind="none"),
        heads=HeadSettings(main=("3d",), mimic=(), ensemble=("3d",)),
    )
    model = SegmentationModel(settings=settings)
    tensors = {f"point_backbone.{name}": tensor for name, tensor in weights.backbone.items()}
    tensors |= {f"heads.main.3d.{name}": tensor for name, tensor in head.items()}
    copy_tensors(tensors, model.state_dict(), where="imported weights")
    return model.eval()


def _level_names(settings: PointBackboneSettings, *, level: int, theirs: str) -> Iterator[tuple[str, str]]:
    reps = settings.block_reps
    for number in range(reps):
        yield from _layer_names(f"encoder.{level}.{number}", f"{theirs}.{number}.0", f"{theirs}.{number}.1")
    if level == settings.num_levels - 1:
        return
    deeper = f"{theirs}.{reps}.1"
    yield from _layer_names(f"down.{level}", f"{deeper}.0", f"{deeper}.1")
    yield from _level_names(settings, level=level + 1, theirs=f"{deeper}.2")
    yield from _layer_names(f"up.{level}", f"{deeper}.3", f"{deeper}.4")
    for number in range(reps):
        block = f"{theirs}.{reps + 2 + number}"
        yield from _layer_names(f"decoder.{level}.{number}", f"{block}.0", f"{block}.1")


def _layer_names(ours: str, norm: str, conv: str) -> Iterator[tuple[str, str]]:
    yield from _norm_names(f"{ours}.norm", norm)
    yield f"{ours}.conv.weight", f"{conv}.weight"


def _norm_names(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    for tensor in _NORM_TENSORS:
        yield f"{ours}.{tensor}", f"{theirs}.{tensor}"


def _head(state: Mapping[str, torch.Tensor], name: str) -> Tensors:
    return {tensor: state[f"{name}.{tensor}"].clone() for tensor in ("weight", "bias")}
