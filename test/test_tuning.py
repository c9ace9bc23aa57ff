# SPDX-License-Identifier: Apache-2.0
"""A tuned vision transformer: the identity at the start, modules and heads alone get gradient, checkpoints, merging."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from model_parts import NUM_CLASSES, make_batch, small_settings
from pydantic import ValidationError
from safetensors.torch import save_file

from xmodal_seg.checkpoint import backbone_state, bank_state, load_bank, load_checkpoint, save_checkpoint
from xmodal_seg.config import HeadSettings, ImageBackboneSettings, TuningSettings
from xmodal_seg.inference import Segmenter
from xmodal_seg.labels import LabelSpace
from xmodal_seg.models.image_backbone import FrozenViT
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.models.tuning.merging import merged_backbone
from xmodal_seg.models.tuning.modules import FrequencyBands, LowRank, low_frequencies
from xmodal_seg.models.tuning.selection import ModuleKey
from xmodal_seg.models.tuning.tuned_vit import TunedViT
from xmodal_seg.training.lora_merging import merge_lora, merged_model

LABELS = LabelSpace(name="five", class_names=tuple("abcde"), colours=tuple((i, 2 * i, 3 * i) for i in range(5)))
WIDTHS = {"rank": 3, "adapter_width": 5, "frequency_width": 4, "low_pass": 0.5}
TINY = {"depth": 3, "embed_dim": 24, "num_heads": 2}
SWIN = "swin_tiny_patch4_window7_224"
# Of timm's ViTs: plain, without and with four registers, layer scale, a convolutional stem, pre-norm without biases,
# norms behind attention and MLP, rotary embeddings (one for all blocks, and one each), a gated MLP, query and value
# with projections of their own, and embeddings made for any grid.
NETWORKS = [
    pytest.param("vit_tiny_patch16_224", {}, id="class token"),
    pytest.param("vit_small_patch14_reg4_dinov2.lvd142m", {"img_size": 56}, id="registers, layer scale"),
    pytest.param("vit_tiny_r_s16_p8_224", {"img_size": [64, 96], "patch_size": 2}, id="hybrid"),
    pytest.param("vit_base_patch16_siglip_224", {}, id="no prefix"),
    pytest.param("vit_base_patch16_clip_224", {}, id="norm before the blocks"),
    pytest.param("vit_base_patch16_rpn_224", {}, id="norms behind"),
    pytest.param("vit_small_patch16_dinov3.lvd1689m", {}, id="DINOv3"),
    pytest.param("vit_small_patch16_rope_mixed_224", {"num_heads": 2}, id="mixed rope"),
    pytest.param("eva02_base_patch14_224", {}, id="EVA-02"),
    pytest.param("naflexvit_large_patch16_radio_v3.c_radio", {}, id="NaFlex"),
    pytest.param("naflexvit_base_patch16_gap", {"rope_type": "axial"}, id="NaFlex, rope"),
]


def backbone_settings(kind: str = "all", name: str = "vit_tiny_patch16_224", **changes: Any) -> ImageBackboneSettings:
    values = {"name": name, "weights": "none", "model_args": {**TINY, **changes.pop("model_args", {})}}
    tuning = {"kind": kind, **WIDTHS, **changes.pop("tuning", {})} if kind != "none" else "none"
    return ImageBackboneSettings(**{**values, **changes}, tuning=tuning)


def tuned(kind: str = "all", **changes: Any) -> TunedViT:
    torch.manual_seed(0)
    return TunedViT(settings=backbone_settings(kind, **changes))


def model_of(kind: str = "all", *, backbone: dict[str, Any] | None = None, **changes: Any) -> SegmentationModel:
    torch.manual_seed(0)
    return SegmentationModel(
        settings=small_settings(image_backbone=backbone_settings(kind, **(backbone or {})), **changes)
    )


def teach(module: torch.nn.Module) -> None:
    """Give every trained number a value that is felt, as training does."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def logits_of(model: SegmentationModel) -> list[torch.Tensor]:
    with torch.no_grad():
        predictions = model.eval()(make_batch(seed=3))
    return [*predictions.main.values(), *predictions.mimic.values()]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("name", "model_args"), NETWORKS)
