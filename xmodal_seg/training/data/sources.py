# SPDX-License-Identifier: Apache-2.0
"""What a downloaded data set offers to preparation and to bag export; one class per data set implements it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.structures import Calibration, CameraView, Frame
from xmodal_seg.training.data.image_files import read_image
from xmodal_seg.training.data.raw_classes import DatasetName
from xmodal_seg.training.data.splits import SequenceInfo


@dataclass(frozen=True, kw_only=True)
class SourceCamera:
    """A camera of a frame, before its image is opened."""

    name: str
    image: str  # below the data set's root; {variant} stands for an image variant
    camera_matrix: NDArray[np.float64]  # (3, 3) px
    camera_T_lidar: NDArray[np.float64]  # (4, 4) m
    stamp_ns: int

    def calibration(self, image_size: tuple[int, int]) -> Calibration:
        return Calibration(camera_matrix=self.camera_matrix, camera_T_lidar=self.camera_T_lidar, image_size=image_size)


@dataclass(frozen=True, kw_only=True)
class SourceFrame:
    """A frame of a download: where its parts are, nothing read yet."""

    sequence: str
    name: str
    stamp_ns: int
    cameras: tuple[SourceCamera, ...]
    points: str  # file with the points, below the root
    labels: str = ""  # file with their labels; empty if they are with the points or unknown

    def files(self, variants: Sequence[str]) -> list[str]:
        """Every file of the frame, below the root."""
        images = [camera.image.format(variant=variant) for camera in self.cameras for variant in variants or ("",)]
        return [self.points, *([self.labels] if self.labels else []), *images]


@dataclass(frozen=True, kw_only=True)
class SweepPoints:
    """All points of a frame."""

    points: NDArray[np.float32]  # (N, 3) m; x forward, y left, z up
    raw_labels: NDArray[np.uint16]  # (N,) ids of the data set
    intensity: NDArray[np.float32] | None = None  # (N,) in [0, 1]
    stamp_ns: int | None = None  # if the frame's stamp stands in this file only


class Source(Protocol):
    """A download. Implementations are light to pickle: they travel to worker processes."""

    dataset: DatasetName
    root: Path
    cameras: tuple[str, ...]  # those that are wanted, the papers' first
    variants: tuple[str, ...]
    has_intensity: bool
    rectifies: bool  # True: images are undistorted copies, written below the output folder

    def missing_tables(self) -> list[str]:
        """Files without which the frames cannot be listed."""

    def raw_classes(self) -> Mapping[int, str]:
        """Raw id -> name. Raises ValueError if the download says otherwise than expected."""

    def sequences(self) -> list[SequenceInfo]:
        """Every sequence, in the order of the frames."""

    def frames(self) -> list[SourceFrame]:
        """Every frame the download should have, by sequence and time."""

    def read_points(self, frame: SourceFrame) -> SweepPoints:
        """Raises ValueError naming the file that is damaged."""

    def read_image(self, frame: SourceFrame, camera: SourceCamera, variant: str = "") -> NDArray[np.uint8]:
        """(H, W, 3) RGB, undistorted. Raises ValueError naming the file that is damaged."""


def read_rows(path: Path, dtype: str, num_columns: int) -> NDArray:
    """A file of raw numbers -> (N, num_columns). Raises ValueError if it is missing, empty or cut off inside a row."""
    try:
        values = np.fromfile(path, dtype=dtype)
        num_bytes = path.stat().st_size
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    row_bytes = np.dtype(dtype).itemsize * num_columns
    if num_bytes == 0 or num_bytes % row_bytes:
        raise ValueError(f"{path}: expected rows of {row_bytes} bytes, got {num_bytes} bytes; the file is cut off")
    return values.reshape(-1, num_columns)


def check_same_length(num_points: int, num_labels: int, points_path: Path, labels_path: Path) -> None:
    """Raises ValueError if a sweep and its labels do not belong together."""
    if num_points != num_labels:
        raise ValueError(f"{labels_path}: has {num_labels} labels for the {num_points} points of {points_path}")


def load_frame(source: Source, frame: SourceFrame, table: NDArray[np.int64], *, variant: str = "") -> Frame:
    """The whole frame with merged labels, every point of the sweep kept."""
    sweep = source.read_points(frame)
    views = []
    for camera in frame.cameras:
        image = source.read_image(frame, camera, variant)
        calibration = camera.calibration((image.shape[0], image.shape[1]))
        stamp_ns = camera.stamp_ns if sweep.stamp_ns is None else sweep.stamp_ns
        views.append(CameraView(name=camera.name, image=image, calibration=calibration, stamp_ns=stamp_ns))
    return Frame(
        points=sweep.points,
        intensity=sweep.intensity,
        labels=table[sweep.raw_labels],
        cameras=tuple(views),
        stamp_ns=frame.stamp_ns if sweep.stamp_ns is None else sweep.stamp_ns,
        frame_id="lidar",
    )


def plain_image(source: Source, camera: SourceCamera, variant: str) -> NDArray[np.uint8]:
    """The image as the download has it."""
    return read_image(source.root / camera.image.format(variant=variant))


def chosen_cameras(names: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The wanted cameras: none given means the papers' one (the first), `all` means all.

    Raises ValueError for a camera that the data set does not have.
    """
    if not names:
        return (known[0],)
    if list(names) == ["all"]:
        return tuple(known)
    for name in names:
        if name not in known:
            raise ValueError(f"--cameras: expected some of {', '.join(known)} or all, got {name!r}")
    return tuple(dict.fromkeys(names))
