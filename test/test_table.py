# SPDX-License-Identifier: Apache-2.0
"""The table: columns as the paper's, mean and deviation over seeds, lines found by what made them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from tiny_world import tiny_recipe

from xmodal_seg.config import HeadSettings
from xmodal_seg.training.table import (
    Row,
    code_hash,
    columns_of,
    find_row,
    gains,
    make_row,
    markdown,
    read_rows,
    stages_hash,
)
from xmodal_seg.training.table_classes import FIELDS as CLASS_FIELDS
from xmodal_seg.training.table_classes import append_classes, classes_markdown
from xmodal_seg.training.table_costs import FIELDS as COST_FIELDS
from xmodal_seg.training.table_costs import append_costs, costs_markdown, path_beside
from xmodal_seg.training.table_runs import CODE_FILE, Finished, Run, _gpus, _in_own_process, _in_pool, _note

OURS = HeadSettings()
XMUDA = HeadSettings(main=("2d", "3d"), mimic=(), ensemble=("2d", "3d"))
FUSE = HeadSettings(main=("fused",), mimic=(), ensemble=("fused",))


def row(method: str, seed: int, heads: HeadSettings, **scores: float) -> Row:
    key = {"shift": "night", "method": method, "size": "small", "seed": seed, "recipe_hash": "r", "data_hash": "d"}
    of_heads: dict[str, Any] = {
        name: {"miou": scores.get(name, 0.0), "miou_absent_zero": 0.0} for name in (*heads.main, "ensemble")
    }
    test = dict.fromkeys(("best", "best_single", "last"), of_heads)
    results = {"trainable_parameters": {"heads": 1000 + seed * 1000, "tuning": 700, "tuning_on": 200}, "test": test}
    return make_row(key, code_hash="c", made_with="torch", minutes=1.0, heads=heads, results=results)


def test_second_stages_come_before_chains_that_have_not_begun(tmp_path: Path) -> None:
    runs = {name: Run(recipe=tiny_recipe(tmp_path), key={"method": name}, folder=tmp_path / name) for name in "abcd"}
    order: list[str] = []

    def submit(run: Run) -> Future[Finished]:
        order.append(run.key["method"])
        future: Future[Finished] = Future()
        future.set_result(Finished(run=run, error="broken" if run is runs["c"] else None))
        return future

    chains = [[runs["a"], runs["b"]], [runs["c"], runs["d"]], [runs["d"]]]
    finished = list(_in_pool(submit, chains, jobs=1))
    assert order == ["a", "b", "c", "d"]
    assert [each.error for each in finished] == [None, None, "broken", None]


def test_a_killed_run_is_an_error_of_its_own_and_gives_its_gpu_back(tmp_path: Path) -> None:
    run = Run(recipe=tiny_recipe(tmp_path), key={"shift": "night", "method": "ours", "seed": 0}, folder=tmp_path)
    gpus: SimpleQueue[str] = SimpleQueue()
    gpus.put("5")
    finished = _in_own_process(run, gpus, make=_killed)
    assert finished.run is run
    assert finished.error == f"night ours seed 0: its process was killed; {tmp_path}/log.txt is what it said"
    assert gpus.get_nowait() == "5"


def _killed(_: Run) -> Finished:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_columns_are_the_papers() -> None:
    assert columns_of(OURS) == {"2d3d": "ensemble", "3d": "3d", "2d": "fused", "vfm": "2d"}
    assert columns_of(XMUDA) == {"2d3d": "ensemble", "3d": "3d", "2d": "2d"}
    assert columns_of(FUSE) == {"2d3d": "ensemble"}


def test_mean_and_deviation_over_seeds() -> None:
    rows = [
        row("ours", 0, OURS, fused=60.0, **{"2d": 50.0, "3d": 40.0, "ensemble": 61.0}),
        row("ours", 1, OURS, fused=62.0, **{"2d": 50.0, "3d": 43.0, "ensemble": 63.0}),
        row("xmuda_fuse", 0, FUSE, ensemble=55.5),
    ]
    lines = markdown(rows, shifts=["night"], methods=["ours", "xmuda_fuse", "mlp"], protocol="last").splitlines()
    assert lines[0] == "| night | 2D | VFM | 3D | 2D3D | average | trained | seeds |"
    assert len(lines) == 5
    assert lines[2] == "| ours | 61.0 ± 1.4 | 50.0 ± 0.0 | 41.5 ± 2.1 | 62.0 ± 1.4 | 54.8 | 2-3k (1-2k on) | 2 |"
    assert lines[3] == "| xmuda_fuse | - | - | - | 55.5 | - | 2k (1k on) | 1 |"
    assert lines[4] == "| mlp | - | - | - | - | - | - | 0 |"


def test_gains_are_paired_by_seed() -> None:
    rows = [
        row("ours", 0, OURS, fused=61.0, **{"3d": 40.0}),
        row("ours", 1, OURS, fused=66.0, **{"3d": 45.0}),
        row("ours", 2, OURS, fused=99.0),
        row("mlp", 0, OURS, fused=60.0, **{"3d": 41.0}),
        row("mlp", 1, OURS, fused=64.0, **{"3d": 45.0}),
        row("xmuda_fuse", 0, FUSE, ensemble=1.0),
    ]
    found = gains(rows, over="mlp")
    assert [(line["method"], line["seed"]) for line in found] == [("ours", "0"), ("ours", "1"), ("xmuda_fuse", "0")]
    assert [line["last_2d"] for line in found] == ["1.000", "2.000", ""]
    assert [line["last_3d"] for line in found] == ["-1.000", "0.000", ""]
    assert "| ours | 1.5 ± 0.7 |" in markdown(found, shifts=["night"], methods=["ours"], protocol="last")


def test_a_line_tells_what_was_trained_and_what_was_on_at_the_end() -> None:
    line = row("ours", 1, OURS)
    assert (line["trainable_parameters"], line["trainable_on"]) == ("2700", "2200")


def test_shifts_have_a_table_each_and_one_of_means() -> None:
    scores = {"fused": 60.0, "2d": 50.0, "3d": 40.0, "ensemble": 62.0}
    rows = [
        row("ours", 0, OURS, **scores),
        row("ours", 1, OURS, **{**scores, "3d": 44.0}),
        {**row("ours", 0, OURS, **{**scores, "3d": 20.0}), "shift": "town"},
        row("mlp", 0, OURS, **scores),
    ]
    printed = markdown(rows, shifts=["night", "town"], methods=["ours", "mlp"], protocol="last")
    night, town, means = (table.splitlines() for table in printed.split("\n\n"))
    assert [line.split("|")[-2].strip() for line in (*night[2:], *town[2:])] == ["2", "1", "1", "0"]
    assert means[0] == "| mean of 2 shifts | 2D | VFM | 3D | 2D3D | average |"
    assert means[2] == "| ours | 60.0 | 50.0 | 31.0 | 62.0 | 51.0 |"  # 3D: (42 + 20) / 2, not (40 + 44 + 20) / 3
    assert means[3] == "| mlp | - | - | - | - | - |"


def test_a_run_names_all_code_that_it_has_seen(tmp_path: Path) -> None:
    assert _note(tmp_path, CODE_FILE, "new") == ["new"]
    (tmp_path / CODE_FILE).write_text("older\n", encoding="utf-8")
    assert _note(tmp_path, CODE_FILE, "new") == ["new"]  # it had come to no state, and begins anew
    (tmp_path / CODE_FILE).write_text("older one\n", encoding="utf-8")
    (tmp_path / "state.pt").touch()
    assert _note(tmp_path, CODE_FILE, "new") == ["older one", "new"]
    assert _note(tmp_path, CODE_FILE, "new") == ["older one", "new"]


def test_a_worker_sees_one_gpu_and_does_not_outlive_a_killed_parent() -> None:
    script = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from xmodal_seg.training.table_runs import _begin_worker
if __name__ == "__main__":
    how = {"mp_context": get_context("spawn"), "initializer": _begin_worker, "initargs": (os.getpid(), "5")}
    with ProcessPoolExecutor(1, **how) as pool:
        print(pool.submit(os.getenv, "CUDA_VISIBLE_DEVICES").result(), flush=True)
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "5\n"
    worker = Path(f"/proc/{int(parent.stdout.readline())}/stat")
    assert _runs(worker)

    parent.kill()
    parent.wait()

    end_s = time.monotonic() + 60
    while _runs(worker) and time.monotonic() < end_s:
        time.sleep(0.1)
    assert not _runs(worker)
    parent.stdout.close()


def _runs(stat: Path) -> bool:
    """Whether there is such a process, and not only what is left of it until somebody asks for its exit code."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(("visible", "gpus"), [(None, ["0", "1"]), ("3, 5", ["3", "5"]), ("", [""])])
