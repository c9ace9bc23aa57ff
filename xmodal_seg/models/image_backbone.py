# SPDX-License-Identifier: Apache-2.0
"""Image backbones: what a 2D network offers, and the frozen vision foundation models that timm carries.

timm is imported in the constructors; importing this module needs neither it nor a network connection.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from xmodal_seg.config import ImageBackboneSettings
from xmodal_seg.models.lifting import LiftMode

# What reading or downloading weights ends in when a file is missing, damaged, foreign or out of reach.
LOAD_ERRORS = (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError)


class ImageBackbone(nn.Module):
    """A 2D network: (I, 3, H, W) RGB, uint8 or float32 in [0, 1] -> (I, out_channels, h, w).

    It normalises its input itself, once. A `frozen` one has no trainable parameter and no buffer that changes.
    """

    out_channels: int
    patch_size: int  # H and W must be multiples of it
    frozen: bool
    lift_mode: LiftMode  # how its map is read at the points
    normalisation: dict[str, list[float]] | None  # mean and std of RGB in [0, 1]; None: the input is used as it is
    model_args: dict[str, Any]  # ImageBackboneSettings.model_args that rebuild this network without its weights

    def input_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) px rounded up to multiples of the patch size."""
        height, width = (math.ceil(size / self.patch_size) * self.patch_size for size in image_size)
        return height, width

    def frozen_names(self) -> set[str]:
        """Names, in `state_dict`, of the tensors that no training changes."""
        return set(self.state_dict()) if self.frozen else set()


class FrozenBackbone(ImageBackbone):
    """Base of the foundation models: no gradient, and in eval mode whatever `train()` is called on."""

    frozen = True
    lift_mode: LiftMode = "bilinear"

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network.requires_grad_(False).eval()
        self.training = False

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Stay in eval mode: RADIO would crop its position embedding at random, others would drop out."""
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(I, 3, H, W) -> (I, D, h, w). Raises ValueError if H or W is no multiple of the patch size."""
        check_image_size(self, images)
        with torch.no_grad():
            return self._features(unit_range(images))

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class FrozenViT(FrozenBackbone):
    """A vision transformer of timm: `vit_*` (DINOv2, DINOv3, C-RADIO, CLIP ...), `eva02_*` or `naflexvit_*`.

    The features are those of the last block after the model's final norm, as DINOv2 and DINOv3 define their patch
    tokens. C-RADIO has no final norm, and a model that norms after pooling (eva02) has none on patches: their features
    are un-normalised (see `ImageBackboneSettings.feature_norm`).

    Of C-RADIO take the `naflexvit_*` models, which resample its position grid for each image as RADIO does: `vit_*`
    ones do so once, for `img_size` when the weights are loaded, and stretch the result to images of another shape.

    Raises ValueError for a name timm does not know, a model that is no ViT or takes images of one size only, and
    weights that cannot be had or do not fit.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, *, settings: ImageBackboneSettings) -> None:
        # NaFlex models take images of any size as they are and refuse the argument.
        any_size = {} if settings.name.startswith("naflexvit_") else {"dynamic_img_size": True}
        network: Any = create_timm_model(settings, **any_size)
        network.reset_classifier(0)
        super().__init__(network)
        width: int = network.feature_info[-1]["num_chs"]
        self.settings = settings
        self.cells_per_patch = settings.cells_per_patch
        self.out_channels = width if settings.cells_per_patch == 1 else width + cell_channels(width, settings)
        self.patch_size = network.feature_info[-1]["reduction"]
        self.model_args = dict(settings.model_args)
        mean, std = network.pretrained_cfg["mean"], network.pretrained_cfg["std"]
        self.normalisation = {"mean": list(mean), "std": list(std)}
        # Not persistent: they belong to the architecture, and a checkpoint states them in its JSON file.
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        tokens = patch_tokens(self.network, (images - self.mean) / self.std)
        return with_cells(tokens, self.cells_per_patch)


def unit_range(images: torch.Tensor) -> torch.Tensor:
    """Images as float32 in [0, 1], where they are: uint8 ones are a quarter of it to copy to a GPU."""
    return images.float().mul_(1.0 / 255.0) if images.dtype == torch.uint8 else images


def check_image_size(backbone: ImageBackbone, images: torch.Tensor) -> None:
    """Raise ValueError if height or width of (I, 3, H, W) is no multiple of the patch size."""
    height, width = images.shape[-2:]
    expected = backbone.input_size((height, width))
    if (height, width) != expected:
        raise ValueError(
            f"images: expected height and width in multiples of the patch size {backbone.patch_size} px, "
            f"got {height}x{width}; the next larger is {expected[0]}x{expected[1]}"
        )


def patch_tokens(network: Any, images: torch.Tensor) -> torch.Tensor:
    """Normalised images (I, 3, H, W) -> (I, D, h, w): the patches after the last block of timm's `network`, normed."""
    tokens: torch.Tensor = network.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[0]
    return tokens