def test_it_starts_as_the_frozen_network_to_the_last_bit(name: str, model_args: dict, autocast: bool) -> None:
    settings = backbone_settings("all", name, model_args=model_args)
    torch.manual_seed(0)
    frozen = FrozenViT(settings=settings.model_copy(update={"tuning": TuningSettings()}))
    torch.manual_seed(0)
    vit = TunedViT(settings=settings)
    images = torch.rand(2, 3, 3 * vit.patch_size, 5 * vit.patch_size)

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        feats = vit(images)
        assert torch.equal(feats, frozen(images))
    assert feats.shape == (2, 24, 3, 5)

    teach(vit)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        assert (vit(images) - feats).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["lora", "adapter", "all", "gate"])
def test_logits_and_first_weights_are_those_of_the_untuned_model(kind: str) -> None:
    tuning = {"top_k": 2} if kind == "gate" else {}
    model, plain = model_of(kind, backbone={"tuning": tuning}), model_of("none")

    assert all(torch.equal(a, b) for a, b in zip(logits_of(model), logits_of(plain), strict=True))
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())


def test_cells_of_a_patch_and_image_sizes_as_for_the_frozen_network() -> None:
    settings = backbone_settings("all", cells_per_patch=2)
    torch.manual_seed(0)
    frozen = FrozenViT(settings=settings.model_copy(update={"tuning": TuningSettings()}))
    torch.manual_seed(0)
    vit = TunedViT(settings=settings)
    images = torch.rand(1, 3, 48, 16)

    assert (vit.out_channels, vit.patch_size, vit.normalisation) == (24 + 6, 16, frozen.normalisation)
    assert torch.equal(vit(images), frozen(images))
    with pytest.raises(ValueError, match="multiples of the patch size 16 px, got 40x16; the next larger is 48x16"):
        vit(torch.rand(1, 3, 40, 16))


@pytest.mark.parametrize("kind", ["lora", "adapter", "all"])
def test_only_modules_and_heads_get_gradient_and_a_step_leaves_the_network_alone(kind: str) -> None:
    model = model_of(kind).train()
    before = {name: tensor.clone() for name, tensor in backbone_state(model).items()}
    batch = make_batch()
    groups = model.parameter_groups()
    optimiser = torch.optim.Adam([p for parameters in groups.values() for p in parameters], lr=0.1, weight_decay=0.1)

    for _ in range(2):  # behind zeros there is gradient from the second step on
        optimiser.zero_grad(set_to_none=True)
        sum(logits.square().mean() for logits in model(batch).main.values()).backward()
        optimiser.step()

    reached = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    in_backbone = {name for name in reached if name.startswith("image_backbone.")}
    expected = {name for name, p in model.named_parameters() if p.requires_grad and "image_backbone" in name}
    assert in_backbone == expected
    assert expected
    assert all(name.startswith("image_backbone.tuned_blocks.") for name in expected)
    assert before.keys() == {name for name in model.state_dict() if name.startswith("image_backbone.network.")}
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone_state(model).items())
    assert not any(module.training for module in model.image_backbone.network.modules())
    assert {id(p) for p in groups["tuning"]} == {id(dict(model.named_parameters())[name]) for name in expected}
    assert not {id(p) for p in groups["image"]} & {id(p) for p in groups["tuning"]}
    assert model.num_trainable() - model_of("none").num_trainable() == sum(p.numel() for p in groups["tuning"])


def test_numbers_of_parameters_are_those_of_the_formulas() -> None:
    width, blocks = 24, 3
    lora = 4 * WIDTHS["rank"] * width
    adapter = 2 * WIDTHS["adapter_width"] * width + WIDTHS["adapter_width"] + width
    bands = 3 * (2 * WIDTHS["frequency_width"] * width + WIDTHS["frequency_width"] + width) + 3 * width + 3
    for kind, each in (("lora", lora), ("adapter", adapter), ("all", lora + adapter + bands)):
        assert sum(p.numel() for p in tuned(kind).parameters() if p.requires_grad) == blocks * each


def test_low_rank_updates_query_and_value_and_never_the_key() -> None:
    vit = tuned("lora")
    teach(vit)
    projection = vit.network.blocks[1].attn.qkv
    tokens = torch.randn(2, 7, 24)
    plain = torch.nn.functional.linear(tokens, projection.weight, projection.bias)

    query, key, value = (projection(tokens) - plain).chunk(3, dim=-1)

    assert not key.any()
    assert query.abs().min() > 0
    assert value.abs().min() > 0
    module = vit.modules_by_key()[ModuleKey(1, "spatial")]
    assert isinstance(module, LowRank)
    torch.testing.assert_close(tokens @ module.query_update().t(), query)
    torch.testing.assert_close(tokens @ module.value_update().t(), value)
    assert torch.linalg.matrix_rank(module.query_update()) == WIDTHS["rank"]


