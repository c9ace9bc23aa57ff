# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_frame
from programs import load_program
from tiny_world import tiny_recipe, write_tiny_world
from torch.nn import functional

from xmodal_seg.config import PreprocessSettings
from xmodal_seg.labels import IGNORE_INDEX, NUSCENES_6
from xmodal_seg.models.image_backbone import ImageBackbone, unit_range
from xmodal_seg.preprocess import prepare
from xmodal_seg.simulation.rigs import NUSCENES
from xmodal_seg.training.data.tasks import open_domains
from xmodal_seg.training.probe import (
    LinearProbe,
    PointFeatures,
    ProbeDomain,
    ProbeSettings,
    domain_frames,
    point_features,
    probe,
    shift_frames,
)

K = NUSCENES_6.num_classes


class Averages(ImageBackbone):
    """Mean colour of every 4x4 pixels, and its square."""

    out_channels, patch_size, frozen, lift_mode = 6, 4, True, "bilinear"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = functional.avg_pool2d(unit_range(images), 4)
        return torch.cat([mean, mean.square()], dim=1)


def clusters(num: int, *, seed: int = 0, spread: float = 0.2) -> PointFeatures:
    """Points of K classes around the corners of a simplex, and a channel that never changes."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % K
    feats = functional.one_hot(labels, K).float() + spread * torch.randn(num, K, generator=draw)
    return PointFeatures(feats=torch.cat([feats, torch.ones(num, 1)], dim=1), labels=labels)


def test_separate_classes_are_told_apart_and_noise_is_not() -> None:
    fitted = LinearProbe(clusters(301), label_space=NUSCENES_6)
    assert fitted.score(clusters(203, seed=1)).mean_iou() > 95
    noise = PointFeatures(feats=torch.randn(601, 3), labels=torch.randint(0, K, (601,)))
    assert LinearProbe(noise, label_space=NUSCENES_6, iterations=20).score(noise).mean_iou() < 40


def test_units_of_the_features_do_not_matter() -> None:
    data = clusters(151, spread=0.6)
    scaled = PointFeatures(feats=data.feats * 1000 + 7, labels=data.labels)
    one, other = (LinearProbe(d, label_space=NUSCENES_6, iterations=30) for d in (data, scaled))
    same = one.predict(data.feats) == other.predict(scaled.feats)
    assert float(same.float().mean()) > 0.99


def test_the_fit_is_where_the_weighted_gradient_vanishes() -> None:
    data = clusters(157, spread=1.0)
    fitted = LinearProbe(data, label_space=NUSCENES_6, iterations=3000)
    x = ((data.feats - data.feats.mean(0)) / data.feats.std(0).clamp(min=1e-4)).numpy()
    logits = x @ fitted._layer.weight.detach().numpy().T + fitted._layer.bias.detach().numpy()
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    counts = np.bincount(data.labels.numpy(), minlength=K)
    weights = np.log(5 * counts.sum() / counts)
    weights = (weights / weights.min())[data.labels.numpy()]
    gradient = (weights[:, None] * (probs - np.eye(K)[data.labels.numpy()])).T @ x / weights.sum()
    assert np.abs(gradient).max() < 2e-3


def test_labels_must_be_known_and_every_class_present() -> None:
    data = clusters(20)
    with pytest.raises(ValueError, match="expected labels from 0 to 5"):
        LinearProbe(PointFeatures(feats=data.feats, labels=data.labels + 1), label_space=NUSCENES_6)
    with pytest.raises(ValueError, match=f"no point of {NUSCENES_6.class_names[5]} to fit on"):
        LinearProbe(PointFeatures(feats=data.feats[:5], labels=data.labels[:5]), label_space=NUSCENES_6)


def test_features_are_those_of_the_labelled_points() -> None:
    settings = PreprocessSettings(voxel_size=0.1, image_size=(12, 16))
    batch = prepare([make_frame(num_points=157)], settings=settings)
    assert batch.labels is not None
    known = batch.labels != IGNORE_INDEX
    found = point_features(Averages(), [batch], max_points=1000)
    assert len(found.labels) == int(known.sum()) < len(batch.labels)
    dense = functional.interpolate(Averages()(batch.images), (12, 16), mode="bilinear", align_corners=False)
    # Points are read in a random order: compare what belongs to the same label and place.
    rows = torch.from_numpy(np.random.default_rng(0).permutation(np.flatnonzero(known.numpy())))
    assert torch.equal(found.labels, batch.labels[rows])
    u, v = batch.uv[rows].round().long().T
    near = (batch.uv[rows] - batch.uv[rows].round()).abs().amax(1) < 0.05
    inside = near & (u >= 0) & (v >= 0) & (u < 16) & (v < 12)
    torch.testing.assert_close(found.feats[inside], dense[0, :, v[inside], u[inside]].T, atol=0.03, rtol=0)
    assert len(point_features(Averages(), [batch, batch], max_points=11).labels) == 22


def test_parts_of_a_domain_share_no_frame_and_probing_them_gives_a_row_for_each_pair() -> None:
    rig = NUSCENES.scaled(image=0.03, columns=60, front_only=True)
    settings = ProbeSettings(rig=rig, image_size=(28, 48), iterations=20, max_points=301)
    day, dusk = ProbeDomain.parse("random:1/noon,overcast"), ProbeDomain.parse("random:1/dusk")
    fit = {str(domain): domain_frames(domain, "fit", 3, settings) for domain in (day, dusk)}
    test = {str(domain): domain_frames(domain, "test", 1, settings) for domain in (day, dusk)}
    assert [len(frames) for frames in fit.values()] == [3, 3]
    assert not torch.equal(fit[str(day)][0].images, test[str(day)][0].images)
    assert fit[str(day)][0].images.float().mean() > fit[str(dusk)][0].images.float().mean()
    pairs = [(str(day), str(day)), (str(day), str(dusk)), (str(dusk), str(dusk))]
    results = probe("averages", Averages(), fit, test, settings, pairs=pairs)
    assert [(r.fitted_on, r.tested_on) for r in results] == pairs
    assert all(0 < r.miou <= 100 and len(r.iou) == K for r in results)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("usa", "expected place/light"),
        ("moon/noon", "place: expected one of"),
        ("usa/noon,glow", "light: expected one"),
    ],
)
def test_domains_that_do_not_exist_are_refused(text, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        ProbeDomain.parse(text)


def test_the_program_answers_a_missing_file_in_one_sentence(tmp_path, capsys) -> None:
    program = load_program("probe_image_backbone")
    assert program.main(["--backbone", str(tmp_path / "none.json")]) == 1
    assert "found no" in capsys.readouterr().err


def test_domains_of_a_shift_are_cut_as_the_recipe_says(tmp_path: Path) -> None:
    write_tiny_world(tmp_path)
    recipe = tiny_recipe(tmp_path)
    domains = open_domains(recipe)
    fit, test = shift_frames(domains, recipe, fit=4, test=2)
    assert {name: len(batches) for name, batches in fit.items()} == {"source": 4, "target": 4}
    assert {name: len(batches) for name, batches in test.items()} == {"source": 2, "target": 2}
    for batch, frame in ((fit["source"][3], domains.source_train[3]), (test["target"][1], domains.target_test[1])):
        assert batch.num_frames == 1
        assert batch.labels is not None
        np.testing.assert_array_equal(batch.labels, frame.labels[batch.point_index])
    last = domains.source_train[len(domains.source_train) - 1]
    np.testing.assert_array_equal(test["source"][1].labels, last.labels[test["source"][1].point_index])
    with pytest.raises(ValueError, match="expected 9 frames to fit on and 2 to test on, got 7 of the source"):
        shift_frames(domains, recipe, fit=9, test=2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--shift", "sim_dev", "--target", "usa/noon"], "--shift: has its own domains"),
        (["--set", "seed=1"], "--set: changes the recipe of --shift, which was not given"),
    ],
)
def test_arguments_that_do_not_go_together(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = Path(__file__).parents[1] / "xmodal_seg" / "assets" / "stand_in.json"
    assert load_program("probe_image_backbone").main(["--backbone", str(backbone), *arguments]) == 1
    assert sentence in capsys.readouterr().err
