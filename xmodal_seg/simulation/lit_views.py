# SPDX-License-Identifier: Apache-2.0
"""Pictures of random streets with known light, taken by cameras of many habits: what lighting estimation learns from.

One view is cast once and lit several times, from noon to night; every light is photographed by two cameras that differ
in how they expose the dark, in gain, noise and lens. Places, weather and lamps are drawn at random.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xmodal_seg.config import Settings
from xmodal_seg.simulation import imaging, shading
from xmodal_seg.simulation.camera import Surfaces
from xmodal_seg.simulation.dice import Dice, generator
from xmodal_seg.simulation.drive import Drive, DriveSettings
from xmodal_seg.simulation.light import Light
from xmodal_seg.simulation.places import random_place
from xmodal_seg.simulation.pretext import random_weather
from xmodal_seg.simulation.rigs import CameraUnit, Mount, Rig

DAY_ELEVATION = (3.0, 70.0)
TWILIGHT_ELEVATION = (-8.0, 3.0)
NIGHT_ELEVATION = (-20.0, -8.0)
SNOW_ALBEDO = 0.75
CITY_GLOW = (-5.0, -2.3)  # powers of ten; full sun on a surface is 0


class LitViewSettings(Settings):
    """How pictures are drawn."""

    image_size: tuple[int, int] = Field(default=(180, 320), description="(height, width) px")
    moments: int = Field(default=2, gt=0, description="positions of the vehicle along a street")
    cameras: int = Field(default=4, gt=0, description="random cameras at every position")
    days: int = Field(default=2, ge=0, description="lights of a view with the sun above 3 degrees")
    twilights: int = Field(default=1, ge=0, description="lights of a view with the sun between")
    nights: int = Field(default=2, ge=0, description="lights of a view with the sun 8 degrees or more below")
    exposures: int = Field(default=2, gt=0, description="pictures of each light")
    moment_every_s: float = Field(default=8.0, gt=0)


@dataclass(frozen=True, kw_only=True)
class LitPicture:
    """One picture and the light it was taken in."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    street: int  # seed of the street
    view: int  # number of the view within the street
    light: Light


def lit_pictures(street: int, settings: LitViewSettings) -> Iterator[LitPicture]:
    """Every picture of the random street `street`; the same seed gives the same pictures.

    Raises ValueError where the extra `sim` is missing.
    """
    drive = Drive(
        DriveSettings(
            seed=street,
            num_frames=settings.moments,
            fps=1.0 / settings.moment_every_s,
            rig=_random_rig(street, settings),
            place=random_place(street),
            weather=random_weather(street),
        )
    )
    for moment in range(settings.moments):
        for number in range(settings.cameras):
            yield from _view(drive, moment, number, settings)


def random_lights(dice: Dice, settings: LitViewSettings) -> list[Light]:
    """Lights of all conditions; by night the lamps are mostly on, sometimes few, seldom none."""
    ranges = [DAY_ELEVATION] * settings.days + [TWILIGHT_ELEVATION] * settings.twilights
    ranges += [NIGHT_ELEVATION] * settings.nights
    return [
        Light(
            sun_elevation=dice.between(elevations),
            sun_azimuth=dice.uniform(-180, 180),
            cloud=dice.choice((dice.uniform(0, 0.3), dice.uniform(0.3, 1.0), 1.0), (2, 1, 1)),
            lamps=dice.choice((None, dice.uniform(0.2, 1.0), 0.0), (6, 2, 1)),
            windows=dice.uniform(0.03, 0.6),
        )
        for elevations in ranges
    ]


