# SPDX-License-Identifier: Apache-2.0
"""RADIO v2.5 through the code of its own repository (timm carries C-RADIO v3 and v4, but not v2.5).

Nothing is downloaded or imported from that repository before a `Radio` is built.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from xmodal_seg.config import ImageBackboneSettings
from xmodal_seg.models.image_backbone import LOAD_ERRORS, FrozenBackbone, no_weights, one_line, weights_file

# A commit, because what the default branch builds changes.
RADIO_REPOSITORY = "NVlabs/RADIO:c0f37017930e9dda53f93424cf4bf39fc51f287e"
_WEIGHTS_URL = "https://huggingface.co/nvidia/RADIO/resolve/main/"


@dataclass(frozen=True, kw_only=True)
class RadioVersion:
    """A released version: the transformer of timm that RADIO modifies, and the file of its weights."""

    architecture: str
    file_name: str


RADIO_VERSIONS = {
    "radio_v2.5-b": RadioVersion(architecture="vit_base_patch16_224", file_name="radio-v2.5-b_half.pth.tar"),
    "radio_v2.5-l": RadioVersion(architecture="vit_large_patch16_224", file_name="radio-v2.5-l_half.pth.tar"),
    "radio_v2.5-h": RadioVersion(architecture="vit_huge_patch16_224", file_name="radio_v2.5-h.pth.tar"),
}

# What the repository's builder reads from a checkpoint, with the values of v2.5; `model` is the architecture.
_BUILDER_ARGS: dict[str, Any] = {
    "model": None,
    "model_kwargs": {},
    "model_norm": False,
    "pretrained": False,
    "initial_checkpoint": "",
    "torchscript": False,
    "cpe_max_size": 2048,
    "cpe_num_registers": None,
    "register_multiple": 8,
    "cls_token_per_teacher": True,
    "teachers": [
        {"name": "clip", "use_summary": True},
        {"name": "siglip", "use_summary": True},
        {"name": "dino_v2", "use_summary": True},
        {"name": "sam", "use_summary": False},
    ],
    "spectral_reparam": False,
    "damp": None,
    "in_chans": None,
    "input_size": None,
    "num_classes": None,
    "drop": None,
    "drop_path": None,
    "drop_block": None,
    "gp": None,
    "bn_momentum": None,
    "bn_eps": None,
}


class Radio(FrozenBackbone):
    """RADIO as a frozen backbone; its features are un-normalised (see `ImageBackboneSettings.feature_norm`).

    RADIO's entry point unpickles its checkpoint. The file is therefore read first by PyTorch's weights-only reader,
    which refuses everything but tensors, plain containers and `argparse.Namespace`. Its own input conditioner does the
    normalisation, once. Without weights the network is built from the arguments above, changed by `model_args`.

    Raises ValueError for an unknown version, weights that cannot be had, are refused or do not fit, and a repository
    that cannot be had.
    """

    def __init__(self, *, settings: ImageBackboneSettings) -> None:
        if settings.weights == "none":
            builder_args = _random_builder_args(settings)
            with tempfile.TemporaryDirectory() as folder:
                path = _write_checkpoint_without_weights(Path(folder) / "random.pth", builder_args)
                network = _build(settings, path, missing_weights="ignore")
        else:
            path = _download(settings) if settings.weights == "hub" else weights_file(settings)
            builder_args = _read_builder_args(path)
            network = _build(settings, path, missing_weights="error")
        # The repository computes in the type that its checkpoint names; here the caller's autocast decides.
        super().__init__(network.float())
        network.input_conditioner.dtype = None
        self.out_channels = network.embed_dim
        self.patch_size = network.patch_size
        self.model_args = builder_args
        self.normalisation = {
            "mean": network.input_conditioner.norm_mean.flatten().tolist(),
            "std": network.input_conditioner.norm_std.flatten().tolist(),
        }

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images, feature_fmt="NCHW").features


def _build(settings: ImageBackboneSettings, path: Path, *, missing_weights: Literal["ignore", "error"]) -> Any:
    """RADIO's own entry point on a checkpoint file that this process wrote or has found harmless."""
    source: dict[str, Any] = {"source": "local"}
    if settings.checkout is None:
        source = {"source": "github", "skip_validation": True, "trust_repo": True}
    repository = settings.checkout or RADIO_REPOSITORY
    with warnings.catch_warnings():
        # The repository only warns about missing tensors and goes on with random ones.
        warnings.filterwarnings(missing_weights, message="Missing keys in state dict")
        try:
            return torch.hub.load(repository, "radio_model", version=str(path), progress=False, **source)
        except UserWarning as error:
            raise ValueError(f"image_backbone.weights: {path} does not fit RADIO: {error}") from error
        except (*LOAD_ERRORS, ImportError) as error:
            raise ValueError(
                f"image_backbone: RADIO could not be built with the code of {repository} ({one_line(error)}); "
                "image_backbone.checkout must name a checkout of its repository, or be unset to download it"
            ) from error


def _random_builder_args(settings: ImageBackboneSettings) -> dict[str, Any]:
    unknown = sorted(set(settings.model_args) - set(_BUILDER_ARGS))
    if unknown:
        raise ValueError(f"image_backbone.model_args: RADIO takes no {', '.join(unknown)}")
    builder_args = {**_BUILDER_ARGS, **settings.model_args}
    if builder_args["model"] is None:
        builder_args["model"] = _version(settings.name).architecture
    return builder_args


def _write_checkpoint_without_weights(path: Path, builder_args: dict[str, Any]) -> Path:
    from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    conditioner = {
        "input_conditioner.norm_mean": torch.tensor(OPENAI_CLIP_MEAN).view(3, 1, 1),
        "input_conditioner.norm_std": torch.tensor(OPENAI_CLIP_STD).view(3, 1, 1),
    }
    torch.save({"state_dict": conditioner, "args": argparse.Namespace(**builder_args)}, path)
    return path


def _read_builder_args(path: Path) -> dict[str, Any]:
    """The builder's arguments of a RADIO checkpoint, read without running anything that the file brings along."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            stored = vars(torch.load(path, map_location="cpu", weights_only=True)["args"])
    except (*LOAD_ERRORS, TypeError) as error:
        raise ValueError(
            f"image_backbone.weights: {path} is no RADIO checkpoint of tensors and plain arguments: {one_line(error)}"
        ) from error
    builder_args = {name: stored.get(name, default) for name, default in _BUILDER_ARGS.items()}
    builder_args["teachers"] = [
        {"name": teacher["name"], "use_summary": teacher.get("use_summary", True)} for teacher in stored["teachers"]
    ]
    # The entry point resolves both into plain weights, so a rebuilt network has neither.
    return {**builder_args, "spectral_reparam": False, "damp": None}


def _download(settings: ImageBackboneSettings) -> Path:
    """The weights of a released version, kept in torch.hub's own folder."""
    file_name = _version(settings.name).file_name
    path = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(_WEIGHTS_URL + file_name, str(path))
        except (OSError, RuntimeError) as error:
            raise ValueError(no_weights(settings, error)) from error
    return path


def _version(name: str) -> RadioVersion:
    if name not in RADIO_VERSIONS:
        raise ValueError(
            f"image_backbone.name: expected one of {', '.join(RADIO_VERSIONS)}, got {name!r} "
            "(other RADIO models: kind 'timm', or a local file of weights)"
        )
    return RADIO_VERSIONS[name]
