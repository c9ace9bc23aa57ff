# SPDX-License-Identifier: Apache-2.0
"""A pair of messages -> Frame. Whatever is wrong with a camera costs that camera, not the sweep."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.calibration_file import CalibrationFile
from xmodal_seg.messages import calibration_from_camera_info, check_same_frame, decode_cloud
from xmodal_seg.nodes.extrinsics import Extrinsics
from xmodal_seg.nodes.segmentation_settings import SegmentationNodeSettings
from xmodal_seg.pairing import Pair, PairedImage
from xmodal_seg.structures import Calibration, CameraView, Frame

_PATIENCE, _WAIT_AGAIN_S = 3, 2.0

ImageDecoder = Callable[[Any], NDArray[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """A frame with the cameras that could be used, and one sentence for each that could not."""

    frame: Frame
    problems: dict[str, str]  # by camera


class FrameAssembler:
    """Decodes messages and finds calibrations; called from the worker because it may wait for a transform."""

    def __init__(
        self,
        *,
        settings: SegmentationNodeSettings,
        rectified: Sequence[bool],
        extrinsics: Extrinsics,
        calibration_file: CalibrationFile | None,
        decode_image: ImageDecoder,
    ) -> None:
        """`rectified` says of each camera whether its images are."""
        self._settings = settings
        self._rectified = tuple(rectified)
        self._extrinsics = extrinsics
        self._calibration_file = calibration_file
        self._decode_image = decode_image
        self._misses: dict[str, tuple[int, float]] = {}  # camera -> waits in vain since a success, time of the last

    def __call__(self, pair: Pair) -> Assembled:
        """Raises ValueError if the sweep itself cannot be read."""
        settings = self._settings
        cloud = decode_cloud(pair.cloud, intensity_range=(settings.intensity_min, settings.intensity_max))
        lidar_frame = settings.lidar_frame or pair.cloud.header.frame_id
        deadline_s = time.monotonic() + settings.transform_timeout_s  # one wait for all cameras of the sweep
        cameras: list[CameraView] = []
        problems: dict[str, str] = {}
        for name in settings.cameras:
            if name not in pair.images:
                problems[name] = f"not used for this sweep ({pair.reason})"
                continue
            try:
                cameras.append(self._camera(name, pair.images[name], lidar_frame, pair.stamp_ns, deadline_s))
            except ValueError as error:
                problems[name] = str(error)
        frame = Frame(
            points=cloud.points,
            intensity=cloud.intensity,
            cameras=tuple(cameras),
            stamp_ns=pair.stamp_ns,
            frame_id=pair.cloud.header.frame_id,
        )
        return Assembled(frame=frame, problems=problems)

    def _camera(self, name: str, paired: PairedImage, lidar_frame: str, stamp_ns: int, deadline_s: float) -> CameraView:
        calibration = self._calibration(name, paired, lidar_frame, stamp_ns, deadline_s)
        image = self._decode_image(paired.image)
        # On the LiDAR's clock, as the pairing has it: what compares the view with its sweep knows of no offsets.
        taken_ns = paired.stamp_ns - self._settings.stamp_offset_ns(self._settings.cameras.index(name))
        return CameraView(name=name, image=image, calibration=calibration, stamp_ns=taken_ns)

    def _calibration(
        self, name: str, paired: PairedImage, lidar_frame: str, stamp_ns: int, deadline_s: float
    ) -> Calibration:
        number = self._settings.cameras.index(name)
        info = paired.info
        camera_frame = self._settings.camera_frames[number] if self._settings.camera_frames else ""
        camera_frame = camera_frame or (info or paired.image).header.frame_id or paired.image.header.frame_id
        if not camera_frame:
            raise ValueError("the image and its camera_info have no frame_id; name it by the parameter camera_frames")
        if not self._settings.use_camera_info:
            assert self._calibration_file is not None  # the settings check it
            return self._calibration_file.calibration(camera_frame)
        if info is None:
            raise ValueError(f"no camera_info on {self._settings.camera_info_topic(number)!r} for this image")
        if not self._settings.camera_frames:
            check_same_frame(paired.image, info)
        camera_T_lidar = self._pose(name, camera_frame, lidar_frame, stamp_ns, deadline_s)
        return calibration_from_camera_info(info, camera_T_lidar=camera_T_lidar, rectified=self._rectified[number])

    def _pose(
        self, name: str, camera_frame: str, lidar_frame: str, stamp_ns: int, deadline_s: float
    ) -> NDArray[np.float64]:
        """Waits; after three waits in vain now and then only, or each sweep would be late for one camera."""
        now_s = time.monotonic()
        misses, last_s = self._misses.get(name, (0, now_s))
        if misses >= _PATIENCE and now_s - last_s < _WAIT_AGAIN_S:
            deadline_s = now_s
        try:
            matrix = self._extrinsics.lookup(camera_frame, lidar_frame, stamp_ns, deadline_s=deadline_s)
        except ValueError:
            if deadline_s > now_s:
                self._misses[name] = misses + 1, time.monotonic()
            raise
        self._misses.pop(name, None)
        return matrix
