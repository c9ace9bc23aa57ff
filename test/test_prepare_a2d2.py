# SPDX-License-Identifier: Apache-2.0
"""A2D2: from a miniature of the download, through the real program, to Frames; and damaged ones."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from miniatures import (
    A2D2_DISTORTION,
    A2D2_MATRIX,
    A2D2_ORIGINAL,
    A2D2_SIZE,
    a2d2_configuration,
    a2d2_points,
    make_a2d2,
    run_prepare,
)

from xmodal_seg.bags import read_frames
from xmodal_seg.geometry import project_frame
from xmodal_seg.labels import IGNORE_INDEX, SEMANTIC_KITTI_10
from xmodal_seg.training.data.a2d2 import read_calibrations
from xmodal_seg.training.data.prepared_dataset import open_dataset
from xmodal_seg.training.data.raw_classes import A2D2_COLOURS
from xmodal_seg.training.data.splits import A2D2_TEST, A2D2_TRAIN

TRAIN, TEST = "20180810_142822", "20180807_145028"
CLASS_OF_KIND = ("road", "building", "car")


@pytest.fixture(scope="module")
def download(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_a2d2(tmp_path_factory.mktemp("a2d2"), cameras=("front_center", "front_left"))


@pytest.fixture(scope="module")
def prepared(download: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    assert run_prepare("a2d2", download, out, "--partial") == 0
    return out


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return make_a2d2(tmp_path / "a2d2", {TRAIN: 1, TEST: 1}, num_points=301, nested=True)


def frame_file(root: Path, kind: str, number: int = 37, sequence: str = TRAIN, camera: str = "front_center") -> Path:
    extension = "npz" if kind == "lidar" else "png"
    name = f"{sequence.replace('_', '')}_{kind}_{camera.replace('_', '')}_{number:09d}.{extension}"
    return root / sequence / kind / f"cam_{camera}" / name


def opencv_undistorted(path: Path, lens: str) -> np.ndarray:
    image = cv2.imread(str(path))
    distortion = np.array(A2D2_DISTORTION[lens])
    if lens == "Fisheye":
        image = cv2.fisheye.undistortImage(image, A2D2_ORIGINAL, D=distortion, Knew=A2D2_MATRIX)
    else:
        image = cv2.undistort(image, A2D2_ORIGINAL, distCoeffs=distortion, newCameraMatrix=A2D2_MATRIX)
    return image[..., ::-1]


@pytest.mark.parametrize(("camera", "lens"), [("front_center", "Telecam"), ("front_left", "Fisheye")])
def test_images_are_undistorted_copies(camera: str, lens: str, download: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in download.rglob("*.png")}
    assert run_prepare("a2d2", download, tmp_path / "out", "--partial", "--cameras", camera) == 0
    frame = open_dataset(tmp_path / "out", split="train", cameras=[camera])[0]
    expected = opencv_undistorted(frame_file(download, "camera", camera=camera), lens)
    np.testing.assert_array_equal(frame.cameras[0].image, expected)
    np.testing.assert_array_equal(frame.cameras[0].calibration.camera_matrix, A2D2_MATRIX)
    assert frame.cameras[0].calibration.distortion is None
    assert {path: path.read_bytes() for path in download.rglob("*.png")} == before


def test_points_keep_their_pixels_and_take_the_colour_there(prepared: Path) -> None:
    dataset = open_dataset(prepared, split="train")
    for index in range(3):
        frame = dataset[index]
        arrays, kinds = a2d2_points(601, seed=37 + 45 * index)
        chosen = dataset.points(index)["sweep_index"]
        assert len(chosen) == len(kinds)
        np.testing.assert_allclose(project_frame(frame).uv, np.stack([arrays["col"], arrays["row"]], 1), atol=1e-3)
        expected = np.array([SEMANTIC_KITTI_10.class_names.index(name) for name in CLASS_OF_KIND])[kinds]
        # Undistortion mixes colours at borders: such points have no class, and never a wrong one but by chance.
        known = frame.labels != IGNORE_INDEX
        assert known.mean() > 0.5
        assert (frame.labels[known] == expected[known]).mean() > 0.99
        np.testing.assert_allclose(frame.intensity, (np.arange(len(chosen)) % 256) / 255, atol=5e-4)


def test_frames_without_points_in_view_are_left_out(prepared: Path) -> None:
    report = json.loads((prepared / "report.json").read_text())
    assert report["splits"] == {"train": 3, "test": 2}
    assert report["frames_without_visible_points"] == ["20180810_142822/20180810142822_frontcenter_000009000"]
    assert report["damaged"] == []


def test_stamps_are_those_of_the_last_return(prepared: Path) -> None:
    dataset = open_dataset(prepared, split="train")
    arrays, _ = a2d2_points(601, seed=82)
    expected_us = arrays["timestamp"].max() + 82 * 33_333
    assert dataset[1].stamp_ns == dataset[1].cameras[0].stamp_ns == 1000 * expected_us


def test_each_camera_is_a_frame_of_its_own(download: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run_prepare("a2d2", download, out, "--partial", "--cameras", "front_center", "front_left") == 0
    dataset = open_dataset(out, split="test")
    assert [[camera.name for camera in dataset[index].cameras] for index in range(4)] == [
        ["front_center"],
        ["front_center"],
        ["front_left"],
        ["front_left"],
    ]


def test_bag(small: Path, tmp_path: Path) -> None:
    flags = ["--partial", "--bag", str(tmp_path / "bag"), "--sequence", TEST]
    assert run_prepare("a2d2", small, tmp_path / "out", *flags) == 0
    frames = list(read_frames(tmp_path / "bag", label_topic="/ground_truth/points"))
    assert [frame.num_points for frame in frames] == [len(a2d2_points(301, seed=37)[1])]
    assert set(frames[0].labels) <= {IGNORE_INDEX, 0, 4, 7}


def test_a_bag_has_one_camera(download: Path, tmp_path: Path, capsys) -> None:
    flags = ["--partial", "--bag", str(tmp_path / "bag"), "--sequence", TEST, "--cameras", "all"]
    assert run_prepare("a2d2", download, tmp_path / "out", *flags) == 1
    assert "--bag: a2d2 has each camera's sweeps apart, so one of --cameras at a time" in capsys.readouterr().err


def test_missing_configuration_and_sequences(small: Path, tmp_path: Path, capsys) -> None:
    (small / "cams_lidars.json").unlink()
    assert run_prepare("a2d2", small, tmp_path / "out") == 1
    missing = (tmp_path / "out" / "missing_files.txt").read_text().split()
    assert missing[0] == "cams_lidars.json"
    assert "20181204_170238/camera" in missing
    assert len(missing) == 1 + 19  # two of the 21 sequences are there


def test_a_missing_image_or_sequence_is_no_complete_download(small: Path, tmp_path: Path, capsys) -> None:
    root = small / "camera_lidar_semantic"
    frame_file(root, "camera").unlink()
    assert run_prepare("a2d2", small, tmp_path / "out", "--partial", "--check-only") == 0
    assert "1 of 3 frames lack a file" in capsys.readouterr().out

    for sequence in (*A2D2_TRAIN, *A2D2_TEST):
        (root / sequence).mkdir(exist_ok=True)
    assert run_prepare("a2d2", small, tmp_path / "out", "--check-only") == 1
    assert "20180807_145028" not in (error := capsys.readouterr().err)
    assert "no frame of front_center in 20180925_101535, 20180925_112730" in error
    assert "are they extracted?" in error


def no_row_file(root: Path) -> str:
    frame_file(root, "lidar").write_bytes(b"PK\x03\x04 nothing more")
    return "lidar_frontcenter_000000037.npz: cannot be read"


def missing_array(root: Path) -> str:
    arrays, _ = a2d2_points(301, seed=37)
    np.savez(frame_file(root, "lidar"), **{key: value for key, value in arrays.items() if key != "col"})
    return "000000037.npz: has no array col"


def short_array(root: Path) -> str:
    arrays, _ = a2d2_points(301, seed=37)
    np.savez(frame_file(root, "lidar"), **{**arrays, "col": arrays["col"][:-1]})
    return "000000037.npz: expected (N, 3) points and arrays of the same length"


def other_calibration(root: Path) -> str:
    arrays, _ = a2d2_points(301, seed=37)
    np.savez(frame_file(root, "lidar"), **{**arrays, "col": arrays["col"] + 9})
    return "the points project 9.0 px (median) away from the file's row and col"


def small_image(root: Path) -> str:
    cv2.imwrite(str(frame_file(root, "camera")), np.zeros((8, 9, 3), dtype=np.uint8))
    return f"front_center: expected an image of {A2D2_SIZE} px, got (8, 9)"


def cut_labels(root: Path) -> str:
    path = frame_file(root, "label")
    path.write_bytes(path.read_bytes()[:-30])
    return "label_frontcenter_000000037.png: the image is cut off"


@pytest.mark.parametrize(
    "damage", [no_row_file, missing_array, short_array, other_calibration, small_image, cut_labels]
)
def test_a_damaged_file_is_named_and_skipped(damage, small: Path, tmp_path: Path, capsys) -> None:
    sentence = damage(small / "camera_lidar_semantic")
    assert run_prepare("a2d2", small, tmp_path / "out", "--partial") == 1
    assert sentence in capsys.readouterr().err
    assert len(open_dataset(tmp_path / "out", split="test")) == 1
    with pytest.raises(ValueError, match="the split 'train' has no frames; splits that have: test"):
        open_dataset(tmp_path / "out", split="train")


def test_an_undistorted_image_that_is_gone_is_made_again(small: Path, tmp_path: Path) -> None:
    assert run_prepare("a2d2", small, tmp_path / "out", "--partial") == 0
    image = next((tmp_path / "out" / "images").rglob("*.png"))
    data = image.read_bytes()
    image.unlink()
    assert run_prepare("a2d2", small, tmp_path / "out", "--partial") == 0
    assert image.read_bytes() == data


def test_only_images_of_the_data_set_are_taken(small: Path, tmp_path: Path, capsys) -> None:
    folder = frame_file(small / "camera_lidar_semantic", "camera").parent
    (folder / "._20180807145028_camera_frontcenter_000000037.png").write_bytes(b"what macOS puts beside files")
    assert run_prepare("a2d2", small, tmp_path / "out", "--partial") == 0
    (folder / "copy.png").write_bytes(b"")
    assert run_prepare("a2d2", small, tmp_path / "out", "--partial") == 1
    assert (
        "copy.png: expected a name such as 20180810142822_camera_frontcenter_000000037.png" in capsys.readouterr().err
    )


def test_another_class_list_is_refused(tmp_path: Path, capsys) -> None:
    colours = {("#123456" if name == "Sky" else colour): name for colour, name in A2D2_COLOURS.items()}
    root = make_a2d2(tmp_path / "a2d2", {TRAIN: 1}, class_list=colours)
    assert run_prepare("a2d2", root, tmp_path / "out", "--partial") == 1
    assert (
        "class_list.json: differs from the published list in ('#123456', 'Sky') and 1 more" in capsys.readouterr().err
    )


def test_configuration_errors(tmp_path: Path) -> None:
    path = tmp_path / "cams_lidars.json"
    with pytest.raises(ValueError, match=r"cams_lidars.json: cannot be read"):
        read_calibrations(path)
    path.write_text("[")
    with pytest.raises(ValueError, match=r"cams_lidars.json: not JSON"):
        read_calibrations(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="expected an object, got list"):
        read_calibrations(path)
    configuration = a2d2_configuration()
    del configuration["cameras"]["side_left"]["CamMatrix"]
    path.write_text(json.dumps(configuration))
    with pytest.raises(ValueError, match=r"cameras.side_left is not complete: 'CamMatrix'"):
        read_calibrations(path)
    configuration = a2d2_configuration()
    configuration["cameras"]["rear_center"]["Lens"] = "Pinhole"
    path.write_text(json.dumps(configuration))
    with pytest.raises(ValueError, match=r"cameras.rear_center.Lens: expected Telecam or Fisheye, got 'Pinhole'"):
        read_calibrations(path)
