# SPDX-License-Identifier: Apache-2.0
"""Light: sun and sky by elevation, lamps that switch themselves on, and how light changes along a drive.

Intensities are relative: full sun on a surface that faces it is 1. The twilight values follow the measured fall of
about a factor of ten for every 3 to 4 degrees below the horizon.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from xmodal_seg.config import Settings
from xmodal_seg.simulation.dice import Dice

Condition = Literal["day", "twilight", "night"]

# Sun elevation (degrees) -> direct light, light of the whole sky, colours of both.
_ELEVATION = np.array([-18.0, -12.0, -9.0, -6.0, -3.0, 0.0, 3.0, 8.0, 20.0, 45.0, 90.0])
_DIRECT = np.array([1e-9, 1e-9, 1e-9, 1e-9, 1e-7, 0.02, 0.20, 0.48, 0.80, 1.0, 1.05])
_SKY = np.array([1.6e-4, 4.0e-4, 1.5e-3, 6.0e-3, 2.2e-2, 5.5e-2, 0.10, 0.17, 0.27, 0.33, 0.36])
_SUN_COLOUR = np.array(
    [*[[1, 0.45, 0.2]] * 5, [1, 0.5, 0.25], [1, 0.62, 0.36], [1, 0.8, 0.58], [1, 0.93, 0.8], *[[1, 0.97, 0.9]] * 2]
)
_ZENITH = np.array(
    [
        [1.0, 0.8, 0.7],
        [0.7, 0.75, 1.0],
        [0.45, 0.6, 1.1],
        [0.40, 0.58, 1.15],
        [0.42, 0.6, 1.15],
        [0.5, 0.65, 1.1],
        [0.55, 0.72, 1.1],
        [0.55, 0.75, 1.15],
        [0.5, 0.74, 1.2],
        [0.48, 0.74, 1.22],
        [0.48, 0.74, 1.22],
    ]
)
_HORIZON = np.array(
    [
        [1.5, 1.1, 0.75],
        [1.2, 1.0, 0.9],
        [1.3, 1.0, 0.9],
        [1.6, 1.05, 0.85],
        [1.8, 1.1, 0.8],
        [1.9, 1.2, 0.8],
        [1.7, 1.3, 1.0],
        [1.5, 1.35, 1.15],
        [1.4, 1.4, 1.35],
        [1.3, 1.38, 1.42],
        [1.3, 1.38, 1.42],
    ]
)


class Light(Settings):
    """The light of one moment."""

    sun_elevation: float = Field(default=45.0, ge=-30, le=90, description="degrees above the horizon")
    sun_azimuth: float = Field(default=60.0, description="degrees to the left of the axis of the street")
    cloud: float = Field(default=0.25, ge=0, le=1, description="0 clear, 1 overcast: no shadows, white light")
    lamps: float | None = Field(default=None, ge=0, le=1, description="street lamps; None: on when it is dark")
    head_lamps: float | None = Field(default=None, ge=0, le=1, description="None: on when it is dark")
    windows: float = Field(default=0.30, ge=0, le=1, description="share of lit windows when it is dark")

    @property
    def darkness(self) -> float:
        """0 by day, 1 from the end of civil twilight on."""
        return float(np.clip((3.0 - self.sun_elevation) / 7.0, 0.0, 1.0))

    @property
    def condition(self) -> Condition:
        """day: sun above 3 degrees; night: 8 degrees or more below the horizon; twilight between."""
        if self.sun_elevation > 3.0:
            return "day"
        return "twilight" if self.sun_elevation > -8.0 else "night"

    @property
    def lamp_level(self) -> float:
        return self.darkness if self.lamps is None else self.lamps

    @property
    def head_lamp_level(self) -> float:
        return self.darkness if self.head_lamps is None else self.head_lamps

    def veiled(self, cover: float) -> Light:
        """The same light under at least `cover` of cloud."""
        return self if self.cloud >= cover else self.model_copy(update={"cloud": cover})

    def sun_direction(self) -> NDArray[np.float32]:
        """(3,) unit, towards the sun."""
        elevation, azimuth = np.radians([self.sun_elevation, self.sun_azimuth])
        flat = np.cos(elevation)
        return np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], np.float32)

    def sun_light(self) -> NDArray[np.float32]:
        """(3,) light on a surface that faces the sun."""
        veil = (1.0 - self.cloud) ** 1.2 if self.cloud > 0.3 else 1.0 - 0.5 * self.cloud
        strength = np.exp(np.interp(self.sun_elevation, _ELEVATION, np.log(_DIRECT)))
        return (strength * veil * _mixed(self.sun_elevation, _SUN_COLOUR)).astype(np.float32)

    def sky_light(self) -> NDArray[np.float32]:
        """(3,) light of the whole sky on a level surface."""
        strength = np.exp(np.interp(self.sun_elevation, _ELEVATION, np.log(_SKY))) * (1 + 0.5 * self.cloud)
        colour = (1 - self.cloud) * (0.7 * self.zenith() + 0.3 * self.horizon()) + self.cloud * np.ones(3)
        return (strength * colour).astype(np.float32)

    def zenith(self) -> NDArray[np.float64]:
        return _mixed(self.sun_elevation, _ZENITH)

    def horizon(self) -> NDArray[np.float64]:
        return _mixed(self.sun_elevation, _HORIZON)


def _mixed(elevation: float, table: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([np.interp(elevation, _ELEVATION, table[:, channel]) for channel in range(3)])


LIGHTS = {
    "noon": Light(sun_elevation=52.0, sun_azimuth=70.0, cloud=0.2),
    "morning": Light(sun_elevation=22.0, sun_azimuth=-60.0, cloud=0.15),
    "afternoon": Light(sun_elevation=14.0, sun_azimuth=35.0, cloud=0.25),
    "overcast": Light(sun_elevation=40.0, sun_azimuth=20.0, cloud=1.0),
    "sunset": Light(sun_elevation=4.0, sun_azimuth=-15.0, cloud=0.35),
    "dusk": Light(sun_elevation=-4.0, sun_azimuth=-15.0, cloud=0.4),
    "night": Light(sun_elevation=-16.0, cloud=0.3),
    "dark": Light(sun_elevation=-18.0, cloud=0.5, lamps=0.0, windows=0.05),
}


class LightSchedule(Settings):
    """How the light changes along a drive: moments in s and the light there; between them it is interpolated."""

    times: tuple[float, ...] = (0.0,)
    lights: tuple[Light, ...] = (LIGHTS["noon"],)

    @model_validator(mode="after")
    def _check(self) -> LightSchedule:
        if len(self.times) != len(self.lights) or not self.times:
            raise ValueError(
                f"times and lights: expected one light per time, got {len(self.times)}, {len(self.lights)}"
            )
        if any(later <= earlier for earlier, later in zip(self.times, self.times[1:], strict=False)):
            raise ValueError(f"times: expected increasing values, got {list(self.times)}")
        return self

    def at(self, t: float) -> Light:
        """The light at t s; before the first and after the last moment it stays."""
        if t <= self.times[0] or len(self.times) == 1:
            return self.lights[0]
        if t >= self.times[-1]:
            return self.lights[-1]
        later = next(i for i, time in enumerate(self.times) if time > t)
        share = (t - self.times[later - 1]) / (self.times[later] - self.times[later - 1])
        return _blended(self.lights[later - 1], self.lights[later], share)


def _blended(first: Light, second: Light, share: float) -> Light:
    values: dict[str, float | None] = {}
    for name in Light.model_fields:
        a, b = getattr(first, name), getattr(second, name)
        values[name] = (a if share < 0.5 else b) if a is None or b is None else a + share * (b - a)
    return Light(**values)  # type: ignore[arg-type]


def schedule_named(name: str, duration: float) -> LightSchedule:
    """The schedule `name` for a drive of `duration` s.

    A name of LIGHTS holds it for the whole drive; several joined by '>' (noon>dusk>night) are passed one after the
    other at equal distances; 'sun:<degrees>' sets an elevation. Raises ValueError for anything else.
    """
    lights = [_light_named(part) for part in name.split(">")]
    if len(lights) == 1:
        return LightSchedule(times=(0.0,), lights=(lights[0],))
    times = tuple(float(time) for time in np.linspace(0.0, max(duration, 1e-3), len(lights)))
    return LightSchedule(times=times, lights=tuple(lights))


def _light_named(name: str) -> Light:
    if name in LIGHTS:
        return LIGHTS[name]
    kind, _, value = name.partition(":")
    if kind == "sun":
        try:
            elevation = float(value)
        except ValueError:
            elevation = np.nan
        if -30 <= elevation <= 90:
            return Light(sun_elevation=elevation)
    raise ValueError(
        f"light: expected one of {', '.join(LIGHTS)}, sun:<-30..90>, or several joined by '>', got {name!r}"
    )


def random_light(seed: int) -> Light:
    """A light drawn from wide ranges, for pre-training."""
    dice = Dice(seed, "light")
    elevation = dice.uniform(5, 75) if dice.chance(0.5) else dice.uniform(-20, 8)
    return Light(
        sun_elevation=elevation,
        sun_azimuth=dice.uniform(-180, 180),
        cloud=dice.uniform(0, 1) if dice.chance(0.7) else 1.0,
        lamps=dice.choice((None, 0.0, 1.0), (4, 1, 1)),
        windows=dice.uniform(0.05, 0.6),
    )
