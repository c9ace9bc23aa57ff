# SPDX-License-Identifier: Apache-2.0
"""`xmodal-seg evaluate-bag --live`: what is made of the nodes' answers, and one drive through the real nodes."""

from __future__ import annotations

import json
import tracemalloc
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="rclpy is missing: it comes with ROS or with the extra pip-ros")

from test_evaluate_bag import (
    NIGHT_FROM,
    NUM_FRAMES,
    PERIOD_S,
    SPACE,
    START_NS,
    condition_of,
    drive,
    expected_scores,
    home,
)

from xmodal_seg.bag_files import typestore
from xmodal_seg.bag_topics import Conditions
from xmodal_seg.bag_writing import labelled_message
from xmodal_seg.commands.demo import prepare_input
from xmodal_seg.commands.evaluate_live import live_facts, live_parameters, play, scored_answers
from xmodal_seg.commands.main import main
from xmodal_seg.commands.slow_replay import WAITS
from xmodal_seg.nodes.answers import Answers
from xmodal_seg.nodes.lighting_input import NOT_HEARD_YET
from xmodal_seg.nodes.recorder import Recorder, Status
from xmodal_seg.structures import Frame

__all__ = ["home"]  # the fixture
LATENCY_S = 0.125


@dataclass
class FakeRecorder:
    """What a recorder holds after the frames 0, 1 and 3 of `drive` came back, the second of them twice."""

    answers: Answers
    asked_s: dict[int, float] = field(default_factory=dict)
    answered_s: dict[int, float] = field(default_factory=dict)
    ages_ms: list[float] = field(default_factory=lambda: [10.0, 20.0, 90.0])
    statuses: list[Status] = field(default_factory=list)
    adaptation: list[Status] = field(default_factory=list)
    served: dict[int, dict[str, str]] = field(default_factory=dict)

    def answer(self, frame: Frame, labels: np.ndarray) -> None:
        message = labelled_message(frame, labels, np.ones(len(labels), np.float32), SPACE)
        self.answers.add(bytes(typestore().serialize_cdr(message, message.__msgtype__)))
        number = (frame.stamp_ns - START_NS) / 1e9
        self.asked_s[frame.stamp_ns] = number
        self.answered_s.setdefault(frame.stamp_ns, number + LATENCY_S)

    def say(self, time_s: float, **values: str) -> None:
        self.statuses.append(Status(level=0, message="labelling", values=values, arrived_s=time_s))


def heard(folder: Path) -> FakeRecorder:
    recorder = FakeRecorder(Answers(folder))
    for number in (0, 1, 1, 3):
        frame = drive()[number]
        recorder.answer(frame, np.where(frame.labels < 0, 0, frame.labels).astype(np.uint8))
        recorder.served[frame.stamp_ns] = {"bank": "night" if number else "day", "version": f"v{number}"}
    light = {"lambda": "0.25", "lighting confidence": "0.5", "condition": "night"}
    recorder.say(0.0, busy_s="0")
    recorder.say(PERIOD_S, model="version abc, bank day, of five", bank="day", frames="1", **{"stage model": "7"})
    recorder.say(3 * PERIOD_S + 1, model="version abc, bank night", bank="night", frames="1", **light)
    losses = {"pairing waited": "4", "dropped_busy": "3"}
    recorder.say(3 * PERIOD_S + 2, model="version abc, bank late", bank="late", frames="1", **losses)
    return recorder


def test_answers_are_scored_with_what_the_diagnostics_said_then(tmp_path: Path):
    scored = list(scored_answers(drive()[:5], heard(tmp_path), label_space=SPACE, conditions=Conditions([(0, "day")])))

    assert [each.score.number for each in scored] == [0, 1, 3]
    assert [each.score.minute for each in scored] == [0, 0, 0]
    assert [each.score.bank for each in scored] == ["day", "night", "night"]
    assert [each.score.model_version for each in scored] == ["v0", "v1", "v3"]
    assert [each.score.light.guidance for each in scored] == [None, 0.25, 0.25]
    assert {each.score.condition for each in scored} == {"day"}
    assert all(each.score.confusion.mean_iou() == 100 for each in scored)
    estimated = scored_answers(drive()[:5], heard(tmp_path), label_space=SPACE, conditions=Conditions([]))
    assert [each.score.condition for each in estimated] == [None, "night", "night"]


