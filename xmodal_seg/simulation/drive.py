# SPDX-License-Identifier: Apache-2.0
"""Drives: consecutive frames of a rig that moves along a street."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xmodal_seg.config import Settings
from xmodal_seg.labels import NUSCENES_6, LabelSpace
from xmodal_seg.simulation import camera, imaging, lidar, shading
from xmodal_seg.simulation.dice import generator
from xmodal_seg.simulation.ego import EgoMotion
from xmodal_seg.simulation.light import Light, LightSchedule
from xmodal_seg.simulation.meshes import turned
from xmodal_seg.simulation.places import USA, Place
from xmodal_seg.simulation.raw_classes import train_ids
from xmodal_seg.simulation.rigs import NUSCENES, Rig, vehicle_T_camera
from xmodal_seg.simulation.scene import Scene
from xmodal_seg.simulation.traffic import Moment, Traffic
from xmodal_seg.simulation.weather import Weather
from xmodal_seg.simulation.world import Window, World, window_index
from xmodal_seg.structures import CameraView, Frame

# Raised with every change that moves a label, a range or a pixel: results of different worlds are not compared.
WORLD_VERSION = 1

BLOCKS_BEHIND, BLOCKS_AHEAD = 3, 5
LAMPS_REACH_M = 70.0
FIRST_STAMP_NS = 1_700_000_000_000_000_000
START_M = 20.0


class DriveSettings(Settings):
    """Everything that decides what a drive looks like."""

    seed: int = Field(default=0, ge=0)
    num_frames: int = Field(default=100, gt=0)
    fps: float = Field(default=2.0, gt=0, description="frames a second; 10 a sweep-by-sweep drive, 0.5 spread out")
    place: Place = USA
    rig: Rig = NUSCENES
    light: LightSchedule = LightSchedule()
    weather: Weather = Weather()
    start: float = Field(default=START_M, ge=0, description="m along the street at which the drive begins")

    @property
    def duration(self) -> float:
        """s from the first to the last frame."""
        return (self.num_frames - 1) / self.fps


@dataclass(frozen=True, kw_only=True)
class CameraTruth:
    """What each pixel of an image really shows."""

    raw_class: NDArray[np.uint8]  # (H, W) RawClass, NOTHING in the sky
    instance: NDArray[np.int32]  # (H, W)
    depth: NDArray[np.float32]  # (H, W) m along the optical axis, 0 in the sky


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A frame with everything the simulation knows about it."""

    index: int
    frame: Frame  # labels in the label space that was asked for
    raw_labels: NDArray[np.uint8]  # (N,) RawClass
    instances: NDArray[np.int32]  # (N,) 0 where a thing is not counted
    rings: NDArray[np.uint8]  # (N,) beam within its LiDAR
    offsets_s: NDArray[np.float32]  # (N,) firing time after the stamp
    world_T_lidar: NDArray[np.float64]  # (4, 4) at the stamp
    light: Light
    weather: Weather
    jpegs: tuple[bytes, ...]  # the images as the cameras sent them; the frame holds them decoded
    truths: tuple[CameraTruth, ...]  # one for each camera, empty unless asked for


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """The world at one moment, in coordinates relative to `window.origin`."""

    window: Window
    moment: Moment
    scene: Scene


