# SPDX-License-Identifier: Apache-2.0
"""Small stand-ins for tests of the model: a batch of made-up points and a point backbone that is one linear layer."""

import torch
from torch import nn

from xmodal_seg.config import FusionSettings, ImageBackboneSettings, ModelSettings, PointBackboneSettings
from xmodal_seg.structures import NO_CAMERA, Batch

NUM_CLASSES = 5
IMAGE_SIZE = (32, 48)


class FakePointBackbone(nn.Module):
    """(V, 4), (V, C) -> (V, 6) by one linear layer on coordinates and features; refuses what the real one refuses."""

    out_channels = 6

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(4 + in_channels, self.out_channels)
        self.norm = nn.BatchNorm1d(self.out_channels)

    def forward(self, voxel_coords, voxel_feats, *, spatial_shape, num_frames):
        assert voxel_coords.dtype == torch.int32
        assert voxel_coords.is_contiguous()
        if len(voxel_coords) == 0:
            return voxel_feats.new_zeros(0, self.out_channels)
        return self.norm(self.linear(torch.cat([voxel_coords.float() / 10, voxel_feats], dim=1)))


def make_batch(*, num_points: int = 41, num_images: int = 2, num_visible: int | None = None, seed: int = 0) -> Batch:
    """Points in two frames, the first `num_visible` of a random order seen by one of the cameras."""
    generator = torch.Generator().manual_seed(seed)
    num_voxels = max(num_points // 2, min(num_points, 1))
    rows = torch.randperm(7 * 11 * 13, generator=generator)[:num_voxels]
    coords = torch.stack([rows % 2, rows // (11 * 13), rows // 13 % 11, rows % 13], dim=1).int().contiguous()
    point_to_voxel = torch.cat(
        [
            torch.arange(num_voxels),
            torch.randint(0, max(num_voxels, 1), (num_points - num_voxels,), generator=generator),
        ]
    )
    seen = torch.randperm(num_points, generator=generator)[
        : num_points * 2 // 3 if num_visible is None else num_visible
    ]
    image_index = torch.full((num_points,), NO_CAMERA)
    uv = torch.zeros(num_points, 2)
    if num_images:
        image_index[seen] = torch.randint(0, num_images, (len(seen),), generator=generator)
        uv[seen] = torch.rand(len(seen), 2, generator=generator) * torch.tensor([47.0, 31.0])
    return Batch(
        images=torch.rand(num_images, 3, *IMAGE_SIZE, generator=generator),
        voxel_coords=coords,
        voxel_feats=torch.ones(num_voxels, 1),
        point_to_voxel=point_to_voxel,
        uv=uv,
        image_index=image_index,
        point_index=torch.arange(num_points),
        frame_index=coords[point_to_voxel, 0].long() if num_points else torch.zeros(0, dtype=torch.int64),
        spatial_shape=(7, 11, 13),
        num_frames=2,
    )


def small_settings(**changes) -> ModelSettings:
    """A model of a few thousand trainable numbers around a ViT-tiny of one block."""
    settings = {
        "num_classes": NUM_CLASSES,
        "image_backbone": ImageBackboneSettings(
            name="vit_tiny_patch16_224", weights="none", model_args={"depth": 1, "embed_dim": 24, "num_heads": 2}
        ),
        "point_backbone": PointBackboneSettings(base_channels=4, num_levels=2),
        "fusion": FusionSettings(hidden=10),
    }
    return ModelSettings(**{**settings, **changes})
