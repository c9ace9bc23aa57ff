# SPDX-License-Identifier: Apache-2.0
"""Random alterations of whole Frames: images, points and calibration change together.

What is altered is drawn by `make_params` from a seeded generator and done by `apply`, so the same parameters give the
same frame. Moving the points multiplies `camera_T_lidar` with the inverse, so that projecting an altered frame gives
the pixels that the unaltered one has: project-then-alter equals alter-then-project.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from xmodal_seg.config import Settings
from xmodal_seg.geometry import project_points
from xmodal_seg.structures import Calibration, CameraView, Frame

Range = tuple[float, float]
_CROP_TRIES = 10
_MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0])
_GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as OpenCV and PIL have it


class CropSettings(Settings):
    """Crop of random size and place, later resized to the model's input ("cropout-resize")."""

    scale: Range = Field(default=(0.3, 1.0), description="share of the image's area")
    ratio: Range = Field(default=(14 / 9, 17 / 9), description="width / height")
    min_points: int = Field(default=100, ge=0, description="crops that see fewer points are drawn again")


class BottomCropSettings(Settings):
    """xMUDA's crop for KITTI, A2D2 and VirtualKITTI: the lowest rows, at a random place from left to right."""

    size: tuple[int, int] = Field(default=(302, 480), description="(height, width) px; smaller images stay whole")
    min_points: int = Field(default=100, ge=0)


class ImageAugmentSettings(Settings):
    flip: float = Field(default=0.0, ge=0, le=1, description="probability of a mirror image")
    jitter: float = Field(
        default=0.0, ge=0, lt=1, description="strength of the colour jitter in brightness, contrast and saturation"
    )
    crop: CropSettings | None = None
    bottom_crop: BottomCropSettings | None = None

    @model_validator(mode="after")
    def _check(self) -> ImageAugmentSettings:
        if self.crop is not None and self.bottom_crop is not None:
            raise ValueError("crop, bottom_crop: expected at most one of the two")
        return self


class PointAugmentSettings(Settings):
    noise: float = Field(default=0.0, ge=0, description="deviation of the entries of a matrix that distorts the cloud")
    flip: Literal["none", "x", "y"] = Field(default="none", description="axis mirrored with probability 1/2")
    rotation: float = Field(default=0.0, ge=0, le=2 * np.pi, description="largest turn about z, rad")
    shift_cells: int = Field(
        default=0,
        ge=0,
        description="random shift on the voxel grid; a U-Net of L levels repeats itself every 2^(L-1) cells, so that "
        "many stand for xMUDA's shift within the whole cube",
    )


class AugmentSettings(Settings):
    """The default alters nothing."""

    image: ImageAugmentSettings = ImageAugmentSettings()
    points: PointAugmentSettings = PointAugmentSettings()


@dataclass(frozen=True, kw_only=True)
class CameraParams:
    """What happens to one image, in this order."""

    crop: tuple[int, int, int, int] | None = None  # top, left, height, width px
    flip: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0


@dataclass(frozen=True, kw_only=True)
class FrameParams:
    """What happens to a frame."""

    cameras: tuple[CameraParams, ...]
    matrix: NDArray[np.float64]  # (3, 3); altered points = points @ matrix
    shift: NDArray[np.int64]  # (3,) cells [x, y, z], for `prepare`'s voxel_offset


def make_params(frame: Frame, *, settings: AugmentSettings, rng: np.random.Generator) -> FrameParams:
    """Draw the alteration of a frame."""
    return FrameParams(
        cameras=tuple(_camera_params(frame.points, camera, settings.image, rng) for camera in frame.cameras),
        matrix=point_matrix(settings.points, rng),
        shift=rng.integers(0, settings.points.shift_cells + 1, size=3),
    )


def apply(frame: Frame, params: FrameParams) -> Frame:
    """The altered frame; points keep their number, order and labels, whether or not a camera still sees them."""
    cameras = tuple(
        alter_camera(camera, camera_params) for camera, camera_params in zip(frame.cameras, params.cameras, strict=True)
    )
    altered = replace(frame, cameras=cameras)
    return altered if np.array_equal(params.matrix, np.eye(3)) else transform_cloud(altered, params.matrix)


def point_matrix(settings: PointAugmentSettings, rng: np.random.Generator) -> NDArray[np.float64]:
    """(3, 3) noise, mirror and rotation as xMUDA: (I + noise * N(0, 1)), one diagonal entry's sign, times Rz(angle)."""
    matrix = np.eye(3) + settings.noise * rng.standard_normal((3, 3))
    if settings.flip != "none":
        axis = "xy".index(settings.flip)
        matrix[axis, axis] *= rng.choice([-1.0, 1.0])
    if settings.rotation:
        angle = rng.uniform(0.0, settings.rotation)
        cos, sin = np.cos(angle), np.sin(angle)
        matrix = matrix @ np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    return matrix


def transform_cloud(frame: Frame, matrix: NDArray[np.float64]) -> Frame:
    """points @ matrix, with every camera_T_lidar times its inverse; `matrix` (3, 3) need not be rigid."""
    lidar_T_altered = np.eye(4)
    lidar_T_altered[:3, :3] = np.linalg.inv(matrix.T)
    cameras = tuple(
        replace(
            camera,
            calibration=replace(camera.calibration, camera_T_lidar=camera.calibration.camera_T_lidar @ lidar_T_altered),
        )
        for camera in frame.cameras
    )
    return replace(frame, points=frame.points @ matrix.astype(np.float32), cameras=cameras)


