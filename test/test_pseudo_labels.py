# SPDX-License-Identifier: Apache-2.0
"""Pseudo-labels: what the model says, kept per class above min(lower median, 0.9), the same when read again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_world import NUM_FRAMES, tiny_recipe, write_tiny_world

from xmodal_seg.labels import IGNORE_INDEX, UNLABELED
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.structures import Head
from xmodal_seg.training.data.dataset import Domains
from xmodal_seg.training.data.tasks import open_domains
from xmodal_seg.training.pseudo_labels import PseudoLabelStore, class_thresholds, make_pseudo_labels, refine
from xmodal_seg.training.run import evaluate_run, set_up, train
from xmodal_seg.training.sampler import batch_indices
from xmodal_seg.training.streams import DomainStream, EvaluationBatches, InputSettings

HEADS: tuple[Head, ...] = ("2d", "3d", "fused")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_tiny_world(folder)
    return folder


@pytest.fixture(scope="module")
def model(root: Path) -> SegmentationModel:
    return set_up(tiny_recipe(root)).model.eval()


@pytest.fixture(scope="module")
def domains(root: Path) -> Domains:
    return open_domains(tiny_recipe(root))


@pytest.fixture(scope="module")
def folder(root: Path, model: SegmentationModel, domains: Domains) -> Path:
    batches = EvaluationBatches(dataset=domains.target_train, inputs=InputSettings.of(model), batch_size=2)
    kept = make_pseudo_labels(
        model,
        domains.target_train,
        batches,
        folder=root / "pl",
        fingerprint=domains.fingerprint,
        device=torch.device("cpu"),
    )
    assert set(kept) == {"ensemble", *HEADS}
    assert all(0 < percent < 100 for percent in kept.values())
    return root / "pl"


def open_store(folder: Path, domains: Domains, **values: object) -> PseudoLabelStore:
    arguments: dict[str, object] = {
        "heads": HEADS,
        "teacher": "ensemble",
        "fingerprint": domains.fingerprint,
        "num_frames": NUM_FRAMES["target_train"],
    }
    return PseudoLabelStore(folder, **{**arguments, **values})  # type: ignore[arg-type]


def test_threshold_is_the_lower_median_and_at_most_point_nine() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, UNLABELED], dtype=np.uint8)
    probability = np.array([0.3, 0.5, 0.7, 0.8, 0.95, 0.99, 0.91, 0.0], dtype=np.float32)
    thresholds = class_thresholds(labels, probability, num_classes=3)
    np.testing.assert_allclose(thresholds, [0.5, 0.9, 0.9])  # class 0: torch.median's lower one of two; 2 is absent
    assert float(torch.median(torch.from_numpy(probability[:4]))) == pytest.approx(thresholds[0])
    refined = refine(labels, probability, np.append(thresholds, 2.0))
    assert refined.tolist() == [IGNORE_INDEX, 0, 0, 0, 1, 1, 1, IGNORE_INDEX]


def test_labels_are_those_of_the_model_by_point(folder: Path, model: SegmentationModel, domains: Domains) -> None:
    store = open_store(folder, domains, teacher="own_head")
    index = 3
    batch = EvaluationBatches(dataset=domains.target_train, inputs=InputSettings.of(model), batch_size=1)[index].batch
    with torch.inference_mode():
        predictions = model(batch)
    labels = store.labels(index)
    for head in HEADS:
        assert labels[head].size == domains.target_train.labels(index).size
        said = predictions.main[head].argmax(dim=1).numpy()
        kept = labels[head][batch.point_index.numpy()]
        assert (kept >= 0).any()
        np.testing.assert_array_equal(kept[kept >= 0], said[kept >= 0])
        unseen = np.setdiff1d(np.arange(labels[head].size), batch.point_index.numpy())
        assert unseen.size
        assert (labels[head][unseen] == IGNORE_INDEX).all()


def test_nothing_but_the_store_is_left_behind(folder: Path) -> None:
    arrays = {f"{name}_{what}.npy" for name in ("ensemble", *HEADS) for what in ("labels", "probability")}
    assert {path.name for path in folder.iterdir()} == {"pseudo_labels.json", "first.npy", *arrays}


def test_one_teacher_for_all_or_each_its_own(folder: Path, domains: Domains) -> None:
    shared = open_store(folder, domains).labels(0)
    np.testing.assert_array_equal(shared["2d"], shared["3d"])
    own = open_store(folder, domains, teacher="own_head").labels(0)
    assert not np.array_equal(own["2d"], own["3d"])


def test_stream_brings_them_to_the_points_of_altered_frames(folder: Path, root: Path, domains: Domains) -> None:
    augment = {"image": {"flip": 0.5}, "points": {"noise": 0.1, "rotation": 3.0}}
    recipe = tiny_recipe(root, data={"augment_target": augment})
    store = open_store(folder, domains)
    stream = DomainStream(
        dataset=domains.target_train,
        domain="target",
        inputs=InputSettings(preprocess=recipe.model.preprocess, image_size=(32, 56)),
        augment=recipe.data.augment_target,
        batch_size=2,
        seed=0,
        keep_labels=False,
        pseudo_labels=store,
    )
    data = stream.batch(1)
    assert data.batch.labels is None
    assert data.pseudo_labels is not None
    order = batch_indices(num_frames=NUM_FRAMES["target_train"], batch_size=2, step=1, seed=0, domain="target")
    for number, index in enumerate(order):
        here = data.batch.frame_index == number
        expected = store.labels(int(index))["fused"][data.batch.point_index[here].numpy()]
        np.testing.assert_array_equal(data.pseudo_labels["fused"][here].numpy(), expected)


def test_what_does_not_fit_is_refused(folder: Path, domains: Domains, root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.pseudo_labels: .* holds none"):
        open_store(tmp_path, domains)
    with pytest.raises(ValueError, match="labels of 5 frames of other data"):
        open_store(folder, domains, fingerprint="other")
    (tmp_path / "pseudo_labels.json").write_text('{"format": 0}', encoding="utf-8")
    with pytest.raises(ValueError, match="expected format 1, got 0"):
        open_store(tmp_path, domains)
    store = open_store(folder, domains)
    fewer = open_domains(tiny_recipe(root, data={"max_points": 50}))
    stream = DomainStream(
        dataset=fewer.target_train,
        domain="target",
        inputs=InputSettings(preprocess=tiny_recipe(root).model.preprocess, image_size=(32, 56)),
        augment=tiny_recipe(root).data.augment_target,
        batch_size=2,
        seed=0,
        keep_labels=False,
        pseudo_labels=store,
    )
    with pytest.raises(ValueError, match="a frame has 50 points but 140 pseudo-labels"):
        stream.batch(0)


def test_missing_labels_are_told_before_data_are_opened(tmp_path: Path) -> None:
    taught = tiny_recipe(tmp_path / "no_world", losses={"lambda_pl": 1.0}, data={"pseudo_labels": tmp_path / "none"})
    with pytest.raises(ValueError, match=r"data.pseudo_labels: .*none holds none"):
        train(taught, tmp_path / "run")


def test_a_finished_run_is_scored_without_the_labels_that_taught_it(folder: Path, root: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    shutil.copytree(folder, labels)
    taught = tiny_recipe(root, losses={"lambda_pl": 1.0}, data={"pseudo_labels": labels}, optim={"steps": 2})
    train(taught, tmp_path / "run")
    shutil.rmtree(labels)
    assert evaluate_run(tmp_path / "run")["test"]
