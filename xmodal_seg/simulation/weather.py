# SPDX-License-Identifier: Apache-2.0
"""Weather: what rain and fog do to the air, to the ground, and to a LiDAR."""

from __future__ import annotations

from pydantic import Field

from xmodal_seg.config import Settings

CONTRAST_LIMIT = 3.0  # extinction times visibility (Koschmieder: a black object keeps 5 % contrast)


class Weather(Settings):
    """Rain and fog; both may fall at once."""

    rain: float = Field(default=0.0, ge=0, le=100, description="mm/h; 2 light, 10 strong, 30 a downpour")
    visibility: float = Field(default=6000.0, ge=15, description="m; 1000 haze, 150 fog, 50 thick fog")
    wetness: float | None = Field(default=None, ge=0, le=1, description="of the ground; None: wet where it rains")

    @property
    def wet(self) -> float:
        return min(1.0, self.rain / 4.0) if self.wetness is None else self.wetness

    @property
    def fogginess(self) -> float:
        """0 in clear air, towards 1 where one sees some 20 m."""
        return min(1.0, 20.0 / self.visibility)

    @property
    def cover(self) -> float:
        """Least share of cloud that goes with it."""
        fog = min(1.0, max(0.0, (900.0 - self.visibility) / 700.0))
        return max(fog, min(1.0, self.rain / 4.0))

    def haze(self) -> float:
        """Extinction of visible light per m; rain veils as well."""
        return CONTRAST_LIMIT / self.visibility + 2.2e-4 * self.rain**0.7

    def lidar_extinction(self) -> float:
        """Extinction of the laser per m, one way: fog after visibility, rain after a power law of its rate."""
        fog = 0.0 if self.visibility > 2000 else 0.65 * CONTRAST_LIMIT / self.visibility
        return fog + 0.0014 * self.rain**0.7

    def clutter_share(self) -> float:
        """Share of pulses that come back from drops near the sensor."""
        return min(0.5, 0.0011 * self.rain + (0.30 * self.fogginess if self.visibility < 600 else 0.0))

    def clutter_range(self) -> float:
        """Mean range of these returns behind the nearest one, m."""
        return 2.0 + 0.03 * min(self.visibility, 300.0) if self.visibility < 600 else 6.0


WEATHERS = {
    "clear": Weather(),
    "haze": Weather(visibility=700.0),
    "drizzle": Weather(rain=2.0, visibility=3000.0),
    "rain": Weather(rain=12.0, visibility=1500.0),
    "downpour": Weather(rain=40.0, visibility=500.0),
    "wet": Weather(wetness=0.8),
    "fog": Weather(visibility=90.0, wetness=0.3),
}


def weather_named(name: str) -> Weather:
    """A named weather. Raises ValueError for any other name."""
    if name not in WEATHERS:
        raise ValueError(f"weather: expected one of {', '.join(WEATHERS)}, got {name!r}")
    return WEATHERS[name]
