# SPDX-License-Identifier: Apache-2.0
"""The model: image backbone, lifting, point backbone, fusion and heads, assembled from its settings."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import nn

from xmodal_seg.config import ImageBackboneSettings, ModelSettings
from xmodal_seg.models.fixed_norm import FixedNorm
from xmodal_seg.models.fusion import Fusion, PointBatchNorm
from xmodal_seg.models.heads import Heads
from xmodal_seg.models.image_backbone import FrozenViT, ImageBackbone
from xmodal_seg.models.image_unet import ImageUNet
from xmodal_seg.models.lifting import lift
from xmodal_seg.models.point_backbone import PointBackbone
from xmodal_seg.models.radio import Radio
from xmodal_seg.models.tuning.tuned_vit import TunedViT
from xmodal_seg.structures import Batch, Head, Predictions, true_rows
from xmodal_seg.voxels import gather_to_points

ParameterGroup = Literal["image", "tuning", "fusion", "point"]


class SegmentationModel(nn.Module):
    """Batch -> Predictions.

    Only what the declared heads need is built: a model with nothing but a 3D head has no image backbone.

    Args:
        settings: the whole model.
        image_backbone: used in place of what `settings.image_backbone` describes; models may share a frozen one.
        point_backbone: used in place of what `settings.point_backbone` describes; it has `out_channels` and maps
            (V, 4) voxel_coords and (V, C) voxel_feats to (V, out_channels).
    """

    def __init__(
        self,
        *,
        settings: ModelSettings,
        image_backbone: ImageBackbone | None = None,
        point_backbone: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        needed = _needed_heads(settings)
        self.image_backbone: ImageBackbone | None = None
        self.point_backbone: nn.Module | None = None
        self.fusion: Fusion | None = None
        self.feature_norm: nn.Module = nn.Identity()
        widths: dict[Head, int] = {}
        if needed & {"2d", "fused"}:
            self.image_backbone = image_backbone or build_image_backbone(settings.image_backbone)
            widths["2d"] = self.image_backbone.out_channels
            self.feature_norm = _feature_norm(settings.image_backbone, widths["2d"])
        if needed & {"3d", "fused"}:
            self.point_backbone = point_backbone or PointBackbone(settings=settings.point_backbone)
            widths["3d"] = cast(int, self.point_backbone.out_channels)
        if "fused" in needed:
            self.fusion = Fusion(settings=settings.fusion, channels_2d=widths["2d"], channels_3d=widths["3d"])
            widths["fused"] = self.fusion.out_channels
        self.heads = Heads(settings=settings.heads, widths=widths, num_classes=settings.num_classes)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) px of the images in a Batch: the settings' size rounded up to the backbone's patches."""
        size = self.settings.preprocess.image_size
        return size if self.image_backbone is None else self.image_backbone.input_size(size)

    def forward(self, batch: Batch, *, feats_2d: torch.Tensor | None = None) -> Predictions:
        """Logits of every head, float32, in the order of the batch's points.

        Args:
            batch: any number of images and points, none included.
            feats_2d: (Pv, D) what `image_feats(batch)` gives, when it is known already (a cache, the served model).

        Raises:
            ValueError: `feats_2d` of the wrong shape, or a training batch with a single visible point where the model
                normalises over points.
        """
        visible = true_rows(batch.visible)
        feats: dict[Head, torch.Tensor] = {}
        if self.point_backbone is not None:
            feats["3d"] = self._point_feats(batch)
        if self.image_backbone is not None:
            feats["2d"] = self._normalised_2d(batch, feats_2d, num_visible=visible.shape[0])
        if self.fusion is not None:
            feats["fused"] = self._fused(feats["2d"], feats["3d"][visible])
        main, mimic = self.heads(feats, visible=visible, num_points=batch.num_points)
        return Predictions(main=main, mimic=mimic, ensemble_heads=self.settings.heads.ensemble, visible=batch.visible)

    def image_feats(self, batch: Batch, *, feature_map: torch.Tensor | None = None) -> torch.Tensor:
        """(Pv, D) float32 2D features, before `feature_norm`, of the points that a camera sees, in the batch's order.

        `feature_map` (I, D, h, w) replaces running the image backbone on `batch.images` (a cache of maps).
        """
        assert self.image_backbone is not None, "a model without 2d and fused heads has no 2D features"
        visible = true_rows(batch.visible)
        if visible.shape[0] == 0:
            return batch.uv.new_zeros(0, self.image_backbone.out_channels)
        if feature_map is None:
            feature_map = self.image_backbone(batch.images)
        height, width = batch.images.shape[-2:]
        return lift(
            feature_map.float(),  # bilinear weights keep their digits under autocast and for maps cached in 16 bits
            batch.uv[visible],
            batch.image_index[visible],
            (height, width),
            mode=self.image_backbone.lift_mode,
        )

    def parameter_groups(self) -> dict[ParameterGroup, list[nn.Parameter]]:
        """Trainable parameters, each in one group, as the recipes' learning rates divide them.

        image: a trainable 2D network, the feature norm and the 2D heads; tuning: the modules that are on in a tuned
        image backbone; fusion: projection, fusion and fused heads; point: the 3D net and the 3D heads. Groups of parts
        that the model lacks are empty.
        """
        tuned = self.image_backbone if isinstance(self.image_backbone, TunedViT) else None
        untuned = self.image_backbone if tuned is None else None
        groups: dict[ParameterGroup, list[nn.Parameter]] = {
            "image": [*_parameters(self.feature_norm, untuned), *self.heads.parameters_of("2d")],
            "tuning": _parameters(tuned),
            "fusion": [*_parameters(self.fusion), *self.heads.parameters_of("fused")],
            "point": [*_parameters(self.point_backbone), *self.heads.parameters_of("3d")],
        }
        return {name: [p for p in parameters if p.requires_grad] for name, parameters in groups.items()}

    def group_sizes(self) -> dict[ParameterGroup, int]:
        """How many numbers training changes, by group."""
        return {name: sum(p.numel() for p in parameters) for name, parameters in self.parameter_groups().items()}

    def num_trainable(self) -> int:
        """How many numbers training changes."""
        return sum(self.group_sizes().values())

    def _point_feats(self, batch: Batch) -> torch.Tensor:
        assert self.point_backbone is not None
        voxel_feats = self.point_backbone(
            batch.voxel_coords, batch.voxel_feats, spatial_shape=batch.spatial_shape, num_frames=batch.num_frames
        )
        return gather_to_points(voxel_feats, batch.point_to_voxel)

    def _normalised_2d(self, batch: Batch, feats_2d: torch.Tensor | None, *, num_visible: int) -> torch.Tensor:
        assert self.image_backbone is not None
        feats_2d = self.image_feats(batch) if feats_2d is None else feats_2d
        expected = (num_visible, self.image_backbone.out_channels)
        if tuple(feats_2d.shape) != expected:
            raise ValueError(
                f"feats_2d: expected {expected}, a row per point that a camera sees, got {tuple(feats_2d.shape)}"
            )
        return self.feature_norm(feats_2d.float()) if num_visible else feats_2d

    def _fused(self, feats_2d: torch.Tensor, feats_3d: torch.Tensor) -> torch.Tensor:
        assert self.fusion is not None
        if feats_2d.shape[0] == 0:  # batch norm refuses to train on no points
            return feats_2d.new_zeros(0, self.fusion.out_channels)
        return self.fusion(feats_2d, feats_3d)


def build_image_backbone(settings: ImageBackboneSettings) -> ImageBackbone:
    """The 2D network that the settings describe; ValueError for one that cannot be built."""
    if settings.tuning.kind != "none":
        return TunedViT(settings=settings)
    builders: dict[str, type[FrozenViT] | type[Radio] | type[ImageUNet]] = {
        "timm": FrozenViT,
        "radio": Radio,
        "unet": ImageUNet,
    }
    return builders[settings.kind](settings=settings)


def _needed_heads(settings: ModelSettings) -> set[Head]:
    """Heads whose features something classifies."""
    return {*settings.heads.main, *(student for student, _ in settings.heads.mimic)}


def _feature_norm(settings: ImageBackboneSettings, channels: int) -> nn.Module:
    """Over points and not cells: statistics then weigh the image by where the points are, as the heads see it."""
    layers = {"none": nn.Identity, "fixed": FixedNorm, "batch": PointBatchNorm, "layer": nn.LayerNorm}
    return layers[settings.feature_norm](channels)


def _parameters(*modules: nn.Module | None) -> list[nn.Parameter]:
    return [parameter for module in modules if module is not None for parameter in module.parameters()]
