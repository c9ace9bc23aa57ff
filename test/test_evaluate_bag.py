# SPDX-License-Identifier: Apache-2.0
"""`xmodal-seg evaluate-bag` on a small drive from day into night: its numbers, its files, its errors."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from helpers import NUM_CLASSES, make_calibration, make_frame, tiny_settings
from miniatures import make_nuscenes, make_semantic_kitti, run_prepare
from programs import load_program
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from spoilt_bags import cut_off, spoil

from xmodal_seg.adaptation.labelled_frames import load_labelled_frames
from xmodal_seg.bag_files import BagWriter, open_bag, typestore
from xmodal_seg.bag_topics import Conditions, read_conditions
from xmodal_seg.bag_writing import CONDITION_TOPIC
from xmodal_seg.bags import read_frames, write_bag
from xmodal_seg.checkpoint import bank_state, save_checkpoint
from xmodal_seg.commands.evaluate_bag import MODES
from xmodal_seg.commands.main import main
from xmodal_seg.evaluation_modes import MODES as KNOWN_MODES
from xmodal_seg.inference import Segmenter
from xmodal_seg.labels import NUSCENES_6, SEMANTIC_KITTI_10, LabelSpace
from xmodal_seg.lighting_features import image_facts
from xmodal_seg.lighting_model import LightingCoefficients
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.structures import CameraView, Frame

SPACE = LabelSpace(name="five", class_names=tuple("abcde"), colours=tuple((40 * i, 0, 99) for i in range(NUM_CLASSES)))
NUM_FRAMES, PERIOD_S, NIGHT_FROM = 14, 10, 6
START_NS = 10**12
HEIGHT, WIDTH = 41, 57
TRUTH_TOPICS = ("/ground_truth/points", "/ground_truth/label_info")
PARTS = ("overall", "conditions", "minutes", "worst_minute", "confusion", "weights", "worst_frames", "facts")


def picture(number: int) -> np.ndarray:
    """Noise in full light before NIGHT_FROM, faint noise after."""
    rng = np.random.default_rng(number)
    low, high = (120, 250) if number < NIGHT_FROM else (2, 30)
    return rng.integers(low, high, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def drive() -> list[Frame]:
    frames = []
    for number in range(NUM_FRAMES):
        stamp_ns = START_NS + number * PERIOD_S * 10**9
        calibration = make_calibration(height=HEIGHT, width=WIDTH)
        view = CameraView(name="front", image=picture(number), calibration=calibration, stamp_ns=stamp_ns)
        plain = make_frame(num_points=201 + number, num_cameras=0, stamp_ns=stamp_ns, seed=number)
        frames.append(replace(plain, cameras=(view,)))
    return frames


def condition_of(frame: Frame) -> str:
    return "day" if (frame.stamp_ns - START_NS) / 1e9 < NIGHT_FROM * PERIOD_S else "night"


def save_two_banks(folder: Path, space: LabelSpace = SPACE) -> Path:
    torch.manual_seed(1)
    model = SegmentationModel(settings=tiny_settings(num_classes=space.num_classes))
    day = {name: tensor.clone() for name, tensor in bank_state(model).items()}
    night = {n: t + 0.5 * torch.rand_like(t) if t.is_floating_point() else t.clone() for n, t in day.items()}
    save_checkpoint(folder, model, label_space=space, banks={"day": day, "night": night}, metadata={"trained": True})
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bag, checkpoint and lighting.yaml."""
    home = tmp_path_factory.mktemp("evaluation")
    write_bag(home / "bag", drive(), image_format="png", label_space=SPACE, condition_of=condition_of)
    save_two_banks(home / "checkpoint")
    day, night = (image_facts(picture(number)).features for number in (0, NUM_FRAMES - 1))
    coefficients = LightingCoefficients(
        mean=tuple(((day + night) / 2).tolist()),
        scale=tuple((np.abs(night - day) / 2 + 0.05).tolist()),
        weights=tuple(np.sign(night - day).tolist()),
        bias=0.0,
    )
    (home / "lighting.yaml").write_text(yaml.safe_dump(coefficients.model_dump(mode="json")), encoding="utf-8")
    return home


