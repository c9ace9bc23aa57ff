# SPDX-License-Identifier: Apache-2.0
"""The types that flow through the package.

Letters: B frames of a batch, I images of a batch, H W image px, N points of a frame, P points of a batch, V voxels,
K classes. Pixel convention everywhere: `uv` = (u right, v down) and an integer coordinate is the *centre* of a pixel
(OpenCV's and ROS's convention), so an image spans [-0.5, W - 0.5) x [-0.5, H - 0.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

DistortionModel = Literal["none", "plumb_bob", "rational_polynomial", "equidistant"]
DISTORTION_SIZES: dict[DistortionModel, tuple[int, ...]] = {
    "none": (0,),
    "plumb_bob": (4, 5),
    "rational_polynomial": (8,),
    "equidistant": (4,),
}
Head = Literal["2d", "3d", "fused"]

NO_CAMERA = -1


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A pinhole or fisheye camera and where it sits on the LiDAR.

    Raises ValueError for a matrix of the wrong shape, a non-finite entry, a zero focal length or a distortion that
    does not have as many coefficients as its model.
    """

    camera_matrix: NDArray[np.float64]  # (3, 3) px
    camera_T_lidar: NDArray[np.float64]  # (4, 4) m; camera axes: x right, y down, z forward
    image_size: tuple[int, int]  # (height, width) px of the image that the matrix belongs to
    distortion: NDArray[np.float64] | None = None  # coefficients in OpenCV's order, None for a rectified image
    distortion_model: DistortionModel = "none"

    def __post_init__(self) -> None:
        _check_matrix("camera_matrix", self.camera_matrix, (3, 3))
        _check_matrix("camera_T_lidar", self.camera_T_lidar, (4, 4))
        if self.camera_matrix[0, 0] <= 0 or self.camera_matrix[1, 1] <= 0:
            raise ValueError(
                "camera_matrix: expected positive focal lengths, got "
                f"fx={self.camera_matrix[0, 0]:g}, fy={self.camera_matrix[1, 1]:g} (0 means an uncalibrated camera)"
            )
        if min(self.image_size) <= 0:
            raise ValueError(f"image_size: expected positive (height, width) in px, got {self.image_size}")
        if self.distortion_model not in DISTORTION_SIZES:
            raise ValueError(
                f"distortion_model: expected one of {', '.join(DISTORTION_SIZES)}, got {self.distortion_model!r}"
            )
        num_coefficients = 0 if self.distortion is None else self.distortion.size
        if num_coefficients not in DISTORTION_SIZES[self.distortion_model]:
            raise ValueError(
                f"distortion: {self.distortion_model} takes {DISTORTION_SIZES[self.distortion_model]} coefficients, "
                f"got {num_coefficients}"
            )
        if self.distortion is not None and not np.isfinite(self.distortion).all():
            raise ValueError(f"distortion: expected finite coefficients, got {self.distortion.tolist()}")