class Drive:
    """Renders any frame of a drive; a frame depends on its index alone, never on which were made before.

    Raises ValueError for a rig without LiDARs, a label space the world does not map onto, and where the extra `sim` is
    missing.
    """

    def __init__(
        self, settings: DriveSettings, *, label_space: LabelSpace = NUSCENES_6, with_truth: bool = False
    ) -> None:
        if settings.rig.kind == "lidar" and not settings.rig.lidars:
            raise ValueError(f"rig {settings.rig.name!r}: kind 'lidar' needs at least one LiDAR")
        self.settings = settings
        self.label_space = label_space
        self._with_truth = with_truth
        self._train_ids = train_ids(label_space)
        self.ego = EgoMotion(settings.place, settings.seed, settings.duration, settings.start)
        self.world = World(settings.place, settings.seed, self.ego.length + 50.0)
        self.traffic = Traffic(self.world, self.ego, settings.seed)
        self._window: tuple[int, Window] | None = None
        self._firings = [lidar.firing(unit) for unit in settings.rig.lidars]
        self._rays = [camera.pixel_rays(unit) for unit in settings.rig.cameras]

    def __len__(self) -> int:
        return self.settings.num_frames

    def time(self, index: int) -> float:
        """s from the first frame."""
        return index / self.settings.fps

    def sample(self, index: int) -> Sample:
        """Frame `index` with its ground truth. Raises IndexError outside the drive."""
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of a drive of {len(self)} frames")
        t = self.time(index)
        stage = self.stage(t)
        light = self.settings.light.at(t)
        vehicle = self._vehicle(t, stage)
        shots = [
            self._photograph(number, index, stage, vehicle, light) for number in range(len(self.settings.rig.cameras))
        ]
        truths = tuple(truth for _, _, truth in shots)
        points = self._scan(index, t, stage, truths)
        frame = Frame(
            points=points.points,
            intensity=points.intensity if self.settings.rig.kind == "lidar" else None,
            labels=self._train_ids[points.raw_class],
            cameras=tuple(view for view, _, _ in shots),
            stamp_ns=self.stamp_ns(index),
            frame_id=self.settings.rig.frame_id,
        )
        world = self._vehicle(t, stage) @ self.settings.rig.origin.matrix()
        world[:3, 3] += stage.window.origin
        return Sample(
            index=index,
            frame=frame,
            raw_labels=points.raw_class,
            instances=points.instance,
            rings=points.ring,
            offsets_s=points.offset_s,
            world_T_lidar=world,
            light=light,
            weather=self.settings.weather,
            jpegs=tuple(jpeg for _, jpeg, _ in shots),
            truths=truths if self._with_truth else (),
        )

    def stamp_ns(self, index: int) -> int:
        return FIRST_STAMP_NS + round(index * 1e9 / self.settings.fps)

    def stage(self, t: float) -> _Stage:
        """The still and the moving world around the vehicle at t s."""
        s = float(self.ego.s(t))
        key = window_index(s)
        if self._window is None or self._window[0] != key:
            self._window = key, self.world.window(s, behind=BLOCKS_BEHIND, ahead=BLOCKS_AHEAD)
        window = self._window[1]
        moment = self.traffic.moment(t, window.origin)
        return _Stage(window=window, moment=moment, scene=Scene(window.tree, moment.tree))

    def _vehicle(self, t: float, stage: _Stage) -> NDArray[np.float64]:
        """(4, 4) pose of the vehicle in the coordinates of the stage."""
        pose = self.ego.poses(self.world.street, t)[0]
        pose[:3, 3] -= stage.window.origin
        return pose

    def surfaces(self, number: int, stage: _Stage, vehicle: NDArray[np.float64]) -> camera.Surfaces:
        """What camera `number` looks at."""
        unit = self.settings.rig.cameras[number]
        return camera.look(
            unit,
            self._rays[number],
            vehicle @ vehicle_T_camera(unit),
            stage.scene,
            facade_styles=self.world.library.facades,
            contrast=self.settings.place.palette.contrast,
        )

    def lamps(self, stage: _Stage, vehicle: NDArray[np.float64]) -> shading.Lamps:
        """The lamps near the vehicle."""
        near = np.linalg.norm(stage.window.lamps - vehicle[:3, 3], axis=1) < LAMPS_REACH_M
        nose = vehicle @ np.array([2.0, 0.0, 0.65, 1.0])
        return shading.Lamps(
            street=stage.window.lamps[near],
            warmth=self.settings.place.lamp_warmth,
            heads=stage.moment.head_lamps,
            headings=stage.moment.headings,
            own=nose[:3].astype(np.float32),
            own_heading=vehicle[:3, 0].astype(np.float32),
        )

    def _photograph(
        self, number: int, index: int, stage: _Stage, vehicle: NDArray[np.float64], light: Light
    ) -> tuple[CameraView, bytes, CameraTruth]:
        unit, weather = self.settings.rig.cameras[number], self.settings.weather
        surfaces = self.surfaces(number, stage, vehicle)
        radiance = shading.radiance(surfaces, stage.scene, light, weather, self.lamps(stage, vehicle))
        draw = generator(self.settings.seed, "camera", unit.name, index)
        jpeg = imaging.encode(imaging.develop(radiance, unit.image_size, weather=weather, draw=draw), unit.jpeg_quality)
        view = CameraView(
            name=unit.name,
            image=imaging.decode(jpeg),
            calibration=self.settings.rig.calibration(unit),
            stamp_ns=self.stamp_ns(index),
        )
        return view, jpeg, truth_of(surfaces)

    def _scan(self, index: int, t: float, stage: _Stage, truths: tuple[CameraTruth, ...]) -> lidar.Returns:
        if self.settings.rig.kind == "depth_image":
            draw = generator(self.settings.seed, "depth image", index)
            return _from_depth(self.settings.rig, truths[0], self._rays[0], draw)
        parts = [self._sweep(number, index, t, stage) for number in range(len(self.settings.rig.lidars))]
        return lidar.joined(parts)

    def _sweep(self, number: int, index: int, t: float, stage: _Stage) -> lidar.Returns:
        unit, rays = self.settings.rig.lidars[number], self._firings[number]
        poses = self.ego.poses(self.world.street, t + rays.offset_s)
        poses[:, :3, 3] -= stage.window.origin
        return lidar.sweep(
            unit,
            rays,
            poses=poses @ unit.mount.matrix(),
            frame=self._vehicle(t, stage) @ self.settings.rig.origin.matrix(),
            scene=stage.scene,
            moving=stage.moment.instances,
            velocities=stage.moment.velocities,
            weather=self.settings.weather,
            facade_styles=self.world.library.facades,
            draw=generator(self.settings.seed, "lidar", number, index),
        )


