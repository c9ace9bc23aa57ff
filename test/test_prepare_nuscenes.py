# SPDX-License-Identifier: Apache-2.0
"""nuScenes: from a miniature of the download, through the real program, to Frames; and damaged ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from miniatures import (
    NUSCENES_CAMERAS,
    NUSCENES_CATEGORIES,
    NUSCENES_MATRIX,
    NUSCENES_SCENES,
    NUSCENES_SIZE,
    Scene,
    make_nuscenes,
    run_prepare,
)
from programs import load_program

from xmodal_seg.bags import read_frames
from xmodal_seg.geometry import project_frame
from xmodal_seg.labels import IGNORE_INDEX, NUSCENES_6
from xmodal_seg.structures import NO_CAMERA
from xmodal_seg.training.data.nuscenes import NuScenesSource, iter_records
from xmodal_seg.training.data.prepare_program import make_parser, run
from xmodal_seg.training.data.prepared_dataset import open_dataset
from xmodal_seg.training.data.splits import KnownCount

TWO_SCENES = (Scene("scene-0061", "singapore-onenorth", "Parked"), Scene("scene-0103", "boston-seaport", "Many peds"))


@pytest.fixture(scope="module")
def download(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_nuscenes(tmp_path_factory.mktemp("nuscenes"))


@pytest.fixture(scope="module")
def prepared(download: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    assert run_prepare("nuscenes", download, out, "--partial") == 0
    return out


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A download of four frames that a test may damage."""
    return make_nuscenes(tmp_path / "nuscenes", TWO_SCENES, num_points=301)


def read_table(root: Path, name: str) -> list[dict]:
    return json.loads((root / "v1.0-trainval" / f"{name}.json").read_text())


def rotate(quaternion: list[float], points: np.ndarray, *, inverse: bool = False) -> np.ndarray:
    """q p q* by the vector form of Rodrigues' formula."""
    w, axis = quaternion[0], np.array(quaternion[1:]) * (-1 if inverse else 1)
    cross = np.cross(axis, points)
    return points + 2 * w * cross + 2 * np.cross(axis, cross)


