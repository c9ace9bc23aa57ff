# SPDX-License-Identifier: Apache-2.0
"""Segmenter: banks that are switched and replaced between frames, and what every labelled frame says of its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import NUM_CLASSES, make_frame, tiny_settings

from xmodal_seg.checkpoint import SHIPPED_CHECKPOINTS, bank_state, load_checkpoint, save_checkpoint
from xmodal_seg.config import ImageBackboneSettings
from xmodal_seg.inference import Segmenter, decide, most_probable
from xmodal_seg.labels import UNLABELED, LabelSpace
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.preprocess import prepare
from xmodal_seg.structures import Head, Predictions

SPACE = LabelSpace(name="five", class_names=tuple("abcde"), colours=tuple((40 * i, 0, 0) for i in range(NUM_CLASSES)))
UNET = ImageBackboneSettings(kind="unet", name="narrow", weights="none", width=5)


def save_day_and_night(folder: Path, **changes) -> Path:
    """Two banks of different random weights around one image backbone."""
    torch.manual_seed(1)
    model = SegmentationModel(settings=tiny_settings(**changes))
    day = {name: tensor.clone() for name, tensor in bank_state(model).items()}
    night = {name: _other(tensor) for name, tensor in day.items()}
    banks = {"night": night, "day": day}
    save_checkpoint(folder, model, label_space=SPACE, banks=banks, default_bank="day")
    return folder


def _other(tensor: torch.Tensor) -> torch.Tensor:
    return tensor + 0.3 * torch.rand_like(tensor) if tensor.is_floating_point() else tensor.clone()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_day_and_night(tmp_path / "checkpoint")


@pytest.fixture
def segmenter(folder: Path) -> Segmenter:
    return Segmenter.load(folder, device="cpu")


def test_every_bank_of_a_checkpoint_is_resident(segmenter: Segmenter, folder: Path):
    assert segmenter.banks == ("day", "night")
    assert segmenter.bank == "day"
    assert "bank day (besides: night)" in segmenter.description

    for name in ("night", "day", "night"):
        segmenter.use_bank(name)
        alone = Segmenter.load(_only(folder, name), device="cpu").predict(make_frame())
        labelled = segmenter.predict(make_frame())
        np.testing.assert_array_equal(labelled.labels, alone.labels)
        np.testing.assert_array_equal(labelled.probability, alone.probability)
        assert labelled.bank == name
        assert labelled.model_version == load_checkpoint(folder).content_hash[:12]


def _only(folder: Path, bank: str) -> Path:
    """The same checkpoint with nothing but `bank`."""
    checkpoint = load_checkpoint(folder)
    target = folder.with_name(f"only_{bank}")
    model = checkpoint.build_model(bank=bank)
    save_checkpoint(target, model, label_space=SPACE, banks={bank: checkpoint.bank(bank)})
    return target


def test_the_banks_label_differently(segmenter: Segmenter):
    day = segmenter.predict(make_frame()).probability
    segmenter.use_bank("night")
    assert (segmenter.predict(make_frame()).probability != day).any()


def test_a_frozen_image_backbone_is_held_once(segmenter: Segmenter):
    models = list(segmenter._models.values())
    assert models[0].image_backbone is models[1].image_backbone
    assert models[0].point_backbone is not models[1].point_backbone


def test_a_trainable_image_network_belongs_to_its_bank(tmp_path: Path):
    segmenter = Segmenter.load(save_day_and_night(tmp_path / "unet", image_backbone=UNET), device="cpu")
    models = list(segmenter._models.values())
    assert models[0].image_backbone is not models[1].image_backbone
    segmenter.use_bank("night")
    alone = Segmenter.load(_only(tmp_path / "unet", "night"), device="cpu").predict(make_frame())
    np.testing.assert_array_equal(segmenter.predict(make_frame()).probability, alone.probability)


def test_in_bfloat16_only_image_network_and_fusion_lose_digits(folder: Path):
    exact, mixed = (Segmenter.load(folder, device="cpu", precision=each) for each in ("float32", "bfloat16"))
    assert (exact.description[-6:], mixed.description[-18:]) == ("on cpu", "on cpu in bfloat16")
    expected, labelled = exact.predict(make_frame(), keep=True), mixed.predict(make_frame(), keep=True)
    assert expected.seen is not None
    assert labelled.seen is not None
    assert labelled.seen.feats_2d.dtype == torch.float32
    assert not torch.equal(labelled.seen.feats_2d, expected.seen.feats_2d)
    assert not np.array_equal(labelled.probability, expected.probability)
    np.testing.assert_allclose(labelled.probability, expected.probability, atol=0.02)
    assert (labelled.labels == expected.labels).mean() > 0.97
    blind = replace(make_frame(), cameras=())  # the 3D head speaks alone
    np.testing.assert_array_equal(mixed.predict(blind).probability, exact.predict(blind).probability)


def test_warming_up_leaves_the_bank_in_use(segmenter: Segmenter):
    segmenter.use_bank("night")
    segmenter.warm_up(num_cameras=1)
    assert segmenter.bank == "night"


def test_installed_tensors_are_served_under_their_version(segmenter: Segmenter, folder: Path):
    segmenter.use_bank("night")
    night, version = segmenter.predict(make_frame()), segmenter.model_version

    segmenter.install_bank("day", load_checkpoint(folder).bank("night"), model_version="day-1")
    still = segmenter.predict(make_frame())
    segmenter.use_bank("day")
    day = segmenter.predict(make_frame())

    assert (still.bank, still.model_version) == ("night", version)
    np.testing.assert_array_equal(still.probability, night.probability)
    assert (day.bank, day.model_version) == ("day", "day-1")
    np.testing.assert_array_equal(day.probability, night.probability)


def test_a_part_of_a_bank_may_be_installed_and_taken_back(segmenter: Segmenter, folder: Path):
    before = segmenter.predict(make_frame()).probability
    reference = load_checkpoint(folder).bank("day")
    norms = {name: tensor for name, tensor in reference.items() if "norm" in name and name.endswith("weight")}
    assert norms

    segmenter.install_bank("day", {name: 1.5 * tensor for name, tensor in norms.items()}, model_version="day-1")
    assert (segmenter.predict(make_frame()).probability != before).any()
    segmenter.install_bank("day", norms, model_version="shipped")

    np.testing.assert_array_equal(segmenter.predict(make_frame()).probability, before)
    assert segmenter.model_version == "shipped"


def test_an_installed_state_is_a_copy(segmenter: Segmenter, folder: Path):
    state = load_checkpoint(folder).bank("night")
    segmenter.install_bank("day", state, model_version="day-1")
    before = segmenter.predict(make_frame()).probability
    for tensor in state.values():
        tensor.zero_()
    np.testing.assert_array_equal(segmenter.predict(make_frame()).probability, before)


def test_what_cannot_be_installed_changes_nothing(segmenter: Segmenter, folder: Path):
    before, version = segmenter.predict(make_frame()).probability, segmenter.model_version
    state = load_checkpoint(folder).bank("night")
    name = next(name for name, tensor in state.items() if tensor.is_floating_point() and tensor.ndim == 1)
    refused = {
        r"bank 'day', version v: expected finite values, got others in ": {
            name: torch.full_like(state[name], torch.nan)
        },
        r"bank 'day', version v: tensors do not fit the model: unexpected typo": {**state, "typo": torch.zeros(1)},
        r"bank 'day', version v: tensors do not fit the model: of another form": {name: torch.zeros(99)},
    }
    for message, tensors in refused.items():
        with pytest.raises(ValueError, match=message):
            segmenter.install_bank("day", tensors, model_version="v")
    with pytest.raises(ValueError, match="no bank 'dusk'; the model has day, night"):
        segmenter.install_bank("dusk", state, model_version="v")
    with pytest.raises(ValueError, match="no bank 'dusk'; the model has day, night"):
        segmenter.use_bank("dusk")
    np.testing.assert_array_equal(segmenter.predict(make_frame()).probability, before)
    assert (segmenter.bank, segmenter.model_version) == ("day", version)


def test_a_segmenter_starts_with_a_bank_it_has():
    model = SegmentationModel(settings=tiny_settings())
    with pytest.raises(ValueError, match="no bank 'night'; the model has day"):
        Segmenter(
            models={"day": model},
            label_space=SPACE,
            device=torch.device("cpu"),
            bank="night",
            model_version="v",
            trained=True,
        )


def test_the_untrained_model_is_one_bank():
    segmenter = Segmenter.untrained(device=torch.device("cpu"))
    assert segmenter.banks == ("untrained",)
    segmenter.close()
    assert segmenter.banks == ()


@pytest.mark.parametrize("num_classes", [1, 6, 255])
def test_the_most_probable_class_is_the_first_of_the_largest(num_classes: int) -> None:
    probs = torch.rand(301, num_classes, generator=torch.Generator().manual_seed(0))
    probs[::7] = 0.0
    probs[::5, num_classes // 2 :] = 2.0  # ties
    for layout in (probs, probs.t().contiguous().t()):
        best, train_ids = most_probable(layout)
        assert torch.equal(best, probs.amax(dim=1))
        assert torch.equal(train_ids, torch.from_numpy(probs.numpy().argmax(axis=1)).to(torch.uint8))


@pytest.mark.parametrize("main", [("fused", "3d"), ("fused",)])
@pytest.mark.parametrize("cameras", [0, 1])
def test_labels_are_those_of_the_ensemble(main: tuple[Head, ...], cameras: int) -> None:
    frame = make_frame()
    frame = replace(frame, cameras=frame.cameras[:cameras])
    batch = prepare([frame], settings=tiny_settings().preprocess.model_copy(update={"point_scope": "all"}))
    logits = {head: torch.randn(batch.num_points, NUM_CLASSES) for head in main}
    predictions = Predictions(main=logits, mimic={}, ensemble_heads=main, visible=batch.visible)
    labels, probability = decide(predictions, batch, num_points=frame.num_points, threshold=0.0)
    best, train_ids = predictions.ensemble().max(dim=1)
    expected = torch.where(best > 0, train_ids, UNLABELED)
    np.testing.assert_array_equal(labels[batch.point_index], expected)
    np.testing.assert_array_equal(probability[batch.point_index], best)
    assert bool(batch.visible.any()) == bool(cameras)
    assert not bool(batch.visible.all())


def test_logits_that_are_no_numbers_say_nothing() -> None:
    frame = make_frame()
    batch = prepare([frame], settings=tiny_settings().preprocess.model_copy(update={"point_scope": "all"}))
    logits = torch.randn(batch.num_points, NUM_CLASSES)
    logits[::3] = torch.nan
    predictions = Predictions(main={"3d": logits}, mimic={}, ensemble_heads=("3d",), visible=batch.visible)
    labels, probability = decide(predictions, batch, num_points=frame.num_points, threshold=0.0)
    broken = batch.point_index[::3].numpy()
    assert (labels[broken] == UNLABELED).all()
    assert (probability[broken] == 0).all()
    assert (labels[batch.point_index[1::3].numpy()] < NUM_CLASSES).all()


@pytest.mark.parametrize("name", sorted(SHIPPED_CHECKPOINTS))
def test_a_shipped_checkpoint_is_found_by_its_name(name: str) -> None:
    found = Segmenter.load(name, device="cpu")
    assert found.trained
    assert found.folder == SHIPPED_CHECKPOINTS[name]
    assert {"day", "night"} <= set(found.banks)


def test_without_a_name_the_one_for_a_rig_like_nuscenes_serves() -> None:
    assert Segmenter.load(None, device="cpu").folder == SHIPPED_CHECKPOINTS["nuscenes"]
