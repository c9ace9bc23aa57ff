# SPDX-License-Identifier: Apache-2.0
"""Recipes: composed of parts, overridden, checked; and every file of training/recipes is a valid one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_world import tiny_recipe, tiny_values

from xmodal_seg.training.recipe import Recipe, compose, load_recipe, merge, parse_recipe, save_recipe
from xmodal_seg.training.table_runs import FIRST_STAGE
from xmodal_seg.training.trainer import build_model

RECIPES = Path(__file__).parent.parent / "training" / "recipes"
METHODS = sorted(path.stem for path in (RECIPES / "methods").glob("*.yaml"))
SHIFTS = sorted(path.stem for path in (RECIPES / "shifts").glob("*.yaml"))


def composed(shift: str, method: str, size: str, *overrides: str) -> Recipe:
    labels = ["data.pseudo_labels=some/folder"] if method in FIRST_STAGE else []
    return compose(RECIPES, shift=shift, method=method, size=size, overrides=[*labels, *overrides])


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("size", ["small", "coarse", "full"])
def test_every_shipped_combination_is_valid(shift: str, size: str) -> None:
    for method in METHODS:
        if size in yaml.safe_load((RECIPES / "shifts" / f"{shift}.yaml").read_text(encoding="utf-8")):
            assert composed(shift, method, size).name == method


def test_coarse_is_small_but_for_the_size_of_images() -> None:
    for shift in SHIFTS:
        if "coarse" not in yaml.safe_load((RECIPES / "shifts" / f"{shift}.yaml").read_text(encoding="utf-8")):
            continue
        small, coarse = (composed(shift, "ours_gate", size).model_dump(mode="json") for size in ("small", "coarse"))
        for values in (small, coarse):
            sizes = [values["model"]["preprocess"].pop("image_size"), values["data"].pop("image_size_source")]
            values["pixels"] = [height * width for height, width in (size for size in sizes if size is not None)]
        for few, many in zip(coarse.pop("pixels"), small.pop("pixels"), strict=True):
            assert 0.42 < few / many < 0.46
        assert coarse == small


def test_every_row_that_the_tables_need_is_there() -> None:
    rows = {"source_only", "target_only", "source_only_ours", "xmuda", "xmuda_fuse", "xmuda_vfm_fuse", "vanilla"}
    rows |= {"ours_lora", "ours_all_modules", "ours_gate"}
    rows |= {"vanilla_guidance", "mlp", "mlp_symal", "ours", "ours_pl", "xmuda_pl", "ours_another_vfm"}
    rows |= {f"ours_lambda_{value}" for value in ("0", "0.25", "0.5", "0.75", "1")}
    assert rows <= set(METHODS)


def test_methods_differ_in_networks_and_losses_only() -> None:
    def rest(recipe: Recipe) -> dict[str, Any]:
        values = recipe.model_dump(mode="json")
        for key in ("name", "losses", "feature_cache"):
            values.pop(key)
        values["model"] = values["model"]["preprocess"] | values["model"]["point_backbone"]
        values["optim"]["lr"].pop("image")  # a U-Net is trained at another rate than a linear head
        values["data"].pop("labelled")
        values["data"].pop("pseudo_labels")
        return values

    expected = rest(composed("sim_dev", "ours", "small"))
    for method in METHODS:
        assert rest(composed("sim_dev", method, "small")) == expected


@pytest.mark.parametrize("size", ["small", "coarse", "full"])
def test_settings_of_the_gate_are_in_no_other_recipe(size: str) -> None:
    for method in ("ours_lora", "ours_all_modules", "target_only_all_modules"):
        tuning = composed("sim_day_night", method, size).model.image_backbone.tuning
        assert {"top_k", "warmup", "every", "max_swaps"}.isdisjoint(tuning.model_dump(exclude_defaults=True))


@pytest.mark.parametrize("size", ["small", "coarse", "full"])
def test_tuned_methods_are_ours_but_for_tuning_and_cache(size: str) -> None:
    ours = composed("sim_day_night", "ours", size).model_dump(mode="json")
    for method, kind in (("ours_lora", "lora"), ("ours_all_modules", "all"), ("ours_gate", "gate")):
        values = composed("sim_day_night", method, size).model_dump(mode="json")
        assert values["model"]["image_backbone"].pop("tuning")["kind"] == kind
        assert values.pop("name") == method
        assert values["optim"]["lr"].pop("tuning") > 0
        assert values.pop("feature_cache") is False
        expected = {key: value for key, value in ours.items() if key not in ("name", "feature_cache")}
        expected["model"]["image_backbone"].pop("tuning", None)
        expected["optim"]["lr"].pop("tuning", None)
        assert values == expected


def test_recipes_without_tuning_keep_their_hashes() -> None:
    """What was stored before there was tuning must be found again."""
    ours = composed("sim_day_night", "ours", "small")
    assert "tuning" not in str(ours.model_dump(mode="json", exclude_defaults=True))
    word = composed("sim_day_night", "ours", "small", "model.image_backbone.tuning=none")
    assert word.result_hash() == ours.result_hash()
    lora = composed("sim_day_night", "ours", "small", "model.image_backbone.tuning=lora", "feature_cache=false")
    assert lora.result_hash() != ours.result_hash()


def test_lambda_of_day_and_night() -> None:
    night = composed("sim_day_night", "ours", "small").losses
    assert [(term.teacher, term.student) for term in night.mimic_terms()] == [("fused", "3d"), ("3d", "fused")]
    day = composed("sim_usa_singapore", "ours", "small").losses
    assert [(term.teacher, term.student) for term in day.mimic_terms()] == [("fused", "3d"), ("2d", "fused")]
    half = composed("sim_day_night", "ours_lambda_0.25", "small").losses
    assert [term.weight for term in half.mimic_terms()] == [1.0, 0.25, 0.75]


def test_overrides_and_round_trip(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    changed = load_recipe(tmp_path / "recipe.yaml", overrides=["optim.lr.point=3e-4", "seed=7", "data.max_points=null"])
    assert (changed.optim.lr.point, changed.seed, changed.data.max_points) == (3e-4, 7, None)


def test_hash_follows_the_result_only(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    assert recipe.result_hash() == tiny_recipe(tmp_path / "elsewhere", seed=3, data={"num_workers": 2}).result_hash()
    assert recipe.result_hash() != tiny_recipe(tmp_path, losses={"guidance": 0.5}).result_hash()
    rendered_by_more = {"options": {**recipe.data.options, "num_processes": 5}}
    assert recipe.result_hash() == tiny_recipe(tmp_path, data=rendered_by_more).result_hash()
    default = recipe.optim.gamma
    assert recipe.result_hash() == tiny_recipe(tmp_path, optim={"gamma": default}).result_hash()


def test_hash_follows_the_content_of_weights_and_not_their_path(tmp_path: Path) -> None:
    def hash_with(path: Path) -> str:
        backbone = {"kind": "timm", "name": "vit_tiny_patch16_224", "weights": str(path)}
        return tiny_recipe(tmp_path, model={"image_backbone": backbone}).result_hash()

    one, copy, other = tmp_path / "one", tmp_path / "copy", tmp_path / "other"
    for path, content in ((one, b"1"), (copy, b"1"), (other, b"2")):
        path.write_bytes(content)
    assert hash_with(one) == hash_with(copy)
    assert hash_with(one) != hash_with(other)


@pytest.mark.parametrize("size", ["small", "full"])
@pytest.mark.parametrize("target", ["vkitti", "a2d2"])
def test_xmudas_own_rows_have_their_own_lambdas_on_simulated_and_real_shifts(target: str, size: str) -> None:
    real = {"vkitti": "virtual_kitti_semantic_kitti", "a2d2": "a2d2_semantic_kitti"}[target]
    for method in ("xmuda", "xmuda_fuse", "xmuda_vfm_fuse", "ours"):
        simulated, expected = (composed(shift, method, size).losses for shift in (f"sim_{target}_semkitti", real))
        assert (simulated.lambda_source, simulated.lambda_target) == (expected.lambda_source, expected.lambda_target)
        assert (simulated.lambda_target == 0.01) == (method in ("xmuda", "xmuda_fuse"))


def test_another_foundation_model_by_one_setting_leaves_nothing_of_the_stand_in() -> None:
    name = "vit_small_patch14_dinov2.lvd142m"
    for method in ("ours", "ours_gate"):
        stand_in = composed("sim_dev", method, "small").model.image_backbone
        another = composed("sim_dev", method, "small", f"model.image_backbone.name={name}").model.image_backbone
        assert (another.name, another.weights, another.model_args, another.cells_per_patch) == (name, "hub", {}, 1)
        assert (another.tuning, another.feature_norm) == (stand_in.tuning, stand_in.feature_norm)
        random = [f"model.image_backbone.{setting}" for setting in ("weights=none", f"name={name}")]
        assert composed("sim_dev", method, "small", *random).model.image_backbone.weights == "none"
        same = composed("sim_dev", method, "small", f"model.image_backbone.name={stand_in.name}")
        assert same.model.image_backbone == stand_in
    with pytest.raises(ValueError, match="xMUDA's U-Net, which has no place for 'vit_small"):
        composed("sim_dev", "xmuda", "small", f"model.image_backbone.name={name}")


@pytest.mark.parametrize(("method", "millions"), [("ours", 1.7), ("ours_another_vfm", 0.9)])
def test_networks_of_the_size_small_are_built_as_shipped(method: str, millions: float) -> None:
    model = build_model(composed("sim_dev", method, "small"))  # loads the shipped weights, which must fit
    numbers = sum(values.numel() for values in model.image_backbone.parameters())
    assert numbers / 1e6 == pytest.approx(millions, abs=0.1)


def test_merge_replaces_lists_and_joins_mappings() -> None:
    merged = merge({"a": {"b": 1, "c": [1, 2]}, "d": 1}, {"a": {"c": [3]}, "d": {"e": 2}})
    assert merged == {"a": {"b": 1, "c": [3]}, "d": {"e": 2}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optim": {"step": 5}}, r"optim.step: unknown key \(did you mean 'steps'\?\)"),
        ({"losses": {"lambda": 1}}, r"losses.lambda: unknown key \(did you mean 'lambda_"),
        ({"optim": {"batch_size": None}}, "optim.batch_size: Input should be a valid integer"),
        ({"optim": {"batch_size": 0}}, "optim.batch_size: Input should be greater than 0, got 0"),
        ({"data": {"augment_source": {"points": {"nose": 1}}}}, r"augment_source.points.nose: .*'noise'"),
        ({"feature_cache": True, "data": {"augment_target": {"image": {"jitter": 0.4}}}}, "target.image.jitter alters"),
        ({"feature_cache": True, "model": {"image_backbone": {"kind": "unet", "name": "narrow"}}}, "kind 'unet'"),
        (
            {"feature_cache": True, "model": {"image_backbone": {"tuning": "lora"}}},
            "feature_cache: model.image_backbone.tuning is 'lora', so the features change",
        ),
        ({"model": {"image_backbone": {"tuning": {"kind": "gate", "top": 3}}}}, r"tuning.top: unknown .*'top_k'"),
        (
            {"model": {"image_backbone": {"tuning": "gate"}}, "losses": {"lambda_target": 0}},
            "scored_on: 'target_pseudo_labels', but nothing is minimised on the target; expected source_labels",
        ),
        (
            {
                "model": {
                    "image_backbone": {"tuning": "gate"},
                    "heads": {"main": ["3d"], "mimic": [["fused", "3d"]], "ensemble": ["3d"]},
                },
                "losses": {"terms": [{"teacher": "3d", "student": "fused"}]},
            },
            "tuning: 'gate' scores with a 2d or fused head in model.heads.main",
        ),
        ({"losses": {"lambda_pl": 1.0}}, "data.pseudo_labels: missing, but losses.lambda_pl > 0"),
        ({"losses": {"class_weights": [1.0, 2.0]}}, "losses.class_weights: expected 6 numbers, one per class, got 2"),
        ({"losses": {"terms": [{"teacher": "3d", "student": "2d"}]}}, r"needs the pair \[2d, 3d\] in model"),
        ({"model": {"heads": {"main": ["2d", "3d"], "mimic": [], "ensemble": ["3d"]}}}, "teacher 'fused' is not among"),
        ({"optim": {"milestones": [0.9, 0.8]}}, "milestones: expected rising shares"),
        (
            {"losses": {"lambda_pl": 1.0}, "data": {"labelled": "target", "pseudo_labels": "x"}},
            "losses.lambda_pl: pseudo-labels make no sense",
        ),
    ],
)
def test_bad_recipes_name_the_key(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        tiny_recipe(tmp_path, **values)
    assert "\n" not in str(caught.value)


def test_missing_key_and_file_and_part(tmp_path: Path) -> None:
    values = tiny_values(tmp_path)
    values.pop("optim")
    with pytest.raises(ValueError, match="somewhere: name: missing; optim: missing"):
        parse_recipe(values, where="somewhere")
    with pytest.raises(ValueError, match=r"no our.yaml \(did you mean 'ours'\?\)"):
        compose(RECIPES, shift="sim_dev", method="our", size="small")
    with pytest.raises(ValueError, match=r"no large\.yaml"):
        compose(RECIPES, shift="sim_dev", method="ours", size="large")
    (tmp_path / "broken.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken\.yaml: cannot be read as YAML"):
        load_recipe(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1", encoding="utf-8")
    with pytest.raises(ValueError, match=r"list\.yaml: expected a mapping of settings, got list"):
        load_recipe(tmp_path / "list.yaml")


@pytest.mark.parametrize("override", ["optim.steps", "=3", "optim.steps=[1"])
def test_bad_overrides(tmp_path: Path, override: str) -> None:
    save_recipe(tiny_recipe(tmp_path), tmp_path / "recipe.yaml")
    with pytest.raises(ValueError, match="--set"):
        load_recipe(tmp_path / "recipe.yaml", overrides=[override])


def test_unknown_part_of_a_file(tmp_path: Path) -> None:
    for folder, text in (("sizes", "recipe: {}"), ("shifts", "small: {}"), ("methods", "image_network: vfm")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{'small' if folder == 'sizes' else 'a'}.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="image_network 'vfm' is not in"):
        compose(tmp_path, shift="a", method="a", size="small")
    (tmp_path / "sizes" / "small.yaml").write_text("image_networks: {vfm: {}}", encoding="utf-8")
    for text, message in (
        (
            "smal: {}",
            r"a\.yaml: image_networks: smal: unknown \(did you mean 'small'\?\); expected small, coarse, full",
        ),
        ("small: {unet: {}}", r"a\.yaml: image_networks: unet: unknown; expected vfm"),
    ):
        (tmp_path / "shifts" / "a.yaml").write_text(f"small: {{}}\nimage_networks: {{{text}}}", encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            compose(tmp_path, shift="a", method="a", size="small")
    (tmp_path / "methods" / "a.yaml").write_text("recipes: {}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"recipes: unknown key \(did you mean 'recipe'\?\)"):
        compose(tmp_path, shift="a", method="a", size="small")
