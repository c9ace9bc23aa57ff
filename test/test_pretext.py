# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
from programs import load_program
from rich.console import Console

from xmodal_seg.config import ImageBackboneSettings
from xmodal_seg.models.image_backbone import FrozenViT
from xmodal_seg.simulation import PLACES, random_place
from xmodal_seg.simulation.light import LIGHTS
from xmodal_seg.simulation.pretext import (
    PretextViews,
    ViewSettings,
    _pieces,
    above_road,
    random_light_pair,
    random_rig,
    random_views,
    random_weather,
)
from xmodal_seg.simulation.raw_classes import RawClass
from xmodal_seg.simulation.street import Street
from xmodal_seg.training import pretext, pretext_run
from xmodal_seg.training.pretext import ObjectiveWeights, PretextHeads, pretext_losses
from xmodal_seg.training.pretext_batches import CropSettings, JitterSettings, PretextBatch, ViewStream, make_batch
from xmodal_seg.training.pretext_recipe import PretextRecipe, load_pretext_recipe

TINY = ViewSettings(image_size=(26, 34), moments=1, cameras=2, max_near_share=1.0, min_seen_share=0.0)
STILL = JitterSettings(gain=0, gamma=0, colour=0, noise=0, grey=0)


@pytest.fixture(scope="module")
def views() -> PretextViews:
    return random_views(5, TINY)


def painted_views(H: int = 24, W: int = 40, num: int = 2) -> PretextViews:
    """Views whose targets are numbered cell by cell, and whose images are the same under both lights."""
    draw = np.random.default_rng(0)
    h, w = H // 2, W // 2
    image = draw.integers(0, 256, (num, 1, H, W, 3), dtype=np.uint8)
    cells = np.arange(h * w, dtype=np.float32).reshape(h, w)
    return PretextViews(
        images=np.repeat(image, 2, axis=1),
        depth=np.broadcast_to(cells + 1, (num, h, w)).astype(np.float16),
        normal=np.full((num, h, w, 3), 60, np.int8),
        albedo=draw.integers(0, 256, (num, h, w, 3), dtype=np.uint8),
        height=np.broadcast_to(cells, (num, h, w)).astype(np.float16),
        roughness=draw.integers(0, 256, (num, h, w), dtype=np.uint8),
        extent=np.ones((num, h, w, 2), np.float16),
        piece=np.broadcast_to(cells, (num, h, w)).astype(np.int16),
        focal=np.array([250.0, 125.0], np.float32)[:num],
    )


def tiny_batch(V: int = 3, h: int = 6, w: int = 10) -> PretextBatch:
    draw = torch.Generator().manual_seed(1)

    def random(channels: int) -> torch.Tensor:
        return torch.rand(V, channels, h, w, generator=draw)

    depth = random(1) * 30
    depth[:, :, 0] = 0
    normal = torch.nn.functional.normalize(random(3) - 0.5, dim=1)
    return PretextBatch(
        images=torch.rand(2 * V, 3, 4 * h, 4 * w, generator=draw),
        depth=depth,
        normal=normal,
        albedo=random(3),
        height=random(1) * 4,
        roughness=random(1),
        extent=random(2) * (random(1) > 0.5),
        piece=torch.randint(-1, 3, (V, 1, h, w), generator=draw),
    )


# --- views ---------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_views_and_another_seed_others(views: PretextViews) -> None:
    again, other = random_views(5, TINY), random_views(6, TINY)
    for field in dataclasses.fields(PretextViews):
        np.testing.assert_array_equal(getattr(views, field.name), getattr(again, field.name))
    assert not np.array_equal(views.images[0], other.images[0])


def test_targets_fit_each_other(views: PretextViews) -> None:
    assert len(views) == 2
    assert views.images.shape == (2, 2, 26, 34, 3)
    assert views.depth.shape == (2, 13, 17)
    seen = views.depth > 0
    np.testing.assert_array_equal(seen, views.piece >= 0)
    length = np.linalg.norm(views.normal.astype(float) / 127, axis=-1)
    np.testing.assert_allclose(length[seen], 1, atol=0.02)
    assert (length[~seen] == 0).all()
    ground = seen & (views.extent.sum(-1) == 0)
    assert ground.any()
    assert np.median(views.normal[ground][:, 2]) > 110  # the ground looks up
    assert np.abs(np.median(views.height[ground].astype(float))) < 0.4  # and lies about as high as the road
    top = views.extent[..., 0].astype(float)
    assert (views.height[~ground & seen].astype(float) <= top[~ground & seen] + 0.05).all()


