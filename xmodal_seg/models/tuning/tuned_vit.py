# SPDX-License-Identifier: Apache-2.0
"""A frozen vision transformer with trained modules in every block."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from xmodal_seg.config import ImageBackboneSettings, TuningSettings
from xmodal_seg.models.image_backbone import FrozenViT, ImageBackbone, check_image_size, with_cells
from xmodal_seg.models.lifting import LiftMode
from xmodal_seg.models.tuning.modules import Bottleneck, FrequencyBands, LowRank, TuningModule
from xmodal_seg.models.tuning.selection import ModuleKey, ModuleType

TYPES: dict[str, tuple[ModuleType, ...]] = {
    "lora": ("spatial",),
    "adapter": ("semantic",),
    "all": ("spatial", "semantic", "frequency"),
    "gate": ("spatial", "semantic", "frequency"),
}


class TunedViT(ImageBackbone):
    """FrozenViT's network, frozen and in eval mode, with modules in its blocks that are trained.

    With F the frequency module on patch tokens, a block of timm becomes

        T' = T + MSA(LN(T)), whose query and value have the spatial module's low-rank update
        T'' = T' + MLP(LN(T')) + semantic(LN(T')),   T''' = T'' + F(T'')

    and gives the same features as FrozenViT to the last bit until a module has learned something. `selected` says which
    modules are on; a checkpoint's banks hold it with the modules.

    Raises ValueError for what FrozenViT refuses, for a network that is not made of timm's plain `Block`s (EVA, DINOv3
    and NaFlex models are not), and for a `top_k` beyond the number of modules.
    """

    frozen = False
    lift_mode: LiftMode = "bilinear"
    mean: torch.Tensor
    std: torch.Tensor
    selected: torch.Tensor  # (layers, types) bool

    def __init__(self, *, settings: ImageBackboneSettings) -> None:
        super().__init__()
        base = FrozenViT(settings=settings)
        _check_blocks(base.network, settings)
        self.settings = settings
        self.network: Any = base.network
        self.out_channels, self.patch_size = base.out_channels, base.patch_size
        self.cells_per_patch, self.model_args = base.cells_per_patch, base.model_args
        self.normalisation = base.normalisation
        self.register_buffer("mean", base.mean, persistent=False)
        self.register_buffer("std", base.std, persistent=False)
        with torch.random.fork_rng(devices=[]):  # what is drawn after this is what it is without modules
            self.tuned_blocks = nn.ModuleList(_TunedBlock(block, settings.tuning) for block in self.network.blocks)
        self.types = TYPES[settings.tuning.kind]
        self.register_buffer("selected", torch.ones(len(self.tuned_blocks), len(self.types), dtype=torch.bool))
        self._check_top_k()
        self.training = False

    def train(self, mode: bool = True) -> TunedViT:
        """Stay in eval mode: the network is frozen, and the modules know no other."""
        return self

    def frozen_names(self) -> set[str]:
        """All but the modules and which of them are on."""
        return {name for name in self.state_dict() if name.startswith("network.")}

    def modules_by_key(self) -> dict[ModuleKey, TuningModule]:
        """Every module by layer and type."""
        return {
            ModuleKey(layer, of_type): cast(_TunedBlock, block).module_of(of_type)
            for layer, block in enumerate(self.tuned_blocks)
            for of_type in self.types
        }

    def selection(self) -> frozenset[ModuleKey]:
        """The modules that are on."""
        on = self.selected.tolist()
        return frozenset(key for key in self.modules_by_key() if on[key.layer][self.types.index(key.type)])

    def select(self, keys: Collection[ModuleKey]) -> None:
        """Train these modules and no others; the optimiser keeps the state of those that go off."""
        for key, module in self.modules_by_key().items():
            module.requires_grad_(key in keys)
            self.selected[key.layer, self.types.index(key.type)] = key in keys

    @contextmanager
    def all_on(self) -> Iterator[None]:
        """All modules take part and ask for gradients, to be scored; the selection is put back."""
        former = self.selection()
        self.select(self.modules_by_key().keys())
        try:
            yield
        finally:
            self.select(former)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(I, 3, H, W) -> (I, D, h, w). Raises ValueError if H or W is no multiple of the patch size."""
        check_image_size(self, images)
        self._activate()
        network = self.network
        height, width = network.patch_embed.dynamic_feat_size(tuple(images.shape[-2:]))
        tokens = network.patch_embed((images - self.mean) / self.std)
        tokens = network.norm_pre(network.patch_drop(network._pos_embed(tokens)))
        for block, tuned in zip(network.blocks, self.tuned_blocks, strict=True):
            tokens = self._run(tuned, block, tokens, (height, width))
        patches = network.norm(tokens)[:, network.num_prefix_tokens :]
        cells = patches.reshape(len(images), height, width, -1).permute(0, 3, 1, 2).contiguous()
        return with_cells(cells, self.cells_per_patch)

    def _run(self, tuned: nn.Module, block: nn.Module, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        arguments = (block, tokens, grid, self.network.num_prefix_tokens)
        if self.settings.tuning.checkpointing and torch.is_grad_enabled():
            return checkpoint(tuned, *arguments, use_reentrant=False, preserve_rng_state=False)
        return tuned(*arguments)

    def _activate(self) -> None:
        """Bypass what is off, if the settings say so. `selected` is read anew: loading weights may have changed it."""
        if self.settings.tuning.unselected == "bypassed":
            on = self.selection()
            for key, module in self.modules_by_key().items():
                module.active = key in on

    def _check_top_k(self) -> None:
        tuning, number = self.settings.tuning, self.selected.numel()
        if tuning.kind == "gate" and tuning.top_k > number:
            raise ValueError(
                f"image_backbone.tuning.top_k: expected at most {number}, the modules of {self.settings.name!r}, "
                f"got {tuning.top_k}"
            )


class _TunedBlock(nn.Module):
    """The modules of one block, and the block's forward pass with them."""

    def __init__(self, block: Any, settings: TuningSettings) -> None:
        super().__init__()
        projection = block.attn.qkv
        width, hidden = projection.in_features, settings.frequency_width
        types = TYPES[settings.kind]
        self.spatial = self.semantic = self.frequency = None
        if "spatial" in types:
            self.spatial = LowRank(width=width, out_channels=projection.out_features // 3, rank=settings.rank)
            # A bound method, unlike a closure, follows the module into a deep copy.
            projection.register_forward_hook(self.spatial.add_to)
        if "semantic" in types:
            self.semantic = Bottleneck(width=width, hidden=settings.adapter_width)
        if "frequency" in types:
            self.frequency = FrequencyBands(width=width, hidden=hidden, low_pass=settings.low_pass)

    def module_of(self, of_type: ModuleType) -> TuningModule:
        return getattr(self, of_type)

    def forward(self, block: Any, tokens: torch.Tensor, grid: tuple[int, int], num_prefix: int) -> torch.Tensor:
        """(I, prefix + h w, D) -> the same; the frequency module leaves prefix tokens as they are."""
        tokens = tokens + block.drop_path1(block.ls1(block.attn(block.norm1(tokens))))
        normed = block.norm2(tokens)
        tokens = tokens + block.drop_path2(block.ls2(block.mlp(normed)))
        if self.semantic is not None and self.semantic.active:
            tokens = tokens + self.semantic(normed)
        if self.frequency is not None and self.frequency.active:
            prefix, patches = tokens[:, :num_prefix], tokens[:, num_prefix:]
            tokens = torch.cat([prefix, patches + self.frequency(patches, grid)], dim=1)
        return tokens


def _check_blocks(network: Any, settings: ImageBackboneSettings) -> None:
    from timm.layers import Attention
    from timm.models.vision_transformer import Block, VisionTransformer

    plain = isinstance(network, VisionTransformer) and all(
        type(block) is Block and type(block.attn) is Attention for block in network.blocks
    )
    if not plain:
        raise ValueError(
            f"image_backbone.tuning: {settings.tuning.kind!r} needs a VisionTransformer of timm with its plain blocks, "
            f"{settings.name!r} is a {type(network).__name__} of other ones"
        )
