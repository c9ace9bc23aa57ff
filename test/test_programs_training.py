# SPDX-License-Identifier: Apache-2.0
"""The training programs on a tiny world: every method's recipe runs, and a table is made and gone on with."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from tiny_world import SHIFT, tiny_recipe, tiny_values, tiny_vfm, write_tiny_world

from xmodal_seg.checkpoint import load_checkpoint
from xmodal_seg.labels import NUSCENES_6
from xmodal_seg.training.programs import run_program
from xmodal_seg.training.recipe import Recipe, compose
from xmodal_seg.training.run import make_run_pseudo_labels
from xmodal_seg.training.table_runs import FIRST_STAGE, Run

PROGRAMS = Path(__file__).parent.parent / "training"
METHODS = sorted(path.stem for path in (PROGRAMS / "recipes" / "methods").glob("*.yaml"))
TUNING = {"rank": 2, "adapter_width": 3, "frequency_width": 2, "top_k": 1, "warmup": 6, "every": 5, "samples": 2}
sys.path.insert(0, str(PROGRAMS))

import evaluate
import make_pseudo_labels
import merge_banks
import merge_lora
import report_teachers
import reproduce_table
import train


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world, and recipes beside it: the real methods on tiny networks."""
    root = tmp_path_factory.mktemp("world")
    write_tiny_world(root)
    recipes = root / "recipes"
    shutil.copytree(PROGRAMS / "recipes" / "methods", recipes / "methods")
    values = tiny_values(root)
    values["evaluation"] |= {"every": 20, "checkpoint_every": 20}
    values["optim"] |= {"steps": 20}
    other = {**tiny_vfm(), "model_args": {"depth": 1, "embed_dim": 8, "num_heads": 1, "patch_size": 16}}
    unet = {"kind": "unet", "name": "narrow", "weights": "none", "width": 2}
    networks = {
        "vfm": {"model": {"image_backbone": tiny_vfm()}, "feature_cache": True},
        "another_vfm": {"model": {"image_backbone": other}},
        "tuned_vfm": {"model": {"image_backbone": {**tiny_vfm(), "tuning": TUNING}}},
        "gated_vfm": {"model": {"image_backbone": {**tiny_vfm(), "tuning": TUNING}}},
        "unet": {"model": {"image_backbone": unet}},
    }
    write(recipes / "sizes" / "small.yaml", {"recipe": {}, "image_networks": networks})
    write(recipes / "shifts" / f"{SHIFT}.yaml", {"every_size": values, "small": {}})
    return root


def write(path: Path, values: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(values), encoding="utf-8")


def recipe_of(world: Path, method: str, *overrides: str) -> Recipe:
    return compose(world / "recipes", shift=SHIFT, method=method, size="small", overrides=overrides)


def call_train(world: Path, method: str, *more: str) -> int:
    arguments = ["--shift", SHIFT, "--method", method, "--recipes", str(world / "recipes")]
    return train.main([*arguments, "--out", str(world / "runs" / method), *more])


@pytest.fixture(scope="module")
def first_stages(world: Path) -> dict[str, Path]:
    """Pseudo-labels by the method that learns from them."""
    labels = {}
    for second, first in FIRST_STAGE.items():
        assert call_train(world, first) == 0
        labels[second] = world / "runs" / first / "pseudo_labels"
        make_run_pseudo_labels(world / "runs" / first, labels[second])
    return labels


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_is_scored(world: Path, first_stages: dict[str, Path], method: str) -> None:
    more = ["--set", f"data.pseudo_labels={first_stages[method]}"] if method in FIRST_STAGE else []
    assert call_train(world, method, "--test", *more) == 0
    assert load_checkpoint(world / "runs" / method / "last").metadata["step"] == 20
    results = yaml.safe_load((world / "runs" / method / "results.json").read_text(encoding="utf-8"))
    expected = {*recipe_of(world, method, *more[1:]).model.heads.main, "ensemble"}
    for protocol in ("best", "best_single", "last"):
        assert set(results["test"][protocol]) == expected
        assert all(0 <= score["miou"] <= 100 for score in results["test"][protocol].values())


