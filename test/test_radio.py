# SPDX-License-Identifier: Apache-2.0
import argparse
import os
from pathlib import Path

import pytest
import torch
from model_parts import make_batch, small_settings

from xmodal_seg.checkpoint import load_checkpoint, save_checkpoint
from xmodal_seg.config import ImageBackboneSettings
from xmodal_seg.labels import NUSCENES_6
from xmodal_seg.models.radio import Radio
from xmodal_seg.models.segmenter import SegmentationModel

CHECKOUT = os.environ.get("XMODAL_SEG_RADIO_CHECKOUT")
needs_checkout = pytest.mark.skipif(
    CHECKOUT is None, reason="set XMODAL_SEG_RADIO_CHECKOUT to a checkout of github.com/NVlabs/RADIO to build RADIO"
)
SMALL = {"model": "vit_tiny_patch16_224", "model_kwargs": {"depth": 2}, "cpe_max_size": 256}


def _radio(*, name: str = "radio_v2.5-l", weights: str = "none", **model_args) -> Radio:
    settings = ImageBackboneSettings(
        kind="radio", name=name, weights=weights, checkout=CHECKOUT or "absent", model_args=model_args
    )
    return Radio(settings=settings)


@needs_checkout
def test_radio_v2_5_l_through_its_own_code_on_a_non_square_image():
    radio = _radio().train()

    feats = radio(torch.rand(2, 3, 224, 448))

    assert feats.shape == (2, 1024, 14, 28)
    assert feats.dtype == torch.float32
    assert not feats.requires_grad
    assert not any(module.training for module in radio.modules())
    assert (radio.out_channels, radio.patch_size) == (1024, 16)
    assert radio.normalisation["mean"] == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    assert 310e6 < sum(p.numel() for p in radio.parameters()) < 330e6


@needs_checkout
def test_normalised_once_and_positions_not_random():
    radio = _radio(**SMALL)
    images = torch.rand(1, 3, 48, 80)
    mean, std = (torch.tensor(radio.normalisation[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        tokens = radio.network.model.forward_features((images - mean) / std)

    expected = tokens[:, -15:].reshape(1, 3, 5, 192).permute(0, 3, 1, 2)
    torch.testing.assert_close(radio.train()(images), expected)


@needs_checkout
def test_weights_from_a_file_of_radios_own_form(tmp_path):
    source = _radio(**SMALL)
    path = _write_radio_file(tmp_path / "radio.pth.tar", source)

    loaded = _radio(name="of no matter", weights=str(path))

    images = torch.rand(1, 3, 32, 48)
    assert torch.equal(loaded(images), source(images))
    assert loaded.model_args["model_kwargs"] == {"depth": 2}
    rebuilt = _radio(name="of no matter", **loaded.model_args)
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {k: v.shape for k, v in source.state_dict().items()}


@needs_checkout
def test_a_missing_tensor_is_an_error_and_not_a_warning(tmp_path):
    path = _write_radio_file(tmp_path / "radio.pth.tar", _radio(**SMALL), without="blocks.1.mlp.fc1.weight")

    with pytest.raises(ValueError, match=r"does not fit RADIO: Missing keys.*blocks\.1\.mlp\.fc1\.weight"):
        _radio(weights=str(path))


@needs_checkout
def test_round_trip_through_a_checkpoint(tmp_path):
    path = _write_radio_file(tmp_path / "radio.pth.tar", _radio(**SMALL))
    backbone = ImageBackboneSettings(kind="radio", name="radio_v2.5-l", weights=str(path), checkout=CHECKOUT)
    model = SegmentationModel(settings=small_settings(num_classes=6, image_backbone=backbone)).eval()
    save_checkpoint(tmp_path / "ck", model, label_space=NUSCENES_6)
    path.unlink()

    rebuilt = load_checkpoint(tmp_path / "ck").build_model()

    batch = make_batch()
    assert torch.equal(rebuilt(batch).main["fused"], model(batch).main["fused"])


def test_a_file_that_could_run_code_is_refused(tmp_path):
    path = tmp_path / "radio.pth.tar"
    torch.save({"state_dict": {}, "args": argparse.Namespace(model=pytest.approx)}, path)

    with pytest.raises(ValueError, match="no RADIO checkpoint of tensors and plain arguments"):
        _radio(weights=str(path))


def test_errors_say_what_was_expected(tmp_path):
    with pytest.raises(ValueError, match=r"expected one of radio_v2\.5-b, .*got 'radio_v9'"):
        _radio(name="radio_v9")
    with pytest.raises(ValueError, match="RADIO takes no depth"):
        _radio(depth=2)
    with pytest.raises(ValueError, match="expected 'hub', 'none' or a file, found no"):
        _radio(weights=str(tmp_path / "absent.pth.tar"))
    settings = ImageBackboneSettings(kind="radio", name="radio_v2.5-l", weights="none", checkout=str(tmp_path))
    with pytest.raises(ValueError, match=r"could not be built with the code of .*image_backbone\.checkout must name"):
        Radio(settings=settings)


def _write_radio_file(path: Path, radio: Radio, *, without: str = "") -> Path:
    network = {f"base_model.{name}": tensor for name, tensor in radio.network.model.state_dict().items()}
    conditioner = radio.network.input_conditioner.state_dict()
    state = {**network, **{f"input_conditioner.{name}": tensor for name, tensor in conditioner.items()}}
    state.pop(f"base_model.{without}", None)
    torch.save({"state_dict": state, "args": argparse.Namespace(**radio.model_args)}, path)
    return path