def alter_camera(camera: CameraView, params: CameraParams) -> CameraView:
    """Crop, mirror and recolour one image, and the calibration with it."""
    image, calibration = camera.image, camera.calibration
    if params.crop is not None:
        top, left, height, width = params.crop
        image = image[top : top + height, left : left + width]
        calibration = _cropped(calibration, params.crop)
    if params.flip:
        image, calibration = np.asarray(cv2.flip(image, 1), dtype=np.uint8), _mirrored(calibration)
    image = jitter_colours(np.ascontiguousarray(image), params)
    return replace(camera, image=image, calibration=calibration)


def jitter_colours(image: NDArray[np.uint8], params: CameraParams) -> NDArray[np.uint8]:
    """Scale brightness, then contrast about the mean grey, then saturation about each pixel's grey.

    The first two look at one channel at a time, so a table of 256 values does both, and the mean grey in between
    follows from the channels' histograms; the third is a 3x3 matrix. In float, pixel by pixel, it takes ten times as
    long. Values are rounded between the two, as between all operations in torchvision, so a level may differ by one.
    """
    if params.brightness == params.contrast == params.saturation == 1.0:
        return image
    brightened = np.minimum(np.arange(256) * params.brightness, 255.0)
    mean = float(_GREY @ _channel_means(image, brightened))
    contrasted = np.clip(mean + params.contrast * (brightened - mean), 0.0, 255.0)
    altered = cv2.LUT(image, np.rint(contrasted).astype(np.uint8))
    if params.saturation != 1.0:
        to_grey = np.tile(_GREY, (3, 1))
        altered = cv2.transform(altered, to_grey + params.saturation * (np.eye(3) - to_grey))
    return np.asarray(altered, dtype=np.uint8)


def _channel_means(image: NDArray[np.uint8], table: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3,) mean of `table` (256,) at the values of each channel."""
    counts = [cv2.calcHist([image], [channel], None, [256], [0, 256]).reshape(-1) for channel in range(3)]
    return np.stack(counts).astype(np.float64) @ table / (image.shape[0] * image.shape[1])


def _camera_params(
    points: NDArray[np.float32], camera: CameraView, settings: ImageAugmentSettings, rng: np.random.Generator
) -> CameraParams:
    low, high = 1.0 - settings.jitter, 1.0 + settings.jitter
    brightness, contrast, saturation = (float(factor) for factor in rng.uniform(low, high, size=3))
    return CameraParams(
        crop=_draw_crop(points, camera, settings, rng),
        flip=bool(rng.random() < settings.flip),
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
    )


def _draw_crop(
    points: NDArray[np.float32], camera: CameraView, settings: ImageAugmentSettings, rng: np.random.Generator
) -> tuple[int, int, int, int] | None:
    """The first of ten crops that sees enough points, else the last one; None where no crop is asked for."""
    if settings.crop is None and settings.bottom_crop is None:
        return None
    _, uv, _ = project_points(points, camera.calibration)
    for _ in range(_CROP_TRIES):
        if settings.bottom_crop is not None:
            crop = _bottom_crop(camera.calibration.image_size, settings.bottom_crop, rng)
            needed = settings.bottom_crop.min_points
        else:
            assert settings.crop is not None
            crop = _random_crop(camera.calibration.image_size, settings.crop, rng)
            needed = settings.crop.min_points
        top, left, height, width = crop
        inside = (uv >= (left - 0.5, top - 0.5)) & (uv < (left + width - 0.5, top + height - 0.5))
        if int(inside.all(axis=1).sum()) > needed:
            break
    return crop


def _bottom_crop(
    image_size: tuple[int, int], settings: BottomCropSettings, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    height, width = (min(wanted, there) for wanted, there in zip(settings.size, image_size, strict=True))
    left = int(rng.integers(0, image_size[1] - width + 1))
    return image_size[0] - height, left, height, width


def _random_crop(
    image_size: tuple[int, int], settings: CropSettings, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A crop of random area and shape; a side that is too long is cut to the image's."""
    area = rng.uniform(*settings.scale) * image_size[0] * image_size[1]
    ratio = np.exp(rng.uniform(*np.log(settings.ratio)))
    height = int(np.clip(round(np.sqrt(area / ratio)), 1, image_size[0]))
    width = int(np.clip(round(np.sqrt(area * ratio)), 1, image_size[1]))
    top = int(rng.integers(0, image_size[0] - height + 1))
    left = int(rng.integers(0, image_size[1] - width + 1))
    return top, left, height, width


def _cropped(calibration: Calibration, crop: tuple[int, int, int, int]) -> Calibration:
    top, left, height, width = crop
    matrix = calibration.camera_matrix.copy()
    matrix[:2, 2] -= (left, top)
    return replace(calibration, camera_matrix=matrix, image_size=(height, width))


def _mirrored(calibration: Calibration) -> Calibration:
    """Pixel u becomes W - 1 - u: the camera's x axis is turned round, and what is odd in x with it."""
    matrix = calibration.camera_matrix.copy()
    matrix[0, 1] *= -1
    matrix[0, 2] = calibration.image_size[1] - 1 - matrix[0, 2]
    distortion = calibration.distortion
    if distortion is not None and calibration.distortion_model in ("plumb_bob", "rational_polynomial"):
        distortion = distortion.copy()
        distortion[3] *= -1  # p2, the tangential term in x
    return replace(
        calibration,
        camera_matrix=matrix,
        camera_T_lidar=_MIRROR @ calibration.camera_T_lidar,
        distortion=distortion,
    )