def test_an_answer_of_another_size_is_refused(tmp_path: Path):
    recorder = FakeRecorder(Answers(tmp_path))
    frame = drive()[0]
    recorder.answer(frame.select(np.arange(7)), np.zeros(7, np.uint8))
    with pytest.raises(ValueError, match=r"sweep at 1000\.000 s: expected 201 labels from the node, got 7"):
        list(scored_answers([frame], recorder, label_space=SPACE, conditions=Conditions([])))


def test_latency_age_and_losses(tmp_path: Path):
    facts = live_facts(heard(tmp_path), num_sweeps=5, rate=2.0)

    assert (facts["sweeps"], facts["answered"], facts["lost"], facts["rate"]) == (5, 3, 2, 2.0)
    assert facts["latency_ms"] == {"p50": 125.0, "p95": 125.0, "p99": 125.0, "max": 125.0}
    assert facts["age_ms"]["p50"] == 20.0
    assert facts["age_ms"]["max"] == 90.0
    assert facts["counted_by_the_node"] == {"dropped_busy": 3, "pairing waited": 4}
    assert facts["stage_ms"]["model"]["median"] == 7.0
    assert facts["adaptation"] == {}
    assert live_facts(FakeRecorder(Answers(tmp_path), ages_ms=[]), num_sweeps=5, rate=1.0)["latency_ms"] == {}


@pytest.mark.parametrize(
    ("num_answers", "frames", "missed"),
    [
        (0, [], True),  # nothing was heard of the node
        (0, ["0", "3"], True),  # it labelled, and nothing came here
        (0, ["0"], False),  # it labelled nothing, of which its log tells the reason
        (1, ["0", "3"], False),
        (1, [], False),
    ],
)
def test_a_node_that_labels_unheard_is_told_from_one_that_labels_nothing(
    num_answers: int, frames: list[str], missed: bool
):
    recorder = Recorder.__new__(Recorder)
    recorder.answers = [b""] * num_answers
    recorder.statuses = [Status(level=0, message="", values={"frames": number}) for number in frames]
    assert recorder.has_missed_the_node == missed


def test_clouds_go_to_the_disk(tmp_path: Path):
    recorder = Recorder.__new__(Recorder)
    recorder.answers, recorder.answered_s = Answers(tmp_path), {}
    cloud = bytes(5_000_000)
    tracemalloc.start()
    for _ in range(4):
        recorder._cloud(cloud)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(recorder.answers), list(recorder.answered_s)) == (4, [0])
    assert peak < len(cloud)


@pytest.mark.parametrize(
    ("told", "missed"),
    [
        ([{}], False),  # it was not to listen
        ([{}, {"lighting": NOT_HEARD_YET}], True),
        ([{"lighting": NOT_HEARD_YET}, {"lighting": "1 of 1 cameras are sure"}], False),
    ],
)
def test_a_light_that_nobody_heard_is_noticed(told: list[dict[str, str]], missed: bool):
    recorder = Recorder.__new__(Recorder)
    recorder.statuses = [Status(level=0, message="", values=values) for values in told]
    assert recorder.has_missed_the_light == missed


