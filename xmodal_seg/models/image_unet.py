# SPDX-License-Identifier: Apache-2.0
"""xMUDA's trainable 2D U-Net, for the baseline rows (valeoai/xmuda_journal), and a narrow one for small machines."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from xmodal_seg.config import ImageBackboneSettings
from xmodal_seg.models.image_backbone import ImageBackbone, create_timm_model, unit_range
from xmodal_seg.models.lifting import LiftMode

_DROPOUT = 0.4  # after the two deepest encoder stages, as xMUDA
_LEAST_DEVIATION = 1 / 255
_SIZE_MULTIPLE = 16  # px; the input is padded to it and the output cropped back


class ImageUNet(ImageBackbone):
    """Encoder-decoder with skip connections: (I, 3, H, W) in [0, 1] -> (I, width, h, w); trained from the first step.

    `name` picks the encoder: 'resnet34' is xMUDA's (h = H, w = W; weights 'hub' are ImageNet's), 'narrow' has `width`
    to 8 * `width` channels and half the resolution (h = ceil(H / 2)). Like xMUDA the former takes pixels in [0, 1]
    without further normalisation; the narrow one sets each image to mean 0 and deviation 1, since from random weights
    and a few hundred frames it would be blind by night. A point reads the one pixel that holds it.

    Raises ValueError for another name, and for 'narrow' with weights other than 'none'.
    """

    patch_size = 1
    frozen = False
    lift_mode: LiftMode = "nearest"
    normalisation = None

    def __init__(self, *, settings: ImageBackboneSettings) -> None:
        super().__init__()
        self.encoder: ResNet34Encoder | NarrowEncoder
        if settings.name == "resnet34":
            self.encoder = ResNet34Encoder(settings=settings)
        elif settings.name == "narrow":
            self.encoder = NarrowEncoder(settings=settings)
        else:
            raise ValueError(f"image_backbone.name: kind 'unet' has resnet34 and narrow, got {settings.name!r}")
        self.decoder = Decoder(encoder_channels=self.encoder.channels, out_channels=settings.width)
        self.out_channels = settings.width
        self.model_args: dict[str, Any] = dict(settings.model_args)
        self.to(memory_format=torch.channels_last)  # a step on a CPU takes a fifth less time

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(I, 3, H, W) -> (I, width, h, w), of any H and W."""
        images = unit_range(images)
        height, width = images.shape[-2:]
        if self.encoder.standardises:
            images = _standardised(images)
        padded = functional.pad(images, (0, -width % _SIZE_MULTIPLE, 0, -height % _SIZE_MULTIPLE))
        features = self.decoder(self.encoder(padded.contiguous(memory_format=torch.channels_last)))
        stride = self.encoder.stride
        return features[..., : -(-height // stride), : -(-width // stride)]


class ResNet34Encoder(nn.Module):
    """timm's ResNet34 with a stride-1 first convolution, so that its first map has the resolution of the image."""

    channels = (64, 64, 128, 256, 512)
    stride = 1
    standardises = False

    def __init__(self, *, settings: ImageBackboneSettings) -> None:
        super().__init__()
        network: Any = create_timm_model(settings)
        network.conv1.stride = (1, 1)
        self.stem = nn.Sequential(network.conv1, network.bn1, network.act1)
        self.pool = network.maxpool
        self.stages = nn.ModuleList([network.layer1, network.layer2, network.layer3, network.layer4])
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Five maps, from full resolution to 1/16."""
        maps = [self.stem(images)]
        x = self.pool(maps[0])
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number >= 2:
                x = self.dropout(x)
            maps.append(x)
        return maps


class NarrowEncoder(nn.Module):
    """Four stages of two 3x3 convolutions at 1/2, 1/4, 1/8 and 1/16 of the resolution."""

    stride = 2
    standardises = True

    def __init__(self, *, settings: ImageBackboneSettings) -> None:
        super().__init__()
        if settings.weights != "none":
            raise ValueError(
                f"image_backbone.weights: the narrow U-Net has no published weights, expected 'none', "
                f"got {settings.weights!r}"
            )
        self.channels = tuple(settings.width * factor for factor in (1, 2, 4, 8))
        ins = (3, *self.channels[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(_conv_bn_relu(c_in, c_out, stride=2), _conv_bn_relu(c_out, c_out))
            for c_in, c_out in zip(ins, self.channels, strict=True)
        )
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Four maps, from half the resolution to 1/16."""
        maps: list[torch.Tensor] = []
        x = images
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number >= 2:
                x = self.dropout(x)
            maps.append(x)
        return maps


class Decoder(nn.Module):
    """Per level: 2x2 transposed convolution, concatenation with the encoder's map, 3x3 convolution.

    The last 3x3 convolution has neither normalisation nor activation: heads and fusion take its output as it is.
    """

    def __init__(self, *, encoder_channels: tuple[int, ...], out_channels: int) -> None:
        super().__init__()
        deep_to_shallow = list(zip(encoder_channels[:0:-1], encoder_channels[-2::-1], strict=True))
        self.upsample = nn.ModuleList(_upsample(deep, skip) for deep, skip in deep_to_shallow)
        self.merge = nn.ModuleList(_conv_bn_relu(2 * skip, skip) for _, skip in deep_to_shallow[:-1])
        self.merge.append(nn.Conv2d(2 * encoder_channels[0], out_channels, kernel_size=3, padding=1))

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Encoder maps, shallow to deep -> (I, out_channels) at the resolution of the first."""
        x = maps[-1]
        for upsample, merge, skip in zip(self.upsample, self.merge, maps[-2::-1], strict=True):
            x = merge(torch.cat([skip, upsample(x)], dim=1))
        return x


def _conv_bn_relu(channels_in: int, channels_out: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def _upsample(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(channels_in, channels_out, kernel_size=2, stride=2),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def _standardised(images: torch.Tensor) -> torch.Tensor:
    """(I, 3, H, W) with mean 0 and deviation 1 over all pixels and colours of each image; a flat one becomes 0."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    deviation = images.std(dim=(1, 2, 3), keepdim=True)
    return (images - mean) / deviation.clamp(min=_LEAST_DEVIATION)