def test_low_rank_updates_projections_of_their_own() -> None:
    vit = tuned("lora", name="eva02_base_patch14_224")
    teach(vit)
    attention = vit.network.blocks[1].attn
    tokens = torch.randn(2, 7, 24)
    module = vit.modules_by_key()[ModuleKey(1, "spatial")]
    assert isinstance(module, LowRank)

    for projection, update in ((attention.q_proj, module.query_update()), (attention.v_proj, module.value_update())):
        plain = torch.nn.functional.linear(tokens, projection.weight, projection.bias)
        torch.testing.assert_close(projection(tokens), plain + tokens @ update.t())
        assert update.abs().max() > 0
    assert torch.equal(attention.k_proj(tokens), tokens @ attention.k_proj.weight.t())


def test_the_semantic_module_is_beside_the_mlp() -> None:
    for name in ("vit_tiny_patch16_224", "vit_small_patch16_dinov3.lvd1689m"):
        vit = tuned("adapter", name=name)
        teach(vit)
        block, modules = vit.network.blocks[0], vit.tuned_blocks[0]
        tokens = torch.randn(2, vit.network.num_prefix_tokens + 6, 24)
        seen: list[torch.Tensor] = []
        handle = block.mlp.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))

        found = modules(block, tokens, (2, 3), vit.network.num_prefix_tokens, None)

        handle.remove()
        assert modules._before_mlp is None  # nothing is kept beyond the call
        torch.testing.assert_close(found, block(tokens) + modules.semantic(seen[0]))
        assert not torch.equal(seen[0], tokens)


@pytest.mark.parametrize("grid", [(5, 7), (4, 6), (1, 9), (3, 2)])
def test_low_frequencies_are_those_of_the_full_transform(grid: tuple[int, int]) -> None:
    height, width = grid
    patches = torch.randn(2, height * width, 3, dtype=torch.float64).float()
    rows, columns = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    is_low = (rows[:, None] ** 2 + columns[None] ** 2).sqrt() <= 0.25
    spectrum = torch.fft.fft2(patches.reshape(2, height, width, 3).double(), dim=(1, 2)) * is_low[..., None]
    expected = torch.fft.ifft2(spectrum, dim=(1, 2))

    low = low_frequencies(patches, grid, share=0.5)

    assert expected.imag.abs().max() < 1e-12
    torch.testing.assert_close(low, expected.real.float().flatten(1, 2))
    flat = torch.ones(1, height * width, 3)
    torch.testing.assert_close(low_frequencies(flat, grid, share=0.5), flat)
    if is_low.all():
        return
    assert (low - patches).abs().max() > 0.05


def test_frequency_module_is_what_its_formula_says() -> None:
    torch.manual_seed(1)
    bands = FrequencyBands(width=6, hidden=4, low_pass=0.5)
    teach(bands)
    patches = torch.randn(2, 15, 6)
    low = low_frequencies(patches, (3, 5), share=0.5)
    weights = (patches @ bands.router.weight.t() + bands.router.bias).softmax(-1)

    added = bands(patches, (3, 5))

    expected = torch.zeros_like(patches)
    for i, part in enumerate((low, patches - low, patches)):
        down, up = bands.bottlenecks[i].down, bands.bottlenecks[i].up
        hidden = torch.nn.functional.gelu(part @ down.weight.t() + down.bias)
        expected += weights[..., i : i + 1] * (hidden @ up.weight.t() + up.bias)
    torch.testing.assert_close(added, expected)
    assert not torch.allclose(added, bands(patches, (5, 3)), atol=1e-3)  # the grid is not its transpose


@pytest.mark.parametrize(("name", "model_args", "num_prefix"), [(*NETWORKS[0].values, 1), (*NETWORKS[1].values, 5)])
def test_frequency_leaves_class_and_register_tokens_alone(name: str, model_args: dict, num_prefix: int) -> None:
    vit = tuned("all", name=name, model_args=model_args)
    teach(vit)
    block, modules = vit.network.blocks[0], vit.tuned_blocks[0]
    tokens = torch.randn(2, num_prefix + 15, 24)
    assert vit.network.num_prefix_tokens == num_prefix

    added = modules(block, tokens, (3, 5), num_prefix, None)
    modules.frequency.active = False
    without = modules(block, tokens, (3, 5), num_prefix, None)

    assert torch.equal(added[:, :num_prefix], without[:, :num_prefix])
    assert (added - without)[:, num_prefix:].abs().amax(dim=-1).min() > 1e-4


