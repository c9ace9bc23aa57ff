# SPDX-License-Identifier: Apache-2.0
"""VirtualKITTI: from a miniature of the download, through the real program, to Frames; and damaged ones."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from miniatures import VKITTI_COLOURS, VKITTI_SIZE, VKITTI_WEATHERS, make_virtual_kitti, run_prepare, vkitti_images

from xmodal_seg.geometry import project_frame
from xmodal_seg.labels import IGNORE_INDEX, VIRTUAL_KITTI_6
from xmodal_seg.training.data.prepared_dataset import open_dataset
from xmodal_seg.training.data.splits import KNOWN_COUNTS
from xmodal_seg.training.data.virtual_kitti import SEQUENCE_LENGTHS

RAW_IDS = {"Terrain": 0, "Tree": 1, "Vegetation": 2, "Building": 3, "Road": 4, "GuardRail": 5, "TrafficSign": 6}
RAW_IDS |= {"TrafficLight": 7, "Pole": 8, "Misc": 9, "Truck": 10, "Car": 11, "Van": 12, "Sky": 99}


@pytest.fixture(scope="module")
def download(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_virtual_kitti(tmp_path_factory.mktemp("vkitti"))


@pytest.fixture(scope="module")
def prepared(download: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    assert run_prepare("virtual_kitti", download, out, "--partial") == 0
    return out


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A download of one frame that a test may damage."""
    return make_virtual_kitti(tmp_path / "vkitti", {"0002": 1, "0018": 1})


def reference_cloud(index: int) -> np.ndarray:
    """(N, 4) x y z raw label, pixel by pixel as create_npy.py version 1 does, for a few rows of the image."""
    depth_cm, scene = vkitti_images(index)
    raw_of = {colour: RAW_IDS[name.split(":")[0]] for name, colour in VKITTI_COLOURS.items()}
    rows = []
    for v in range(0, VKITTI_SIZE[0], 7):
        for u in range(0, VKITTI_SIZE[1], 11):
            depth = depth_cm[v, u] / 100.0
            x, y = (u - 620.5) / 725.0 * depth, (v - 187.0) / 725.0 * depth
            if depth**2 + x**2 + y**2 < 100.0**2:
                rows.append((depth, -x, -y, raw_of[tuple(scene[v, u].tolist())], v * VKITTI_SIZE[1] + u))
    return np.array(rows)


def test_points_are_those_of_the_published_script(prepared: Path) -> None:
    dataset = open_dataset(prepared, split="train", variants=["clone"])
    for index, number in ((0, 0), (1, 1), (2, 0)):
        frame, points = dataset[index], dataset.points(index)
        u, v = project_frame(frame).uv.T
        np.testing.assert_allclose(u, np.rint(u), atol=2e-3)  # every point sits on the centre of its pixel
        pixels = np.rint(v).astype(int) * VKITTI_SIZE[1] + np.rint(u).astype(int)
        expected = reference_cloud(number)
        chosen = np.searchsorted(pixels, expected[:, 4].astype(int))
        np.testing.assert_array_equal(pixels[chosen], expected[:, 4])
        np.testing.assert_allclose(frame.points[chosen], expected[:, :3], rtol=1e-6)
        np.testing.assert_array_equal(points["raw_label"][chosen], expected[:, 3])
        assert np.isin(pixels, expected[:, 4]).sum() == len(expected)  # and no other point of these pixels


def test_far_points_are_cut_and_near_sky_is_ignored(prepared: Path) -> None:
    dataset = open_dataset(prepared, split="train", variants=["clone"])
    frame, raw = dataset[0], dataset.points(0)["raw_label"]
    assert np.linalg.norm(frame.points, axis=1).max() < 100
    assert frame.points[:, 0].max() < 99  # the block at 99.9 m of depth is farther than 100 m
    assert set(raw) == set(RAW_IDS.values())
    for raw_id in (5, 12, 99):
        assert (frame.labels[raw == raw_id] == IGNORE_INDEX).all()
    assert (frame.labels[raw == 9] == VIRTUAL_KITTI_6.class_names.index("object")).all()
    assert frame.intensity is None


def test_every_frame_stands_once_in_each_weather(download: Path, prepared: Path) -> None:
    dataset = open_dataset(prepared, split="train")
    assert len(dataset) == 3 * 6
    for index in range(6, 12):
        sequence, name = dataset.frame_name(index)
        weather = VKITTI_WEATHERS[index - 6]
        image = cv2.imread(str(download / "vkitti_1.3.1_rgb" / sequence / weather / f"{name}.png"))[..., ::-1]
        frame = dataset[index]
        np.testing.assert_array_equal(frame.cameras[0].image, image)
        np.testing.assert_array_equal(frame.points, dataset[6].points)
    two = open_dataset(prepared, split="train", variants=["rain", "fog"])
    np.testing.assert_array_equal(two[0].cameras[0].image, dataset[4].cameras[0].image)
    with pytest.raises(ValueError, match="has no image variant 'snow'; prepared were clone, fog"):
        open_dataset(prepared, split="train", variants=["snow"])


