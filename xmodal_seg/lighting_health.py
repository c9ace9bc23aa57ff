# SPDX-License-Identifier: Apache-2.0
"""What else speaks for or against an estimate of the light: image faults, LiDAR health, exposure, the sun."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xmodal_seg.config import Settings
from xmodal_seg.lighting_features import LEVEL_FLOOR, ImageFacts
from xmodal_seg.lighting_model import QualityLimits
from xmodal_seg.lighting_state import DYNAMIC
from xmodal_seg.structures import Frame

_BLIND = frozenset({"black", "over-exposed", "blocked"})  # faults of an image that says nothing about the scene either
_LIDAR_WINDOW = 50
_LIDAR_LEAST = 5
_LIDAR_GOOD = 0.5  # health
_LIDAR_EVERY_NS = 24_000_000_000  # half of the window is ten minutes
_NUM_EXPOSURES = 32


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """How a camera took an image, where its driver says so."""

    time_s: float
    gain_db: float = 0.0

    def __post_init__(self) -> None:
        if not (self.time_s > 0 and np.isfinite(self.time_s) and np.isfinite(self.gain_db)):
            raise ValueError(
                f"exposure: expected a time above 0 s and a finite gain, got {self.time_s} s, {self.gain_db} dB"
            )


class Exposures:
    """The newest metadata of one camera, by stamp."""

    def __init__(self) -> None:
        self._newest: deque[tuple[int, Exposure]] = deque(maxlen=_NUM_EXPOSURES)

    def add(self, exposure: Exposure, stamp_ns: int) -> None:
        self._newest.append((stamp_ns, exposure))

    def at(self, stamp_ns: int, *, within_ns: float) -> Exposure | None:
        """The nearest one that is at most `within_ns` away, None without one."""
        near = [(abs(known_ns - stamp_ns), exposure) for known_ns, exposure in self._newest]
        gap_ns, exposure = min(near, key=lambda found: found[0], default=(0, None))
        return exposure if gap_ns <= within_ns else None


class ExposureSettings(Settings):
    """Scene level from exposure metadata: log2(mean luminance / exposure time) - gain / 6.02, in stops."""

    weight: float = Field(
        default=1.0,
        json_schema_extra=DYNAMIC,
        ge=0,
        le=4,
        description="log-odds per stop below `middle`; 0: ignore metadata",
    )
    middle: float = Field(
        default=2.0,
        json_schema_extra=DYNAMIC,
        description="scene level between day and night, stops; full sun is near 7.5, a lit street near -3",
    )
    limit: float = Field(
        default=3.0, json_schema_extra=DYNAMIC, ge=0, description="most that metadata can add or take, log-odds"
    )


def scene_level(facts: ImageFacts, exposure: Exposure) -> float:
    """Brightness of the scene in stops, whatever the automatic exposure does."""
    return float(np.log2(facts.mean_level + LEVEL_FLOOR) - np.log2(exposure.time_s) - exposure.gain_db / 6.02)


def exposure_logit(level: float, settings: ExposureSettings) -> float:
    """Log-odds of darkness that a scene level adds."""
    return float(np.clip(settings.weight * (settings.middle - level), -settings.limit, settings.limit))


def image_faults(facts: ImageFacts, limits: QualityLimits) -> tuple[str, ...]:
    """Why the image says nothing about the light; empty for a usable one."""
    if facts.peak_level < limits.black_peak:
        return ("black",)
    if facts.saturated_share > limits.over_share:
        return ("over-exposed",)
    if facts.sharpness < limits.blocked_sharpness:
        return ("blocked",)
    return ()


def glare(facts: ImageFacts, limits: QualityLimits) -> float:
    """0 up to the limit of glare, 1 from that of over-exposure on."""
    span = max(limits.over_share - limits.glare_share, 1e-3)
    return float(np.clip((facts.saturated_share - limits.glare_share) / span, 0.0, 1.0))


class ReportedCamera(Protocol):
    """What is said about a camera's images."""

    @property
    def name(self) -> str: ...

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why an estimate of its light is not sure."""
        ...


def seeing_cameras(frame: Frame, reported: Iterable[ReportedCamera]) -> Frame:
    """The frame without the cameras whose images show nothing: their points are labelled by the 3D network alone."""
    blind = {camera.name for camera in reported if _BLIND.intersection(camera.reasons)}
    if not blind.intersection(view.name for view in frame.cameras):
        return frame
    return replace(frame, cameras=tuple(view for view in frame.cameras if view.name not in blind))


class LidarHealth:
    """Share of confidence left by the LiDAR: few returns against the usual number, or clutter near the sensor.

    The usual is the median of 50 sweeps: the first good ones, then one each 24 s, good or bad. So rain or a fault that
    comes within minutes counts for ten (two at least, where few sweeps came before). What lasts for longer becomes
    usual, because a scene may stay different, like fields after a city; rain that lasts cannot be told from that.
    """

    def __init__(self, *, near_m: float = 3.0, max_near_share: float = 0.5) -> None:
        self._near_m, self._max_near_share = near_m, max_near_share
        self._counts: deque[int] = deque(maxlen=_LIDAR_WINDOW)
        self._usual_near: deque[float] = deque(maxlen=_LIDAR_WINDOW)
        self._added_ns = 0  # stamp of the newest sweep that counts as usual

    def update(self, points: NDArray[np.float32], stamp_ns: int) -> float:
        """From a sweep (N, 3) m: 1 healthy, 0 lost; the first sweeps count as healthy."""
        finite = np.isfinite(points).all(axis=1)
        count = int(finite.sum())
        near = float((np.einsum("ni,ni->n", points, points) < self._near_m**2)[finite].mean()) if count else 1.0
        health = 1.0
        if len(self._counts) >= _LIDAR_LEAST:
            left = count / max(1.0, float(np.median(self._counts)))
            more_near = near - float(np.median(self._usual_near))
            # Half of the usual returns is a wall in front; a quarter is rain, fog or a fault.
            health = float(np.clip((left - 0.25) / 0.25, 0, 1) * np.clip(1 - more_near / self._max_near_share, 0, 1))
        is_filling = len(self._counts) < _LIDAR_WINDOW and health >= _LIDAR_GOOD
        is_due = not 0 <= stamp_ns - self._added_ns < _LIDAR_EVERY_NS  # after a jump in time as well
        if is_filling or is_due:
            self._counts.append(count)
            self._usual_near.append(near)
            self._added_ns = stamp_ns
        return health


def sun_elevation(*, latitude: float, longitude: float, stamp_ns: int) -> float:
    """Degrees above the horizon at a time since 1970 (UTC). Raises ValueError without astral or for a wrong place."""
    try:
        from astral import Observer
        from astral.sun import elevation
    except ImportError as error:
        raise ValueError("sun_weight: the sun's elevation needs the package astral (extra `sun`)") from error
    if not (abs(latitude) <= 90 and abs(longitude) <= 180):
        raise ValueError(f"fix: expected degrees within +-90 and +-180, got {latitude}, {longitude}")
    moment = datetime.fromtimestamp(stamp_ns / 1e9, tz=timezone.utc)
    return float(elevation(Observer(latitude=latitude, longitude=longitude), moment))


def sun_logit(elevation: float) -> float:
    """Log-odds of darkness by the sun: day from 6 degrees above the horizon, night from 6 below."""
    day = float(np.clip((elevation + 6.0) / 12.0, 0.02, 0.98))
    return float(np.log((1.0 - day) / day))