def evaluate(home: Path, out: Path, *more: str, bag: Path | None = None, worst: int = 0) -> dict[str, Any]:
    more = (*more, "--worst", str(worst))
    arguments = ["--bag", str(bag or home / "bag"), "--checkpoint", str(home / "checkpoint"), "--device", "cpu"]
    assert main(["evaluate-bag", *arguments, "--lighting", str(home / "lighting.yaml"), "--out", str(out), *more]) == 0
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def expected_scores(home: Path, bank_of: Callable[[int], str]) -> dict[str, Any]:
    """mIoU and IoU in percent, and the counts, in plain numpy."""
    segmenter = Segmenter.load(home / "checkpoint", device="cpu")
    truths, said = [], []
    for number, frame in enumerate(read_frames(home / "bag")):
        segmenter.use_bank(bank_of(number))
        truths.append(frame.labels)
        said.append(segmenter.predict(frame).labels)
    truth, predicted = np.concatenate(truths), np.concatenate(said)
    counts = np.zeros((NUM_CLASSES, NUM_CLASSES + 1), dtype=int)
    for true_class, given in zip(truth[truth >= 0], predicted[truth >= 0], strict=True):
        counts[true_class, min(given, NUM_CLASSES)] += 1
    hits = np.diag(counts)
    iou = 100 * hits / (counts.sum(1) + counts[:, :NUM_CLASSES].sum(0) - hits)
    return {"counts": counts.tolist(), "iou": iou, "miou": iou.mean()}


