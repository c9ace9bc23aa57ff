# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from safetensors.torch import save_file

from xmodal_seg.config import ImageBackboneSettings
from xmodal_seg.models.image_backbone import FrozenViT
from xmodal_seg.models.segmenter import build_image_backbone

TINY = "vit_tiny_patch16_224"
# The models the project is meant for, cut to two blocks: patch embedding, positions and last block stay their own.
FOUNDATION_MODELS = [
    pytest.param(
        "naflexvit_large_patch16_radio_v3.c_radio", 16, 1024, (0.48145466, 0.4578275, 0.40821073), id="C-RADIOv3-L"
    ),
    pytest.param("naflexvit_base_patch16_radio_v3.c_radio", 16, 768, (0.48145466, 0.4578275, 0.40821073), id="NaFlex"),
    pytest.param("vit_so400m_patch16_radio_v4.c_radio", 16, 1152, (0.48145466, 0.4578275, 0.40821073), id="C-RADIOv4"),
    pytest.param("vit_small_patch14_dinov2.lvd142m", 14, 384, (0.485, 0.456, 0.406), id="DINOv2"),
    pytest.param("vit_small_patch14_reg4_dinov2.lvd142m", 14, 384, (0.485, 0.456, 0.406), id="DINOv2-registers"),
    pytest.param("vit_small_patch16_dinov3.lvd1689m", 16, 384, (0.485, 0.456, 0.406), id="DINOv3"),
]


def _vit(name: str = TINY, *, weights: str = "none", **model_args) -> FrozenViT:
    model_args = {"depth": 2, **model_args}
    return FrozenViT(settings=ImageBackboneSettings(name=name, weights=weights, model_args=model_args))


@pytest.mark.parametrize(("name", "patch_size", "channels", "mean"), FOUNDATION_MODELS)
def test_foundation_models_on_non_square_images(name, patch_size, channels, mean):
    vit = _vit(name)

    feats = vit(torch.rand(2, 3, 3 * patch_size, 7 * patch_size))

    assert feats.shape == (2, channels, 3, 7)
    assert feats.dtype == torch.float32
    assert (vit.out_channels, vit.patch_size) == (channels, patch_size)
    assert vit.normalisation["mean"] == list(mean)
    assert vit.input_size((3 * patch_size - 1, 6 * patch_size + 1)) == (3 * patch_size, 7 * patch_size)
    assert vit.input_size((3 * patch_size, 7 * patch_size)) == (3 * patch_size, 7 * patch_size)


def test_features_are_the_normed_patch_tokens_of_the_normalised_image():
    vit = _vit()
    images = torch.rand(1, 3, 32, 48)
    normalised = (images - 0.5) / 0.5  # this model's mean and standard deviation

    with torch.no_grad():
        tokens = vit.network.forward_features(normalised)

    expected = tokens[:, 1:].reshape(1, 2, 3, 192).permute(0, 3, 1, 2)  # without the class token
    torch.testing.assert_close(vit(images), expected)


def test_a_patch_can_be_several_cells_with_channels_of_their_own():
    settings = ImageBackboneSettings(name=TINY, weights="none", model_args={"depth": 1}, cells_per_patch=2)
    vit = FrozenViT(settings=settings)
    images = torch.rand(1, 3, 32, 48)

    cells = vit(images)

    assert (vit.out_channels, vit.patch_size, cells.shape) == (192 + 48, 16, (1, 192 + 48, 4, 6))
    vit.cells_per_patch = 1
    patches = vit(images)
    around, own = cells[:, :192], cells[:, 192:]
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):  # row and column of a cell within its patch
        assert torch.equal(own[:, :, i::2, j::2], patches[:, 2 * i + j :: 4])
    torch.testing.assert_close(around[..., 0, 0], patches[..., 0, 0])  # a corner has no other patch around
    torch.testing.assert_close(around[..., 0, 1], 0.75 * patches[..., 0, 0] + 0.25 * patches[..., 0, 1])
    with pytest.raises(ValueError, match=r"cells_per_patch: expected the 192 channels .* multiple of 5\^2"):
        FrozenViT(settings=settings.model_copy(update={"cells_per_patch": 5}))


def test_frozen_stays_bit_identical_through_train_and_a_step():
    vit = _vit(drop_rate=0.3, proj_drop_rate=0.3)
    parent = torch.nn.Sequential(vit, torch.nn.Conv2d(192, 5, 1))
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    images = torch.rand(2, 3, 32, 48)
    feats = vit(images)

    parent.train()
    optimiser = torch.optim.Adam(parent.parameters(), lr=0.1, weight_decay=0.1)
    parent(images).square().mean().backward()
    optimiser.step()

    assert not any(module.training for module in vit.modules())
    assert parent[1].weight.grad is not None
    assert all(p.grad is None and not p.requires_grad for p in vit.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())
    assert torch.equal(vit(images), feats)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_local_file(tmp_path, suffix):
    import timm

    source = timm.create_model(TINY, depth=2)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(source.state_dict(), path)
    else:
        save_file(source.state_dict(), path)

    vit = _vit(weights=str(path))

    assert torch.equal(vit.network.blocks[1].mlp.fc2.weight, source.blocks[1].mlp.fc2.weight)
    with pytest.raises(ValueError, match=r"does not fit 'vit_tiny_patch16_224'.*Missing key.*blocks\.2\."):
        _vit(weights=str(path), depth=3)
    with pytest.raises(ValueError, match=r"does not fit 'vit_tiny_patch16_224'.*Unexpected key.*blocks\.1\."):
        _vit(weights=str(path), depth=1)


def test_a_file_with_code_inside_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {}, "code": pytest.approx}, path)

    with pytest.raises(ValueError, match=r"weights\.pth' does not fit"):
        _vit(weights=str(path))


def test_errors_say_what_was_expected(tmp_path):
    with pytest.raises(ValueError, match="timm knows no model 'vit_enormous'"):
        _vit("vit_enormous")
    with pytest.raises(ValueError, match=r"cannot be built with .*takes images of any size"):
        _vit("resnet18")
    with pytest.raises(ValueError, match="expected 'hub', 'none' or a file, found no "):
        _vit(weights=str(tmp_path / "absent.safetensors"))
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="does not fit"):
        _vit(weights=str(junk))
    with pytest.raises(ValueError, match=r"multiples of the patch size 16 px, got 13x32; the next larger is 16x32"):
        _vit()(torch.rand(1, 3, 13, 32))


def test_a_failed_download_says_how_to_go_on():
    # Nothing listens on the discard port.
    unreachable = {"hf_hub_id": None, "url": "http://127.0.0.1:9/xmodal_seg_nowhere.pth"}
    with pytest.raises(ValueError, match=r"'hub' could not fetch .*give the path of a downloaded file .*or 'none'"):
        _vit(weights="hub", pretrained_cfg_overlay=unreachable)


@pytest.mark.parametrize(
    "settings",
    [
        ImageBackboneSettings(name="vit_tiny_patch16_224", weights="none", model_args={"depth": 1}),
        ImageBackboneSettings(name="vit_tiny_patch16_224", weights="none", model_args={"depth": 1}, tuning="lora"),
        ImageBackboneSettings(kind="unet", name="narrow", weights="none", width=4),
    ],
)
def test_bytes_are_seen_as_their_share_of_255(settings: ImageBackboneSettings) -> None:
    backbone = build_image_backbone(settings).eval()
    images = torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8)
    assert torch.equal(backbone(images), backbone(images.float() * (1.0 / 255.0)))
    assert images.dtype == torch.uint8