def test_no_target_holds_a_class() -> None:
    targets = {field.name for field in dataclasses.fields(PretextViews)} - {"images", "focal"}
    assert targets == {"depth", "normal", "albedo", "height", "roughness", "extent", "piece"}


def test_views_keep_away_from_what_has_a_name() -> None:
    named = {place.model_seed for place in PLACES.values()}
    for seed in range(20):
        assert random_place(seed).model_seed not in named
        pair = random_light_pair(seed)
        assert not set(pair) & set(LIGHTS.values())
        assert random_weather(seed).visibility > 200
        assert len({camera.name for camera in random_rig(seed, TINY).cameras}) == 2
    different = [a.condition != b.condition for a, b in map(random_light_pair, range(40))]
    assert sum(different) > 35


def test_views_that_show_little_are_dropped(views: PretextViews) -> None:
    shares = (views.depth > 0).mean(axis=(1, 2))
    assert shares[0] != shares[1]
    kept = random_views(5, TINY.model_copy(update={"min_seen_share": float(shares.mean())}))
    np.testing.assert_array_equal(kept.images[:, 0], views.images[[int(shares.argmax())], 0])
    near = TINY.model_copy(update={"min_seen_share": 0.999, "max_near_share": 1e-6})
    assert len(random_views(5, near)) == 1  # a street is never left empty


def test_height_above_the_road_undoes_the_street() -> None:
    street = Street(random_place(3), 7, 200.0)
    draw = np.random.default_rng(0)
    s, d, h = draw.uniform(10, 190, 31), draw.uniform(-25, 25, 31), draw.uniform(-1, 9, 31)
    np.testing.assert_allclose(above_road(street.point(s, d, h), street), h, atol=0.02)


def test_pieces_hide_which_class_a_strip_is_of() -> None:
    road, walk, mark, sky = RawClass.ROAD, RawClass.SIDEWALK, RawClass.MARKING, RawClass.NOTHING
    raw = np.array([[walk, road, mark, road, walk], [walk, road, road, RawClass.CAR, walk], [sky] * 5], np.uint8)
    instance = np.zeros((3, 5), np.int32)
    instance[1, 3] = 77
    pieces = _pieces(instance, raw)
    assert (pieces[2] == -1).all()
    assert len({pieces[0, 0], pieces[0, 1], pieces[0, 4], pieces[1, 3]}) == 4  # the two sidewalks are two strips
    assert pieces[0, 1] == pieces[0, 2] == pieces[0, 3]  # paint belongs to the road
    assert pieces[0, 0] == pieces[1, 0]


# --- batches -------------------------------------------------------------------------------------------------------


def test_a_whole_window_is_the_view_and_both_lights_share_it() -> None:
    source = painted_views()
    crop = CropSettings(size=(24, 40), scale=(1.0, 1.0))
    draw = next(d for d in map(np.random.default_rng, range(50)) if not _mirrors(d))
    batch = make_batch([(source, 1)], draw, crop=crop, jitter=STILL)
    np.testing.assert_allclose(batch.images[0].numpy(), source.images[1, 0].transpose(2, 0, 1) / 255, atol=1e-6)
    torch.testing.assert_close(batch.images[0], batch.images[1])
    rows, columns = np.arange(6) * 2 + 1, np.arange(10) * 2 + 1  # the cell that holds the middle of 4 px
    np.testing.assert_array_equal(batch.height[0, 0].numpy(), source.height[1][np.ix_(rows, columns)])
    # A focal length of half the reference makes everything look twice as far.
    np.testing.assert_allclose(batch.depth[0, 0], 2 * (batch.height[0, 0] + 1), rtol=1e-3)


def _mirrors(draw: np.random.Generator) -> bool:
    """Whether the only window of a batch will be mirrored; leaves the generator as it was."""
    state = draw.bit_generator.state
    draw.uniform(), draw.integers(0, 1), draw.integers(0, 1)
    mirrored = draw.random() < 0.5
    draw.bit_generator.state = state
    return bool(mirrored)