def test_points_made_by_the_published_script_are_taken_as_they_are(download: Path, tmp_path: Path) -> None:
    root = tmp_path / "vkitti"
    shutil.copytree(download / "vkitti_1.3.1_rgb" / "0020", root / "vkitti_1.3.1_rgb" / "0020")
    cloud = reference_cloud(0)
    rows = np.hstack([cloud[:, :3], np.zeros((len(cloud), 3)), cloud[:, 3:4]])
    (root / "vkitti_npy" / "0020").mkdir(parents=True)
    np.save(root / "vkitti_npy" / "0020" / "00000.npy", rows)
    assert run_prepare("virtual_kitti", root, tmp_path / "out", "--partial") == 0
    frame = open_dataset(tmp_path / "out", split="train")[0]
    np.testing.assert_array_equal(frame.points, cloud[:, :3].astype(np.float32))
    np.save(root / "vkitti_npy" / "0020" / "00000.npy", rows[:, :6])
    assert run_prepare("virtual_kitti", root, tmp_path / "broken", "--partial") == 1


def test_lengths_are_the_known_ones(small: Path, tmp_path: Path, capsys) -> None:
    assert sum(SEQUENCE_LENGTHS.values()) == KNOWN_COUNTS["virtual_kitti"]["train"].frames
    assert run_prepare("virtual_kitti", small, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "3 files of the download are missing" in error
    assert "0001_clone_scenegt_rgb_encoding.txt" in error
    for sequence in SEQUENCE_LENGTHS:
        encoding = small / "vkitti_1.3.1_scenegt" / f"{sequence}_clone_scenegt_rgb_encoding.txt"
        encoding.write_text("Category(:id) r g b\n")
    assert run_prepare("virtual_kitti", small, tmp_path / "out") == 1
    missing = (tmp_path / "out" / "missing_files.txt").read_text().split()
    assert len(missing) == (2126 - 2) * 8  # depth, labels and six weathers
    assert "vkitti_1.3.1_rgb/0020/sunset/00836.png" in missing


def eight_bit_depth(root: Path) -> str:
    cv2.imwrite(str(root / "vkitti_1.3.1_depthgt/0002/clone/00000.png"), np.zeros(VKITTI_SIZE, dtype=np.uint8))
    return "depthgt/0002/clone/00000.png: expected a one-channel 16-bit PNG, got (375, 1242) uint8"


def unknown_colour(root: Path) -> str:
    path = root / "vkitti_1.3.1_scenegt/0002/clone/00000.png"
    image = cv2.imread(str(path))
    image[190, 30] = (3, 2, 1)  # BGR
    cv2.imwrite(str(path), image)
    return "have a colour that the encoding file does not name; the first is (1, 2, 3)"


def other_size(root: Path) -> str:
    cv2.imwrite(str(root / "vkitti_1.3.1_scenegt/0002/clone/00000.png"), np.zeros((9, 9, 3), dtype=np.uint8))
    return "scenegt/0002/clone/00000.png: is (9, 9) px, its depth image (375, 1242)"


def cut_weather(root: Path) -> str:
    path = root / "vkitti_1.3.1_rgb/0002/rain/00000.png"
    path.write_bytes(path.read_bytes()[:-20])
    return "rgb/0002/rain/00000.png: the image is cut off"


def small_weather(root: Path) -> str:
    cv2.imwrite(str(root / "vkitti_1.3.1_rgb/0002/fog/00000.png"), np.zeros((9, 9, 3), dtype=np.uint8))
    return "the variants of the image have different sizes"


def wrong_encoding(root: Path) -> str:
    path = root / "vkitti_1.3.1_scenegt/0002_clone_scenegt_rgb_encoding.txt"
    path.write_text(path.read_text() + "Dragon:1 9 9 9\n")
    return "expected lines such as 'Car:1 90 128 255' of a known category, got 'Dragon:1 9 9 9'"


DAMAGES = [eight_bit_depth, unknown_colour, other_size, cut_weather, small_weather, wrong_encoding]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_skipped(damage, small: Path, tmp_path: Path, capsys) -> None:
    sentence = damage(small)
    assert run_prepare("virtual_kitti", small, tmp_path / "out", "--partial") == 1
    assert sentence in capsys.readouterr().err
    assert [open_dataset(tmp_path / "out", split="train").frame_name(0)] == [("0018", "00000")]


def test_one_sentence_for_a_table_that_spoils_many_frames(tmp_path: Path, capsys) -> None:
    root = make_virtual_kitti(tmp_path / "vkitti", {"0002": 2, "0018": 1})
    sentence = wrong_encoding(root)
    assert run_prepare("virtual_kitti", root, tmp_path / "out", "--partial") == 1
    errors = capsys.readouterr().err
    assert "2 frames were left out because of damaged files:" in errors
    assert errors.count(sentence) == 1
    assert f"{sentence} (2 frames)" in errors


def test_no_frame_at_all(small: Path, tmp_path: Path, capsys) -> None:
    for sequence in ("0002", "0018"):
        (small / f"vkitti_1.3.1_depthgt/{sequence}/clone/00000.png").write_bytes(b"")
    assert run_prepare("virtual_kitti", small, tmp_path / "out", "--partial") == 1
    assert "no frame could be prepared; the first of 2 damaged files: " in capsys.readouterr().err