def test_gpus_that_workers_take_in_turn(visible: str | None, gpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert _gpus() == gpus


def test_classes_have_a_line_each_once(tmp_path: Path) -> None:
    path, key = tmp_path / "classes.csv", row("ours", 0, OURS)
    scores = {"2d": [1.0, 2.0], "3d": [30.0, None], "fused": [50.0, 60.0], "ensemble": [70.0, 80.125]}
    results = {"class_names": ["road", "truck"], "test": {"best": {head: {"iou": iou} for head, iou in scores.items()}}}
    for seed in ("0", "1", "1"):
        append_classes(path, {**key, "seed": seed}, heads=OURS, results=results)
    rows = read_rows(path, fields=CLASS_FIELDS)
    assert [(line["seed"], line["class"]) for line in rows] == [(s, c) for s in "01" for c in ("road", "truck")]
    assert [rows[1][column] for column in ("2d", "vfm", "3d", "2d3d")] == ["60.00", "2.00", "", "80.12"]
    rows[2]["3d"] = "40.00"
    lines = classes_markdown(rows, shift="night", methods=["ours", "mlp"], column="3d").splitlines()
    assert lines[0] == "| method | road | truck | seeds |"
    assert lines[2:] == ["| ours | 35.0 | - | 2 |", "| mlp | - | - | 0 |"]


def test_costs_have_a_line_each_once_and_a_mean_by_method(tmp_path: Path) -> None:
    path, key = path_beside(tmp_path / "tuning_small.csv"), row("ours", 0, OURS)
    assert path.name == "tuning_small_costs.csv"
    for seed, step_s in (("0", 0.2), ("1", 0.4), ("1", 9.0)):
        costs = {"steps": 20, "step_s": step_s, "step_cpu_s": 0.1, "peak_mb": 900}
        append_costs(path, {**key, "seed": seed}, made_with="torch", costs=costs)
    append_costs(path, {**key, "seed": "2"}, made_with="torch", costs={})  # of a run from before they were measured
    rows = read_rows(path, fields=COST_FIELDS)
    assert [(line["seed"], line["step_s"], line["made_with"]) for line in rows] == [
        ("0", "0.2", "torch"),
        ("1", "0.4", "torch"),
    ]
    lines = costs_markdown(rows, methods=["ours", "ours_gate"]).splitlines()
    assert lines[0] == "| method | step, s | step, CPU s | memory, MB | runs |"
    assert lines[2:] == ["| ours | 0.30 | 0.10 | 900 | 2 |", "| ours_gate | - | - | - | 0 |"]


def test_a_second_stage_depends_on_the_first() -> None:
    assert stages_hash("a", "b") == stages_hash("a", "b")
    assert len({stages_hash("a", "b"), stages_hash("c", "b"), stages_hash("b", "a")}) == 3


def test_lines_are_found_by_what_made_them() -> None:
    rows = [row("ours", 0, OURS), row("ours", 1, OURS)]
    key = {"shift": "night", "method": "ours", "size": "small", "seed": 1, "recipe_hash": "r", "data_hash": "d"}
    assert find_row(rows, key) is rows[1]
    assert find_row(rows, {**key, "recipe_hash": "changed"}) is None
    assert find_row(rows, {**key, "data_hash": "changed"}) is None


def test_file_of_another_version_is_refused(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "none.csv") == []
    (tmp_path / "old.csv").write_text("shift,miou\na,1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has other columns"):
        read_rows(tmp_path / "old.csv")


def test_code_hash_is_stable() -> None:
    assert code_hash() == code_hash()
    assert len(code_hash()) == 16
