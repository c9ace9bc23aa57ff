# SPDX-License-Identifier: Apache-2.0
"""SemanticKITTI: from a miniature of the download, through the real program, to Frames; and damaged ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from miniatures import KITTI_MATRIX, KITTI_OFFSET_M, KITTI_SIZES, KITTI_TR, make_semantic_kitti, run_prepare

from xmodal_seg.bags import read_frames
from xmodal_seg.geometry import project_frame
from xmodal_seg.labels import IGNORE_INDEX, SEMANTIC_KITTI_10, VIRTUAL_KITTI_6
from xmodal_seg.training.data.prepared_dataset import open_dataset
from xmodal_seg.training.data.semantic_kitti import SEQUENCE_LENGTHS, SemanticKittiSource, read_calibration, read_times
from xmodal_seg.training.data.splits import KNOWN_COUNTS

NUM_POINTS = 301


@pytest.fixture
def download(tmp_path: Path) -> Path:
    return make_semantic_kitti(tmp_path / "kitti", num_points=NUM_POINTS)


@pytest.fixture
def prepared(download: Path, tmp_path: Path) -> Path:
    assert run_prepare("semantic_kitti", download, tmp_path / "out", "--partial") == 0
    return tmp_path / "out"


def frame_file(root: Path, kind: str, name: str, sequence: str = "08") -> Path:
    return root / "dataset" / "sequences" / sequence / kind / name


def reference_pixels(points: np.ndarray, camera: str) -> tuple[np.ndarray, np.ndarray]:
    """P (3, 4) times Tr (4, 4), as KITTI's devkit says."""
    offset = np.array([KITTI_OFFSET_M[camera], -0.001, 0.0027])
    projection = np.hstack([KITTI_MATRIX, (KITTI_MATRIX @ offset)[:, None]])
    homogeneous = np.hstack([points.astype(np.float64), np.ones((len(points), 1))])
    pixels = homogeneous @ (projection @ np.vstack([KITTI_TR, [0, 0, 0, 1]])).T
    return pixels[:, :2] / pixels[:, 2:], pixels[:, 2]


@pytest.mark.parametrize("camera", ["image_2", "image_3"])
def test_points_are_those_that_p_times_tr_puts_into_the_image(camera: str, download: Path, tmp_path: Path) -> None:
    assert run_prepare("semantic_kitti", download, tmp_path / "out", "--partial", "--cameras", camera) == 0
    dataset = open_dataset(tmp_path / "out", split="test")
    frame = dataset[1]
    rows = np.fromfile(frame_file(download, "velodyne", "000001.bin"), dtype="<f4").reshape(-1, 4)
    uv, depth = reference_pixels(rows[:, :3], camera)
    height, width = KITTI_SIZES[camera]
    inside = (depth > 0.1) & ((uv > -0.5) & (uv < (width - 0.5, height - 0.5))).all(axis=1)
    assert 20 < inside.sum() < NUM_POINTS
    np.testing.assert_array_equal(dataset.points(1)["sweep_index"], np.flatnonzero(inside))
    np.testing.assert_array_equal(frame.points, rows[inside, :3])
    np.testing.assert_allclose(project_frame(frame).uv, uv[inside], atol=1e-3)
    np.testing.assert_allclose(frame.intensity, rows[inside, 3], atol=5e-4)


def test_one_preparation_serves_both_merges(download: Path, prepared: Path) -> None:
    ten = open_dataset(prepared, split="test", label_space="semantic_kitti_10")
    six = open_dataset(prepared, split="test", label_space="virtual_kitti_6")
    raw = np.fromfile(frame_file(download, "labels", "000000.label"), dtype="<u4") & 0xFFFF
    raw = raw[ten.points(0)["sweep_index"]]
    assert set(raw) >= {10, 40, 44, 50, 99, 252}
    for space, labels in ((SEMANTIC_KITTI_10, ten.labels(0)), (VIRTUAL_KITTI_6, six.labels(0))):
        np.testing.assert_array_equal(labels == space.class_names.index("car"), np.isin(raw, [10, 252]))
        np.testing.assert_array_equal(labels == space.class_names.index("road"), raw == 40)
    assert (ten.labels(0)[raw == 44] == SEMANTIC_KITTI_10.class_names.index("parking")).all()
    assert (six.labels(0)[raw == 44] == IGNORE_INDEX).all()


