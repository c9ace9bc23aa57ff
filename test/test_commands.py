# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from helpers import NUM_CLASSES, make_frame, tiny_settings, wait_for
from spoilt_bags import cut_off, spoil

from xmodal_seg.bag_files import BagWriter, open_bag, typestore
from xmodal_seg.bag_topics import SensorTopics, read_label_space
from xmodal_seg.bag_writing import GROUND_TRUTH_TOPIC, LABELLED_TOPIC, labelled_message
from xmodal_seg.bags import write_bag
from xmodal_seg.checkpoint import save_checkpoint
from xmodal_seg.commands import demo, demo_report, meeting
from xmodal_seg.commands.main import SUBCOMMANDS, main
from xmodal_seg.commands.report import LabelReport
from xmodal_seg.geometry import project_frame
from xmodal_seg.inference import Segmenter
from xmodal_seg.labels import UNLABELED, LabelSpace
from xmodal_seg.messages import decode_cloud, decode_cloud_labels
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.nodes.answers import Answers
from xmodal_seg.structures import Frame

SPACE = LabelSpace(
    name="five", class_names=tuple("abcde"), colours=tuple((40 * i, 250 - 40 * i, 99) for i in range(NUM_CLASSES))
)
NUM_FRAMES = 3
DEADLINE_S = 120.0


def frames() -> list[Frame]:
    return [
        make_frame(num_points=101 + 10 * i, stamp_ns=10**12 + i * 10**8, seed=i, num_cameras=2)
        for i in range(NUM_FRAMES)
    ]


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("commands") / "bag"
    write_bag(path, frames(), image_format="png", label_space=SPACE)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("commands") / "checkpoint"
    model = SegmentationModel(settings=tiny_settings())
    save_checkpoint(path, model, label_space=SPACE, metadata={"trained": True, "recipe": "none"})
    return path


# --- the command -----------------------------------------------------------------------------------------------------


def test_help_lists_every_subcommand_and_loads_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text and subcommand.summary in text for name, subcommand in SUBCOMMANDS.items())
    code = "import sys; from xmodal_seg.commands.main import main; main(['--help']); sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    assert f"usage: xmodal-seg {name}" in capsys.readouterr().out


