# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: a folder of safetensors files and one checkpoint.json that says what they are. Never pickle.

    checkpoint.json                format, settings, label space, normalisation, versions, hashes, free metadata
    shared.<hash>.safetensors      the frozen image backbone, once for all banks; absent when a hub or a file holds it;
                                   of a tuned one what is frozen in it, while its modules are in the banks; it may lie
                                   in the folder above instead, for several checkpoints with the same backbone
    bank_<name>.<hash>.safetensors everything else, once per bank (a bank is a weight set for a condition: day, night)

File names carry the first digits of their SHA-256 and checkpoint.json is replaced last, in one step: a writer that
dies half-way leaves the former checkpoint whole.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from xmodal_seg.config import ModelSettings, parse_settings
from xmodal_seg.labels import LabelSpace
from xmodal_seg.models.image_backbone import ImageBackbone
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.tensor_files import (
    Tensors,
    check_tensors,
    copy_tensors,
    hash_tensors,
    read_tensors,
    write_tensors,
    write_text,
)

FORMAT_VERSION = 1
DEFAULT_BANK = "default"
INDEX_FILE = "checkpoint.json"
_SHIPPED = Path(__file__).parent / "assets" / "checkpoints"
SHIPPED_CHECKPOINTS = {path.parent.name: path.parent for path in sorted(_SHIPPED.glob(f"*/{INDEX_FILE}"))}
BackboneStorage = Literal["float32", "float16", "omit"]

