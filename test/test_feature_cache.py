# SPDX-License-Identifier: Apache-2.0
"""Stored image features equal those computed on the fly, mirror images included."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_world import IMAGE_SIZE, tiny_recipe, write_tiny_world

from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.training.data.tasks import open_domains
from xmodal_seg.training.feature_cache import INDEX_FILE, FeatureCache, open_feature_cache
from xmodal_seg.training.streams import DomainStream, FeatureMaps, InputSettings
from xmodal_seg.training.trainer import build_model

FLIP = {"image": {"flip": 0.5}, "points": {"noise": 0.05, "rotation": 6.0, "shift_cells": 2}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_tiny_world(folder)
    return folder


@pytest.fixture(scope="module")
def model(root: Path) -> SegmentationModel:
    return build_model(tiny_recipe(root))


def open_cache(root: Path, model: SegmentationModel, folder: Path, *, mirrored: bool = True) -> FeatureCache:
    return open_feature_cache(
        folder,
        model=model,
        dataset=open_domains(tiny_recipe(root)).source_train,
        image_size=IMAGE_SIZE,
        fingerprint="tiny",
        mirrored=mirrored,
    )


def make_stream(root: Path, model: SegmentationModel, features: FeatureMaps | None) -> DomainStream:
    recipe = tiny_recipe(root, data={"augment_source": FLIP})
    return DomainStream(
        dataset=open_domains(recipe).source_train,
        domain="source",
        inputs=InputSettings.of(model),
        augment=recipe.data.augment_source,
        batch_size=3,
        seed=2,
        keep_labels=True,
        feature_maps=features,
    )


def test_cached_features_equal_computed_ones(root: Path, model: SegmentationModel, tmp_path: Path) -> None:
    cache = open_cache(root, model, tmp_path)
    mirrored = 0
    for step in range(4):
        computed = make_stream(root, model, None).batch(step)
        cached = make_stream(root, model, cache).batch(step)
        assert torch.equal(computed.batch.uv, cached.batch.uv)
        assert cached.feature_map is not None
        expected = model.image_feats(computed.batch)
        found = model.image_feats(cached.batch, feature_map=cached.feature_map.float())
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
        plain = torch.cat([cache.maps(i, flips=[False]) for i in range(7)])
        mirrored += sum(not any(torch.equal(m, p) for p in plain) for m in cached.feature_map)
    assert 0 < mirrored < 12  # both kinds were drawn


def test_second_opening_reads_and_other_facts_make_another_cache(
    root: Path, model: SegmentationModel, tmp_path: Path
) -> None:
    first = open_cache(root, model, tmp_path, mirrored=False)
    marks = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    again = open_cache(root, model, tmp_path, mirrored=False)
    assert marks == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    np.testing.assert_array_equal(first.maps(0, flips=[False]), again.maps(0, flips=[False]))
    other = build_model(tiny_recipe(root, seed=9))  # other random weights
    open_cache(root, other, tmp_path, mirrored=False)
    open_cache(root, model, tmp_path, mirrored=True)
    assert len(list(tmp_path.rglob("*.npy"))) == 3


def test_unfinished_cache_is_made_again(root: Path, model: SegmentationModel, tmp_path: Path) -> None:
    open_cache(root, model, tmp_path, mirrored=False)
    (index,) = tmp_path.rglob(INDEX_FILE)
    index.unlink()
    (maps,) = tmp_path.rglob("*.npy")
    maps.write_bytes(b"cut")
    assert open_cache(root, model, tmp_path, mirrored=False).maps(6, flips=[False]).shape == (1, 12, 4, 7)


def test_a_disk_that_is_too_small_is_told_before_it_is_filled(
    root: Path, model: SegmentationModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match=r"feature_cache: the image .* take 4\.7e-06 GB, but .* has 1e-06 GB left"):
        open_cache(root, model, tmp_path)
    assert not list(tmp_path.rglob("*.npy"))


def test_cache_travels_to_workers(root: Path, model: SegmentationModel, tmp_path: Path) -> None:
    cache = open_cache(root, model, tmp_path, mirrored=False)
    before = cache.maps(1, flips=[False])
    copy = pickle.loads(pickle.dumps(cache))
    assert torch.equal(copy.maps(1, flips=[False]), before)
    assert len(pickle.dumps(cache)) < 2000


def test_trained_backbone_is_refused(root: Path, tmp_path: Path) -> None:
    unet = {"kind": "unet", "name": "narrow", "width": 4, "model_args": {}}
    recipe = tiny_recipe(root, model={"image_backbone": unet})
    with pytest.raises(ValueError, match="feature_cache: the image backbone is trained"):
        open_cache(root, build_model(recipe), tmp_path)