def _view(drive: Drive, moment: int, number: int, settings: LitViewSettings) -> Iterator[LitPicture]:
    t = drive.time(moment)
    stage = drive.stage(t)
    vehicle = drive.ego.poses(drive.world.street, t)[0]
    vehicle[:3, 3] -= stage.window.origin
    unit, weather, street = drive.settings.rig.cameras[number], drive.settings.weather, drive.settings.seed
    view = moment * settings.cameras + number
    dice = Dice(street, "lit view", view)
    surfaces = drive.surfaces(number, stage, vehicle)
    if dice.chance(0.15):
        surfaces = _snowed(surfaces)
    lamps = drive.lamps(stage, vehicle)
    if dice.chance(0.4):  # a camera of no vehicle: no head-lamps of its own
        lamps = replace(lamps, own=lamps.own - np.array([0, 0, 1000], np.float32))
    for i, light in enumerate(random_lights(dice, settings)):
        radiance = shading.radiance(surfaces, stage.scene, light, weather, lamps)
        radiance = _glowing(radiance, surfaces, 10.0 ** dice.uniform(*CITY_GLOW))
        for exposure in range(settings.exposures):
            draw = generator(street, "lit view", view, i, exposure)
            lit, gain = _exposed(radiance, dice)
            image = imaging.develop(lit, unit.image_size, weather=weather, draw=draw, gain=gain)
            yield LitPicture(image=image, street=street, view=view, light=light)


def _glowing(radiance: NDArray[np.float32], surfaces: Surfaces, glow: float) -> NDArray[np.float32]:
    """The light of a town that comes back from its air: on the sky, and fainter on what lies under it."""
    colour = np.float32(glow) * shading.SODIUM
    lit = radiance + colour
    lit[surfaces.pixel] = radiance[surfaces.pixel] + np.float32(0.5) * colour * surfaces.albedo
    return lit


def _exposed(radiance: NDArray[np.float32], dice: Dice) -> tuple[NDArray[np.float32], float]:
    """The light a camera collects and its gain.

    `habit` is how much darker than daylight a dark scene is shown (0: as bright as day); a long exposure collects more
    light and so needs less gain, which leaves less noise.
    """
    luma = radiance[::7] @ np.array([0.25, 0.6, 0.15], np.float32)
    level = float(np.minimum(luma, 6 * np.median(luma) + 1e-9).mean()) + 1e-9
    habit, taste = dice.uniform(0.15, 0.65), 2.0 ** dice.uniform(-0.5, 0.7)
    target = imaging.MIDDLE_GREY * taste * min(1.15, (level / imaging.DAY_LEVEL) ** habit)
    gain = min(target / level, 2.0 ** dice.uniform(5.0, 11.0))
    longer = min(gain, 2.0 ** dice.uniform(0.0, 5.0)) if gain > 1 else 1.0
    return radiance * np.float32(longer), gain / longer


def _snowed(surfaces: Surfaces) -> Surfaces:
    """White on everything that faces up."""
    cover = np.clip((surfaces.normal[:, 2:3] - 0.5) / 0.3, 0, 1) * np.float32(0.9)
    return replace(surfaces, albedo=surfaces.albedo * (1 - cover) + np.float32(SNOW_ALBEDO) * cover)


def _random_rig(street: int, settings: LitViewSettings) -> Rig:
    """Cameras of vehicles, and some that look down from a post or a house."""
    dice = Dice(street, "lit rig")
    return Rig(
        name="lit",
        kind="depth_image",
        cameras=tuple(_random_camera(dice, number, settings) for number in range(settings.cameras)),
    )


def _random_camera(dice: Dice, number: int, settings: LitViewSettings) -> CameraUnit:
    height, width = settings.image_size
    half = np.radians(dice.uniform(35, 100)) / 2
    high = dice.chance(0.35)
    return CameraUnit(
        name=f"camera_{number}",
        mount=Mount(
            x=dice.uniform(0.2, 1.0),
            y=dice.uniform(-0.5, 0.5),
            z=dice.uniform(4.0, 14.0) if high else dice.uniform(1.2, 2.5),
            yaw=dice.uniform(-20, 20) if dice.chance(0.5) else dice.uniform(-180, 180),
            pitch=dice.uniform(0, 22) if high else dice.uniform(-8, 8),
            roll=dice.uniform(-2, 2),
        ),
        image_size=(height, width),
        focal=round(width / 2 / np.tan(half), 3),
    )