@pytest.mark.parametrize("unselected", ["frozen", "bypassed"])
def test_selected_modules_alone_are_trained_and_the_others_frozen_or_bypassed(unselected: str) -> None:
    vit = tuned("gate", tuning={"top_k": 2, "unselected": unselected})
    teach(vit)
    images = torch.rand(1, 3, 48, 80)
    all_on = vit(images)
    keys = frozenset([ModuleKey(0, "semantic"), ModuleKey(2, "frequency")])

    vit.select(keys)

    assert vit.selection() == keys
    on = {key for key, module in vit.modules_by_key().items() if any(p.requires_grad for p in module.parameters())}
    assert on == keys
    assert torch.equal(vit(images), all_on) == (unselected == "frozen")
    vit(images).square().mean().backward()
    with_gradient = {name.split(".")[1:3][0] for name, p in vit.named_parameters() if p.grad is not None}
    assert with_gradient == {"0", "2"}
    with vit.all_on():
        assert torch.equal(vit(images), all_on)
        assert all(p.requires_grad for module in vit.modules_by_key().values() for p in module.parameters())
    assert vit.selection() == keys


def test_bypassed_modules_follow_a_selection_that_was_loaded() -> None:
    model = model_of("gate", backbone={"tuning": {"top_k": 2, "unselected": "bypassed"}})
    teach(model.image_backbone)
    other = copy.deepcopy(model)
    model.image_backbone.select([ModuleKey(0, "spatial"), ModuleKey(1, "frequency")])

    assert not torch.equal(logits_of(model)[0], logits_of(other)[0])
    load_bank(other, bank_state(model))

    assert all(torch.equal(a, b) for a, b in zip(logits_of(model), logits_of(other), strict=True))


def test_a_copy_has_modules_of_its_own() -> None:
    vit = tuned("lora")
    copied = copy.deepcopy(vit)
    images = torch.rand(1, 3, 32, 48)
    before = vit(images)

    teach(copied)

    assert torch.equal(vit(images), before)
    assert not torch.equal(copied(images), before)


def test_checkpointed_activations_give_the_same_gradients() -> None:
    gradients = {}
    for checkpointing in (False, True):
        vit = tuned("all", tuning={"checkpointing": checkpointing})
        teach(vit)
        feats = [vit(torch.ones(1, 3, 48, 80)), vit(torch.ones(1, 3, 32, 32))]  # another grid before backward
        sum(f.square().mean() for f in feats).backward()
        gradients[checkpointing] = {name: p.grad for name, p in vit.named_parameters() if p.grad is not None}
    assert gradients[True].keys() == gradients[False].keys()
    for name, gradient in gradients[True].items():
        assert torch.equal(gradient, gradients[False][name]), name


def test_checkpointing_keeps_less_for_backward() -> None:
    kept = {}
    for checkpointing in (False, True):
        vit = tuned("all", tuning={"checkpointing": checkpointing})
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            vit(torch.rand(1, 3, 48, 80))
        kept[checkpointing] = sum(sizes)
    assert kept[True] < 0.2 * kept[False]


