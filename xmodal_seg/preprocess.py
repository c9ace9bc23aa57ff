# SPDX-License-Identifier: Apache-2.0
"""Frames -> Batch, the one way for the data sets and for the node, so that the two cannot drift apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from xmodal_seg.config import PreprocessSettings
from xmodal_seg.geometry import project_frame, put_pairs
from xmodal_seg.structures import NO_CAMERA, Batch, Frame
from xmodal_seg.voxels import Voxels, voxelize

# Bilinear interpolation skips pixels when it shrinks by much more than two; area averaging does not, and costs more.
_AREA_RATIO = 2.1
_HALVING_RATIO = 4.0  # from here on exact halves come first: they cost the area filter a fraction of an odd ratio


@dataclass(frozen=True, kw_only=True)
class _FramePoints:
    """The points of one frame that stay, and where they are seen in the model-input images of that frame."""

    frame: Frame
    point_index: NDArray[np.int64]  # (P,)
    camera_index: NDArray[np.int64]  # (P,)
    uv: NDArray[np.float32]  # (P, 2) px in the model-input image


def prepare(
    frames: Sequence[Frame],
    *,
    settings: PreprocessSettings,
    image_size: tuple[int, int] | None = None,
    voxel_offset: torch.Tensor | None = None,
) -> Batch:
    """Project, resize and voxelise frames.

    Args:
        frames: B >= 1 frames, each with any number of cameras; points that are not finite, or further from the sensor
            along an axis than half the voxel cube, are left out.
        settings: of the model that will see the batch.
        image_size: (height, width) px of the model's input, a multiple of its patch; settings.image_size if None.
        voxel_offset: (B, 3) int64 cells [x, y, z] by which each frame is moved in the cube (training's random shift).

    Raises:
        ValueError: no frame, intensity asked for and absent, or labels in some frames only.
    """
    if not frames:
        raise ValueError("prepare: expected at least one frame, got none")
    size = image_size or settings.image_size
    parts = [_select_points(frame, settings=settings, image_size=size) for frame in frames]
    points = _cat([_take(part.frame.points, part.point_index) for part in parts])
    frame_index = torch.repeat_interleave(torch.tensor([part.point_index.size for part in parts]))
    voxels = voxelize(
        points,
        frame_index,
        _point_feats(parts, settings=settings),
        voxel_size=settings.voxel_size,
        max_cells=settings.max_cells,
        offset=voxel_offset,
    )
    image_index = _image_index(parts)
    uv = _cat([part.uv for part in parts])
    point_index = _cat([part.point_index for part in parts])
    labels = _labels(parts)
    if len(voxels.point_to_voxel) < len(points):
        kept = voxels.kept
        frame_index, image_index, uv, point_index = frame_index[kept], image_index[kept], uv[kept], point_index[kept]
        labels = None if labels is None else labels[kept]
    return _batch(frames, size, voxels, frame_index, image_index, uv, point_index, labels)


def resize_image(image: NDArray[np.uint8], image_size: tuple[int, int]) -> torch.Tensor:
    """(H, W, 3) uint8 -> (3, H', W') uint8."""
    height, width = image_size
    if image.shape[:2] != image_size:
        image = _halved(image, image_size)
        ratio = max(image.shape[0] / height, image.shape[1] / width)
        interpolation = cv2.INTER_AREA if ratio > _AREA_RATIO else cv2.INTER_LINEAR
        resized = cv2.resize(image, (width, height), interpolation=interpolation)
    else:
        resized = image
    return torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))


def _halved(image: NDArray[np.uint8], image_size: tuple[int, int]) -> NDArray[np.uint8]:
    """Half as large as often as sizes are even and the image is still several times too large."""
    while (
        min(image.shape[0] / image_size[0], image.shape[1] / image_size[1]) >= _HALVING_RATIO
        and image.shape[0] % 2 == image.shape[1] % 2 == 0
    ):
        half = (image.shape[1] // 2, image.shape[0] // 2)
        image = np.asarray(cv2.resize(image, half, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return image


def resize_uv(uv: NDArray[np.float32], *, from_size: tuple[int, int], to_size: tuple[int, int]) -> NDArray[np.float32]:
    """(M, 2) px of an image -> px of the same image resized; integer coordinates are pixel centres in both."""
    half = np.float32(0.5)
    resized = np.empty_like(uv)
    for column, axis in ((0, 1), (1, 0)):  # NumPy is several times slower along an axis of two
        resized[:, column] = (uv[:, column] + half) * np.float32(to_size[axis] / from_size[axis]) - half
    return resized


def _select_points(frame: Frame, *, settings: PreprocessSettings, image_size: tuple[int, int]) -> _FramePoints:
    projection = project_frame(frame)
    # Within half a cube of the sensor, so that one far outlier cannot push the others out of the cube, whose corner is
    # the smallest coordinate. NaN compares false.
    reach_m = settings.max_cells * settings.voxel_size / 2
    keep = _within(frame.points, reach_m)
    if settings.point_scope == "visible":
        keep &= projection.camera_index != NO_CAMERA
    point_index = np.flatnonzero(keep)
    camera_index = _take(projection.camera_index, point_index)
    uv = np.zeros((point_index.size, 2), dtype=np.float32)
    for number, camera in enumerate(frame.cameras):
        seen = np.flatnonzero(camera_index == number)
        camera_uv = projection.uv.take(point_index[seen], axis=0)
        put_pairs(uv, seen, resize_uv(camera_uv, from_size=camera.calibration.image_size, to_size=image_size))
    return _FramePoints(frame=frame, point_index=point_index, camera_index=camera_index, uv=uv)


def _within(points: NDArray[np.float32], reach_m: float) -> NDArray[np.bool_]:
    """(N,) all three coordinates of the point lie in (-reach_m, reach_m)."""
    # Nearly always all do, and two reductions are cheaper than three comparisons per point.
    if points.size == 0 or (points.min() > -reach_m and points.max() < reach_m):  # false where one is NaN
        return np.ones(len(points), dtype=np.bool_)
    x, y, z = np.abs(points).T
    return (x < reach_m) & (y < reach_m) & (z < reach_m)


def _point_feats(parts: Sequence[_FramePoints], *, settings: PreprocessSettings) -> torch.Tensor | None:
    if settings.point_feats == "one":
        return None
    values = []
    for part in parts:
        if part.frame.intensity is None:
            raise ValueError(
                f"the model takes LiDAR intensity (point_feats: intensity), but frame {part.frame.frame_id!r} at "
                f"{part.frame.stamp_ns} ns has none"
            )
        values.append(_take(part.frame.intensity, part.point_index))
    return _cat(values)[:, None]


def _image_index(parts: Sequence[_FramePoints]) -> torch.Tensor:
    """(P,) row of each point's camera among the images of all frames."""
    rows, first = [], 0
    for part in parts:
        # NO_CAMERA stays what it is.
        rows.append(part.camera_index + first * (part.camera_index != NO_CAMERA) if first else part.camera_index)
        first += len(part.frame.cameras)
    return _cat(rows)


def _labels(parts: Sequence[_FramePoints]) -> torch.Tensor | None:
    labels = [_take(part.frame.labels, part.point_index) for part in parts if part.frame.labels is not None]
    if labels and len(labels) != len(parts):
        raise ValueError(f"labels: {len(labels)} of {len(parts)} frames of a batch have them; expected all or none")
    return _cat(labels) if labels else None


def _batch(
    frames: Sequence[Frame],
    image_size: tuple[int, int],
    voxels: Voxels,
    frame_index: torch.Tensor,
    image_index: torch.Tensor,
    uv: torch.Tensor,
    point_index: torch.Tensor,
    labels: torch.Tensor | None,
) -> Batch:
    images = [resize_image(camera.image, image_size) for frame in frames for camera in frame.cameras]
    return Batch(
        images=torch.stack(images) if images else torch.zeros(0, 3, *image_size, dtype=torch.uint8),
        voxel_coords=voxels.coords,
        voxel_feats=voxels.feats,
        point_to_voxel=voxels.point_to_voxel,
        uv=uv,
        image_index=image_index,
        point_index=point_index,
        frame_index=frame_index,
        spatial_shape=voxels.spatial_shape,
        num_frames=len(frames),
        labels=labels,
    )


def _take(values: NDArray, point_index: NDArray[np.int64]) -> NDArray:
    """Rows of the points that stay; no copy where all of them do, since their order never changes."""
    return values if len(point_index) == len(values) else values.take(point_index, axis=0)


def _cat(arrays: Sequence[NDArray]) -> torch.Tensor:
    return torch.from_numpy(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