@dataclass(frozen=True, kw_only=True)
class CameraView:
    """One image with the calibration that holds for it."""

    name: str
    image: NDArray[np.uint8]  # (H, W, 3) RGB
    calibration: Calibration
    stamp_ns: int = 0

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise ValueError(
                f"image of camera {self.name!r}: expected (H, W, 3) uint8 RGB, "
                f"got {self.image.shape} {self.image.dtype}"
            )
        if self.image.shape[:2] != self.calibration.image_size:
            raise ValueError(
                f"camera {self.name!r}: the image is {self.image.shape[0]}x{self.image.shape[1]} px (height x width), "
                f"its calibration is for {self.calibration.image_size[0]}x{self.calibration.image_size[1]} px"
            )


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One LiDAR sweep and the images that go with it; points may hold NaN (a return that the sensor did not get)."""

    points: NDArray[np.float32]  # (N, 3) m, in LiDAR axes: x forward, y left, z up
    cameras: tuple[CameraView, ...] = ()
    intensity: NDArray[np.float32] | None = None  # (N,) in [0, 1]
    labels: NDArray[np.int64] | None = None  # (N,) train ids, IGNORE_INDEX where unknown
    stamp_ns: int = 0
    frame_id: str = ""

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or self.points.shape[1] != 3 or self.points.dtype != np.float32:
            raise ValueError(f"points: expected (N, 3) float32, got {self.points.shape} {self.points.dtype}")
        for name, values in (("intensity", self.intensity), ("labels", self.labels)):
            if values is not None and values.shape != (self.num_points,):
                raise ValueError(f"{name}: expected ({self.num_points},), one per point, got {values.shape}")

    @property
    def num_points(self) -> int:
        return self.points.shape[0]

    def select(self, mask: NDArray[np.bool_] | NDArray[np.int64]) -> Frame:
        """The same frame with only the points of `mask` (boolean (N,) or indices); the only way to drop points."""
        return replace(
            self,
            points=self.points[mask],
            intensity=None if self.intensity is None else self.intensity[mask],
            labels=None if self.labels is None else self.labels[mask],
        )


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Where each point of a frame is seen."""

    camera_index: NDArray[np.int64]  # (N,) index into Frame.cameras, NO_CAMERA where no camera sees the point
    uv: NDArray[np.float32]  # (N, 2) px in that camera's own image; NaN where no camera sees the point
    depth: NDArray[np.float32]  # (N,) m along that camera's optical axis; NaN where no camera sees the point


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Frames made ready for the model; every tensor on one device."""

    images: torch.Tensor  # (I, 3, H, W) uint8 RGB, a quarter of what floats take on their way; I = 0 without cameras
    voxel_coords: torch.Tensor  # (V, 4) int32 contiguous [frame, z, y, x], each row once
    voxel_feats: torch.Tensor  # (V, C) float32, mean over the points of the voxel
    point_to_voxel: torch.Tensor  # (P,) int64 row of voxel_coords
    uv: torch.Tensor  # (P, 2) float32 px in the model-input image; 0 where image_index is NO_CAMERA
    image_index: torch.Tensor  # (P,) int64 row of images, NO_CAMERA for a point that no camera sees
    point_index: torch.Tensor  # (P,) int64 row of the point in its own Frame
    frame_index: torch.Tensor  # (P,) int64 which frame of the batch
    spatial_shape: tuple[int, int, int]  # (z, y, x) cells that hold every voxel
    num_frames: int
    labels: torch.Tensor | None = None  # (P,) int64

    @property
    def num_points(self) -> int:
        return self.point_to_voxel.shape[0]

    @property
    def visible(self) -> torch.Tensor:
        """(P,) bool: the point is seen by a camera."""
        return self.image_index >= 0

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch with every tensor on `device`."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Raw logits of the heads a model has.

    Rows of `2d` and `fused` (main and mimicry) are zero where `visible` is False: there is no image to speak of.
    """

    main: dict[Head, torch.Tensor]  # head -> (P, K)
    mimic: dict[tuple[Head, Head], torch.Tensor]  # (student, teacher) -> (P, K)
    ensemble_heads: tuple[Head, ...]  # whose softmax is averaged
    visible: torch.Tensor  # (P,) bool

    def ensemble(self) -> torch.Tensor:
        """(P, K) float32 probabilities: the mean softmax of `ensemble_heads`; 3D alone where no camera sees a point.

        A model without a 3D main head says nothing about such points: their row is all zero.
        """
        seen = true_rows(self.visible)
        if len(seen) == len(self.visible):
            return self.seen_ensemble(None)
        return self.blind_ensemble().t().index_copy(1, seen, self.seen_ensemble(seen).t()).t()

    def seen_ensemble(self, seen: torch.Tensor | None) -> torch.Tensor:
        """(S, K) float32 probabilities of the rows `seen` (S,), which cameras see; None: of all."""
        heads = [self.main[head] for head in self.ensemble_heads]
        if seen is not None:
            heads = [head.t().index_select(1, seen).t() for head in heads]
        return sum_of_softmax(heads) / len(heads)

    def blind_ensemble(self) -> torch.Tensor:
        """(P, K) float32 probabilities as if no camera saw anything."""
        blind = self.main.get("3d")
        if blind is None:
            return torch.zeros_like(self.main[self.ensemble_heads[0]], dtype=torch.float32)
        return sum_of_softmax([blind])


def true_rows(mask: torch.Tensor) -> torch.Tensor:
    """(P,) bool -> int64 rows that are true; torch's own search takes four times NumPy's time on a CPU."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero().squeeze(1)


def sum_of_softmax(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Heads of (P, K) logits -> (P, K) float32, the sum of their softmax over the classes.

    Computed class by class (K, P): softmax over a short last axis is about eight times slower on a CPU.
    """
    first, *others = (head.float().t().contiguous().softmax(dim=0) for head in logits)
    return sum(others, start=first).t()


def _check_matrix(name: str, matrix: NDArray[np.float64], shape: tuple[int, int]) -> None:
    if matrix.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name}: expected finite entries, got {matrix.tolist()}")