def test_checkpoint_holds_the_hash_of_the_network_and_the_modules(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    base = FrozenViT(settings=backbone_settings("none"))
    save_file(base.network.state_dict(), path)
    without_head = {"num_classes": 0, "pretrained_cfg_overlay": {"num_classes": 0}}
    model = model_of("all", backbone={"weights": str(path), "model_args": without_head})
    teach(model.image_backbone)

    save_checkpoint(tmp_path / "omitted", model, label_space=LABELS, backbone="omit")
    loaded = load_checkpoint(tmp_path / "omitted")

    assert loaded.shared is None
    assert loaded.backbone_hash is not None
    assert not any(".network." in name for name in loaded.bank())
    assert any(".tuned_blocks." in name for name in loaded.bank())
    expected = logits_of(model)
    assert all(torch.equal(a, b) for a, b in zip(logits_of(loaded.build_model()), expected, strict=True))
    plain = model_of("none", backbone={"weights": str(path), "model_args": without_head})
    save_checkpoint(tmp_path / "plain", plain, label_space=LABELS, backbone="omit")
    assert load_checkpoint(tmp_path / "plain").backbone_hash == loaded.backbone_hash

    save_checkpoint(tmp_path / "whole", model, label_space=LABELS)
    path.unlink()
    whole = load_checkpoint(tmp_path / "whole").build_model()
    assert all(torch.equal(a, b) for a, b in zip(logits_of(whole), expected, strict=True))


def test_banks_have_modules_of_their_own(tmp_path: Path) -> None:
    model = model_of("all")
    day = {name: tensor.clone() for name, tensor in bank_state(model).items()}
    teach(model.image_backbone)
    expected = logits_of(model)
    save_checkpoint(tmp_path, model, label_space=LABELS, banks={"day": day, "night": bank_state(model)})

    segmenter = Segmenter.load(tmp_path, device="cpu")

    assert all(torch.equal(a, b) for a, b in zip(logits_of(segmenter.model_of("night")), expected, strict=True))
    assert not torch.equal(logits_of(segmenter.model_of("day"))[0], expected[0])


@pytest.mark.parametrize(
    ("name", "model_args"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_small_patch16_dinov3.lvd1689m", {"init_values": 20.0}),  # at 1e-5 no module would be felt
        ("eva02_base_patch14_224", {"patch_size": 16}),
    ],
)
def test_save_load_merge_gives_the_same_logits(tmp_path: Path, name: str, model_args: dict) -> None:
    backbone = {"name": name, "model_args": model_args}
    model = model_of("lora", backbone=dict(backbone))
    teach(model.image_backbone)
    save_checkpoint(tmp_path / "lora", model, label_space=LABELS, metadata={"trained": True})

    merge_lora(tmp_path / "lora", tmp_path / "merged")

    merged = load_checkpoint(tmp_path / "merged").build_model()
    assert isinstance(merged.image_backbone, FrozenViT)
    assert merged.settings.image_backbone.tuning == TuningSettings()
    for found, expected in zip(logits_of(merged), logits_of(model), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    plain = model_of("none", backbone=dict(backbone))
    assert not torch.allclose(logits_of(merged)[0], logits_of(plain)[0], atol=1e-2)
    assert Segmenter.load(tmp_path / "merged", device="cpu").trained


def test_what_cannot_be_merged_says_so() -> None:
    with pytest.raises(ValueError, match="'lora' to merge, got 'all', whose semantic and frequency modules"):
        merged_backbone(tuned("all"))
    with pytest.raises(ValueError, match="got one without tuning"):
        merged_model(model_of("none"))


def test_a_2d_mimicry_head_teaches_the_modules() -> None:
    heads = HeadSettings(mimic=(("2d", "fused"), ("3d", "fused"), ("fused", "2d"), ("fused", "3d")))
    model = model_of("lora", heads=heads).train()

    model(make_batch()).mimic[("2d", "fused")].square().mean().backward()

    assert all(p.grad is not None for name, p in model.named_parameters() if "_up" in name)
    assert {logits.shape[1] for logits in model(make_batch()).mimic.values()} == {NUM_CLASSES}


def test_a_word_stands_for_its_kind() -> None:
    assert ImageBackboneSettings(tuning="gate").tuning == TuningSettings(kind="gate")
    assert ImageBackboneSettings(tuning="none") == ImageBackboneSettings()
    assert "tuning" not in ImageBackboneSettings(name="x", tuning="none").model_dump(exclude_defaults=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageBackboneSettings(tuning={"rank": 4}), "kind: 'none' has no use for rank; expected lora, adapter"),
        (lambda: ImageBackboneSettings(kind="radio", tuning="lora"), "'lora' goes with kind 'timm' only, got kind 'ra"),
        (lambda: ImageBackboneSettings(tuning="everything"), "Input should be 'none', 'lora'"),
        (lambda: tuned("gate", tuning={"top_k": 10}), "top_k: expected at most 9, the modules of .*, got 10"),
        (
            lambda: tuned("lora", name="vit_small_patch16_dinov3_qkvb.lvd1689m"),
            "'lora' needs attention that calls its projection as a layer; 'vit_small_patch16_dinov3_qkvb.lvd1689m' mul",
        ),
        (
            lambda: tuned("adapter", name="vit_small_patch16_18x2_224"),
            "'adapter' needs blocks with one attention and one MLP after it, those of .* are ParallelThingsBlock",
        ),
        (
            lambda: TunedViT(settings=ImageBackboneSettings(name=SWIN, weights="none", tuning="lora")),
            f"'lora' needs a VisionTransformer, Eva or NaFlexVit of timm, '{SWIN}' is a SwinTransformer",
        ),
    ],
)
def test_errors_say_what_was_expected(make: Any, message: str) -> None:
    with pytest.raises((ValueError, ValidationError), match=message):
        make()