def test_a_mirrored_window_mirrors_the_targets_and_the_sideways_normal() -> None:
    source = painted_views()
    crop = CropSettings(size=(24, 40), scale=(1.0, 1.0))
    plain = next(d for d in map(np.random.default_rng, range(50)) if not _mirrors(d))
    mirror = next(d for d in map(np.random.default_rng, range(50)) if _mirrors(d))
    one, other = (make_batch([(source, 0)], draw, crop=crop, jitter=STILL) for draw in (plain, mirror))
    torch.testing.assert_close(one.images.flip(-1), other.images)
    torch.testing.assert_close(one.height.flip(-1), other.height)
    sign = torch.tensor([1.0, -1.0, 1.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(one.normal.flip(-1) * sign, other.normal)


def test_a_smaller_window_lies_inside_and_looks_nearer() -> None:
    source = painted_views()
    draw = np.random.default_rng(3)
    batch = make_batch([(source, 0)] * 5, draw, crop=CropSettings(size=(12, 20), scale=(0.5, 0.5)), jitter=STILL)
    assert batch.images.shape == (10, 3, 12, 20)
    # Half of the view on half as many pixels: no zoom in pixels, so depth keeps its value at the reference focal.
    np.testing.assert_allclose(batch.depth.numpy(), batch.height.numpy() + 1, rtol=1e-3)


def test_jitter_keeps_images_in_range_and_differs_between_them() -> None:
    source = painted_views()
    batch = make_batch(
        [(source, 0)], np.random.default_rng(0), crop=CropSettings(size=(24, 40)), jitter=JitterSettings()
    )
    assert float(batch.images.min()) >= 0
    assert float(batch.images.max()) <= 1
    assert not torch.equal(batch.images[0], batch.images[1])


def test_a_stream_that_starts_later_gives_the_same_views() -> None:
    def stream(start: int) -> ViewStream:
        return ViewStream(
            TINY, first_street=5, open_streets=1, views_per_step=1, reuse=1.0, start_step=start, num_workers=0
        )

    whole, late = stream(0), stream(2)
    first = whole.at(0)[0][0].focal[0]
    expected = [float(views.focal[number]) for views, number in whole.at(2)]
    assert [float(views.focal[number]) for views, number in late.at(2)] == expected
    assert first not in expected  # two views a street, one view a step: step 2 is on the next street


# --- objectives ----------------------------------------------------------------------------------------------------


def test_edges_are_where_a_neighbour_differs() -> None:
    piece = torch.tensor([[[[0, 0, 1], [0, 2, 1]]]])
    assert pretext.edges(piece).int().tolist() == [[[[0, 1, 0], [1, 1, 0]]]]


def test_affinity_equals_a_plain_loop_over_pairs() -> None:
    torch.manual_seed(0)
    heads, batch = PretextHeads(width=5), tiny_batch(V=2, h=8, w=12)
    feats = torch.randn(4, 5, 8, 12)
    embedded = heads.embed(feats).detach().numpy()
    shown = batch.piece[:, 0].numpy()
    scale, bias = heads.scale.item(), heads.bias.item()
    means = []
    for down, right in pretext.NEIGHBOURS:
        pairs = [
            (v, i, j)
            for v in range(2)
            for i in range(8)
            for j in range(12)
            if i + down < 8 and 0 <= j + right < 12 and max(shown[v, i, j], shown[v, i + down, j + right]) >= 0
        ]
        same = np.array([shown[v, i, j] == shown[v, i + down, j + right] for v, i, j in pairs])
        weight = np.where(same, 0.5 / max(same.mean(), 0.05), 0.5 / max(1 - same.mean(), 0.05))
        for one, other in ((0, 0), (2, 2), (0, 2)):
            dots = [embedded[one + v, :, i, j] @ embedded[other + v, :, i + down, j + right] for v, i, j in pairs]
            logits = scale * np.array(dots) + bias
            means.append(np.mean(weight * np.log1p(np.exp(np.where(same, -logits, logits)))))
    assert float(pretext.affinity_loss(heads, feats, batch.piece).detach()) == pytest.approx(np.mean(means), rel=1e-4)


def test_agreement_is_zero_for_equal_features_and_one_for_unrelated_ones() -> None:
    feats = torch.randn(1, 7, 40, 50)
    assert float(pretext.agreement_loss(torch.cat([feats, feats]))) == 0
    assert float(pretext.agreement_loss(torch.randn(2, 7, 40, 50))) == pytest.approx(1, abs=0.05)


def test_dense_terms_equal_numpy_and_ignore_the_sky() -> None:
    torch.manual_seed(0)
    batch, heads = tiny_batch(), PretextHeads(width=7)
    feats = torch.randn(6, 7, 6, 10)
    with torch.no_grad():
        losses = pretext_losses(feats, heads, batch, ObjectiveWeights())
    predicted = {name: value.detach().numpy() for name, value in heads.targets(feats).items()}
    seen = np.concatenate([batch.depth.numpy()] * 2)[:, 0] > 0
    depth = np.concatenate([np.log(np.maximum(batch.depth.numpy(), 0.3))] * 2)[:, 0]
    height = np.concatenate([np.arcsinh(batch.height.numpy() / 0.15)] * 2)[:, 0]
    assert float(losses["depth"]) == pytest.approx(np.abs(predicted["depth"][:, 0] - depth)[seen].mean(), rel=1e-5)
    assert float(losses["height"]) == pytest.approx(np.abs(predicted["height"][:, 0] - height)[seen].mean(), rel=1e-5)
    normal, n = np.concatenate([batch.normal.numpy()] * 2), predicted["normal"]
    cosine = (n * normal).sum(1) / np.linalg.norm(n, axis=1) / np.linalg.norm(normal, axis=1)
    assert float(losses["normal"]) == pytest.approx((1 - cosine)[seen].mean(), rel=1e-5)
    objects = np.concatenate([batch.extent.numpy()] * 2).sum(1) > 0
    extent = np.log1p(np.concatenate([batch.extent.numpy()] * 2))
    expected = np.abs(predicted["extent"] - extent).transpose(0, 2, 3, 1)[objects].mean()
    assert float(losses["extent"]) == pytest.approx(expected, rel=1e-5)


def test_every_term_reaches_the_features_and_a_weight_of_zero_leaves_it_out() -> None:
    batch, heads = tiny_batch(), PretextHeads(width=7)
    for name in ObjectiveWeights.model_fields:
        only = ObjectiveWeights(**{other: float(other == name) for other in ObjectiveWeights.model_fields})
        feats = torch.randn(6, 7, 6, 10, requires_grad=True)
        losses = pretext_losses(feats, heads, batch, only)
        assert list(losses) == [name]
        pretext.weighted_sum(losses, only).backward()
        assert feats.grad is not None
        assert float(feats.grad.abs().sum()) > 0, name


# --- runs ----------------------------------------------------------------------------------------------------------


def tiny_recipe(**changes: object) -> PretextRecipe:
    values = {
        "name": "tiny",
        "network": "vit_tiny_r_s16_p8_224",
        "model_args": {
            "patch_size": 2,
            "embed_dim": 16,
            "depth": 1,
            "num_heads": 2,
            "img_size": [24, 32],
            "num_classes": 0,
            "pretrained_cfg_overlay": {"num_classes": 0},
        },
        "cells_per_patch": 2,
        "open_streets": 1,
        "reuse": 50,
        "views": TINY,
        "phases": [
            {"until": 0.5, "crop": {"size": [16, 24]}, "views_per_step": 2},
            {"until": 1.0, "crop": {"size": [24, 32], "scale": [0.9, 1.0]}, "views_per_step": 1},
        ],
        "optim": {"steps": 6},
        "log_every": 2,
        "checkpoint_every": 3,
    }
    return PretextRecipe.model_validate({**values, **changes})


class KilledError(Exception):
    pass


def quiet() -> Console:
    return Console(quiet=True)


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path) -> None:
    recipe = tiny_recipe()
    whole = pretext_run.PretextTrainer(recipe, tmp_path / "whole", num_workers=0)
    whole.train(quiet())

    class Mortal(pretext_run.PretextTrainer):
        def _advance(self, stream: ViewStream) -> dict[str, float]:
            if self.step == 5:
                raise KilledError
            return super()._advance(stream)

    with pytest.raises(KilledError):
        Mortal(recipe, tmp_path / "killed", num_workers=0).train(quiet())
    resumed = pretext_run.PretextTrainer(recipe, tmp_path / "killed", num_workers=0)
    assert resumed.step == 3
    resumed.train(quiet())
    assert resumed.images == whole.images == 3 * 4 + 3 * 2
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name
    rows = [_losses(tmp_path / folder / "losses.csv") for folder in ("whole", "killed")]
    assert rows[0][-1] == rows[1][-1]
    assert [row[0] for row in rows[1]] == ["2", "4", "6"]


def _losses(path) -> list[list[str]]:
    return [[row["step"], *(row[name] for name in pretext_run.TERMS)] for row in csv.DictReader(path.open())]


def test_an_exported_network_loads_the_ordinary_way_and_gives_the_same_cells(tmp_path) -> None:
    trainer = pretext_run.PretextTrainer(tiny_recipe(), tmp_path / "run", num_workers=0)
    pretext_run.export(trainer, tmp_path / "tiny.safetensors")
    facts = json.loads((tmp_path / "tiny.json").read_text())
    assert facts["recipe_hash"] == trainer.recipe.digest()
    assert facts["parameters"] == sum(p.numel() for p in trainer.network.parameters())
    assert "depth, normals" in facts["what"]
    assert facts["what"].endswith(", and agreement between two lights.")
    assert "two lights" not in pretext_run.what_it_is(ObjectiveWeights(agreement=0))
    assert "no class label" in facts["what_not"]
    settings = ImageBackboneSettings.model_validate(facts["image_backbone"])
    frozen = FrozenViT(settings=settings.model_copy(update={"weights": str(tmp_path / "tiny.safetensors")}))
    images = torch.rand(2, 3, 32, 40)
    with torch.no_grad():
        expected = trainer.network.eval()(images)
    own = expected.shape[1]  # the last channels are those of the cells, the rest those of the patches
    torch.testing.assert_close(frozen(images)[:, -own:], expected, atol=2e-2, rtol=2e-2)
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        pretext_run.export(trainer, tmp_path / "tiny.pt")


def test_a_time_limit_runs_the_schedule_down(tmp_path) -> None:
    trainer = pretext_run.PretextTrainer(tiny_recipe(), tmp_path, minutes=1.0, num_workers=0)
    trainer.step, trainer.elapsed_s = 1, 45.0
    assert trainer.progress == 0.75
    trainer.elapsed_s = 600.0
    trainer.train(quiet())  # time is up: nothing is left to do but to write the state
    assert trainer.step == 1
    assert (tmp_path / "state.pt").is_file()


def test_the_rate_rises_then_falls() -> None:
    rates = [pretext_run.rate(progress, warmup=0.1) for progress in np.linspace(0, 1, 41)]
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) == 4
    assert rates[-1] == pytest.approx(0.01)
    assert all(b < a for a, b in itertools.pairwise(rates[4:]))
    assert not any(map(math.isnan, rates))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phases": [{"until": 0.5}]}, "phases: expected rising values of until, the last 1"),
        ({"network": "resnet18"}, r"network: expected a timm model vit_\*"),
    ],
)
def test_recipes_that_cannot_be_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_recipe(**changes)


