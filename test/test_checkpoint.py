# SPDX-License-Identifier: Apache-2.0
import copy
import json
from pathlib import Path

import pytest
import torch
from model_parts import NUM_CLASSES, make_batch, small_settings

from xmodal_seg.checkpoint import (
    backbone_state,
    bank_state,
    load_bank,
    load_checkpoint,
    save_checkpoint,
)
from xmodal_seg.config import FusionSettings, HeadSettings, ImageBackboneSettings, PreprocessSettings
from xmodal_seg.labels import NUSCENES_6, LabelSpace
from xmodal_seg.models.segmenter import SegmentationModel

LABELS = LabelSpace(
    name="five",
    class_names=("a", "b", "c", "d", "e"),
    colours=((1, 2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12), (13, 14, 15)),
)
TINY_VIT = {"depth": 1, "embed_dim": 24, "num_heads": 2}
NARROW = ImageBackboneSettings(kind="unet", name="narrow", weights="none", width=5)


def _trained_model(**changes) -> SegmentationModel:
    """A model whose weights and batch-norm statistics a training step has moved."""
    model = SegmentationModel(settings=small_settings(**changes)).train()
    predictions = model(make_batch())
    sum(logits.square().mean() for logits in predictions.main.values()).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    return model.eval()


def _logits(model: SegmentationModel) -> list[torch.Tensor]:
    with torch.no_grad():
        predictions = model(make_batch(seed=3))
    return [*predictions.main.values(), *predictions.mimic.values()]


def _same_logits(model: SegmentationModel, other: SegmentationModel) -> bool:
    return all(torch.equal(a, b) for a, b in zip(_logits(model), _logits(other), strict=True))


def _index(folder: Path) -> dict:
    return json.loads((folder / "checkpoint.json").read_text())


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="paper"),
        pytest.param({"image_backbone": NARROW, "fusion": FusionSettings(kind="xmuda")}, id="trainable U-Net"),
        pytest.param({"heads": HeadSettings(main=("3d",), mimic=(), ensemble=("3d",))}, id="LiDAR alone"),
        pytest.param({"preprocess": PreprocessSettings(image_size=(13, 17), voxel_size=0.2)}, id="preprocess"),
    ],
)
def test_round_trip_gives_bit_equal_logits(tmp_path, changes):
    model = _trained_model(**changes)

    content_hash = save_checkpoint(tmp_path / "ck", model, label_space=LABELS, metadata={"trained": True, "miou": 51.3})
    loaded = load_checkpoint(tmp_path / "ck")
    rebuilt = loaded.build_model()

    assert _same_logits(model, rebuilt)
    assert not rebuilt.training
    assert loaded.settings == model.settings
    assert loaded.label_space == LABELS
    assert loaded.metadata == {"trained": True, "miou": 51.3}
    assert loaded.content_hash == content_hash
    assert loaded.default_bank == "default"
    assert loaded.versions["torch"] == torch.__version__.split("+")[0]
    assert not list((tmp_path / "ck").glob(".*"))


def test_building_leaves_the_callers_random_numbers_alone(tmp_path):
    save_checkpoint(tmp_path, _trained_model(), label_space=LABELS)
    torch.manual_seed(7)
    expected = torch.rand(3)

    torch.manual_seed(7)
    load_checkpoint(tmp_path).build_model()

    assert torch.equal(torch.rand(3), expected)


def test_banks_share_the_frozen_backbone(tmp_path):
    model = _trained_model()
    day = {name: tensor.clone() for name, tensor in bank_state(model).items()}
    night = {name: tensor + 1 for name, tensor in day.items()}
    assert not set(day) & set(backbone_state(model))

    save_checkpoint(tmp_path, model, label_space=LABELS, banks={"day": day, "night": night}, default_bank="night")
    loaded = load_checkpoint(tmp_path)

    names = sorted(path.name.split(".")[0] for path in tmp_path.glob("*.safetensors"))
    assert names == ["bank_day", "bank_night", "shared"]
    assert _same_logits(loaded.build_model(bank="day"), model)
    served = loaded.build_model()
    assert not _same_logits(served, model)
    load_bank(served, loaded.bank("day"))
    assert _same_logits(served, model)
    with pytest.raises(ValueError, match="no bank 'dawn'; it has day, night"):
        loaded.bank("dawn")


