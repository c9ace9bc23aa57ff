# SPDX-License-Identifier: Apache-2.0
"""A frozen vision transformer with trained modules in every block."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from xmodal_seg.config import ImageBackboneSettings, TuningSettings
from xmodal_seg.models.image_backbone import FrozenViT, ImageBackbone, check_image_size, unit_range, with_cells
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

    With F the frequency module on patch tokens, a block of timm, here one that norms first, becomes

        T' = T + MSA(LN(T)), whose query and value have the spatial module's low-rank update
        T'' = T' + MLP(LN(T')) + semantic(LN(T')),   T''' = T'' + F(T'')

    and gives the same features as FrozenViT to the last bit until a module has learned something. `selected` says which
    modules are on; a checkpoint's banks hold it with the modules.

    Raises ValueError for what FrozenViT refuses, for a network whose blocks have no attention and MLP to attach to or
    that is no `VisionTransformer`, `Eva` (DINOv3, EVA-02, Perception Encoder) or `NaFlexVit` of timm, and for a `top_k`
    beyond the number of modules.
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
            self.tuned_blocks = nn.ModuleList(
                _TunedBlock(block, settings.tuning, width=self.network.embed_dim) for block in self.network.blocks
            )
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
        height, width = (size // self.patch_size for size in images.shape[-2:])
        tokens, ropes = _embedded(network, (unit_range(images) - self.mean) / self.std)
        for block, tuned, rope in zip(network.blocks, self.tuned_blocks, ropes, strict=True):
            tokens = self._run(tuned, block, tokens, (height, width), rope)
        patches = network.norm(tokens)[:, network.num_prefix_tokens :]
        cells = patches.reshape(len(images), height, width, -1).permute(0, 3, 1, 2).contiguous()
        return with_cells(cells, self.cells_per_patch)

    def _run(
        self, tuned: nn.Module, block: nn.Module, tokens: torch.Tensor, grid: tuple[int, int], rope: torch.Tensor | None
    ) -> torch.Tensor:
        arguments = (block, tokens, grid, self.network.num_prefix_tokens, rope)
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

    def __init__(self, block: Any, settings: TuningSettings, *, width: int) -> None:
        super().__init__()
        hidden, types = settings.frequency_width, TYPES[settings.kind]
        self._before_mlp: torch.Tensor | None = None
        self.spatial = self.semantic = self.frequency = None
        if "spatial" in types:
            self.spatial = LowRank.attached_to(block.attn, rank=settings.rank)
        if "semantic" in types:
            self.semantic = Bottleneck(width=width, hidden=settings.adapter_width)
            block.mlp.register_forward_pre_hook(self._keep_input)
        if "frequency" in types:
            self.frequency = FrequencyBands(width=width, hidden=hidden, low_pass=settings.low_pass)

    def module_of(self, of_type: ModuleType) -> TuningModule:
        return getattr(self, of_type)

    def forward(
        self, block: Any, tokens: torch.Tensor, grid: tuple[int, int], num_prefix: int, rope: torch.Tensor | None
    ) -> torch.Tensor:
        """(I, prefix + h w, D) -> the same; the frequency module leaves prefix tokens as they are."""
        tokens = block(tokens) if rope is None else block(tokens, rope=rope)
        if self.semantic is not None:
            seen, self._before_mlp = self._before_mlp, None
            tokens = tokens + self.semantic(seen) if self.semantic.active else tokens
        if self.frequency is not None and self.frequency.active:
            prefix, patches = tokens[:, :num_prefix], tokens[:, num_prefix:]
            tokens = torch.cat([prefix, patches + self.frequency(patches, grid)], dim=1)
        return tokens

    def _keep_input(self, _: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        """Hook of the MLP, within `forward`: the semantic module takes the same tokens."""
        self._before_mlp = inputs[0]


def _embedded(network: Any, images: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor | None]]:
    """Normalised images -> tokens as they enter the first block, and each block's rotary embedding, if any."""
    from timm.models.eva import Eva
    from timm.models.naflexvit import NaFlexVit

    rope = None
    if isinstance(network, NaFlexVit):
        embedded = network._forward_embeds(images, None, None, None)
        tokens, rope, is_mixed = embedded["patches"], embedded["rope_embeds"], network.rope_is_mixed
    elif isinstance(network, Eva):
        tokens, rope = network._pos_embed(network.patch_embed(images))
        tokens, is_mixed = network.norm_pre(tokens), network.rope_mixed
    else:
        tokens, is_mixed = network.norm_pre(network.patch_drop(network._pos_embed(network.patch_embed(images)))), False
    by_block: Any = rope if rope is not None and is_mixed else [rope] * len(network.blocks)
    return tokens, by_block


def _check_blocks(network: Any, settings: ImageBackboneSettings) -> None:
    from timm.models.eva import Eva
    from timm.models.naflexvit import NaFlexVit
    from timm.models.vision_transformer import VisionTransformer

    what = f"image_backbone.tuning: {settings.tuning.kind!r} needs"
    if not isinstance(network, VisionTransformer | Eva | NaFlexVit):
        raise ValueError(
            f"{what} a VisionTransformer, Eva or NaFlexVit of timm, {settings.name!r} is a {type(network).__name__}"
        )
    for block in network.blocks:
        attention, mlp = getattr(block, "attn", None), getattr(block, "mlp", None)
        if attention is None or mlp is None:
            raise ValueError(
                f"{what} blocks with one attention and one MLP after it, those of {settings.name!r} are "
                f"{type(block).__name__}"
            )
        is_called = getattr(attention, "q_bias", None) is None or attention.qkv_bias_separate
        if "spatial" in TYPES[settings.tuning.kind] and not is_called:
            raise ValueError(
                f"{what} attention that calls its projection as a layer; {settings.name!r} multiplies by its weight "
                "with biases of its own (of DINOv3, take the model without '_qkvb')"
            )