def cells_of(tokens: torch.Tensor, cells_per_patch: int) -> torch.Tensor:
    """(I, D, h, w) -> (I, D / n^2, n h, n w), n cells each way in a patch.

    Channel c n^2 + n i + j of a patch is channel c of its cell in row i and column j (as `pixel_shuffle`).
    """
    return functional.pixel_shuffle(tokens, cells_per_patch)


def with_cells(tokens: torch.Tensor, cells_per_patch: int) -> torch.Tensor:
    """(I, D, h, w) -> (I, D + D / n^2, n h, n w): the patches around each cell, interpolated, and the cell's own.

    With one cell per patch the tokens are returned as they are.
    """
    if cells_per_patch == 1:
        return tokens
    around = functional.interpolate(tokens, scale_factor=cells_per_patch, mode="bilinear", align_corners=False)
    return torch.cat([around, cells_of(tokens, cells_per_patch)], dim=1)


def cell_channels(width: int, settings: ImageBackboneSettings) -> int:
    """Channels of a cell's own for tokens of `width`; ValueError where they cannot be shared out evenly."""
    cells = settings.cells_per_patch**2
    if width % cells:
        raise ValueError(
            f"image_backbone.cells_per_patch: expected the {width} channels of {settings.name!r} to be a multiple of "
            f"{settings.cells_per_patch}^2"
        )
    return width // cells


def create_timm_model(settings: ImageBackboneSettings, **constructor_args: Any) -> nn.Module:
    """A model of timm with weights from the hub, a local file or none; ValueError in one sentence where that fails.

    The file is one of timm's (.safetensors or .pth, read without pickle); timm converts it and loads it strictly
    (except SigLIP, whose pooling head it drops).
    """
    import timm

    if not timm.is_model(settings.name):
        raise ValueError(f"image_backbone.name: timm knows no model {settings.name!r}")
    arguments = {**constructor_args, **settings.model_args}
    overlay = dict(arguments.pop("pretrained_cfg_overlay", {}))
    if settings.weights not in ("hub", "none"):
        overlay.update(file=str(weights_file(settings)), custom_load=False)
    try:
        return timm.create_model(
            settings.name, pretrained=settings.weights != "none", pretrained_cfg_overlay=overlay, **arguments
        )
    except TypeError as error:
        raise ValueError(
            f"image_backbone: {settings.name!r} cannot be built with {arguments} ({one_line(error)}); "
            "a vision transformer that takes images of any size is needed"
        ) from error
    except (*LOAD_ERRORS, _safetensors_error()) as error:
        raise ValueError(no_weights(settings, error)) from error


def weights_file(settings: ImageBackboneSettings) -> Path:
    """The local file that `weights` names; ValueError if there is none."""
    path = Path(settings.weights)
    if not path.is_file():
        raise ValueError(f"image_backbone.weights: expected 'hub', 'none' or a file, found no {settings.weights!r}")
    return path


def no_weights(settings: ImageBackboneSettings, error: Exception) -> str:
    """The sentence for weights that could not be downloaded or loaded, with the way out."""
    if settings.weights == "hub":
        return (
            f"image_backbone.weights: 'hub' could not fetch {settings.name!r} ({one_line(error)}); give the path of "
            "a downloaded file as image_backbone.weights, or 'none' for random weights"
        )
    return f"image_backbone.weights: {settings.weights!r} does not fit {settings.name!r}: {one_line(error)}"


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _safetensors_error() -> type[Exception]:
    from safetensors import SafetensorError

    return SafetensorError