def test_a_bank_that_does_not_fit_changes_nothing():
    model = _trained_model()
    before = _logits(model)
    bank = {name: torch.zeros_like(tensor) for name, tensor in bank_state(model).items()}
    del bank["heads.main.3d.bias"]
    bank["heads.main.4d.bias"] = torch.zeros(5)
    bank["heads.main.2d.bias"] = torch.zeros(7)

    with pytest.raises(
        ValueError,
        match=r"night: tensors do not fit the model: missing heads\.main\.3d\.bias; unexpected heads\.main\.4d\.bias; "
        r"of another form heads\.main\.2d\.bias \(float32 \(7,\), expected float32 \(5,\)\)",
    ):
        load_bank(model, bank, where="night")

    assert all(torch.equal(a, b) for a, b in zip(before, _logits(model), strict=True))


def test_float16_backbone_comes_back_exactly(tmp_path):
    model = _trained_model()
    with torch.no_grad():
        for parameter in model.image_backbone.parameters():
            parameter.copy_(parameter.half())  # as published weights in float16 are

    save_checkpoint(tmp_path / "half", model, label_space=LABELS, backbone="float16")
    save_checkpoint(tmp_path / "full", model, label_space=LABELS)

    assert _same_logits(load_checkpoint(tmp_path / "half").build_model(), model)
    half, full = (next((tmp_path / name).glob("shared.*")).stat().st_size for name in ("half", "full"))
    assert half < 0.6 * full
    with torch.no_grad():
        model.image_backbone.network.blocks[0].mlp.fc1.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.fc1\.weight holds values that float16 cannot"):
        save_checkpoint(tmp_path / "half", model, label_space=LABELS, backbone="float16")


def test_checkpoints_may_share_a_backbone_in_the_folder_above(tmp_path):
    day = _trained_model()
    night = copy.deepcopy(day)
    with torch.no_grad():
        night.heads.main["3d"].bias.add_(1)
    save_checkpoint(tmp_path / "day", day, label_space=LABELS)
    save_checkpoint(tmp_path / "night", night, label_space=LABELS)
    (shared,) = (tmp_path / "day").glob("shared.*")
    (tmp_path / "night" / shared.name).unlink()

    with pytest.raises(ValueError, match=rf"night/{shared.name}: missing, though the checkpoint names it"):
        load_checkpoint(tmp_path / "night")
    shared.rename(tmp_path / shared.name)

    assert _same_logits(load_checkpoint(tmp_path / "day").build_model(), day)
    assert _same_logits(load_checkpoint(tmp_path / "night").build_model(), night)
    (tmp_path / shared.name).write_bytes(b"other")
    with pytest.raises(ValueError, match=r"damaged or changed"):
        load_checkpoint(tmp_path / "night")


def test_omitted_backbone_is_fetched_and_verified(tmp_path):
    import timm

    path = tmp_path / "vit.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224", **TINY_VIT).state_dict(), path)
    backbone = ImageBackboneSettings(name="vit_tiny_patch16_224", weights=str(path), model_args=TINY_VIT)
    model = _trained_model(image_backbone=backbone)
    folder = tmp_path / "ck"

    save_checkpoint(folder, model, label_space=LABELS, backbone="omit")

    assert not list(folder.glob("shared*"))
    assert _same_logits(load_checkpoint(folder).build_model(), model)
    torch.save(timm.create_model("vit_tiny_patch16_224", **TINY_VIT).state_dict(), path)
    with pytest.raises(ValueError, match="is not the one this checkpoint was trained with"):
        load_checkpoint(folder).build_model()


def test_models_of_one_checkpoint_share_a_backbone(tmp_path):
    model = _trained_model()
    save_checkpoint(tmp_path, model, label_space=LABELS)
    loaded = load_checkpoint(tmp_path)
    served = loaded.build_model()

    adapting = loaded.build_model(image_backbone=served.image_backbone)

    assert adapting.image_backbone is served.image_backbone
    assert adapting.point_backbone is not served.point_backbone
    assert _same_logits(adapting, model)