def test_wrong_use_ends_with_a_sentence_and_exit_code_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([]) == 2
    assert main(["fly"]) == 2
    assert capsys.readouterr().err == f"xmodal-seg: no subcommand 'fly'; there are {', '.join(SUBCOMMANDS)}\n"
    assert main(["label-bag", str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"xmodal-seg label-bag: no bag at {tmp_path / 'none'}: no such file or folder\n"


def test_module_runs_as_a_program() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "xmodal_seg.commands", "fly"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "no subcommand 'fly'" in result.stderr


# --- info ------------------------------------------------------------------------------------------------------------


def test_info_says_what_a_checkpoint_holds(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--checkpoint", str(checkpoint), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["checkpoint"]["trained"] is True
    assert found["checkpoint"]["label_space"] == {"name": "five", "class_names": list("abcde")}
    assert found["checkpoint"]["metadata"]["recipe"] == "none"
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert found["devices"][0]["device"] == "cpu"


def test_info_says_that_a_gpu_stands_idle(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xmodal_seg.devices.unused_gpu", lambda: "there is a GPU, but the CPU computes")
    assert main(["info", "--checkpoint", str(checkpoint)]) == 0
    assert "\nthere is a GPU, but the CPU computes\n" in capsys.readouterr().out


def test_info_says_that_weights_are_untrained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = SegmentationModel(settings=tiny_settings())
    save_checkpoint(tmp_path / "raw", model, label_space=SPACE, metadata={"trained": False})
    assert main(["info", "--checkpoint", str(tmp_path / "raw")]) == 0
    text = capsys.readouterr().out
    assert "UNTRAINED" in text
    assert "five: a, b, c, d, e" in text


def test_info_says_where_banks_and_image_network_come_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    day = {"method": "ours", "shift": "here", "steps": 7, "guidance": 1.0, "test_mean_iou": {"2d": 61.23, "3d": 58.0}}
    about = {"what": "A stand-in.", "what_not": "It has seen no photograph."}
    metadata = {"trained": True, "banks": {"day": day}, "image_backbone": about}
    save_checkpoint(tmp_path, SegmentationModel(settings=tiny_settings()), label_space=SPACE, metadata=metadata)
    assert main(["info", "--checkpoint", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "ours on here, 7 steps, lambda 1, mIoU there 2d 61.2 %, 3d 58.0 %" in text
    assert "A stand-in." in text
    assert "It has seen no photograph." in text


@pytest.mark.parametrize("banks", [["day"], {"day": {"made": "by hand"}}, {"day": 3}])
def test_info_takes_metadata_as_it_is(banks: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata = {"banks": banks}  # and nothing about training: not to be called trained
    save_checkpoint(tmp_path, SegmentationModel(settings=tiny_settings()), label_space=SPACE, metadata=metadata)
    assert main(["info", "--checkpoint", str(tmp_path)]) == 0
    assert "UNTRAINED" in capsys.readouterr().out
    assert not Segmenter.load(tmp_path, device="cpu").trained


def test_info_refuses_a_folder_without_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--checkpoint", str(tmp_path)]) == 2
    assert "no checkpoint here" in capsys.readouterr().err


# --- label-bag -------------------------------------------------------------------------------------------------------


def read_labels(path: Path) -> dict[int, np.ndarray]:
    with open_bag(path) as bag:
        messages = [message.decode() for message in bag.messages([LABELLED_TOPIC])]
    return {m.header.stamp.sec * 10**9 + m.header.stamp.nanosec: decode_cloud_labels(m) for m in messages}


def numpy_miou(truth: np.ndarray, labels: np.ndarray) -> float:
    known = truth >= 0
    ious = []
    for class_id in range(NUM_CLASSES):
        is_true, is_said = (truth == class_id) & known, (labels == class_id) & known
        if (is_true | is_said).any():
            ious.append((is_true & is_said).sum() / (is_true | is_said).sum())
    return 100 * float(np.mean(ious))


def test_label_bag_labels_every_sweep_as_the_segmenter_does(bag: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["label-bag", str(bag), "--out", str(out), "--checkpoint", str(checkpoint), "--device", "cpu"]) == 0
    segmenter = Segmenter.load(checkpoint, device="cpu")
    found = read_labels(out / "output")
    assert list(found) == [frame.stamp_ns for frame in frames()]
    for frame in frames():
        np.testing.assert_array_equal(found[frame.stamp_ns], segmenter.predict(frame).labels)
    with open_bag(out / "output") as output:
        assert read_label_space(output, LABELLED_TOPIC) == SPACE
        first = next(output.messages([LABELLED_TOPIC])).decode()
        np.testing.assert_array_equal(decode_cloud(first, intensity_range=None).points, frames()[0].points)

    metrics = json.loads((out / "metrics.json").read_text())
    truth, said = np.concatenate([f.labels for f in frames()]), np.concatenate(list(found.values()))
    assert metrics["frames"] == NUM_FRAMES
    assert metrics["points"] == sum(metrics["points_per_class"].values()) == len(truth)
    assert metrics["miou"] == pytest.approx(numpy_miou(truth, said), abs=0.06)
    seen = np.concatenate([project_frame(frame).camera_index >= 0 for frame in frames()])
    assert 0 < seen.sum() < len(seen)
    assert metrics["miou_seen_by_a_camera"] == pytest.approx(numpy_miou(truth[seen], said[seen]), abs=0.06)
    assert metrics["miou_seen_by_none"] == pytest.approx(numpy_miou(truth[~seen], said[~seen]), abs=0.06)
    assert metrics["checkpoint"]["trained"] is True
    assert cv2.imread(str(out / "summary.png")) is not None


def test_label_bag_goes_on_past_a_bad_image_and_a_bad_sweep(
    bag: Path, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = "/camera_0/image/compressed"
    spoil(bag, tmp_path / "image", topic=images, numbers=(1,), change=cut_off)
    spoil(tmp_path / "image", tmp_path / "both", topic="/points", numbers=(2,), change=cut_off)
    out = tmp_path / "out"
    arguments = ["--out", str(out), "--checkpoint", str(checkpoint), "--device", "cpu"]
    assert main(["label-bag", str(tmp_path / "both"), *arguments]) == 0
    found, wanted = read_labels(out / "output"), frames()
    assert list(found) == [frame.stamp_ns for number, frame in enumerate(wanted) if number != 2]
    blind = replace(wanted[1], cameras=wanted[1].cameras[1:])
    segmenter = Segmenter.load(checkpoint, device="cpu")
    for frame in (wanted[0], blind):
        np.testing.assert_array_equal(found[frame.stamp_ns], segmenter.predict(frame).labels)
    assert json.loads((out / "metrics.json").read_text())["frames"] == NUM_FRAMES - 1
    assert f"({images}): 1 of {NUM_FRAMES - 1} could not be used" in caplog.text
    assert f"/points: 1 of {NUM_FRAMES} could not be used" in caplog.text


def test_label_bag_takes_choices_and_protects_earlier_results(
    bag: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["label-bag", str(bag), "--out", str(tmp_path), "--checkpoint", str(checkpoint)]
    assert main([*arguments, "--cameras", "--min-probability", "1", "--storage", "sqlite3"]) == 0
    assert all((labels == UNLABELED).all() for labels in read_labels(tmp_path / "output").values())
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--cameras", "camera_1", "--precision", "bfloat16"]) == 0
    said = capsys.readouterr().out
    assert "cameras /camera_1/image/compressed\n" in said
    assert " in bfloat16\n" in said


def test_report_compares_only_the_same_classes(tmp_path: Path) -> None:
    frame, other = frames()[0], replace(SPACE, class_names=tuple("vwxyz"))
    labels = np.zeros(frame.num_points, dtype=np.uint8)
    report = LabelReport(label_space=SPACE, truth_space=other, trained=False, shown=0)
    report.add(frame, labels)
    assert report.metrics()["miou"] is None
    assert report.metrics()["points_per_class"]["a"] == frame.num_points
    report.write(tmp_path, title="a bag", details={"more": 1})
    assert json.loads((tmp_path / "metrics.json").read_text())["more"] == 1


# --- demo ------------------------------------------------------------------------------------------------------------


def demo_input(bag: Path) -> demo.Input:
    return demo.prepare_input(str(bag), bag.parent)


def answers(segmenter: Segmenter) -> list[bytes]:
    """What the node would send."""
    labelled = [segmenter.predict(frame) for frame in frames()]
    return [answer_of(frame, each.labels) for frame, each in zip(frames(), labelled, strict=True)]


def answer_of(frame: Frame, labels: np.ndarray | None = None) -> bytes:
    labels = np.zeros(frame.num_points, np.uint8) if labels is None else labels
    message = labelled_message(frame, labels, np.ones(frame.num_points, np.float32), SPACE)
    return bytes(typestore().serialize_cdr(message, message.__msgtype__))


def status(num_frames: int, model_ms: float, **values: str) -> SimpleNamespace:
    return SimpleNamespace(
        message="labelling", values={"frames": str(num_frames), "stage model": str(model_ms), **values}
    )


def report(bag: Path, checkpoint: Path, out: Path, change: Callable[[list[bytes]], list[bytes]], **values: str) -> int:
    segmenter = Segmenter.load(checkpoint, device="cpu")
    kept = Answers(out)
    for cloud in change(answers(segmenter)):
        kept.add(cloud)
    return demo_report.report(
        demo_input(bag), out, segmenter=segmenter, answers=kept, statuses=[status(NUM_FRAMES, 5.0, **values)]
    )


def test_demo_report_accepts_what_is_complete(bag: Path, checkpoint: Path, tmp_path: Path) -> None:
    assert report(bag, checkpoint, tmp_path, lambda clouds: clouds[::-1]) == 0
    assert set(read_labels(tmp_path / "output")) == {frame.stamp_ns for frame in frames()}
    assert json.loads((tmp_path / "metrics.json").read_text())["faults"] == []


def changed(cloud: bytes, old: bytes, new: bytes) -> bytes:
    assert len(old) == len(new)
    assert cloud.count(old) >= 1
    return cloud.replace(old, new, 1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda clouds: clouds[1:], "sweep at 1000.000 s did not come back"),
        (lambda clouds: [*clouds, clouds[0]], "1 sweeps came back more than once"),
        (lambda clouds: [changed(clouds[0], b"lidar\0", b"radar\0"), *clouds[1:]], "in the frame 'radar'"),
        (lambda clouds: [changed(clouds[0], b"label\0", b"class\0"), *clouds[1:]], "with the fields x, y, z, class"),
        (
            lambda clouds: [
                changed(clouds[0], frames()[0].points[5].tobytes(), frames()[0].points[6].tobytes()),
                *clouds[1:],
            ],
            "came back with other points (101 for 101)",
        ),
    ],
)
def test_demo_report_names_every_fault(
    bag: Path,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[list[bytes]], list[bytes]],
    sentence: str,
) -> None:
    assert report(bag, checkpoint, tmp_path, change) == 1
    assert sentence in capsys.readouterr().out


def test_demo_report_notices_images_that_the_node_missed(
    bag: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(bag, checkpoint, tmp_path, lambda clouds: clouds, camera_problems="2") == 1
    assert "the node missed images that the bag holds: 2" in capsys.readouterr().out


def test_stage_times_count_each_frame_once() -> None:
    statuses = [status(0, 99.0), status(1, 4.0), status(1, 4.0), status(2, 8.0), status(3, 6.0)]
    assert demo_report.stage_times(statuses) == {"model": {"median": 6.0, "max": 8.0, "samples": 3}}


def test_demo_needs_images_of_one_kind(bag: Path, tmp_path: Path) -> None:
    write_bag(tmp_path / "blind", [replace(frames()[0], cameras=())])
    with pytest.raises(ValueError, match="no images with a camera_info beside them; it has /points"):
        demo_input(tmp_path / "blind")


def test_ground_truth_is_not_shown_to_the_node(bag: Path) -> None:
    given = demo_input(bag)
    assert isinstance(given.topics, SensorTopics)
    assert given.topics.labels == GROUND_TRUTH_TOPIC
    assert not [name for name in given.played if "ground_truth" in name]
    assert "/points" in given.played
    assert "/tf_static" in given.played


def test_what_the_nodes_published_while_it_was_recorded_is_not_shown_again(
    bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"/xmodal_seg/points": "sensor_msgs/msg/PointCloud2", "/lighting": "diagnostic_msgs/msg/DiagnosticArray"}
    with open_bag(bag) as given, BagWriter(tmp_path / "bag") as everything:
        for message in given.messages():
            everything.write_raw(message.topic, message.msgtype, message.stamp_ns, message.data)
        for topic, msgtype in own.items():
            everything.write_raw(topic, msgtype, 5, answer_of(frames()[0]))
    assert demo_input(tmp_path / "bag").played == demo_input(bag).played
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("not played, as the nodes publish it anew: /xmodal_seg/points, /lighting")


@pytest.mark.ros
def test_demo_through_the_real_nodes_equals_label_bag(
    bag: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first attempt is given no time, so that the second must leave nothing of it."""
    monkeypatch.setattr(meeting, "_PATIENCE_S", (0.001, 120.0, 300.0))
    arguments = ["--checkpoint", str(checkpoint), "--device", "cpu"]
    assert main(["demo", "--bag", str(bag), "--out", str(tmp_path / "demo"), *arguments]) == 0
    assert "started again: nothing was heard of segmentation_node in 0.001 s" in capsys.readouterr().err
    assert main(["label-bag", str(bag), "--out", str(tmp_path / "offline"), *arguments]) == 0
    online, offline = read_labels(tmp_path / "demo" / "output"), read_labels(tmp_path / "offline" / "output")
    assert list(online) == list(offline)
    for stamp_ns, labels in offline.items():
        np.testing.assert_array_equal(online[stamp_ns], labels)
    metrics = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    assert metrics["miou"] == json.loads((tmp_path / "offline" / "metrics.json").read_text())["miou"]
    assert metrics["stage_ms"]["model"]["samples"] > 0
    assert metrics["diagnostics"]["frames"] == str(NUM_FRAMES)
    assert processes_that_mention(tmp_path) == []


@pytest.mark.ros
@pytest.mark.real_data
def test_a_real_bag_whose_calibration_changes_every_frame_goes_through_the_nodes(
    real_data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    bag, out = real_data / "bags" / "kitti_object_3frames_mcap", tmp_path / "demo"
    assert main(["demo", "--bag", str(bag), "--out", str(out), "--checkpoint", str(checkpoint), "--device", "cpu"]) == 0
    diagnostics = json.loads((out / "metrics.json").read_text())["diagnostics"]
    assert diagnostics["frames"] == "3"
    assert "camera_problems" not in diagnostics
    with open_bag(bag) as given, open_bag(out / "output") as labelled:
        sent = [message.decode() for message in given.messages(["/velodyne_points"])]
        back = [message.decode() for message in labelled.messages([LABELLED_TOPIC])]
    assert [(m.header.frame_id, m.header.stamp, m.width) for m in back] == [
        (m.header.frame_id, m.header.stamp, m.width) for m in sent
    ]


def processes_that_mention(path: Path) -> list[str]:
    """Command lines of running processes that name a folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = file.read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it ended meanwhile
            continue
        if str(path) in command and str(os.getpid()) != file.parent.name:
            found.append(command)
    return found


@pytest.mark.ros
def test_a_node_that_cannot_start_ends_the_demo_with_its_reason(
    bag: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = demo_input(bag)
    arguments = argparse.Namespace(checkpoint=str(tmp_path / "nothing"), device="cpu", precision="float32")
    parameters = demo.node_parameters(given, arguments)
    (tmp_path / "parameters.yaml").write_text(json.dumps(parameters))
    with pytest.raises(ValueError, match=r"segmentation_node ended early with exit code 1:[\s\S]*no checkpoint here"):
        demo.play_through_nodes(given, tmp_path)
    assert processes_that_mention(tmp_path) == []


@pytest.mark.ros
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_demo_leaves_no_process(bag: Path, checkpoint: Path, tmp_path: Path, number: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "xmodal_seg.commands", "demo", "--bag", str(bag), "--out", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for((tmp_path / "logs" / "play_bag_node.txt").exists)
    process.send_signal(number)
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1:] == ["xmodal-seg demo: interrupted"]
    assert "Traceback" not in errors
    assert processes_that_mention(tmp_path) == []