def test_splits_stamps_and_names(prepared: Path) -> None:
    report = json.loads((prepared / "report.json").read_text())
    assert report["splits"] == {"train": 3, "val": 2, "test": 2, "hidden_test": 0}
    train = open_dataset(prepared, split="train")
    assert [train.frame_name(index) for index in range(3)] == [("00", f"{n:06d}") for n in range(3)]
    assert [train[index].stamp_ns for index in range(3)] == [10**9, 10**9 + 103_700_000, 10**9 + 207_400_000]


def test_sequences_without_labels_are_taken_when_asked_for(download: Path, tmp_path: Path) -> None:
    frame_file(download, "velodyne", "000000.bin", sequence="11").rename(tmp_path / "kept.bin")
    assert run_prepare("semantic_kitti", download, tmp_path / "without", "--partial") == 0  # what it lacks is no matter
    (tmp_path / "kept.bin").rename(frame_file(download, "velodyne", "000000.bin", sequence="11"))
    assert run_prepare("semantic_kitti", download, tmp_path / "out", "--partial", "--hidden-test") == 0
    hidden = open_dataset(tmp_path / "out", split="hidden_test")
    assert len(hidden) == 1
    assert (hidden[0].labels == IGNORE_INDEX).all()


def test_the_root_may_be_the_dataset_folder_itself(download: Path, tmp_path: Path) -> None:
    assert run_prepare("semantic_kitti", download / "dataset", tmp_path / "out", "--partial") == 0


def test_a_full_download_has_every_frame_of_every_sequence(download: Path, tmp_path: Path, capsys) -> None:
    assert sum(SEQUENCE_LENGTHS.values()) == sum(known.frames for known in KNOWN_COUNTS["semantic_kitti"].values())
    assert run_prepare("semantic_kitti", download, tmp_path / "out", "--check-only") == 1
    error = capsys.readouterr().err
    assert "sequences/01/: 2 files, the first is calib.txt" in error
    assert "--partial" not in error  # nothing can be taken without tables
    for sequence in SEQUENCE_LENGTHS:
        folder = download / "dataset" / "sequences" / sequence
        folder.mkdir(exist_ok=True)
        (folder / "calib.txt").write_text((download / "dataset" / "sequences" / "00" / "calib.txt").read_text())
        (folder / "times.txt").write_text("0.1\n" * 4661)
    assert run_prepare("semantic_kitti", download, tmp_path / "out", "--check-only") == 1
    missing = (tmp_path / "out" / "missing_files.txt").read_text().split()
    assert len(missing) == 3 * (sum(SEQUENCE_LENGTHS.values()) - 7)
    assert "sequences/02/image_2/004660.png" in missing
    assert "sequences/08/velodyne/000002.bin" in missing
    assert "sequences/08/velodyne/000001.bin" not in missing


def cut_sweep(root: Path) -> str:
    path = frame_file(root, "velodyne", "000000.bin")
    path.write_bytes(path.read_bytes()[:-3])
    return "000000.bin: expected rows of 16 bytes"


def empty_sweep(root: Path) -> str:
    frame_file(root, "velodyne", "000000.bin").write_bytes(b"")
    return "000000.bin: expected rows of 16 bytes, got 0 bytes"


def cut_labels(root: Path) -> str:
    path = frame_file(root, "labels", "000000.label")
    path.write_bytes(path.read_bytes()[:-4])
    return f"000000.label: has {NUM_POINTS - 1} labels for the {NUM_POINTS} points of"


