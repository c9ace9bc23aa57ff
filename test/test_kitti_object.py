# SPDX-License-Identifier: Apache-2.0
"""KITTI's object frames: boxes, what lies in them, and the report on a checkpoint."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import tiny_settings
from programs import load_program

from xmodal_seg.checkpoint import save_checkpoint
from xmodal_seg.labels import NUSCENES_6, SEMANTIC_KITTI_10, LabelSpace
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.training.data.kitti_object import LabelledObject, frame_names, read_object_frame, read_objects

HEIGHT, WIDTH = 40, 100
CAR = "Car 0.00 0 0.00 60.0 10.0 80.0 30.0 2.0 2.0 4.0 2.0 1.0 10.0 0.0"  # size h w l, bottom x y z, yaw
MISC = "Misc 0.00 0 0.00 0.0 0.0 1.0 1.0 2.0 2.0 2.0 -4.0 1.0 10.0 0.0"
DONT_CARE = "DontCare -1 -1 -10 20.0 0.0 24.0 40.0 -1 -1 -1 -1000 -1000 -1000 -10"
# The LiDAR looks along x, y to the left: in the car, on its roof, in Misc, in DontCare, free, behind the camera.
POINTS = [
    (10, -2, 0, 0.5),
    (10, -2, 1.5, 0.5),
    (10, 4, 0, 0.5),
    (10, 2.85, 0, 0.5),
    (10, 0.5, 0, 0.5),
    (-10, 0, 0, 0.5),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("calib", "image_2", "label_2", "velodyne"):
        (tmp_path / folder).mkdir()
    (tmp_path / "calib" / "000007.txt").write_text(
        "P2: 100 0 49.5 0 0 100 19.5 0 0 0 1 0\nR0_rect: 1 0 0 0 1 0 0 0 1\n"
        "Tr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0\nTr_imu_to_velo: 1\n"
    )
    cv2.imwrite(str(tmp_path / "image_2" / "000007.png"), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    (tmp_path / "label_2" / "000007.txt").write_text("\n".join([CAR, MISC, DONT_CARE]) + "\n")
    np.array(POINTS, dtype="<f4").tofile(tmp_path / "velodyne" / "000007.bin")
    return tmp_path


def save(folder: Path, space: LabelSpace) -> str:
    torch.manual_seed(0)
    model = SegmentationModel(settings=tiny_settings(num_classes=space.num_classes))
    save_checkpoint(folder, model, label_space=space, metadata={"trained": True})
    return str(folder)


def test_points_are_in_a_vehicle_outside_or_neither(root: Path) -> None:
    assert frame_names(root) == ["000007"]
    labelled = read_object_frame(root, "000007")
    assert labelled.in_vehicle.tolist() == [True, False, False, False, False, False]
    assert labelled.outside.tolist() == [False, True, False, False, True, False]


def test_a_box_turns_about_the_axis_that_points_down() -> None:
    box = LabelledObject(
        kind="Car", box_px=(0, 0, 1, 1), size=(4.0, 1.5, 2.0), bottom=(1.0, 1.0, 20.0), yaw=np.deg2rad(90)
    )
    # at 90 degrees the length lies along z, the viewing direction
    points = np.array([[1, 0.5, 21.9], [1, 0.5, 22.1], [1.9, 0.5, 20], [2.1, 0.5, 20], [1, 1.1, 20], [1, -0.6, 20]])
    assert box.holds(points).tolist() == [True, False, True, False, False, False]


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("label_2/000007.txt", "Car 1 2", "expected a type and 14 numbers, got 2"),
        ("label_2/000007.txt", "Car a b", "line 1: expected numbers after the type"),
        ("calib/000007.txt", "P2: 1 2 3", "line P2: expected 12 numbers, got 3"),
        ("velodyne/000007.bin", "abc", "expected rows of four float32"),
        ("image_2/000007.png", "abc", "expected a PNG image"),
    ],
)
def test_a_damaged_file_is_named(root: Path, file: str, content: str, sentence: str) -> None:
    (root / file).write_text(content)
    with pytest.raises(ValueError, match=sentence) as caught:
        read_object_frame(root, "000007")
    assert str(root / file) in str(caught.value)


def test_a_missing_calibration_is_named(root: Path) -> None:
    (root / "calib" / "000007.txt").unlink()
    with pytest.raises(ValueError, match=r"000007\.txt: expected the calibration"):
        read_object_frame(root, "000007")


def test_the_report_counts_inside_and_outside_for_every_head(root: Path, tmp_path: Path, capsys) -> None:
    program = load_program("report_car_boxes")
    arguments = ["--kitti", str(root), "--device", "cpu", "--checkpoint", save(tmp_path / "model", NUSCENES_6)]
    assert program.main([*arguments, "--pictures", str(tmp_path / "pictures")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[4:]] == ["| 2D (linear)", "| 2D (fused)", "| 3D", "| 2D3D"]
    assert all(line.split(" | ")[2] == "1" and line.endswith("| 2 |") for line in lines[4:])
    assert len(list((tmp_path / "pictures").glob("000007_*.png"))) == 4


def test_shares_are_those_of_the_points(root: Path) -> None:
    program = load_program("report_car_boxes")
    counts = {"3d": {"inside": np.array([3, 4]), "outside": np.array([1, 8])}}
    assert program.rows_of(counts) == ["| 3D | 75.0 % | 4 | 12.5 % | 8 |"]
    assert program.vehicle_labels(SEMANTIC_KITTI_10) == [0, 1]


def test_a_sparser_lidar_keeps_whole_beams_and_columns() -> None:
    program = load_program("report_car_boxes")
    beams, columns = np.radians(np.arange(8) * 0.42 + 0.2 - 3.36), np.radians(np.arange(10) * 0.1728 + 0.08)
    elevation, azimuth = (angles.ravel() for angles in np.meshgrid(beams, columns, indexing="ij"))
    points = 20 * np.stack(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], axis=1
    )
    kept = program.sparser(points.astype(np.float32), every_beam=2, every_column=5).reshape(8, 10)
    assert kept.any(axis=1).tolist() == [True, False] * 4
    assert kept.any(axis=0).tolist() == [column % 5 == 0 for column in range(10)]
    assert program.sparser(points.astype(np.float32), every_beam=1, every_column=1).all()


def test_classes_without_vehicles_and_folders_without_frames_are_refused(root: Path, tmp_path: Path, capsys) -> None:
    program = load_program("report_car_boxes")
    plants = LabelSpace(name="plants", class_names=("tree",), colours=((0, 1, 2),))
    with pytest.raises(ValueError, match="plants: expected a class of vehicle, car, truck"):
        program.vehicle_labels(plants)
    assert program.main(["--kitti", str(tmp_path / "nowhere")]) == 1
    assert "expected KITTI's object frames" in capsys.readouterr().err


@pytest.mark.real_data
def test_boxes_of_real_frames_hold_points(real_data: Path) -> None:
    root = real_data / "kitti_object"
    for name in frame_names(root):
        labelled = read_object_frame(root, name)
        boxes = [each for each in read_objects(root / "label_2" / f"{name}.txt") if each.kind in ("Car", "Truck")]
        assert bool(labelled.in_vehicle.sum()) == bool(boxes)
