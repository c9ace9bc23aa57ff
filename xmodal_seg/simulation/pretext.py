# SPDX-License-Identifier: Apache-2.0
"""Views of random streets for pre-training an image network: each under two lights, with what geometry knows of it.

No class of any label space is among the targets. Places, object models, palettes, lights and cameras are drawn at
random and are none of those that have a name.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xmodal_seg.config import Settings
from xmodal_seg.simulation import imaging, shading
from xmodal_seg.simulation.camera import Surfaces
from xmodal_seg.simulation.dice import Dice, generator
from xmodal_seg.simulation.drive import Drive, DriveSettings
from xmodal_seg.simulation.light import Light, random_light
from xmodal_seg.simulation.places import random_place
from xmodal_seg.simulation.raw_classes import RawClass
from xmodal_seg.simulation.rigs import CameraUnit, Mount, Rig, vehicle_T_camera
from xmodal_seg.simulation.street import Street
from xmodal_seg.simulation.weather import Weather

STRIDE = 2  # px of the image for one cell of the targets
MAX_DEPTH_M = 150.0
NEAR_M = 2.5
NORMAL_SCALE = 127.0
ALBEDO_SCALE = 255.0
ROUGHNESS_WINDOW = 7  # cells
LIGHT_TRIES = 8


class ViewSettings(Settings):
    """How views are drawn. A street is one random place; its views share most of the cost of building it."""

    image_size: tuple[int, int] = Field(default=(192, 336), description="(height, width) px")
    hfov: tuple[float, float] = Field(
        default=(50.0, 95.0), description="range of the horizontal field of view, degrees"
    )
    moments: int = Field(default=2, gt=0, description="positions of the vehicle along a street")
    cameras: int = Field(default=6, gt=0, description="random cameras of the vehicle; a view each at every position")
    moment_every_s: float = Field(default=6.0, gt=0)
    max_near_share: float = Field(default=0.35, gt=0, le=1, description="of pixels closer than 2.5 m, else dropped")
    min_seen_share: float = Field(default=0.35, ge=0, lt=1, description="of pixels that show no sky, else dropped")


@dataclass(frozen=True, kw_only=True)
class PretextViews:
    """V views (H, W) under two lights; targets on cells of STRIDE px, h = H / STRIDE, w = W / STRIDE."""

    images: NDArray[np.uint8]  # (V, 2, H, W, 3) RGB
    depth: NDArray[np.float16]  # (V, h, w) m along the optical axis, 0 in the sky
    normal: NDArray[np.int8]  # (V, h, w, 3) forward, left, up of a level camera, times NORMAL_SCALE
    albedo: NDArray[np.uint8]  # (V, h, w, 3) square root of the reflectance, times ALBEDO_SCALE
    height: NDArray[np.float16]  # (V, h, w) m above the road
    roughness: NDArray[np.uint8]  # (V, h, w) spread of the normals around, times 255
    extent: NDArray[np.float16]  # (V, h, w, 2) m, top above the road and width of an object as seen, 0 on ground
    piece: NDArray[np.int16]  # (V, h, w) number within the view of an object or strip of ground, -1 in the sky
    focal: NDArray[np.float32]  # (V,) px of the image

    def __len__(self) -> int:
        return len(self.images)


def random_views(seed: int, settings: ViewSettings) -> PretextViews:
    """Views of the random street `seed`; the same seed gives the same views. Drops those with little to see.

    Raises ValueError where the extra `sim` is missing.
    """
    drive = Drive(
        DriveSettings(
            seed=seed,
            num_frames=settings.moments,
            fps=1.0 / settings.moment_every_s,
            rig=random_rig(seed, settings),
            place=random_place(seed),
            weather=random_weather(seed),
        )
    )
    views = [
        _view(drive, seed, moment, number) for moment in range(settings.moments) for number in range(settings.cameras)
    ]
    kept = [view for view in views if _worth_seeing(view, settings)]
    return stacked(kept if kept else views[:1])


def stacked(views: list[PretextViews]) -> PretextViews:
    """Several sets of views as one."""
    return PretextViews(
        **{f.name: np.concatenate([getattr(view, f.name) for view in views]) for f in fields(PretextViews)}
    )


def random_rig(seed: int, settings: ViewSettings) -> Rig:
    """Cameras at random places of a vehicle; half of them look ahead."""
    dice = Dice(seed, "pretext rig")
    return Rig(
        name="pretext",
        kind="depth_image",
        cameras=tuple(_random_camera(dice, number, settings) for number in range(settings.cameras)),
    )


def _random_camera(dice: Dice, number: int, settings: ViewSettings) -> CameraUnit:
    height, width = settings.image_size
    half = np.radians(dice.between(settings.hfov)) / 2
    yaw = dice.uniform(-12, 12) if number % 2 == 0 else dice.uniform(-180, 180)
    return CameraUnit(
        name=f"camera_{number}",
        mount=Mount(
            x=dice.uniform(0.2, 1.0),
            y=dice.uniform(-0.5, 0.5),
            z=dice.uniform(1.25, 2.2),
            yaw=yaw,
            pitch=dice.uniform(-4, 6),
            roll=dice.uniform(-2, 2),
        ),
        image_size=(height, width),
        focal=round(width / 2 / np.tan(half), 3),
    )


def random_weather(seed: int) -> Weather:
    """Mostly clear; some haze, wet ground and rain."""
    dice = Dice(seed, "pretext weather")
    match dice.choice(("clear", "haze", "wet", "rain"), (6, 1, 1, 1)):
        case "haze":
            return Weather(visibility=dice.uniform(250, 2000))
        case "wet":
            return Weather(wetness=dice.uniform(0.2, 1))
        case "rain":
            return Weather(rain=dice.uniform(1, 20), visibility=dice.uniform(800, 4000))
    return Weather()


def random_light_pair(seed: int) -> tuple[Light, Light]:
    """Two random lights, of different conditions (day, twilight, night) unless chance will not have it."""
    first = random_light(seed * (LIGHT_TRIES + 1))
    others = [random_light(seed * (LIGHT_TRIES + 1) + 1 + i) for i in range(LIGHT_TRIES)]
    second = next((light for light in others if light.condition != first.condition), others[0])
    return first, second


def _view(drive: Drive, seed: int, moment: int, number: int) -> PretextViews:
    """One view, V = 1."""
    t = drive.time(moment)
    stage = drive.stage(t)
    vehicle = drive.ego.poses(drive.world.street, t)[0]
    vehicle[:3, 3] -= stage.window.origin
    unit, weather = drive.settings.rig.cameras[number], drive.settings.weather
    surfaces = drive.surfaces(number, stage, vehicle)
    lamps = drive.lamps(stage, vehicle)
    key = (seed * 64 + moment) * 64 + number
    images = []
    for half, light in enumerate(random_light_pair(key)):
        radiance = shading.radiance(surfaces, stage.scene, light, weather, lamps)
        images.append(imaging.develop(radiance, unit.image_size, weather=weather, draw=generator(key, "pretext", half)))
    return _with_targets(
        surfaces, drive.world.street, stage.window.origin, vehicle @ vehicle_T_camera(unit), images, unit
    )


def above_road(points: NDArray[np.floating], street: Street) -> NDArray[np.float32]:
    """(M,) height of world points (M, 3) above the line of the street beside them, m."""
    s = np.asarray(points[:, 0], float)
    for _ in range(4):  # walk along the street to where the point lies straight beside it
        gap = points - street.point(s)
        heading = street.heading(s)
        s = s + gap[:, 0] * np.cos(heading) + gap[:, 1] * np.sin(heading)
    return (points - street.point(s))[:, 2].astype(np.float32)


def _with_targets(
    surfaces: Surfaces,
    street: Street,
    origin: NDArray[np.float64],
    world_T_camera: NDArray[np.float64],
    images: list[NDArray[np.uint8]],
    unit: CameraUnit,
) -> PretextViews:
    rows = _rows_at_cells(surfaces)

    def cells(values: NDArray[Any]) -> NDArray[Any]:
        """Values (M', ...) of `rows` -> (h, w, ...), 0 in the sky."""
        full = np.zeros((*surfaces.image_size, *values.shape[1:]), values.dtype)
        full.reshape(-1, *values.shape[1:])[surfaces.pixel[rows]] = values
        return full[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]

    point, instance = surfaces.point[rows], surfaces.instance[rows]
    height = above_road(point + origin, street)
    normal = cells(surfaces.normal[rows] @ _level(world_T_camera))
    return PretextViews(
        images=np.stack(images)[None],
        depth=cells(np.minimum(surfaces.depth()[rows], MAX_DEPTH_M)).astype(np.float16)[None],
        normal=np.round(NORMAL_SCALE * normal).astype(np.int8)[None],
        albedo=cells(np.round(ALBEDO_SCALE * np.sqrt(np.clip(surfaces.albedo[rows], 0, 1)))).astype(np.uint8)[None],
        height=cells(np.clip(height, -5, 60)).astype(np.float16)[None],
        roughness=_roughness(normal)[None],
        extent=cells(_extents(instance, point, height)).astype(np.float16)[None],
        piece=_pieces(cells(instance), cells(surfaces.raw_class[rows]))[None],
        focal=np.array([unit.focal], np.float32),
    )


def _rows_at_cells(surfaces: Surfaces) -> NDArray[np.int64]:
    """Rows of `surfaces` whose pixels stand for a cell of the targets."""
    v, u = np.divmod(surfaces.pixel, surfaces.image_size[1])
    return np.flatnonzero((v % STRIDE == STRIDE // 2) & (u % STRIDE == STRIDE // 2))


def _level(world_T_camera: NDArray[np.float64]) -> NDArray[np.float32]:
    """(3, 3) columns forward, left, up of a camera without pitch and roll, in the world."""
    forward = world_T_camera[:2, 2] / np.linalg.norm(world_T_camera[:2, 2])
    x, y = forward
    return np.array([[x, -y, 0], [y, x, 0], [0, 0, 1]], np.float32)


def _roughness(normal: NDArray[np.float32]) -> NDArray[np.uint8]:
    """How far the normals (h, w, 3) around a cell differ: 0 on a plane, 255 where they cancel out."""
    window = (ROUGHNESS_WINDOW, ROUGHNESS_WINDOW)
    number = cv2.boxFilter((normal != 0).any(axis=-1).astype(np.float32), -1, window)
    mean = np.linalg.norm(cv2.boxFilter(normal, -1, window), axis=-1) / np.maximum(number, 1e-6)
    return np.round(255 * np.clip(1 - mean, 0, 1)).astype(np.uint8)


def _extents(
    instance: NDArray[np.int32], point: NDArray[np.float32], height: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(M, 2) top above the road and greatest side on the ground plan of the visible part of each pixel's object."""
    numbers, rows = np.unique(instance, return_inverse=True)
    top = np.full(len(numbers), -np.inf, np.float32)
    np.maximum.at(top, rows, height)
    low, high = np.full((len(numbers), 2), np.inf, np.float32), np.full((len(numbers), 2), -np.inf, np.float32)
    np.minimum.at(low, rows, point[:, :2])
    np.maximum.at(high, rows, point[:, :2])
    extents = np.stack([np.clip(top, 0, 100), np.clip((high - low).max(axis=1), 0, 100)], axis=1)
    extents[numbers == 0] = 0
    return extents[rows]


def _pieces(instance: NDArray[np.int32], raw_class: NDArray[np.uint8]) -> NDArray[np.int16]:
    """(h, w) one number for each object and each connected strip of ground; which is which cannot be told from it.

    The ground is one mesh without instances: its strips (road, curb, sidewalk ...) are told apart by their class here,
    and only their borders are kept, as one sees them in a drawing without legend.
    """
    pieces = np.unique(instance, return_inverse=True)[1].reshape(instance.shape).astype(np.int16)
    ground, used = instance == 0, int(pieces.max()) + 1
    raw_class = np.where(raw_class == RawClass.MARKING, RawClass.ROAD, raw_class)  # paint is no strip of its own
    for raw in np.unique(raw_class[ground]):
        count, parts = cv2.connectedComponents((ground & (raw_class == raw)).astype(np.uint8), connectivity=8)
        pieces = np.where(parts > 0, parts + used, pieces).astype(np.int16)
        used += count
    pieces[raw_class == RawClass.NOTHING] = -1
    return pieces


def _worth_seeing(view: PretextViews, settings: ViewSettings) -> bool:
    seen = view.depth > 0
    near = seen & (view.depth < NEAR_M)
    return bool(seen.mean() >= settings.min_seen_share and near.mean() <= settings.max_near_share)
