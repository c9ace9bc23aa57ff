# SPDX-License-Identifier: Apache-2.0
"""Camera calibrations in a YAML file, keyed by the camera's frame_id; for robots without transforms or CameraInfo.

cameras:
  front_optical:                      # frame_id of the images
    camera_T_lidar:                   # 4 x 4, m: lidar axes -> camera axes (x right, y down, z forward)
      - [0.0, -1.0, 0.0, 0.1]
      - [0.0, 0.0, -1.0, -0.3]
      - [1.0, 0.0, 0.0, 0.0]
      - [0.0, 0.0, 0.0, 1.0]
    intrinsics:                       # optional; without it they come from CameraInfo
      image_size: [900, 1600]         # height, width px
      camera_matrix: [[1266.4, 0.0, 816.3], [0.0, 1266.4, 491.5], [0.0, 0.0, 1.0]]
      distortion_model: plumb_bob     # or none, rational_polynomial, equidistant
      distortion: [0.0, 0.0, 0.0, 0.0, 0.0]
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xmodal_seg.config import Settings, load_settings
from xmodal_seg.structures import Calibration, DistortionModel
from xmodal_seg.transforms import check_rigid


class Intrinsics(Settings):
    """A camera as CameraInfo would give it."""

    image_size: tuple[int, int]
    camera_matrix: list[list[float]]
    distortion_model: DistortionModel = "none"
    distortion: list[float] = Field(default=[])


class CameraEntry(Settings):
    """One camera of the file."""

    camera_T_lidar: list[list[float]]
    intrinsics: Intrinsics | None = None


class CalibrationFile(Settings):
    """The whole file."""

    cameras: dict[str, CameraEntry]

    def camera_T_lidar(self, frame_id: str) -> NDArray[np.float64]:  # noqa: N802
        """(4, 4) m. Raises ValueError if the file has no such camera or its matrix is not rigid."""
        return check_rigid(
            self._entry(frame_id).camera_T_lidar, where=f"calibration file, camera {frame_id!r}, camera_T_lidar"
        )

    def calibration(self, frame_id: str) -> Calibration:
        """The whole calibration. Raises ValueError if the file has no such camera or no intrinsics for it."""
        intrinsics = self._entry(frame_id).intrinsics
        if intrinsics is None:
            raise ValueError(f"calibration file: camera {frame_id!r} has no intrinsics")
        return Calibration(
            camera_matrix=np.array(intrinsics.camera_matrix, dtype=np.float64),
            camera_T_lidar=self.camera_T_lidar(frame_id),
            image_size=intrinsics.image_size,
            distortion=np.array(intrinsics.distortion, dtype=np.float64) if intrinsics.distortion else None,
            distortion_model=intrinsics.distortion_model,
        )

    def _entry(self, frame_id: str) -> CameraEntry:
        if frame_id not in self.cameras:
            raise ValueError(f"calibration file: no camera {frame_id!r}; it has {', '.join(self.cameras) or 'none'}")
        return self.cameras[frame_id]


def load_calibration_file(path: str | Path) -> CalibrationFile:
    """Read and check every camera of a file. Raises ValueError naming the file and what is wrong in it."""
    if not Path(path).is_file():
        raise ValueError(f"calibration_file: no such file: {path}")
    file = load_settings(CalibrationFile, path)
    for frame_id, entry in file.cameras.items():
        try:
            file.camera_T_lidar(frame_id)
            if entry.intrinsics is not None:
                file.calibration(frame_id)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return file