_BACKBONE_PREFIX = "image_backbone."
_BANK_NAME = re.compile(r"[A-Za-z0-9_-]+")
_TENSOR_FILE = re.compile(r"(shared|bank_[A-Za-z0-9_-]+)\.[0-9a-f]{12}\.safetensors")
_PACKAGES = (
    "xmodal_seg",
    "torch",
    "timm",
    "safetensors",
    "numpy",
    "spconv-cu120",
    "spconv-cu121",
    "spconv-cu124",
    "spconv-cu126",
    "spconv",
)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint folder holds, verified; tensors on the device that it was loaded to."""

    settings: ModelSettings
    label_space: LabelSpace
    banks: dict[str, Tensors]  # name -> tensors by their name in the model
    default_bank: str
    shared: Tensors | None  # of the frozen image backbone; None where the model fetches them itself
    backbone_hash: str | None  # of the tensors that the model has to fetch
    normalisation: dict[str, list[float]] | None
    metadata: dict[str, Any]
    versions: dict[str, str]
    content_hash: str  # over all that checkpoint.json states, the hash of every file included
    device: torch.device
    path: Path

    def build_model(self, *, bank: str | None = None, image_backbone: ImageBackbone | None = None) -> SegmentationModel:
        """The model with the weights of `bank` (the default bank if None), in eval mode on `device`.

        `image_backbone` stands in for the one that the settings describe: that of another model of this checkpoint,
        to hold a frozen one once, or one whose weights or RADIO checkout lie elsewhere on this machine.

        Raises ValueError naming the keys or shapes that do not fit, and a backbone that is not the one it was saved
        with.
        """
        with torch.random.fork_rng(devices=[]):  # the values drawn here are overwritten: leave the caller's seed alone
            model = SegmentationModel(settings=self.settings, image_backbone=image_backbone)
        backbone = model.image_backbone
        normalisation = None if backbone is None else backbone.normalisation
        if normalisation != self.normalisation:
            raise ValueError(
                f"{self.path}: the model was trained with the normalisation {self.normalisation}, "
                f"the installed libraries build it with {normalisation}"
            )
        if self.shared is not None:
            copy_tensors(self.shared, backbone_state(model), where=f"{self.path}: shared tensors")
        elif self.backbone_hash is not None and hash_tensors(backbone_state(model)) != self.backbone_hash:
            raise ValueError(
                f"{self.path}: the image backbone that image_backbone.weights={self.settings.image_backbone.weights!r} "
                "gives is not the one this checkpoint was trained with (its hash differs)"
            )
        load_bank(model, self.bank(bank), where=f"{self.path}: bank {bank or self.default_bank!r}")
        return model.to(self.device).eval()

    def bank(self, name: str | None = None) -> Tensors:
        """Tensors of a bank, of the default one if None; ValueError for a name it does not have."""
        name = name or self.default_bank
        if name not in self.banks:
            raise ValueError(f"{self.path}: no bank {name!r}; it has {', '.join(sorted(self.banks))}")
        return self.banks[name]


def bank_state(model: SegmentationModel) -> Tensors:
    """Every tensor that a bank holds: all but what is frozen in the image backbone; not copies."""
    shared = set(backbone_state(model))
    return {name: tensor for name, tensor in model.state_dict().items() if name not in shared}


def backbone_state(model: SegmentationModel) -> Tensors:
    """The frozen tensors of the image backbone, which all banks share; empty where there are none."""
    if model.image_backbone is None:
        return {}
    names = {_BACKBONE_PREFIX + name for name in model.image_backbone.frozen_names()}
    return {name: tensor for name, tensor in model.state_dict().items() if name in names}


def load_bank(model: SegmentationModel, tensors: Mapping[str, torch.Tensor], *, where: str = "bank") -> None:
    """Copy a bank into the model in place; ValueError, and an unchanged model, if a key or a shape differs."""
    copy_tensors(tensors, bank_state(model), where=where)


def save_checkpoint(
    path: str | Path,
    model: SegmentationModel,
    *,
    label_space: LabelSpace,
    metadata: Mapping[str, Any] | None = None,
    banks: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    default_bank: str | None = None,
    backbone: BackboneStorage = "float32",
) -> str:
    """Write `model` to the folder `path`, replacing a checkpoint there in one step, and return its content hash.

    Args:
        path: the folder; made where missing.
        model: gives the settings and the frozen backbone, and the only bank where `banks` is None.
        label_space: what the classes mean.
        metadata: anything that JSON holds: training command, scores, `trained: false`.
        banks: name -> tensors as `bank_state` gives them.
        default_bank: the bank that `build_model` takes; the first one if None.
        backbone: how a frozen image backbone is kept: in float32, in float16 (half the size; exact where the weights
            were published in float16), or omitted with its hash recorded, for weights from a hub or a file.

    Raises:
        ValueError: as many classes in the label space as in the model are expected; no bank, a bank that does not fit
            or whose name is not made of letters, digits, - and _; an omitted backbone whose weights nothing else holds;
            weights beyond float16's range.
    """
    _check_classes(model.settings, label_space, where="save_checkpoint")
    banks = {DEFAULT_BANK: bank_state(model)} if banks is None else banks
    default_bank = _check_banks(banks, model, default_bank)
    shared = _shared_tensors(model, backbone)
    omitted = backbone_state(model) if backbone == "omit" else {}
    settings = _stored_settings(model, omitted=bool(omitted))
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    index = {
        "format": FORMAT_VERSION,
        "settings": settings.model_dump(mode="json"),
        "label_space": _label_space_to_json(label_space),
        "normalisation": None if model.image_backbone is None else model.image_backbone.normalisation,
        "shared": write_tensors(folder, "shared", shared) if shared else None,
        "backbone_hash": hash_tensors(omitted) if omitted else None,
        "banks": {name: write_tensors(folder, f"bank_{name}", tensors) for name, tensors in banks.items()},
        "default_bank": default_bank,
        "metadata": dict(metadata or {}),
        "versions": versions(),
    }
    content_hash = _content_hash(index)
    write_text(folder / INDEX_FILE, json.dumps({**index, "content_hash": content_hash}, indent=2) + "\n")
    _remove_former_files(folder, index)
    return content_hash


def load_checkpoint(path: str | Path, *, device: torch.device | str = "cpu") -> Checkpoint:
    """Read and verify the checkpoint folder `path`, or a shipped one by its name; its tensors come to `device`.

    Raises ValueError saying what is wrong: no checkpoint there, another format, a changed or damaged file (by its
    hash), a setting this version does not know, or a label space whose classes are not as many as the model's.
    """
    folder = SHIPPED_CHECKPOINTS.get(str(path), Path(path))
    index = _read_index(folder)
    settings = parse_settings(ModelSettings, index["settings"], where=f"{folder / INDEX_FILE}: settings")
    label_space = _label_space_from_json(index["label_space"])
    _check_classes(settings, label_space, where=str(folder / INDEX_FILE))
    target = torch.device(device)
    return Checkpoint(
        settings=settings,
        label_space=label_space,
        banks={name: read_tensors(folder, entry, device=target) for name, entry in index["banks"].items()},
        default_bank=index["default_bank"],
        shared=_read_shared(folder, index["shared"], device=target),
        backbone_hash=index["backbone_hash"],
        normalisation=index["normalisation"],
        metadata=index["metadata"],
        versions=index["versions"],
        content_hash=index["content_hash"],
        device=target,
        path=folder,
    )


def _read_shared(folder: Path, entry: Mapping[str, str] | None, *, device: torch.device) -> Tensors | None:
    if entry is None:
        return None
    is_above = not (folder / entry["file"]).is_file() and (folder.parent / entry["file"]).is_file()
    return read_tensors(folder.parent if is_above else folder, entry, device=device)


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX_FILE
    if not path.is_file():
        names = ", ".join(SHIPPED_CHECKPOINTS)
        raise ValueError(
            f"{folder}: no checkpoint here, expected a folder with {INDEX_FILE}, or the name of a shipped one ({names})"
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged: not valid JSON ({error})") from error
    found = index.get("format") if isinstance(index, dict) else None
    if found != FORMAT_VERSION:
        raise ValueError(f"{path}: expected checkpoint format {FORMAT_VERSION}, got {found!r}")
    content_hash = index.pop("content_hash", None)
    found_hash = _content_hash(index)
    if found_hash != content_hash:
        raise ValueError(f"{path}: changed after it was written: it states the hash {content_hash}, got {found_hash}")
    return {**index, "content_hash": content_hash}


def _content_hash(index: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(index, sort_keys=True, separators=(",", ":"))
    except TypeError as error:
        raise ValueError(f"metadata, model_args: expected what JSON can hold: {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()


def _check_classes(settings: ModelSettings, label_space: LabelSpace, *, where: str) -> None:
    if settings.num_classes != label_space.num_classes:
        raise ValueError(
            f"{where}: the model has {settings.num_classes} classes, "
            f"the label space {label_space.name!r} has {label_space.num_classes}"
        )


def _check_banks(
    banks: Mapping[str, Mapping[str, torch.Tensor]], model: SegmentationModel, default_bank: str | None
) -> str:
    """The default bank's name, after every bank was found to fit the model."""
    if not banks:
        raise ValueError("save_checkpoint: expected at least one bank, got none")
    expected = bank_state(model)
    for name, tensors in banks.items():
        if not _BANK_NAME.fullmatch(name):
            raise ValueError(f"save_checkpoint: a bank's name has letters, digits, - and _ only, got {name!r}")
        check_tensors(tensors, expected, where=f"save_checkpoint: bank {name!r}")
    default_bank = next(iter(banks)) if default_bank is None else default_bank
    if default_bank not in banks:
        raise ValueError(f"save_checkpoint: default_bank {default_bank!r} is not among {', '.join(banks)}")
    return default_bank