def test_a_run_says_where_it_goes_on_and_its_scores(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = world / "runs" / "twice"
    more = ["--set", "optim.steps=4", "--set", "evaluation.every=2", "--set", "evaluation.checkpoint_every=2"]
    arguments = ["--shift", SHIFT, "--recipes", str(world / "recipes"), "--out", str(out), *more]
    assert train.main(arguments) == 0
    assert "goes on" not in capsys.readouterr().out
    events = sorted(out.glob("events.*"))
    assert train.main([*arguments, "--test"]) == 0
    printed = capsys.readouterr().out
    assert "has made its 4 steps" in printed
    assert "best_single" in printed
    assert sorted(out.glob("events.*")) == events
    (out / "last").rename(out / "taken_away")
    assert evaluate.main([str(out)]) == 1
    assert "the run has not finished" in capsys.readouterr().err


def test_ctrl_c_ends_a_program_in_one_word(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert run_program(interrupted) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert run_program(lambda: 3) == 3


def test_tuned_runs_tell_their_sizes_and_lora_becomes_a_plain_checkpoint(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {}
    for method in ("ours", "ours_lora", "ours_all_modules", "ours_gate"):
        assert call_train(world, method, "--test") == 0
        assert "trainable parameters: " in capsys.readouterr().out
        results = yaml.safe_load((world / "runs" / method / "results.json").read_text(encoding="utf-8"))
        sizes[method] = results["trainable_parameters"]
    assert sizes["ours"]["tuning"] == 0
    assert "tuning_on" not in sizes["ours"]
    assert sizes["ours_lora"]["tuning"] == sizes["ours_lora"]["tuning_on"] == 4 * 2 * 12
    assert sizes["ours_all_modules"] == {**sizes["ours_gate"], "tuning_on": sizes["ours_gate"]["tuning"]}
    assert 0 < sizes["ours_gate"]["tuning_on"] < sizes["ours_gate"]["tuning"]

    run = world / "runs" / "ours_lora"
    assert merge_lora.main([str(run / "best"), "--bank", "3d", "--out", str(world / "plain")]) == 0
    merged = load_checkpoint(world / "plain")
    assert merged.default_bank == "3d"
    assert merged.settings.image_backbone.tuning.kind == "none"
    assert merge_lora.main([str(world / "runs" / "ours" / "last"), "--out", str(world / "no")]) == 1
    assert "got one without tuning" in capsys.readouterr().err


def test_evaluate_prints_and_pseudo_labels_are_made(
    world: Path, first_stages: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([str(world / "runs" / "ours")]) == 0
    assert "best_single" in capsys.readouterr().out
    assert make_pseudo_labels.main([str(world / "runs" / "ours"), "--out", str(world / "pl")]) == 0
    assert "points kept: ensemble" in capsys.readouterr().out


def test_teachers_are_compared_with_the_fused_head(
    world: Path, first_stages: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = world / "runs" / "ours"
    assert report_teachers.main([str(run), "--part", "test"]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:2] for row in rows] == [[str(run), "2d"], [str(run), "3d"]]
    assert evaluate.main([str(run)]) == 0
    scores = json.loads((run / "results.json").read_text())["test"]["last"]
    assert {row[6] for row in rows} == {f"{scores['fused']['miou']:.1f}"}
    assert rows[0][5] == f"{scores['2d']['miou']:.1f}"
    capsys.readouterr()
    assert call_train(world, "xmuda") == 0
    assert report_teachers.main([str(world / "runs" / "xmuda")]) == 1
    assert "expected the main head 'fused'" in capsys.readouterr().err


def test_runs_become_the_banks_of_one_checkpoint(
    world: Path, first_stages: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for method in ("ours", "ours_lambda_0", "xmuda"):
        assert call_train(world, method, "--test") == 0
    runs, out = world / "runs", world / "merged"
    banks = ["--bank", f"day={runs / 'ours'}", "--bank", f"night={runs / 'ours_lambda_0'}"]
    assert merge_banks.main([*banks, "--out", str(out)]) == 0
    merged = load_checkpoint(out)
    assert list(merged.banks) == ["day", "night"]
    assert merged.default_bank == "day"
    assert merged.metadata["banks"]["night"]["guidance"] == 0.0
    scores = json.loads((runs / "ours" / "results.json").read_text())["test"]["last"]
    assert merged.metadata["banks"]["day"]["test_mean_iou"] == {head: s["miou"] for head, s in scores.items()}
    assert merged.metadata["image_backbone"] == {}  # random weights: nobody has said anything about them
    for bank, run in (("day", "ours"), ("night", "ours_lambda_0")):
        alone = load_checkpoint(runs / run / "last").bank()
        assert all(torch.equal(merged.bank(bank)[name], tensor) for name, tensor in alone.items())
    capsys.readouterr()
    assert merge_banks.main(["--bank", f"day={runs / 'ours'}", "--bank", f"x={runs / 'xmuda'}", "--out", str(out)]) == 1
    assert "its networks are not those of" in capsys.readouterr().err
    assert merge_banks.main(["--bank", f"day={world}", "--out", str(out)]) == 1
    assert "results.json is missing" in capsys.readouterr().err
    assert merge_banks.main(["--bank", "day", "--out", str(out)]) == 1
    assert "expected NAME=RUN, got 'day'" in capsys.readouterr().err


def test_a_first_stage_of_which_only_the_line_is_left_is_made_again(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    first = Run(recipe=recipe, key={"data_hash": "abc"}, folder=tmp_path / "first")
    second = Run(recipe=recipe, key={}, folder=tmp_path / "second", first_stage=tmp_path / "first")
    other = Run(recipe=recipe, key={}, folder=tmp_path / "other")
    assert reproduce_table._is_needed(first, [second])
    assert not reproduce_table._is_needed(first, [other])
    first.folder.mkdir()
    same = recipe.result_hash()
    for made_by, data, needed in ((same, "abc", False), ("another recipe", "abc", True), (same, "other data", True)):
        results = {"recipe_hash": made_by, "fingerprint": data}
        (first.folder / "results.json").write_text(json.dumps(results))
        assert reproduce_table._is_needed(first, [second]) == needed


def test_second_stages_follow_the_first_stage_that_they_share() -> None:
    chains = reproduce_table._chains_of(["mlp", "ours_pl", "xmuda", "ours_gate_pl"])
    assert chains == [["mlp"], ["ours", "ours_pl", "ours_gate_pl"], ["xmuda"]]


def test_tables_ask_for_shifts_and_methods_that_there_are() -> None:
    shifts = {path.stem for path in (PROGRAMS / "recipes" / "shifts").glob("*.yaml")}
    for benchmark in reproduce_table.BENCHMARKS:
        arguments = reproduce_table._parse(["--benchmark", benchmark])
        assert set(arguments.shifts) <= shifts
        assert set(arguments.methods) <= set(METHODS)
    tuning = reproduce_table._parse(["--benchmark", "tuning"])
    assert tuning.methods == ["ours", "ours_lora", "ours_all_modules", "ours_gate"]
    weak = reproduce_table._parse(["--benchmark", "weak_vfm"])
    assert weak.shifts == ["sim_weak_vfm"]
    assert set(tuning.methods) < set(weak.methods)
    assert reproduce_table._parse(["--benchmark", "tuning", "--methods", "ours"]).methods == ["ours"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shift", SHIFT, "--set", "optim.step=3"], "optim.step: unknown key (did you mean 'steps'?)"),
        (["--shift", SHIFT, "--set", "data.root=/nowhere"], f"data.root: expected a folder {SHIFT!r} with data"),
        (["--shift", SHIFT, "--set", "data.options.label_space=cityscapes"], "label_space: no label space"),
        (["--shift", SHIFT, "--set", "model.num_classes=7"], "model.num_classes: 7, but the classes"),
        (["--shift", "nowhere"], "no nowhere.yaml"),
        (["--shift", SHIFT, "--method", "ours_pl"], "data.pseudo_labels: missing"),
        (["--shift", SHIFT, "--method", "xmuda", "--set", "feature_cache=true"], "feature_cache: model.image_backbone"),
        ([], "expected either --shift"),
    ],
)
def test_bad_recipes_end_in_one_sentence(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert train.main([*arguments, "--recipes", str(world / "recipes"), "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()  # nothing heavy has begun


def test_programs_without_a_run_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(tmp_path)]) == 1
    assert make_pseudo_labels.main([str(tmp_path), "--out", str(tmp_path / "pl")]) == 1
    assert report_teachers.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("no run here (recipe.yaml is missing)") == 3


def make_table(world: Path, *methods: str, jobs: int = 1, flags: Sequence[str] = ()) -> int:
    arguments = ["--shifts", SHIFT, "--methods", *methods, "--seeds", "0", "1", "--recipes", str(world / "recipes")]
    arguments += ["--out", str(world / "table"), "--csv", str(world / "table.csv"), "--jobs", str(jobs)]
    return reproduce_table.main([*arguments, *flags, "--set", "optim.steps=4"])


def read_table(world: Path) -> list[dict[str, str]]:
    with (world / "table.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_table_is_made_gone_on_with_and_printed(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_table(world, "ours_pl", "xmuda_fuse") == 0
    rows = read_table(world)
    assert [(row["method"], row["seed"]) for row in rows] == [
        (method, seed) for seed in "01" for method in ("ours", "ours_pl", "xmuda_fuse")
    ]
    assert all(re.fullmatch(r"torch \S+, timm \S+, spconv-cu\d+ \S+, .+", row["made_with"]) for row in rows)
    printed = capsys.readouterr().out
    ours_pl = [line for line in printed.splitlines() if line.startswith("| ours_pl |")]
    assert len(ours_pl) == 4  # a table for each protocol, and one of what they cost
    assert "±" in ours_pl[0]
    assert re.fullmatch(r"\| ours_pl \| \d\.\d\d \| \d\.\d\d \| \d{3,} \| 2 \|", ours_pl[3])
    fuse = next(line for line in printed.splitlines() if line.startswith("| xmuda_fuse |"))
    assert fuse.split("|")[2:5] == [" - "] * 3  # a single fused classifier has 2D3D only
    kept = {(row["method"], row["seed"]): row for row in rows if row["method"] != "ours_pl" or row["seed"] != "1"}
    with (world / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(kept.values())
    assert make_table(world, "ours", "ours_pl", "xmuda_fuse") == 0
    again = read_table(world)
    assert again[:-1] == list(kept.values())
    assert {**again[-1], "minutes": ""} == {**rows[4], "minutes": ""}  # made again, with the same result
    capsys.readouterr()
    assert make_table(world, "ours", "vanilla", flags=["--print"]) == 0
    assert read_table(world) == again
    assert "| vanilla | - | - | - | - | - | - | 0 |" in capsys.readouterr().out


def test_what_a_gate_had_on_is_kept_beside_the_table(world: Path) -> None:
    assert make_table(world, "ours_gate", flags=["--set", "model.image_backbone.tuning.warmup=2"]) == 0
    kept = world / "table_selection"
    run = world / "table" / "small" / SHIFT / "ours_gate" / "seed_1"
    assert (kept / f"{SHIFT}_ours_gate_seed_1.csv").read_bytes() == (run / "selection.csv").read_bytes()
    assert {path.suffix for path in kept.glob(f"{SHIFT}_ours_gate_seed_0.*")} == {".csv", ".png"}


def test_classes_of_runs_scored_before_are_noted_and_printed(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_table(world, "ours", "xmuda_fuse") == 0
    classes = world / "table_classes.csv"
    header, *lines = classes.read_text(encoding="utf-8").splitlines(keepends=True)
    of_one = [line for line in lines if line.startswith(f"{SHIFT},ours,small,1,")]
    assert len(of_one) == len(NUSCENES_6.class_names)
    classes.write_text(header + "".join(line for line in lines if line not in of_one), encoding="utf-8")
    capsys.readouterr()
    assert make_table(world, "ours", "xmuda_fuse", flags=["--classes"]) == 0
    assert sorted(classes.read_text(encoding="utf-8").splitlines(keepends=True)) == sorted([header, *lines])
    printed = capsys.readouterr().out
    assert printed.count("IoU by class") == 4  # 2D, VFM, 3D and 2D3D
    assert f"| method | {' | '.join(NUSCENES_6.class_names)} | seeds |" in printed


def test_failed_run_is_told_and_does_not_stop_the_others(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = world / "table" / "small" / SHIFT / "mlp" / "seed_0"
    folder.mkdir(parents=True)
    (folder / "state.pt").write_bytes(b"damaged")
    assert make_table(world, "mlp", "vanilla") == 1
    assert f"{SHIFT} mlp seed 0: " in capsys.readouterr().err
    made = {(row["method"], row["seed"]) for row in read_table(world)}
    assert {("mlp", "1"), ("vanilla", "0"), ("vanilla", "1")} <= made
    assert ("mlp", "0") not in made


@pytest.mark.slow
def test_table_in_two_processes(world: Path) -> None:
    assert make_table(world, "mlp_symal", "ours_lambda_0.5", jobs=2) == 0
    made = {(row["method"], row["seed"]) for row in read_table(world)}
    assert {(method, seed) for method in ("mlp_symal", "ours_lambda_0.5") for seed in "01"} <= made
