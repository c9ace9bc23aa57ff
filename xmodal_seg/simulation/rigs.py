# SPDX-License-Identifier: Apache-2.0
"""Sensor rigs after four data sets, each at any reduced size.

Vehicle axes: x forward, y left, z up, origin on the ground under the middle of the car. Mounts are in m and degrees.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xmodal_seg.config import Settings
from xmodal_seg.structures import Calibration

# Camera axes (x right, y down, z forward) written in body axes (x forward, y left, z up).
BODY_R_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


class Mount(Settings):
    """Where a sensor sits on the vehicle."""

    x: float = 0.0
    y: float = 0.0
    z: float = 1.8
    yaw: float = Field(default=0.0, description="degrees to the left")
    pitch: float = Field(default=0.0, description="degrees, nose down positive")
    roll: float = Field(default=0.0, description="degrees, left side up positive")

    def matrix(self) -> NDArray[np.float64]:
        """(4, 4) vehicle_T_sensor, sensor axes x forward, y left, z up."""
        yaw, pitch, roll = np.radians([self.yaw, self.pitch, self.roll])
        cz, sz, cy, sy, cx, sx = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
        turn = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
        nod = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        lean = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
        pose = np.eye(4)
        pose[:3, :3] = turn @ nod @ lean
        pose[:3, 3] = self.x, self.y, self.z
        return pose


class LidarUnit(Settings):
    """One spinning LiDAR."""

    mount: Mount = Mount()
    elevations: tuple[float, ...] = Field(description="degrees of each beam, upwards positive")
    num_columns: int = Field(ge=4, description="firings of one turn")
    rate: float = Field(default=10.0, gt=0, description="turns a second")
    sector: tuple[float, float] = Field(default=(-180.0, 180.0), description="azimuths that are kept, degrees")
    min_range: float = Field(default=1.0, ge=0)
    max_range: float = Field(default=100.0, gt=0)
    reach: float = Field(default=60.0, gt=0, description="m; twice as far, a tenth of white is seen every second time")
    range_noise: float = Field(default=0.02, ge=0, description="m, one standard deviation")
    divergence: float = Field(default=2.5, ge=0, description="width of the beam, mrad")
    dropout: float = Field(default=0.02, ge=0, lt=1, description="share of pulses lost for no reason")


class CameraUnit(Settings):
    """One rectified camera."""

    name: str
    mount: Mount = Mount()
    image_size: tuple[int, int] = Field(description="(height, width) px")
    focal: float = Field(gt=0, description="px")
    centre: tuple[float, float] | None = Field(default=None, description="principal point (u, v) px; None: middle")
    jpeg_quality: int = Field(default=92, ge=10, le=100)

    def matrix(self) -> NDArray[np.float64]:
        height, width = self.image_size
        u, v = self.centre if self.centre is not None else ((width - 1) / 2, (height - 1) / 2)
        return np.array([[self.focal, 0.0, u], [0.0, self.focal, v], [0.0, 0.0, 1.0]])

    def scaled(self, factor: float) -> CameraUnit:
        """The same view on fewer pixels; pixel centres are whole numbers, so (u + 0.5) scales."""
        height, width = (max(1, round(side * factor)) for side in self.image_size)
        u, v = self.matrix()[:2, 2]
        centre = ((u + 0.5) * width / self.image_size[1] - 0.5, (v + 0.5) * height / self.image_size[0] - 0.5)
        focal = self.focal * width / self.image_size[1]
        return self.model_copy(update={"image_size": (height, width), "focal": focal, "centre": centre})


class Rig(Settings):
    """A car with its sensors."""

    name: str
    kind: Literal["lidar", "depth_image"] = Field(
        default="lidar", description="points from LiDARs, or sampled from the depth image of the first camera"
    )
    frame_id: str = "lidar"
    origin: Mount = Field(default=Mount(), description="frame of the points")
    lidars: tuple[LidarUnit, ...] = ()
    cameras: tuple[CameraUnit, ...] = Field(min_length=1)
    num_points: int = Field(default=10_000, gt=0, description="depth_image only: points sampled from a frame")
    max_depth: float = Field(default=100.0, gt=0, description="depth_image only: points beyond are left out, m")

    def scaled(
        self,
        *,
        image: float = 1.0,
        columns: int | None = None,
        beams: int | None = None,
        points: int | None = None,
        front_only: bool = False,
    ) -> Rig:
        """The same rig on fewer pixels and rays.

        `image` scales every camera, `columns` and `beams` are those of each LiDAR, `points` those of a depth image;
        `front_only` keeps the first camera and the rays it may see. Raises ValueError for a size that is not smaller.
        """
        if not 0 < image <= 1:
            raise ValueError(f"image scale: expected more than 0 and at most 1, got {image:g}")
        cameras = self.cameras[:1] if front_only else self.cameras
        lidars = tuple(_scaled_lidar(unit, columns, beams) for unit in self.lidars)
        if front_only:
            lidars = tuple(_facing(unit, cameras[0]) for unit in lidars)
        if points is not None and points <= 0:
            raise ValueError(f"points: expected a positive number, got {points}")
        return self.model_copy(
            update={
                "cameras": tuple(camera.scaled(image) for camera in cameras) if image != 1 else cameras,
                "lidars": lidars,
                "num_points": self.num_points if points is None else points,
            }
        )

    def calibration(self, camera: CameraUnit) -> Calibration:
        return Calibration(
            camera_matrix=camera.matrix(),
            camera_T_lidar=np.linalg.inv(vehicle_T_camera(camera)) @ self.origin.matrix(),
            image_size=camera.image_size,
        )


def vehicle_T_camera(camera: CameraUnit) -> NDArray[np.float64]:  # noqa: N802 (target_T_source)
    """(4, 4) pose of the optical frame (x right, y down, z forward) on the vehicle."""
    pose = camera.mount.matrix()
    pose[:3, :3] = pose[:3, :3] @ BODY_R_OPTICAL
    return pose


def _scaled_lidar(unit: LidarUnit, columns: int | None, beams: int | None) -> LidarUnit:
    update: dict[str, object] = {}
    if columns is not None:
        if columns < 4:
            raise ValueError(f"columns: expected at least 4, got {columns}")
        update["num_columns"] = columns
    if beams is not None:
        available = len(unit.elevations)
        if not 1 <= beams <= available:
            raise ValueError(f"beams: expected 1 to {available}, the number the LiDAR has, got {beams}")
        kept = np.round(np.linspace(0, available - 1, beams)).astype(int)
        update["elevations"] = tuple(unit.elevations[i] for i in kept)
    return unit.model_copy(update=update)


def _facing(unit: LidarUnit, camera: CameraUnit) -> LidarUnit:
    """Only the azimuths (of the unit) that the camera may see, with a margin for the distance between the two."""
    half = np.degrees(np.arctan(camera.image_size[1] / 2 / camera.focal)) + 6.0
    middle = camera.mount.yaw - unit.mount.yaw
    return unit.model_copy(update={"sector": (round(middle - half, 3), round(middle + half, 3))})


def _spread(low: float, high: float, number: int) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in np.linspace(low, high, number))


def _nuscenes_camera(name: str, x: float, y: float, yaw: float, focal: float = 1260.0) -> CameraUnit:
    return CameraUnit(name=name, mount=Mount(x=x, y=y, z=1.51, yaw=yaw), image_size=(900, 1600), focal=focal)


_HDL32 = LidarUnit(
    mount=Mount(x=0.0, z=1.84), elevations=_spread(-30.67, 10.67, 32), num_columns=1090, rate=20.0, reach=58.0
)
NUSCENES = Rig(
    name="nuscenes",
    origin=Mount(x=0.0, z=1.84),
    lidars=(_HDL32,),
    cameras=(_nuscenes_camera("front", 0.75, 0.0, 0.0),),
)
NUSCENES_SURROUND = NUSCENES.model_copy(
    update={
        "name": "nuscenes_surround",
        "cameras": (
            _nuscenes_camera("front", 0.75, 0.0, 0.0),
            _nuscenes_camera("front_right", 0.60, -0.50, -55.0),
            _nuscenes_camera("front_left", 0.60, 0.50, 55.0),
            _nuscenes_camera("back", -0.95, 0.0, 180.0, focal=800.0),
            _nuscenes_camera("back_left", 0.10, 0.50, 110.0),
            _nuscenes_camera("back_right", 0.10, -0.50, -110.0),
        ),
    }
)
KITTI = Rig(
    name="kitti",
    origin=Mount(x=0.0, z=1.73),
    lidars=(
        LidarUnit(
            mount=Mount(x=0.0, z=1.73),
            elevations=_spread(-24.33, -8.83, 32) + _spread(-8.33, 2.0, 32),
            num_columns=2083,
            rate=10.0,
            max_range=120.0,
            reach=75.0,
            divergence=2.0,
        ),
    ),
    cameras=(
        CameraUnit(
            name="front", mount=Mount(x=0.27, z=1.65), image_size=(375, 1242), focal=721.5, centre=(609.6, 172.9)
        ),
    ),
)
_VLP16_MOUNTS = (
    Mount(x=0.95, y=0.0, z=1.75, pitch=2.0),
    Mount(x=0.85, y=0.55, z=1.72, yaw=35.0, pitch=6.0, roll=-6.0),
    Mount(x=0.85, y=-0.55, z=1.72, yaw=-35.0, pitch=6.0, roll=6.0),
    Mount(x=-0.95, y=0.50, z=1.72, yaw=140.0, pitch=5.0),
    Mount(x=-0.95, y=-0.50, z=1.72, yaw=-140.0, pitch=5.0),
)
A2D2 = Rig(
    name="a2d2",
    origin=Mount(x=0.0, z=1.75),
    lidars=tuple(
        LidarUnit(
            mount=mount, elevations=_spread(-15.0, 15.0, 16), num_columns=1800, rate=10.0, reach=55.0, divergence=3.0
        )
        for mount in _VLP16_MOUNTS
    ),
    cameras=(CameraUnit(name="front", mount=Mount(x=0.9, z=1.62), image_size=(1208, 1920), focal=1685.0),),
)
VKITTI = Rig(
    name="vkitti",
    kind="depth_image",
    frame_id="camera_body",
    origin=Mount(x=0.27, z=1.65),
    cameras=(
        CameraUnit(
            name="front",
            mount=Mount(x=0.27, z=1.65),
            image_size=(375, 1242),
            focal=725.0,
            centre=(620.5, 187.0),
            jpeg_quality=96,
        ),
    ),
)
RIGS = {rig.name: rig for rig in (NUSCENES, NUSCENES_SURROUND, KITTI, A2D2, VKITTI)}


def rig_named(name: str) -> Rig:
    """A named rig. Raises ValueError for any other name."""
    if name not in RIGS:
        raise ValueError(f"rig: expected one of {', '.join(RIGS)}, got {name!r}")
    return RIGS[name]