def test_a_kept_backbone_needs_neither_hub_nor_file(tmp_path):
    import timm

    path = tmp_path / "vit.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224", **TINY_VIT).state_dict(), path)
    backbone = ImageBackboneSettings(name="vit_tiny_patch16_224", weights=str(path), model_args=TINY_VIT)
    model = _trained_model(image_backbone=backbone)
    save_checkpoint(tmp_path / "ck", model, label_space=LABELS)

    path.unlink()

    loaded = load_checkpoint(tmp_path / "ck")
    assert loaded.settings.image_backbone.weights == "none"
    assert _same_logits(loaded.build_model(), model)


def test_saving_again_replaces_the_former_files(tmp_path):
    save_checkpoint(tmp_path, _trained_model(), label_space=LABELS)
    former = {path.name for path in tmp_path.glob("bank_*")}
    (tmp_path / "notes.safetensors").write_bytes(b"not ours")
    model = _trained_model()

    save_checkpoint(tmp_path, model, label_space=LABELS)

    assert {path.name for path in tmp_path.glob("bank_*")}.isdisjoint(former)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert _same_logits(load_checkpoint(tmp_path).build_model(), model)


def test_a_writer_that_dies_leaves_the_former_checkpoint_whole(tmp_path):
    model = _trained_model()
    save_checkpoint(tmp_path, model, label_space=LABELS)

    # The tensor files are written before JSON finds out that it cannot hold the metadata.
    with pytest.raises(ValueError, match="expected what JSON can hold"):
        save_checkpoint(tmp_path, _trained_model(), label_space=LABELS, metadata={"path": tmp_path})

    assert len(list(tmp_path.glob("bank_*"))) == 2
    assert _same_logits(load_checkpoint(tmp_path).build_model(), model)


@pytest.mark.parametrize("what", ["shared", "bank_default"])
def test_a_damaged_or_missing_file_is_named(tmp_path, what):
    save_checkpoint(tmp_path, _trained_model(), label_space=LABELS)
    path = next(tmp_path.glob(f"{what}.*"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    with pytest.raises(ValueError, match=rf"{what}\.[0-9a-f]+\.safetensors: damaged or changed: expected the SHA-256"):
        load_checkpoint(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=rf"{what}\.[0-9a-f]+\.safetensors: missing, though the checkpoint names it"):
        load_checkpoint(tmp_path)


def test_a_changed_or_foreign_index_is_refused(tmp_path):
    index_path = tmp_path / "checkpoint.json"
    with pytest.raises(ValueError, match=r"no checkpoint here, expected a folder with checkpoint\.json"):
        load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, _trained_model(), label_space=LABELS)
    index = _index(tmp_path)

    changed = json.loads(json.dumps(index))
    changed["label_space"]["class_names"][0] = "z"
    index_path.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="changed after it was written: it states the hash"):
        load_checkpoint(tmp_path)
    index_path.write_text(json.dumps({**index, "format": 99}))
    with pytest.raises(ValueError, match="expected checkpoint format 1, got 99"):
        load_checkpoint(tmp_path)
    index_path.write_text(json.dumps(index)[:-9])
    with pytest.raises(ValueError, match="not valid JSON"):
        load_checkpoint(tmp_path)


def test_classes_must_be_as_many_as_the_models(tmp_path):
    with pytest.raises(ValueError, match=f"the model has {NUM_CLASSES} classes, the label space 'nuscenes_6' has 6"):
        save_checkpoint(tmp_path, _trained_model(), label_space=NUSCENES_6)


def test_another_normalisation_is_refused(tmp_path):
    model = _trained_model()
    model.image_backbone.normalisation = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}
    save_checkpoint(tmp_path, model, label_space=LABELS)

    with pytest.raises(ValueError, match=r"trained with the normalisation .*0\.1, 0\.2.* build it with .*0\.5"):
        load_checkpoint(tmp_path).build_model()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"banks": {}}, "expected at least one bank, got none"),
        ({"banks": {"day": {}}}, r"bank 'day': tensors do not fit the model: missing .* and \d+ more"),
        ({"banks": {"../day": {}}}, "letters, digits, - and _ only, got '../day'"),
        ({"default_bank": "night"}, "default_bank 'night' is not among default"),
        ({"backbone": "omit"}, "with 'none' nothing else holds the weights"),
    ],
)
def test_what_cannot_be_saved(tmp_path, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        save_checkpoint(tmp_path, _trained_model(), label_space=LABELS, **arguments)
