# SPDX-License-Identifier: Apache-2.0
"""Calibration files: poses with or without intrinsics, and one sentence for what is wrong in them."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from xmodal_seg.calibration_file import load_calibration_file

POSE = [[0.0, -1.0, 0.0, 0.1], [0.0, 0.0, -1.0, -0.3], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
INTRINSICS = {
    "image_size": [13, 17],
    "camera_matrix": [[20.0, 0.0, 8.0], [0.0, 21.0, 6.0], [0.0, 0.0, 1.0]],
    "distortion_model": "plumb_bob",
    "distortion": [0.1, 0.0, 0.0, 0.0, 0.0],
}


def write(folder: Path, values: object) -> Path:
    path = folder / "calibration.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_whole_calibration(tmp_path: Path) -> None:
    file = load_calibration_file(
        write(tmp_path, {"cameras": {"front": {"camera_T_lidar": POSE, "intrinsics": INTRINSICS}}})
    )
    calibration = file.calibration("front")
    np.testing.assert_array_equal(calibration.camera_T_lidar, POSE)
    assert calibration.image_size == (13, 17)
    assert calibration.distortion_model == "plumb_bob"


def test_pose_alone(tmp_path: Path) -> None:
    file = load_calibration_file(write(tmp_path, {"cameras": {"front": {"camera_T_lidar": POSE}}}))
    np.testing.assert_array_equal(file.camera_T_lidar("front"), POSE)
    with pytest.raises(ValueError, match="camera 'front' has no intrinsics"):
        file.calibration("front")
    with pytest.raises(ValueError, match="no camera 'rear'; it has front"):
        file.camera_T_lidar("rear")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cameras": {"front": {"camera_T_lidar": np.zeros((4, 4)).tolist()}}}, "expected a rotation"),
        ({"cameras": {"front": {"camera_T_lidar": POSE[:3]}}}, r"expected a finite \(4, 4\)"),
        ({"cameras": {"front": {}}}, "cameras.front.camera_T_lidar"),
        ({"kameras": {}}, "kameras"),
        (
            {"cameras": {"front": {"camera_T_lidar": POSE, "intrinsics": INTRINSICS | {"distortion": [0.1]}}}},
            "plumb_bob takes",
        ),
    ],
)
def test_mistakes_name_file_and_key(tmp_path: Path, values: dict, message: str) -> None:
    path = write(tmp_path, values)
    with pytest.raises(ValueError, match=message) as caught:
        load_calibration_file(path)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        load_calibration_file(tmp_path / "none.yaml")