def wrong_label(root: Path) -> str:
    path = frame_file(root, "labels", "000000.label")
    labels = np.fromfile(path, dtype="<u4")
    labels[9] = 12 | 3 << 16
    labels.tofile(path)
    return "000000.label: 1 of 301 points have a label that is no class of the data set; point 9 has 12"


def cut_image(root: Path) -> str:
    path = frame_file(root, "image_2", "000000.png")
    path.write_bytes(path.read_bytes()[:-50])
    return "image_2/000000.png: the image is cut off"


def broken_image(root: Path) -> str:
    path = frame_file(root, "image_2", "000000.png")
    data = bytearray(path.read_bytes())
    data[16:24] = b"\xff" * 8  # width and height
    path.write_bytes(data)
    return "image_2/000000.png: the image cannot be decoded"


@pytest.mark.parametrize("damage", [cut_sweep, empty_sweep, cut_labels, wrong_label, cut_image, broken_image])
def test_a_damaged_file_is_named_and_skipped(damage, download: Path, tmp_path: Path, capsys) -> None:
    sentence = damage(download)
    assert run_prepare("semantic_kitti", download, tmp_path / "out", "--partial") == 1
    error = capsys.readouterr().err
    assert "1 frames were left out because of damaged files:" in error
    assert sentence in error
    test = open_dataset(tmp_path / "out", split="test")
    assert [test.frame_name(index) for index in range(len(test))] == [("08", "000001")]


def test_calibration_errors(tmp_path: Path) -> None:
    path = tmp_path / "calib.txt"
    with pytest.raises(ValueError, match=r"calib.txt: cannot be read: No such file"):
        read_calibration(path)
    path.write_text("P2: 1 2 3\n")
    with pytest.raises(ValueError, match=r"calib.txt: has no line Tr; it has P2.*extract data_odometry_calib.zip last"):
        read_calibration(path)
    path.write_text("Tr: 1 2 3\n")
    with pytest.raises(ValueError, match=r"calib.txt: line Tr: expected 12 numbers, got 3"):
        read_calibration(path)
    path.write_text("Tr: 1 2 x\n")
    with pytest.raises(ValueError, match=r"calib.txt: line Tr: could not convert"):
        read_calibration(path)


def test_times_errors(download: Path, tmp_path: Path) -> None:
    path = tmp_path / "times.txt"
    path.write_text("0.0\nabc\n")
    with pytest.raises(ValueError, match="line 2: expected a time in s, got 'abc'"):
        read_times(path)
    (download / "dataset" / "sequences" / "08" / "times.txt").write_text("0.0\n")
    with pytest.raises(ValueError, match=r"times.txt: has 1 stamps, frame 000001 needs more"):
        SemanticKittiSource(download, partial=True).frames()


def test_an_empty_folder_is_no_download(tmp_path: Path, capsys) -> None:
    assert run_prepare("semantic_kitti", tmp_path, tmp_path / "out", "--partial") == 1
    expected = "1 files of the download are missing (docs/datasets.md shows how they should lie):\n  sequences\n"
    assert expected in capsys.readouterr().err


def test_bag_in_the_other_label_space(download: Path, tmp_path: Path) -> None:
    flags = ["--partial", "--bag", str(tmp_path / "bag"), "--sequence", "08", "--label-space", "virtual_kitti_6"]
    assert run_prepare("semantic_kitti", download, tmp_path / "out", *flags) == 0
    frames = list(read_frames(tmp_path / "bag", label_topic="/ground_truth/points"))
    raw = np.fromfile(frame_file(download, "labels", "000001.label"), dtype="<u4") & 0xFFFF
    assert [frame.num_points for frame in frames] == [NUM_POINTS, NUM_POINTS]
    np.testing.assert_array_equal(frames[1].labels == VIRTUAL_KITTI_6.class_names.index("object"), raw == 99)