def test_networks_that_do_not_fit_are_refused(tmp_path) -> None:
    args = tiny_recipe().model_args
    with pytest.raises(ValueError, match="expected cells of 4 px, got 8"):
        pretext_run.PretextTrainer(tiny_recipe(model_args={**args, "patch_size": 4, "img_size": [32, 48]}), tmp_path)
    with pytest.raises(ValueError, match="at most 6000000 parameters"):
        pretext_run.PretextTrainer(tiny_recipe(model_args={**args, "embed_dim": 384, "depth": 6}), tmp_path)


def test_a_folder_of_another_recipe_is_refused(tmp_path) -> None:
    pretext_run.PretextTrainer(tiny_recipe(), tmp_path).save()
    with pytest.raises(ValueError, match="belongs to another recipe"):
        pretext_run.PretextTrainer(tiny_recipe(seed=1), tmp_path)


def test_shipped_recipes_are_valid_and_small_enough() -> None:
    program = load_program("pretrain_image_backbone")
    for path in sorted(program.RECIPE.parent.glob("*.yaml")):
        recipe = load_pretext_recipe(path)
        assert pretext_run.TrainableViT(recipe.backbone()).cell_px == 4, path


def test_the_program_answers_mistakes_in_one_sentence(tmp_path, capsys) -> None:
    program = load_program("pretrain_image_backbone")
    for override, sentence in (("optim.steps", "expected key=value"), ("optim.stepz=3", "optim.stepz")):
        assert program.main(["--out", str(tmp_path), "--set", override]) == 1
        assert sentence in capsys.readouterr().err