def test_parameters_are_those_of_a_robot(home: Path, tmp_path: Path):
    given = prepare_input(str(home / "bag"), tmp_path)
    (tmp_path / "adaptation.yaml").write_text("mode: shadow\nsteps_per_turn: 2\nstep: {pull_back: 0}\n")
    chosen = {"adaptation": None, "labelled_frames": None}
    arguments = Namespace(checkpoint=None, device="cpu", precision="bfloat16", rate=3.0, lighting=None, **chosen)
    off = live_parameters(given, arguments, mode="off")
    select = live_parameters(given, arguments, mode="select")
    arguments.adaptation, arguments.labelled_frames = str(tmp_path / "adaptation.yaml"), str(tmp_path)
    on = live_parameters(given, arguments, mode="on")

    arguments.rate = 0.25
    slow = live_parameters(given, arguments, mode="off")

    assert set(off) == {"/xmodal_seg", "/play_bag"}
    assert not set(WAITS) & set(off["/xmodal_seg"]["ros__parameters"])
    waits = {name: slow["/xmodal_seg"]["ros__parameters"][name] for name in WAITS}
    assert waits == {"camera_timeout_ms": 600.0, "transform_timeout_s": 0.8}
    assert off["/xmodal_seg"]["ros__parameters"]["lighting_topic"] == ""
    assert off["/play_bag"]["ros__parameters"]["rate"] == 3.0
    assert not {"pace_topic", "pace_input"} & set(off["/play_bag"]["ros__parameters"])
    assert select["/lighting"]["ros__parameters"]["cameras"] == ["front"]
    assert "&id" not in yaml.safe_dump(select), "rcl reads no aliases"
    assert [each["/xmodal_seg"]["ros__parameters"]["adaptation.mode"] for each in (off, select)] == ["off", "select"]
    adaptation = on["/xmodal_seg"]["ros__parameters"]
    assert (adaptation["adaptation.mode"], adaptation["adaptation.steps_per_turn"]) == ("on", 2)
    assert adaptation["adaptation.labelled_frames"] == str(tmp_path)
    assert isinstance(adaptation["adaptation.step.pull_back"], float), "rcl tells 0 from 0.0"
    assert "/lighting" in on
    segmentation = off["/xmodal_seg"]["ros__parameters"]
    assert (segmentation["device"], segmentation["precision"]) == ("cpu", "bfloat16")


@pytest.mark.ros
@pytest.mark.slow
@pytest.mark.usefixtures("large_data")
def test_a_drive_through_the_nodes(home: Path, tmp_path: Path):
    """Nothing is lost at this pace, so off gives the numbers of the offline evaluation, the others change the bank."""
    arguments = ["--bag", str(home / "bag"), "--checkpoint", str(home / "checkpoint"), "--device", "cpu", "--live"]
    arguments += ["--lighting", str(home / "lighting.yaml"), "--rate", "6", "--worst", "0", "--out", str(tmp_path)]
    assert main(["evaluate-bag", *arguments, "--mode", "off", "--mode", "select", "--mode", "on"]) == 0

    modes = json.loads((tmp_path / "metrics.json").read_text())["modes"]
    off, select, on = modes["live_off"], modes["live_select"], modes["live_on"]
    assert [each["facts"]["adaptation"]["mode"] for each in (off, select, on)] == ["off", "select", "on"]
    assert on["facts"]["answered"] == NUM_FRAMES
    assert off["facts"]["answered"] == select["facts"]["answered"] == NUM_FRAMES
    assert off["confusion"]["points"] == expected_scores(home, lambda _: "day")["counts"]
    assert 0 < off["facts"]["latency_ms"]["p50"] < 60_000
    assert {name: part["frames"] for name, part in off["conditions"].items()} == {
        "day": NIGHT_FROM,
        "night": NUM_FRAMES - NIGHT_FROM,
    }
    assert [change["bank"] for change in select["weights"]] == ["day", "night"]
    assert select["weights"][1]["frame"] >= NIGHT_FROM
    assert condition_of(drive()[-1]) == "night"
    assert (tmp_path / "live_select" / "lighting_node.txt").is_file()


@pytest.mark.ros
@pytest.mark.usefixtures("large_data")
def test_a_node_that_cannot_start_ends_in_a_sentence(home: Path, tmp_path: Path):
    """Past the program's own look at the files, so that the lighting node is the first to miss one."""
    given = {"bag": str(home / "bag"), "checkpoint": str(home / "checkpoint"), "lighting": str(tmp_path / "none.yaml")}
    chosen = {"device": "cpu", "precision": "float32", "rate": 1.0, "adaptation": None, "labelled_frames": None}
    with pytest.raises(ValueError, match=r"lighting_node ended early with exit code 1:[\s\S]*none\.yaml"):
        play(Namespace(**given, **chosen), "select", tmp_path)


def test_files_that_are_not_there_are_found_before_any_node_starts(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["--bag", str(home / "bag"), "--checkpoint", str(home / "checkpoint"), "--device", "cpu", "--live"]
    arguments += ["--lighting", str(tmp_path / "none.yaml"), "--out", str(tmp_path / "out"), "--mode", "select"]
    assert main(["evaluate-bag", *arguments]) == 2
    assert "none.yaml" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
