# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch.nn import functional

from xmodal_seg.config import ImageBackboneSettings
from xmodal_seg.models.image_unet import ImageUNet


def _unet(name: str, **settings) -> ImageUNet:
    return ImageUNet(settings=ImageBackboneSettings(kind="unet", name=name, weights="none", **settings))


def test_resnet34_gives_64_channels_at_full_resolution_for_odd_sizes():
    unet = _unet("resnet34").eval()

    out = unet(torch.rand(2, 3, 37, 51))

    assert out.shape == (2, 64, 37, 51)
    assert (unet.out_channels, unet.patch_size, unet.frozen, unet.lift_mode) == (64, 1, False, "nearest")
    assert unet.input_size((37, 51)) == (37, 51)
    assert [tuple(m.shape[1:]) for m in unet.encoder(torch.rand(1, 3, 32, 48))] == [
        (64, 32, 48),
        (64, 16, 24),
        (128, 8, 12),
        (256, 4, 6),
        (512, 2, 3),
    ]


def test_narrow_gives_half_resolution():
    unet = _unet("narrow", width=6).eval()

    assert unet(torch.rand(1, 3, 13, 17)).shape == (1, 6, 7, 9)
    assert sum(p.numel() for p in unet.parameters()) < 0.01 * sum(p.numel() for p in _unet("resnet34").parameters())


def prepared(unet: ImageUNet, image: torch.Tensor) -> torch.Tensor:
    """What the encoder sees of an image, without the padding."""
    if not unet.encoder.standardises:
        return image
    values = image.numpy()
    return torch.from_numpy((values - values.mean()) / values.std(ddof=1))


def test_the_narrow_one_sees_the_same_by_day_and_in_a_quarter_of_the_light():
    unet = _unet("narrow", width=4).eval()
    day = torch.rand(2, 3, 32, 48)
    torch.testing.assert_close(unet(day / 4), unet(day), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(unet(day)[0], unet(day.flip(0))[0])
    assert torch.isfinite(unet(torch.full((1, 3, 32, 48), 0.3))).all()


@pytest.mark.parametrize("name", ["resnet34", "narrow"])
def test_padding_is_right_and_below_and_training_reaches_every_parameter(name):
    unet = _unet(name, width=5).eval()
    image = torch.rand(1, 3, 20, 20)
    whole = unet.decoder(unet.encoder(functional.pad(prepared(unet, image), (0, 12, 0, 12))))
    size = 20 // unet.encoder.stride
    torch.testing.assert_close(unet(image), whole[..., :size, :size], atol=1e-5, rtol=1e-4)

    unet.train()
    unet(torch.rand(2, 3, 33, 47)).square().mean().backward()
    assert all(p.grad is not None for p in unet.parameters())


def test_dropout_acts_in_training_only():
    unet = _unet("narrow", width=4)
    images = torch.rand(1, 3, 32, 48)
    assert not torch.equal(unet(images), unet(images))
    unet.eval()
    assert torch.equal(unet(images), unet(images))


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match="kind 'unet' has resnet34 and narrow, got 'resnet9'"):
        _unet("resnet9")
    with pytest.raises(ValueError, match="no published weights, expected 'none', got 'hub'"):
        ImageUNet(settings=ImageBackboneSettings(kind="unet", name="narrow", weights="hub"))


def test_resnet34_takes_weights_from_a_file(tmp_path):
    import timm

    source = timm.create_model("resnet34")
    path = tmp_path / "resnet34.pth"
    torch.save(source.state_dict(), path)

    unet = ImageUNet(settings=ImageBackboneSettings(kind="unet", name="resnet34", weights=str(path)))

    assert torch.equal(unet.encoder.stem[0].weight, source.conv1.weight)
    assert torch.equal(unet.encoder.stages[3][2].conv2.weight, source.layer4[2].conv2.weight)