def reference_pixels(root: Path, token: str, channel: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixel (N, 2) and depth (N,) of every point of a sweep: the five steps of the official toolkit, table by table."""
    tables = {name: {r["token"]: r for r in read_table(root, name)} for name in ("ego_pose", "calibrated_sensor")}
    data = read_table(root, "sample_data")
    lidar = next(record for record in data if record["token"] == token)
    camera = next(
        record
        for record in data
        if record["sample_token"] == lidar["sample_token"] and f"/{channel}/" in record["filename"]
    )
    points = np.fromfile(root / lidar["filename"], dtype="<f4").reshape(-1, 5)[:, :3].astype(np.float64)
    for record in (lidar, camera):
        sensor, pose = (
            tables["calibrated_sensor"][record["calibrated_sensor_token"]],
            tables["ego_pose"][record["ego_pose_token"]],
        )
        if record is lidar:
            for step in (sensor, pose):
                points = rotate(step["rotation"], points) + step["translation"]
        else:
            for step in (pose, sensor):
                points = rotate(step["rotation"], points - step["translation"], inverse=True)
    uv = points @ NUSCENES_MATRIX.T
    return uv[:, :2] / uv[:, 2:], points[:, 2]


def test_every_split_has_its_frames(prepared: Path) -> None:
    report = json.loads((prepared / "report.json").read_text())
    assert report["splits"] == {
        "train_usa": 3,
        "test_usa": 2,
        "train_singapore": 4,
        "val_singapore": 4,
        "test_singapore": 4,
        "train_day": 7,
        "test_day": 4,
        "train_night": 2,
        "val_night": 2,
        "test_night": 2,
        "official_train": 11,
        "official_val": 6,
    }
    assert len(open_dataset(prepared, split="all")) == sum(scene.num_samples for scene in NUSCENES_SCENES)
    assert len(open_dataset(prepared, split="train_usa+test_usa")) == 5


def test_points_are_those_that_the_official_chain_puts_into_the_image(download: Path, prepared: Path) -> None:
    dataset = open_dataset(prepared, split="all")
    for index in (0, 7, 16):
        _, token = dataset.frame_name(index)
        uv, depth = reference_pixels(download, token, "CAM_FRONT")
        height, width = NUSCENES_SIZE
        inside = (depth > 0.1) & ((uv > -0.5) & (uv < (width - 0.5, height - 0.5))).all(axis=1)
        frame = dataset[index]
        np.testing.assert_array_equal(dataset.points(index)["sweep_index"], np.flatnonzero(inside))
        projection = project_frame(frame)
        assert (projection.camera_index == 0).all()
        np.testing.assert_allclose(projection.uv, uv[inside], atol=2e-3)
        np.testing.assert_allclose(projection.depth, depth[inside], atol=1e-4)


def test_frame_has_forward_axes_labels_intensity_and_stamps(download: Path, prepared: Path) -> None:
    dataset = open_dataset(prepared, split="train_usa")
    frame = dataset[1]
    points = dataset.points(1)
    _, token = dataset.frame_name(1)
    record = next(r for r in read_table(download, "sample_data") if r["token"] == token)
    rows = np.fromfile(download / record["filename"], dtype="<f4").reshape(-1, 5)
    raw = np.fromfile(download / "lidarseg" / "v1.0-trainval" / f"{token}_lidarseg.bin", dtype=np.uint8)
    chosen = points["sweep_index"]
    np.testing.assert_array_equal(frame.points, rows[chosen][:, [1, 0, 2]] * (1, -1, 1))
    assert frame.points[:, 0].min() > 0
    np.testing.assert_allclose(frame.intensity, rows[chosen, 3] / 255, atol=5e-4)
    vehicle = np.isin(raw[chosen], [17, 16])
    np.testing.assert_array_equal(frame.labels == NUSCENES_6.class_names.index("vehicle"), vehicle)
    assert (frame.labels[np.isin(raw[chosen], [0, 2, 19, 31])] == IGNORE_INDEX).all()
    assert frame.stamp_ns == record["timestamp"] * 1000
    assert frame.cameras[0].stamp_ns == frame.stamp_ns - 12_345_000
    assert frame.cameras[0].image.shape == (*NUSCENES_SIZE, 3)
    assert frame.cameras[0].image[0, 0, 2] > frame.cameras[0].image[0, 0, 0]  # blue sky: RGB


def test_labels_follow_the_names_of_category_json(small: Path, tmp_path: Path) -> None:
    """The same download with its categories numbered otherwise gives the same Frames."""
    assert run_prepare("nuscenes", small, tmp_path / "a", "--partial") == 0
    rng = np.random.default_rng(0)
    new_index = rng.permutation(len(NUSCENES_CATEGORIES)).astype(np.uint8)
    path = small / "v1.0-trainval" / "category.json"
    rows = json.loads(path.read_text())
    for row in rows:
        row["index"] = int(new_index[row["index"]])
    path.write_text(json.dumps(rows))
    for file in (small / "lidarseg" / "v1.0-trainval").iterdir():
        new_index[np.fromfile(file, dtype=np.uint8)].tofile(file)
    assert run_prepare("nuscenes", small, tmp_path / "b", "--partial") == 0
    first, second = (open_dataset(tmp_path / name, split="all") for name in "ab")
    assert len(first) == len(second) == 4
    for index in range(4):
        np.testing.assert_array_equal(first.labels(index), second.labels(index))


def test_all_cameras(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run_prepare("nuscenes", small, out, "--partial", "--cameras", "all") == 0
    dataset = open_dataset(out, split="all")
    frame = dataset[0]
    assert [camera.name for camera in frame.cameras] == list(NUSCENES_CAMERAS)
    seen_by = np.bincount(project_frame(frame).camera_index, minlength=6)
    assert (seen_by > 0).all()
    assert seen_by.sum() == frame.num_points == 301 - np.count_nonzero(unseen(small, dataset.frame_name(0)[1]))
    # One camera of the six: the other points are there, and no camera sees them.
    one = open_dataset(out, split="all", cameras=["CAM_BACK"])[0]
    assert one.num_points == frame.num_points
    assert set(project_frame(one).camera_index) == {NO_CAMERA, 0}


def unseen(root: Path, token: str) -> np.ndarray:
    height, width = NUSCENES_SIZE
    seen = np.zeros(301, dtype=bool)
    for channel in NUSCENES_CAMERAS:
        uv, depth = reference_pixels(root, token, channel)
        seen |= (depth > 0.1) & ((uv > -0.5) & (uv < (width - 0.5, height - 0.5))).all(axis=1)
    return ~seen


def test_a_full_download_is_checked_against_the_known_counts(small: Path, tmp_path: Path, capsys) -> None:
    assert run_prepare("nuscenes", small, tmp_path / "out") == 1
    errors = capsys.readouterr().err
    assert "error: split official_train: expected 28130 frames (computed), got 2" in errors
    assert "error: split train_usa: expected 15695 frames (computed), got 0" in errors
    assert "warning: split val_night: expected 606 frames (remembered), got 0" in errors
    assert "warning: class sidewalk of train_usa+test_usa: " in errors
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(report["errors"]) == 4
    assert open_dataset(tmp_path / "out", split="test_usa")[0].num_points > 0  # what is there can be used


def test_right_counts_end_well(small: Path, tmp_path: Path) -> None:
    known = {
        "official_train": KnownCount(frames=2, source="computed"),
        "test_usa": KnownCount(frames=2, source="computed"),
    }
    arguments = make_parser("").parse_args(["--root", str(small), "--out", str(tmp_path / "out")])
    assert run(arguments, NuScenesSource(small), known_counts=known) == 0


def test_missing_tables_and_files_are_listed(small: Path, tmp_path: Path, capsys) -> None:
    (small / "v1.0-trainval" / "scene.json").unlink()
    (small / "v1.0-trainval" / "lidarseg.json").unlink()
    assert run_prepare("nuscenes", small, tmp_path / "out", "--partial") == 1
    error = capsys.readouterr().err
    assert "2 files of the download are missing (" in error
    assert "v1.0-trainval/: 2 files, the first is lidarseg.json" in error
    assert (tmp_path / "out" / "missing_files.txt").read_text().split() == [
        "v1.0-trainval/lidarseg.json",
        "v1.0-trainval/scene.json",
    ]


def test_missing_sensor_files(small: Path, tmp_path: Path, capsys) -> None:
    images = sorted((small / "samples" / "CAM_FRONT").iterdir())
    sweeps = sorted((small / "samples" / "LIDAR_TOP").iterdir())
    for path in (*images[:2], sweeps[2]):
        path.unlink()
    assert run_prepare("nuscenes", small, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "3 files of the download are missing (docs/datasets.md shows how they should lie; --partial takes " in error
    assert "samples/CAM_FRONT/: 2 files" in error
    assert f"samples/LIDAR_TOP/{sweeps[2].name}" in error
    assert run_prepare("nuscenes", small, tmp_path / "out", "--partial") == 0
    assert "3 of 4 frames lack a file and are left out" in capsys.readouterr().out
    assert len(open_dataset(tmp_path / "out", split="all")) == 1
    assert run_prepare("nuscenes", small, tmp_path / "out", "--check-only") == 1


def first_token(root: Path) -> str:
    """LiDAR token of the first prepared frame."""
    return NuScenesSource(root).frames()[0].name


def sweep_of(root: Path, token: str) -> Path:
    return root / next(record["filename"] for record in read_table(root, "sample_data") if record["token"] == token)


def labels_of(root: Path, token: str) -> Path:
    return root / "lidarseg" / "v1.0-trainval" / f"{token}_lidarseg.bin"


def cut_sweep(root: Path, token: str) -> str:
    path = sweep_of(root, token)
    path.write_bytes(path.read_bytes()[:-7])
    return f"{path}: expected rows of 20 bytes, got {301 * 20 - 7} bytes; the file is cut off"


def drop_points(root: Path, token: str) -> str:
    path = sweep_of(root, token)
    path.write_bytes(path.read_bytes()[:-40])
    return f"has 301 labels for the 299 points of {path}"


def wrong_label(root: Path, token: str) -> str:
    path = labels_of(root, token)
    data = bytearray(path.read_bytes())
    data[5] = 57
    path.write_bytes(data)
    return f"{path}: 1 of 301 points have a label that is no class of the data set; point 5 has 57"


def cut_image(root: Path, token: str) -> str:
    path = root / NuScenesSource(root).frames()[0].cameras[0].image
    path.write_bytes(path.read_bytes()[:-300])
    return f"{path}: the image is cut off after {path.stat().st_size} bytes"


def no_image(root: Path, token: str) -> str:
    path = root / NuScenesSource(root).frames()[0].cameras[0].image
    path.write_bytes(b"<html>404</html>")
    return f"{path}: not a JPEG or PNG image"


@pytest.mark.parametrize("damage", [cut_sweep, drop_points, wrong_label, cut_image, no_image])
def test_a_damaged_file_is_named_skipped_counted_and_taken_when_repaired(damage, small, tmp_path, capsys) -> None:
    whole = {path: path.read_bytes() for path in small.rglob("*") if path.is_file()}
    sentence = damage(small, first_token(small))
    assert run_prepare("nuscenes", small, tmp_path / "out", "--partial") == 1
    error = capsys.readouterr().err
    assert "1 frames were left out because of damaged files:" in error
    assert sentence in error
    assert len(open_dataset(tmp_path / "out", split="all")) == 3
    assert sentence in json.loads((tmp_path / "out" / "report.json").read_text())["damaged"][0]
    for path, data in whole.items():
        path.write_bytes(data)
    assert run_prepare("nuscenes", small, tmp_path / "out", "--partial") == 0
    assert len(open_dataset(tmp_path / "out", split="all")) == 4


def cut_table(root: Path) -> str:
    path = root / "v1.0-trainval" / "sample_data.json"
    path.write_text(path.read_text()[:-100])
    return "sample_data.json: the table is cut off or not JSON"


def no_list(root: Path) -> str:
    (root / "v1.0-trainval" / "log.json").write_text('{"a": 1}')
    return "log.json: expected a JSON list of records"


def no_index(root: Path) -> str:
    path = root / "v1.0-trainval" / "category.json"
    path.write_text(
        json.dumps([{k: v for k, v in row.items() if k != "index"} for row in json.loads(path.read_text())])
    )
    return "category.json: categories have no 'index'; extract nuScenes-lidarseg over the download"


def same_index(root: Path) -> str:
    path = root / "v1.0-trainval" / "category.json"
    path.write_text(json.dumps([{**row, "index": 3} for row in json.loads(path.read_text())]))
    return "category.json: two categories have one index"


def no_labels(root: Path) -> str:
    (root / "v1.0-trainval" / "lidarseg.json").write_text("[]")
    return "lidarseg.json: has no labels for the sweep"


def no_pose(root: Path) -> str:
    path = root / "v1.0-trainval" / "ego_pose.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:3]))
    return "which sample_data.json refers to"


def no_key_frame(root: Path) -> str:
    path = root / "v1.0-trainval" / "sample_data.json"
    path.write_text(json.dumps([row for row in json.loads(path.read_text()) if "/CAM_FRONT/" not in row["filename"]]))
    return "sample_data.json: has no CAM_FRONT key frame for the sample"


def no_log(root: Path) -> str:
    (root / "v1.0-trainval" / "log.json").write_text("[]")
    return "which scene.json refers to"


def no_sensor(root: Path) -> str:
    (root / "v1.0-trainval" / "sensor.json").write_text("[]")
    return "which calibrated_sensor.json refers to"


def no_key(root: Path) -> str:
    path = root / "v1.0-trainval" / "sample_data.json"
    path.write_text(path.read_text().replace('"is_key_frame"', '"is_keyframe"'))
    return "sample_data.json: a record has no 'is_key_frame'; it has token, sample_token, "


def no_text(root: Path) -> str:
    (root / "v1.0-trainval" / "scene.json").write_bytes(b'[{"token": "\xff\xfe"}]')
    return "scene.json: not a text file: invalid start byte"


DAMAGED_TABLES = [cut_table, no_list, no_index, same_index, no_labels, no_pose, no_key_frame]
DAMAGED_TABLES += [no_log, no_sensor, no_key, no_text]


@pytest.mark.parametrize("damage", DAMAGED_TABLES)
def test_damaged_tables_end_in_a_sentence(damage, small: Path, tmp_path: Path, capsys) -> None:
    sentence = damage(small)
    assert run_prepare("nuscenes", small, tmp_path / "out", "--partial") == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out" / "points").exists()  # known before the work begins


@pytest.mark.parametrize("chunk", [7, 64, 1 << 22])
def test_tables_are_read_record_by_record(chunk: int, download: Path) -> None:
    for name in ("category", "scene"):
        path = download / "v1.0-trainval" / f"{name}.json"
        assert list(iter_records(path, chunk=chunk)) == read_table(download, name)


def test_a_table_damaged_in_the_middle_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "ego_pose.json"
    text = '[{"token": "a"}, {"token": !}' + ', {"token": "b"}' * 200_000
    path.write_bytes(text.encode() + b"\xff]")  # read to its end, it would be no text
    records = iter_records(path, chunk=1 << 19)
    assert next(records) == {"token": "a"}
    with pytest.raises(ValueError, match=r"ego_pose.json: the table is cut off or not JSON"):
        next(records)


def test_bag_holds_whole_sweeps_with_ground_truth(small: Path, tmp_path: Path, capsys) -> None:
    flags = [
        "--partial",
        "--bag",
        str(tmp_path / "bag"),
        "--sequence",
        "scene-0061",
        "--cameras",
        "CAM_FRONT",
        "CAM_BACK",
    ]
    assert run_prepare("nuscenes", small, tmp_path / "unused", *flags) == 0
    frames = list(read_frames(tmp_path / "bag", label_topic="/ground_truth/points"))
    assert len(frames) == 2
    for frame, source in zip(frames, NuScenesSource(small).frames(), strict=False):
        raw = np.fromfile(small / source.labels, dtype=np.uint8)
        assert frame.num_points == 301
        assert frame.stamp_ns == source.stamp_ns
        assert {camera.name for camera in frame.cameras} == {"CAM_FRONT", "CAM_BACK"}
        np.testing.assert_array_equal(frame.labels == NUSCENES_6.class_names.index("manmade"), raw == 28)
        np.testing.assert_array_equal(frame.labels == IGNORE_INDEX, np.isin(raw, [0, 2, 19, 31]))
    assert not (tmp_path / "unused").exists()
    assert (
        run_prepare(
            "nuscenes", small, tmp_path / "unused", "--partial", "--bag", str(tmp_path / "b"), "--sequence", "x"
        )
        == 1
    )
    assert "--sequence: expected one of scene-0061, scene-0103, got 'x'" in capsys.readouterr().err


def test_wrong_flags_end_in_a_sentence(small: Path, tmp_path: Path, capsys) -> None:
    program = load_program("prepare_nuscenes")
    assert program.main(["--root", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 1
    assert "nowhere: no such folder" in capsys.readouterr().err
    assert program.main(["--root", str(small)]) == 1
    assert "--out: missing" in capsys.readouterr().err
    assert program.main(["--root", str(small), "--out", str(tmp_path), "--cameras", "CAM_TOP"]) == 1
    assert "--cameras: expected some of CAM_FRONT, " in capsys.readouterr().err
    assert program.main(["--root", str(small), "--bag", str(tmp_path / "b"), "--partial"]) == 1
    assert "--bag: which --sequence?" in capsys.readouterr().err
    assert program.main(["--root", str(small), "--version", "v1.0-mini", "--out", str(tmp_path / "out")]) == 1
    assert "v1.0-mini/: 9 files" in capsys.readouterr().err