def test_labelled_frames_of_every_condition_are_kept_for_the_gate(home: Path, tmp_path: Path):
    bag = ["--bag", str(home / "bag"), "--checkpoint", str(home / "checkpoint")]

    assert main(["labelled-frames", *bag, "--out", str(tmp_path / "kept"), "--per-condition", "2"]) == 0

    kept = load_labelled_frames(tmp_path / "kept", label_space=SPACE.name)
    numbers = [(frame.stamp_ns - START_NS) // (PERIOD_S * 10**9) for frame in kept]
    assert numbers == [1, 4, 8, 12]  # two of frames 0 to 5, by day, and two of 6 to 13
    expected = list(read_frames(home / "bag"))
    for number, frame in zip(numbers, kept, strict=True):
        np.testing.assert_array_equal(frame.labels, expected[number].labels)
        np.testing.assert_array_equal(frame.cameras[0].image, expected[number].cameras[0].image)
    more = ("--mode", "shadow", "--labelled-frames", str(tmp_path / "kept"))
    assert evaluate(home, tmp_path / "out", *more)["modes"]["shadow"]["facts"]["num_labelled_frames"] == 4


def test_labelled_frames_answers_mistakes_in_one_sentence(home: Path, tmp_path: Path, capsys):
    out = ["--out", str(tmp_path / "kept"), "--checkpoint", str(home / "checkpoint")]
    assert main(["labelled-frames", "--bag", str(home / "bag"), *out, "--per-condition", "0"]) == 2
    assert "--per-condition: expected a positive number, got 0" in capsys.readouterr().err
    silent = [replace(frame, labels=np.full(frame.num_points, -100)) for frame in drive()]
    write_bag(tmp_path / "silent", silent, label_space=SPACE)
    assert main(["labelled-frames", "--bag", str(tmp_path / "silent"), *out]) == 2
    assert "no frame has ground truth of the checkpoint's classes" in capsys.readouterr().err


def test_the_modes_of_the_command_are_those_of_the_library():
    assert MODES == KNOWN_MODES


def test_off_and_select_give_the_numbers_of_their_banks(home: Path, tmp_path: Path):
    metrics = evaluate(home, tmp_path, "--mode", "off", "--mode", "select")

    assert metrics["unit"] == "percent"
    assert metrics["checkpoint"]["banks"] == ["day", "night"]
    off, select = metrics["modes"]["off"], metrics["modes"]["select"]
    assert tuple(off) == PARTS
    assert [change["bank"] for change in off["weights"]] == ["day"]
    assert [change["bank"] for change in select["weights"]] == ["day", "night"]
    changed = select["weights"][1]["frame"]
    assert changed == NIGHT_FROM + 2  # it must have been dark for 20 s
    for found, bank_of in ((off, lambda _: "day"), (select, lambda n: "night" if n >= changed else "day")):
        expected = expected_scores(home, bank_of)
        assert found["confusion"]["points"] == expected["counts"]
        assert found["overall"]["miou"] == pytest.approx(expected["miou"], abs=1e-3)
        assert list(found["overall"]["iou"].values()) == pytest.approx(list(expected["iou"]), abs=1e-3)
        assert found["overall"]["frames"] == NUM_FRAMES
        assert {name: part["frames"] for name, part in found["conditions"].items()} == {"day": 6, "night": 8}
        assert [(part["minute"], part["frames"], part["condition"]) for part in found["minutes"]] == [
            (0, 6, "day"),
            (1, 6, "night"),
            (2, 2, "night"),
        ]
        assert found["worst_minute"]["miou"] == min(part["miou"] for part in found["minutes"])
    assert off["conditions"]["day"] == select["conditions"]["day"]
    assert off["conditions"]["night"]["miou"] != select["conditions"]["night"]["miou"]


def test_files_for_people_and_programs(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "notes.json").write_text("mine")
    (tmp_path / "worst_on_1.png").write_text("of an earlier run")
    metrics = evaluate(home, tmp_path, "--mode", "select", worst=2)

    with (tmp_path / "frames.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == NUM_FRAMES
    assert [row["condition"] for row in rows] == ["day"] * NIGHT_FROM + ["night"] * (NUM_FRAMES - NIGHT_FROM)
    assert float(rows[0]["guidance"]) > 0.9
    assert float(rows[-1]["guidance"]) < 0.1
    assert (rows[0]["estimated_condition"], rows[-1]["estimated_condition"]) == ("day", "night")
    assert {row["time_s"] for row in rows} == {str(float(PERIOD_S * i)) for i in range(NUM_FRAMES)}
    with (tmp_path / "summary.csv").open() as file:
        parts = {row["part"]: row for row in csv.DictReader(file)}
    assert list(parts) == [
        "overall", "condition day", "condition night", "minute 0", "minute 1", "minute 2", "worst minute"
    ]  # fmt: skip
    assert float(parts["condition night"]["miou"]) == metrics["modes"]["select"]["conditions"]["night"]["miou"]
    run = json.loads((tmp_path / "run.json").read_text())
    assert set(run["median_stage_ms"]["select"]) == {"prepare", "model", "decide"}
    assert run["seconds"]["select"] > 0
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == ["confusion_select.png", "timeline.png", *(f"worst_select_{rank}.png" for rank in (1, 2))]
    for name in pictures:
        image = cv2.imread(str(tmp_path / name))
        assert image.shape[0] > 300
        assert image.std() > 5
    assert (tmp_path / "notes.json").read_text() == "mine"
    said = capsys.readouterr().out
    assert "mode select: bank changes: 1\n" in said


def test_the_same_numbers_twice_and_whatever_the_recording(home: Path, tmp_path: Path):
    """Adaptation included: its steps are counted in frames."""
    settings = {
        "period_frames": 1,
        "memory": {"min_frames": 2, "min_probes": 1, "probe_every": 2, "points_per_frame": 64},
    }
    settings |= {"guards": {"settle_frames": 0, "max_gap_s": 60.0}, "gate": {"every_steps": 1}}
    (tmp_path / "adaptation.yaml").write_text(yaml.safe_dump(settings))
    more = ["--mode", "on", "--adaptation", str(tmp_path / "adaptation.yaml")]
    first = evaluate(home, tmp_path / "first", *more)
    zipped = compressed(home / "bag", tmp_path / "bag", StoragePlugin.SQLITE3, CompressionMode.MESSAGE)
    evaluate(home, tmp_path / "second", *more, bag=zipped)

    assert first["modes"]["on"]["facts"]["status"]["steps"] > 0
    assert first["modes"]["on"]["facts"]["num_adapted"] > 0
    for name in ("metrics.json", "summary.csv", "frames.csv"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def compressed(bag: Path, target: Path, plugin: StoragePlugin, mode: CompressionMode) -> Path:
    """The bag as `ros2 bag record --compression-format zstd` writes it."""
    writer = Writer(target, version=8, storage_plugin=plugin)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer, open_bag(bag) as source:
        connections = {
            name: writer.add_connection(name, topic.msgtype, typestore=typestore())
            for name, topic in source.topics.items()
        }
        for message in source.messages():
            writer.write(connections[message.topic], message.stamp_ns, message.data)
    return target


@pytest.mark.parametrize(
    ("plugin", "mode"),
    [(StoragePlugin.SQLITE3, CompressionMode.FILE), (StoragePlugin.MCAP, CompressionMode.STORAGE)],
)
def test_conditions_and_frames_survive_compression(
    home: Path, tmp_path: Path, plugin: StoragePlugin, mode: CompressionMode
):
    with open_bag(compressed(home / "bag", tmp_path / "zstd", plugin, mode)) as bag:
        conditions = read_conditions(bag)
    found = list(read_frames(tmp_path / "zstd"))
    assert [conditions.at(frame.stamp_ns) for frame in found] == [condition_of(frame) for frame in drive()]
    np.testing.assert_array_equal(found[-1].cameras[0].image, picture(NUM_FRAMES - 1))


def test_conditions_hold_until_the_next_message():
    conditions = Conditions([(100, "day"), (200, "night")])
    assert [conditions.at(stamp) for stamp in (0, 100, 199, 200, 10**9)] == ["day", "day", "day", "night", "night"]
    assert Conditions([]).at(5) is None
    with pytest.raises(
        ValueError, match=r"/ground_truth/condition at 0\.000 s: expected one of day, twilight, night, got"
    ):
        Conditions([(100, "dusk")])


def test_without_stated_conditions_the_estimate_serves(home: Path, tmp_path: Path):
    write_bag(tmp_path / "bag", drive(), image_format="png", label_space=SPACE)
    metrics = evaluate(home, tmp_path / "out", bag=tmp_path / "bag")
    assert next(iter(metrics["modes"]["off"]["conditions"])) == "day"
    assert metrics["modes"]["off"]["minutes"][-1]["condition"] == "night"


def test_a_bad_image_and_a_bad_sweep_do_not_end_the_evaluation(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    images = "/front/image/compressed"
    spoil(home / "bag", tmp_path / "image", topic=images, numbers=(3,), change=cut_off)
    spoil(tmp_path / "image", tmp_path / "both", topic="/points", numbers=(5,), change=cut_off)
    overall = evaluate(home, tmp_path / "out", bag=tmp_path / "both")["modes"]["off"]["overall"]
    assert overall["frames"] == NUM_FRAMES - 1
    expected = [frame for number, frame in enumerate(drive()) if number != 5]
    assert overall["points"] == sum(int((frame.labels >= 0).sum()) for frame in expected)
    assert f"({images}): 1 of {NUM_FRAMES - 1} could not be used" in caplog.text
    assert f"/points: 1 of {NUM_FRAMES} could not be used" in caplog.text


def test_rerun_recording(home: Path, tmp_path: Path):
    rerun = pytest.importorskip("rerun", reason="rerun-sdk is missing")
    evaluate(home, tmp_path / "out", "--rerun", str(tmp_path / "drive.rrd"))
    assert rerun.__version__
    data = (tmp_path / "drive.rrd").read_bytes()
    assert data.startswith(b"RRF")
    assert len(data) > 10_000


# --- ground truth from files -----------------------------------------------------------------------------------------


def test_semantic_kitti_label_files_give_what_the_bag_would_say(tmp_path: Path):
    root = make_semantic_kitti(tmp_path / "kitti")
    flags = ["--partial", "--bag", str(tmp_path / "bag"), "--sequence", "08"]
    assert run_prepare("semantic_kitti", root, tmp_path / "out", *flags) == 0
    save_two_banks(tmp_path / "checkpoint", SEMANTIC_KITTI_10)
    labels = next(root.rglob("sequences/08/labels"))
    assert_same_numbers(tmp_path, "--labels", str(labels), "--label-format", "semantic_kitti")


def test_nuscenes_label_files_are_found_by_stamp(tmp_path: Path):
    root = make_nuscenes(tmp_path / "nuscenes")
    flags = ["--bag", str(tmp_path / "bag"), "--sequence", "scene-0103"]
    assert run_prepare("nuscenes", root, tmp_path / "out", *flags) == 0
    save_two_banks(tmp_path / "checkpoint", NUSCENES_6)
    assert_same_numbers(tmp_path, "--labels", str(root), "--label-format", "nuscenes")


def assert_same_numbers(home: Path, *labels: str) -> None:
    """The files say the same as the label topic that was made from them."""
    arguments = ["evaluate-bag", "--bag", str(home / "bag"), "--checkpoint", str(home / "checkpoint"), "--worst", "0"]
    assert main([*arguments, "--device", "cpu", "--out", str(home / "topic")]) == 0
    assert main([*arguments, "--device", "cpu", "--out", str(home / "files"), *labels]) == 0
    by_topic, by_files = (json.loads((home / name / "metrics.json").read_text()) for name in ("topic", "files"))
    assert by_topic["modes"]["off"]["overall"]["points"] > 0
    assert by_topic == by_files


# --- errors ----------------------------------------------------------------------------------------------------------


def refused(home: Path, tmp_path: Path, *more: str, bag: Path | None = None) -> int:
    arguments = ["--bag", str(bag or home / "bag"), "--checkpoint", str(home / "checkpoint"), "--device", "cpu"]
    return main(["evaluate-bag", *arguments, "--lighting", str(home / "lighting.yaml"), "--out", str(tmp_path), *more])


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--labels", "somewhere"], "--labels and --label-format: expected both or neither"),
        (["--worst", "-1"], "--worst: expected 0 to 9, got -1"),
        (["--bank", "dusk"], "no bank 'dusk'; the model has day, night"),
        (["--label-topic", "/nothing"], "has no topic /nothing"),
        (["--label-topic", "/points"], "/points: fields: expected one field 'label'"),
        (["--labels", "{tmp}", "--label-format", "semantic_kitti"], "expected a .label file for each of the 14 sweeps"),
        (["--labels", "{tmp}", "--label-format", "nuscenes"], "expected a nuScenes download with lidarseg; it lacks"),
        (["--adaptation", "{tmp}/none.yaml"], "none.yaml: no such file"),
        (["--labelled-frames", "{tmp}"], "no labelled frames here"),
        (["--lighting", "{tmp}/none.yaml"], "none.yaml"),
        (["--live", "--rate", "0"], "--rate: expected more than 0, got 0"),
        (["--live", "--bank", "day"], "--live does not go with --bank"),
    ],
)
def test_wrong_arguments(
    home: Path, tmp_path: Path, more: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
):
    given = [word.format(tmp=tmp_path) for word in more]
    if "/points" in given:
        given.append("--same-classes")
    assert refused(home, tmp_path / "out", *given) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_what_is_refused_costs_no_earlier_result(home: Path, tmp_path: Path):
    earlier = tmp_path / "out" / "metrics.json"
    earlier.parent.mkdir()
    earlier.write_text("{}")
    for wrong in (["--checkpoint", str(tmp_path)], ["--bank", "dusk"], ["--adaptation", str(tmp_path / "none.yaml")]):
        assert refused(home, tmp_path / "out", *wrong) == 2
        assert earlier.read_text() == "{}"


def test_bags_that_cannot_be_scored(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plain = [replace(frame, labels=None) for frame in drive()[:2]]
    write_bag(tmp_path / "unlabelled", plain)
    write_bag(tmp_path / "nameless", drive()[:2])
    other = replace(SPACE, class_names=tuple("vwxyz"))
    write_bag(tmp_path / "other", drive()[:2], label_space=other)
    ignored = [replace(frame, labels=np.full(frame.num_points, -100)) for frame in drive()[:2]]
    write_bag(tmp_path / "ignored", ignored, label_space=SPACE)
    write_bag(tmp_path / "twilight", drive()[:2], label_space=SPACE, condition_of=lambda frame: "noon")
    with BagWriter(tmp_path / "condition") as writer, open_bag(home / "bag") as source:
        for message in source.messages([*TRUTH_TOPICS, "/points", "/front/camera_info"]):
            topic = CONDITION_TOPIC if message.msgtype == "sensor_msgs/msg/CameraInfo" else message.topic
            writer.write_raw(topic, message.msgtype, message.stamp_ns, message.data)
    sentences = {
        "unlabelled": "has no ground truth: expected --label-topic, or --labels with label files",
        "nameless": "no label_info beside /ground_truth/points says what its labels mean; --same-classes",
        "other": "/ground_truth/points has the classes v, w, x, y, z, the checkpoint a, b, c, d, e",
        "ignored": "no labelled point has ground truth of the model's classes",
        "twilight": "/ground_truth/condition at 1000.000 s: expected one of day, twilight, night, got 'noon'",
        "condition": "/ground_truth/condition is sensor_msgs/msg/CameraInfo, expected std_msgs/msg/String",
    }
    for name, sentence in sentences.items():
        assert refused(home, tmp_path / "out", bag=tmp_path / name) == 2
        assert sentence in capsys.readouterr().err
    assert refused(home, tmp_path / "out", "--same-classes", "--worst", "0", bag=tmp_path / "nameless") == 0


def test_select_needs_banks_to_choose_from(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_checkpoint(tmp_path / "one", SegmentationModel(settings=tiny_settings()), label_space=SPACE)
    assert refused(home, tmp_path, "--mode", "select", "--checkpoint", str(tmp_path / "one")) == 2
    assert "mode select: expected a checkpoint with the banks day and night, got default" in capsys.readouterr().err


def test_label_files_of_another_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_bag(tmp_path / "bag", drive()[:2], image_format="png")
    save_two_banks(tmp_path / "checkpoint", SEMANTIC_KITTI_10)
    for number, size in enumerate((201, 7)):
        np.full(size, 40, "<u4").tofile(tmp_path / f"{number:06d}.label")
    more = ["--labels", str(tmp_path), "--label-format", "semantic_kitti", "--out", str(tmp_path / "out")]
    code = main(["evaluate-bag", "--bag", str(tmp_path / "bag"), "--checkpoint", str(tmp_path / "checkpoint"), *more])
    assert code == 2
    assert "000001.label: expected a label for each of the 202 points of the sweep at 1010.000 s, got 7" in (
        capsys.readouterr().err
    )


def poison(home: Path, tmp_path: Path, *more: str) -> int:
    settings = tmp_path / "adaptation.yaml"
    settings.write_text("period_frames: 1\n")
    arguments = ["--bag", str(home / "bag"), "--checkpoint", str(home / "checkpoint"), "--device", "cpu"]
    arguments += ["--adaptation", str(settings), "--out", str(tmp_path / "poison"), *more]
    code: int = load_program("poison_drive").main(arguments)
    return code


def test_faults_in_mid_drive_are_compared_with_the_shipped_weights(home: Path, tmp_path: Path, capsys) -> None:
    faults = ["lost messages", "clock jumps", "NaN weights"]
    assert poison(home, tmp_path, "--start-s", "40", "--duration-s", "30", "--faults", *faults) == 0
    report = json.loads((tmp_path / "poison" / "poison.json").read_text())
    assert list(report) == ["shipped", "no fault", *faults]
    assert set(report["shipped"]["minutes"]) == {"0", "1"}  # of the 70 s after the fault
    assert report["no fault"]["minutes"] == report["shipped"]["minutes"]  # nothing is learned from so few frames
    assert any("clock_jump" in event for event in report["clock jumps"]["noticed"])
    assert report["lost messages"]["facts"]["status"]["frames"] < NUM_FRAMES
    table = capsys.readouterr().out.splitlines()
    assert table[-4].startswith("| no fault |")
    assert table[-4].endswith("| 0 | 0 | +0.00 | +0.00 |")


def test_a_drive_that_ends_within_the_fault_is_refused(home: Path, tmp_path: Path, capsys) -> None:
    assert poison(home, tmp_path, "--start-s", "100", "--duration-s", "60") == 1
    assert "expected more than 160 s, the fault's end, it lasts 1" in capsys.readouterr().err
    assert not (tmp_path / "poison" / "poison.json").exists()