def truth_of(surfaces: camera.Surfaces) -> CameraTruth:
    return CameraTruth(
        raw_class=surfaces.image(surfaces.raw_class),  # type: ignore[arg-type]
        instance=surfaces.image(surfaces.instance),  # type: ignore[arg-type]
        depth=surfaces.image(surfaces.depth()),  # type: ignore[arg-type]
    )


def _from_depth(rig: Rig, truth: CameraTruth, rays: NDArray[np.float32], draw: np.random.Generator) -> lidar.Returns:
    """Points sampled without replacement from the depth image of the first camera, in the frame of the points."""
    depth = truth.depth.ravel()
    seen = np.flatnonzero((depth > 0) & (depth < rig.max_depth))
    pixel = np.sort(draw.permutation(seen)[: rig.num_points])
    optical = rays[pixel] * (depth[pixel] / rays[pixel, 2])[:, None]
    frame_T_camera = np.linalg.inv(rig.origin.matrix()) @ vehicle_T_camera(rig.cameras[0])
    points = turned(optical, frame_T_camera[:3, :3]) + frame_T_camera[:3, 3].astype(np.float32)
    N = len(pixel)
    return lidar.Returns(
        points=points.astype(np.float32),
        intensity=np.zeros(N, np.float32),
        raw_class=truth.raw_class.ravel()[pixel],
        instance=truth.instance.ravel()[pixel],
        ring=np.zeros(N, np.uint8),
        offset_s=np.zeros(N, np.float32),
    )


def drive_samples(
    settings: DriveSettings, *, label_space: LabelSpace = NUSCENES_6, with_truth: bool = False
) -> Iterator[Sample]:
    """Every sample of a drive, in order."""
    drive = Drive(settings, label_space=label_space, with_truth=with_truth)
    return (drive.sample(index) for index in range(len(drive)))


def drive_frames(settings: DriveSettings, *, label_space: LabelSpace = NUSCENES_6) -> Iterator[Frame]:
    """Every frame of a drive with images, points, intensity and labels, in order."""
    return (sample.frame for sample in drive_samples(settings, label_space=label_space))
