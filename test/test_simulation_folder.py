# SPDX-License-Identifier: Apache-2.0
"""Writing drives: folder there and back, taken up where it stopped, several processes, bag, the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("embreex", reason="needs the extra 'sim'")

from xmodal_seg.bag_files import open_bag
from xmodal_seg.bag_topics import read_conditions
from xmodal_seg.bags import read_frames
from xmodal_seg.commands import simulate
from xmodal_seg.commands.main import main as xmodal_seg
from xmodal_seg.labels import IGNORE_INDEX, SEMANTIC_KITTI_10
from xmodal_seg.simulation import DriveSettings, Sample, drive_samples, rig_named, schedule_named, weather_named
from xmodal_seg.simulation.folder import DriveFolder, prepare_folder, write_samples
from xmodal_seg.simulation.imaging import decode
from xmodal_seg.simulation.parallel import rendered

RIG = rig_named("nuscenes").scaled(image=0.03, columns=60)
SETTINGS = DriveSettings(
    seed=5, num_frames=3, rig=RIG, light=schedule_named("noon>night", 1.0), weather=weather_named("drizzle")
)
COMMAND = ["--frames", "3", "--seed", "5", "--scale", "0.03", "--columns", "60", "--light", "noon>night"]


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return list(drive_samples(SETTINGS, with_truth=True))


def assert_same(one: Sample, other: Sample) -> None:
    for name in ("raw_labels", "instances", "rings", "offsets_s", "world_T_lidar"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert (one.index, one.light, one.weather, one.jpegs) == (other.index, other.light, other.weather, other.jpegs)
    assert np.array_equal(one.frame.points, other.frame.points)
    assert np.array_equal(one.frame.intensity, other.frame.intensity)  # type: ignore[arg-type]
    assert (one.frame.stamp_ns, one.frame.frame_id) == (other.frame.stamp_ns, other.frame.frame_id)
    for view, other_view in zip(one.frame.cameras, other.frame.cameras, strict=True):
        assert np.array_equal(view.image, other_view.image)
        assert np.array_equal(view.calibration.camera_matrix, other_view.calibration.camera_matrix)
        assert np.array_equal(view.calibration.camera_T_lidar, other_view.calibration.camera_T_lidar)


def test_folder_gives_back_what_was_written(tmp_path: Path, samples: list[Sample]) -> None:
    assert prepare_folder(tmp_path / "drive", SETTINGS, with_truth=True) == [0, 1, 2]
    assert list(write_samples(tmp_path / "drive", samples)) == [0, 1, 2]
    folder = DriveFolder(tmp_path / "drive", label_space=SEMANTIC_KITTI_10)
    assert (len(folder), folder.settings) == (3, SETTINGS)
    for number, sample in enumerate(samples):
        read = folder.sample(number)
        assert_same(read, sample)
        for name in ("raw_class", "instance", "depth"):
            assert np.array_equal(getattr(read.truths[0], name), getattr(sample.truths[0], name))
    labels = next(iter(folder)).labels
    assert labels is not None
    assert set(np.unique(labels)) <= {IGNORE_INDEX, *range(10)}


def test_writing_is_taken_up_where_it_stopped(tmp_path: Path, samples: list[Sample]) -> None:
    path = tmp_path / "drive"
    prepare_folder(path, SETTINGS)
    writing = write_samples(path, samples)
    next(writing)
    writing.close()
    (path / ".000001.4711").mkdir()  # what a killed process leaves
    assert prepare_folder(path, SETTINGS) == [1, 2]
    assert len(DriveFolder(path)) == 1
    list(write_samples(path, samples[1:]))
    assert prepare_folder(path, SETTINGS) == []
    assert_same(DriveFolder(path).sample(2), samples[2])


def test_folder_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "drive", SETTINGS)
    with pytest.raises(ValueError, match="holds a drive with other settings"):
        prepare_folder(tmp_path / "drive", SETTINGS.model_copy(update={"seed": 6}))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    with pytest.raises(ValueError, match="expected a new or empty folder"):
        prepare_folder(tmp_path / "full", SETTINGS)
    with pytest.raises(ValueError, match=r"expected a folder with drive\.json"):
        DriveFolder(tmp_path / "full")
    index = tmp_path / "drive" / "drive.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"version": 99}))
    with pytest.raises(ValueError, match="got 'xmodal_seg drive' version 99"):
        DriveFolder(tmp_path / "drive")
    index.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        DriveFolder(tmp_path / "drive")


def test_several_processes_give_the_same_samples(samples: list[Sample]) -> None:
    for one, other in zip(rendered(SETTINGS, with_truth=True, jobs=2), samples, strict=True):
        assert_same(one, other)
    with pytest.raises(ValueError, match="jobs: expected at least 1, got 0"):
        rendered(SETTINGS, jobs=0)


def test_bytes_that_are_no_image() -> None:
    with pytest.raises(ValueError, match="expected a JPEG or PNG image, got 4 bytes"):
        decode(b"junk")


def test_command_writes_a_folder_and_continues_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "drive")
    assert simulate.main([*COMMAND, "--out", out]) == 0
    assert "3 frames, 3 of them new" in capsys.readouterr().out
    assert simulate.main([*COMMAND, "--out", out]) == 0
    assert "3 frames, 0 of them new" in capsys.readouterr().out
    light = [DriveFolder(out).sample(number).light.condition for number in range(3)]
    assert (light[0], light[-1]) == ("day", "night")


def test_command_writes_a_bag_with_ground_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bag"
    assert simulate.main([*COMMAND, "--weather", "drizzle", "--bag", str(out), "--label-space", "nuscenes_6"]) == 0
    assert "3 frames" in capsys.readouterr().out
    frames = list(read_frames(out))
    for frame, sample in zip(frames, drive_samples(SETTINGS), strict=True):
        assert np.array_equal(frame.points, sample.frame.points)
        assert np.array_equal(frame.labels, sample.frame.labels)  # type: ignore[arg-type]
        assert frame.stamp_ns == sample.frame.stamp_ns
        calibration, expected = frame.cameras[0].calibration, sample.frame.cameras[0].calibration
        assert np.allclose(calibration.camera_T_lidar, expected.camera_T_lidar, atol=1e-6)
        assert np.allclose(calibration.camera_matrix, expected.camera_matrix)
    with open_bag(out) as bag:
        conditions = read_conditions(bag)
    samples = drive_samples(SETTINGS)
    assert [conditions.at(frame.stamp_ns) for frame in frames] == [sample.light.condition for sample in samples]


def test_command_lists_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate.main(["--list"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("singapore", "a2d2", "dusk", "downpour", "random:<number>"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "expected one of --out, --bag, --contact-sheet and --list"),
        (["--out", "x", "--bag", "y"], "expected one of --out, --bag"),
        (["--out", "x", "--place", "atlantis"], "place: expected one of usa"),
        (["--out", "x", "--frames", "0"], "num_frames: Input should be greater than 0"),
        (["--out", "x", "--fps", "-1"], "fps: Input should be greater than 0"),
        (["--out", "x", "--scale", "0"], "image scale: expected more than 0"),
        (["--out", "x", "--light", "gloom"], "light: expected one of"),
        (["--bag", "x", "--label-space", "letters"], "label space: expected one of"),
        (["--out", "x", "--jobs", "0", "--scale", "0.03", "--columns", "8"], "jobs: expected at least 1"),
    ],
)
def test_command_refuses_in_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert xmodal_seg(["simulate", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("xmodal-seg simulate: ")
    assert sentence in error
    assert error.count("\n") == 1