def _shared_tensors(model: SegmentationModel, storage: BackboneStorage) -> Tensors:
    """What the shared file holds of the frozen backbone; buffers, such as normalisation, keep their precision."""
    if storage == "omit":
        return {}
    tensors = backbone_state(model)
    if storage == "float32":
        return tensors
    weights = {name for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    halved = {name: tensor.half() if name in weights else tensor for name, tensor in tensors.items()}
    for name, tensor in halved.items():
        if name in weights and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"save_checkpoint: {name} holds values that float16 cannot; keep the backbone in float32")
    return halved


def _stored_settings(model: SegmentationModel, *, omitted: bool) -> ModelSettings:
    """Settings that rebuild the model: without a download or a local path where the checkpoint holds the weights."""
    settings, backbone = model.settings, model.image_backbone
    if omitted:
        if settings.image_backbone.weights == "none":
            raise ValueError(
                "save_checkpoint: backbone 'omit' needs image_backbone.weights 'hub' or a file; with 'none' nothing "
                "else holds the weights"
            )
        return settings
    model_args = settings.image_backbone.model_args if backbone is None else backbone.model_args
    image_backbone = settings.image_backbone.model_copy(update={"weights": "none", "model_args": model_args})
    return settings.model_copy(update={"image_backbone": image_backbone})


def _label_space_to_json(label_space: LabelSpace) -> dict[str, Any]:
    return {
        "name": label_space.name,
        "class_names": list(label_space.class_names),
        "colours": [list(colour) for colour in label_space.colours],
    }


def _label_space_from_json(values: Mapping[str, Any]) -> LabelSpace:
    red_green_blue = [(int(r), int(g), int(b)) for r, g, b in values["colours"]]
    return LabelSpace(name=values["name"], class_names=tuple(values["class_names"]), colours=tuple(red_green_blue))


def versions() -> dict[str, str]:
    """Installed versions of what numbers depend on."""
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # spconv has a package for each CUDA version; one of them is there
    return installed


def _remove_former_files(folder: Path, index: Mapping[str, Any]) -> None:
    """Delete the tensor files of the checkpoint that this one replaced."""
    entries = [*index["banks"].values(), *([index["shared"]] if index["shared"] else [])]
    current = {entry["file"] for entry in entries}
    for path in folder.glob("*.safetensors"):
        if path.name not in current and _TENSOR_FILE.fullmatch(path.name):
            path.unlink()
