# SPDX-License-Identifier: Apache-2.0
"""LightingEstimator: images of several cameras -> darkness, guidance (lambda), confidence and condition of each.

    lambda = lambda_min + (lambda_max - lambda_min) * (1 - darkness)

pulled to the middle where the estimate is not confident. An image that is black, over-exposed, blocked, frozen or late
changes nothing but the confidence: none of them is a night by itself. Time always comes in as an argument, and asking
for an estimate changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from xmodal_seg.config import Settings
from xmodal_seg.lighting_features import ImageFacts, image_facts
from xmodal_seg.lighting_health import (
    Exposure,
    Exposures,
    ExposureSettings,
    LidarHealth,
    exposure_logit,
    glare,
    image_faults,
    scene_level,
    sun_elevation,
    sun_logit,
)
from xmodal_seg.lighting_model import LightingCoefficients, shipped_coefficients, sigmoid
from xmodal_seg.lighting_state import DYNAMIC, Condition, Hysteresis, HysteresisSettings, Rhythm

__all__ = ["CameraLighting", "Condition", "Exposure", "LightingEstimator", "LightingSettings"]

_JUMP_BACK_NS = 500_000_000
_LIDAR_OLD_NS = 2_000_000_000
_PRIOR_DISAGREES = 0.5  # factor on the confidence


class LightingSettings(Settings):
    """How an estimate follows the images."""

    lambda_min: float = Field(default=0.0, json_schema_extra=DYNAMIC, ge=0, le=1, description="guidance by night")
    lambda_max: float = Field(default=1.0, json_schema_extra=DYNAMIC, ge=0, le=1, description="guidance by day")
    time_constant_s: float = Field(
        default=2.0, json_schema_extra=DYNAMIC, ge=0, description="of the smoothing in time, s"
    )
    min_confidence: float = Field(
        default=0.5,
        json_schema_extra=DYNAMIC,
        gt=0,
        le=1,
        description="below this confidence the guidance goes to the middle",
    )
    stale_after_s: float = Field(
        default=0.5,
        gt=0,
        description="an estimate older than this, and than 2.5 usual periods of its camera, is worth nothing, s",
    )
    frozen_after_s: float = Field(
        default=1.0, json_schema_extra=DYNAMIC, gt=0, description="equal images for longer than this are a fault, s"
    )
    sun_weight: float = Field(
        default=0.3,
        json_schema_extra=DYNAMIC,
        ge=0,
        le=1,
        description="of the sun's elevation in log-odds; 0: ignore it",
    )
    sun_patience_s: float = Field(
        default=60.0,
        json_schema_extra=DYNAMIC,
        ge=0,
        description="the sun is ignored when images disagree with it for longer than this, s",
    )
    hysteresis: HysteresisSettings = HysteresisSettings()
    exposure: ExposureSettings = ExposureSettings()

    @model_validator(mode="after")
    def _check(self) -> LightingSettings:
        if self.lambda_min > self.lambda_max:
            raise ValueError(f"lambda_min: expected at most lambda_max ({self.lambda_max:g}), got {self.lambda_min:g}")
        return self


@dataclass(frozen=True, kw_only=True)
class CameraLighting:
    """What is known about the light in one camera's images."""

    name: str
    stamp_ns: int  # of the newest image
    darkness: float  # smoothed, 0 day to 1 night; of the first image alone before a usable one has come
    guidance: float  # lambda
    confidence: float  # 0 to 1
    condition: Condition  # with hysteresis; twilight before a usable image has come
    reasons: tuple[str, ...]  # why the confidence is low
    reliability: float  # of the camera: 0 where it sees nothing of use
    image_darkness: float  # of the newest image alone


@dataclass(kw_only=True)
class _Camera:
    """What is remembered of one camera."""

    hysteresis: Hysteresis
    stamp_ns: int  # newest
    arrived_ns: int = 0
    rhythm: Rhythm = field(default_factory=Rhythm)  # of the arrivals
    logit: float | None = None  # smoothed; None before a usable image
    usable_ns: int = 0  # of the newest usable image
    fingerprint: int | None = None
    same_since_ns: int = 0
    sun_against_ns: int | None = None  # since when image and sun disagree
    latest: CameraLighting | None = field(default=None)

    def jump_back(self, stamp_ns: int) -> None:
        """Go on at an earlier stamp as if no time had passed, except that what was about to change is forgotten."""
        by_ns = stamp_ns - self.stamp_ns
        self.stamp_ns = stamp_ns
        self.usable_ns += by_ns
        self.same_since_ns += by_ns
        if self.sun_against_ns is not None:
            self.sun_against_ns += by_ns
        self.hysteresis.interrupt()


class LightingEstimator:
    """One estimate for each camera name; see the module's text. Not thread-safe."""

    def __init__(
        self, *, settings: LightingSettings | None = None, coefficients: LightingCoefficients | None = None
    ) -> None:
        self.settings = settings or LightingSettings()
        self.coefficients = coefficients or shipped_coefficients()
        self._cameras: dict[str, _Camera] = {}
        self._exposures: dict[str, Exposures] = {}
        self._lidar = LidarHealth()
        self._lidar_health: tuple[float, int] | None = None  # and its stamp
        self._fix: tuple[float, float] | None = None

    def update(
        self,
        name: str,
        image: NDArray[np.uint8],
        stamp_ns: int,
        exposure: Exposure | None = None,
        *,
        arrived_ns: int | None = None,
    ) -> CameraLighting:
        """Take an (H, W, 3) uint8 RGB image of any size. Raises ValueError for anything else.

        `arrived_ns` is the time by the clock that `current` and `stale` are asked by, the stamp without it. Without
        `exposure`, metadata given before count where their stamp is near. A stamp over half a second back is a jump in
        time: darkness and condition go on from where they are.
        """
        facts = image_facts(image)
        camera = self._camera(name, stamp_ns)
        camera.arrived_ns = stamp_ns if arrived_ns is None else arrived_ns
        camera.rhythm.note(camera.arrived_ns)
        if exposure is None and name in self._exposures:
            exposure = self._exposures[name].at(stamp_ns, within_ns=self._stale_after_ns(camera))
        faults = image_faults(facts, self.coefficients.limits) + self._frozen(camera, facts, stamp_ns)
        image_logit, reasons, agreement = self._image_logit(camera, facts, stamp_ns, exposure)
        if not faults:
            self._smooth(camera, image_logit, stamp_ns)
        logit = image_logit if camera.logit is None else camera.logit
        darkness, image_darkness = sigmoid(logit), sigmoid(image_logit)
        condition = self._condition(camera, darkness, stamp_ns, usable=not faults)
        clear = 0.0 if faults else 1.0 - glare(facts, self.coefficients.limits)
        if faults:
            agreement, reasons = 0.0, faults
        else:
            agreement *= clear
            reasons = (*reasons, "glare") if clear < 1.0 else reasons
            agreement *= 1.0 - abs(image_darkness - darkness)
            if camera.hysteresis.is_changing:
                agreement, reasons = agreement * _PRIOR_DISAGREES, (*reasons, "the light is changing")
        confidence = (1.0 - _entropy(darkness)) * agreement * self._lidar_factor(stamp_ns)
        if not faults and _entropy(darkness) > 0.5:
            reasons = (*reasons, "between day and night")
        if self._lidar_factor(stamp_ns) < 1:
            reasons = (*reasons, "LiDAR degraded")
        camera.latest = CameraLighting(
            name=name,
            stamp_ns=stamp_ns,
            darkness=darkness,
            guidance=self.guidance(darkness, confidence),
            confidence=confidence,
            condition=condition,
            reasons=reasons,
            reliability=(1.0 - darkness) * clear,
            image_darkness=image_darkness,
        )
        return camera.latest

    def update_exposure(self, name: str, exposure: Exposure, stamp_ns: int) -> None:
        """How a camera took the image of about this stamp; counts for images within its limit of staleness."""
        self._exposures.setdefault(name, Exposures()).add(exposure, stamp_ns)

    def update_lidar(self, points: NDArray[np.float32], stamp_ns: int) -> float:
        """Take a sweep (N, 3) m; the share of confidence it leaves, which holds for two seconds."""
        self._lidar_health = self._lidar.update(points, stamp_ns), stamp_ns
        return self._lidar_health[0]

    def update_fix(self, *, latitude: float, longitude: float) -> None:
        """Where the cameras are, degrees; from then on the sun's elevation is a weak prior (stamps must be UTC)."""
        sun_elevation(latitude=latitude, longitude=longitude, stamp_ns=0)  # says at once what is wrong
        self._fix = latitude, longitude

    def current(self, now_ns: int) -> tuple[CameraLighting, ...]:
        """The newest estimate of every camera; those that are stale have no confidence."""
        return tuple(self.stale(name, now_ns) for name in self._cameras)

    def stale(self, name: str, now_ns: int) -> CameraLighting:
        """The newest estimate of a camera, without confidence if it is too old. ValueError for an unknown name."""
        camera = self._cameras.get(name)
        if camera is None or camera.latest is None:
            raise ValueError(f"camera: expected one of {', '.join(self._cameras) or 'none yet'}, got {name!r}")
        if now_ns - camera.arrived_ns <= self._stale_after_ns(camera):
            return camera.latest
        guidance = self.guidance(camera.latest.darkness, 0.0)
        return replace(camera.latest, confidence=0.0, reliability=0.0, guidance=guidance, reasons=("stale",))

    def apply(self, settings: LightingSettings) -> None:
        """Go on with other settings; what was seen stays."""
        self.settings = settings
        for camera in self._cameras.values():
            camera.hysteresis.settings = settings.hysteresis

    def reset(self) -> None:
        """Forget all cameras, the LiDAR's usual returns and the place."""
        self._cameras.clear()
        self._exposures.clear()
        self._lidar, self._lidar_health, self._fix = LidarHealth(), None, None

    def guidance(self, darkness: float, confidence: float) -> float:
        """Lambda of a darkness, pulled to the middle below min_confidence."""
        low, high = self.settings.lambda_min, self.settings.lambda_max
        middle, trust = (low + high) / 2, min(1.0, confidence / self.settings.min_confidence)
        return middle + trust * (low + (high - low) * (1.0 - darkness) - middle)

    def _camera(self, name: str, stamp_ns: int) -> _Camera:
        camera = self._cameras.get(name)
        if camera is None:
            camera = _Camera(hysteresis=Hysteresis(self.settings.hysteresis), stamp_ns=stamp_ns)
            self._cameras[name] = camera
        elif stamp_ns < camera.stamp_ns - _JUMP_BACK_NS:
            camera.jump_back(stamp_ns)
        camera.stamp_ns = max(camera.stamp_ns, stamp_ns)
        return camera

    def _stale_after_ns(self, camera: _Camera) -> float:
        return camera.rhythm.limit_ns(least_s=self.settings.stale_after_s)

    def _frozen(self, camera: _Camera, facts: ImageFacts, stamp_ns: int) -> tuple[str, ...]:
        if facts.fingerprint != camera.fingerprint:
            camera.fingerprint, camera.same_since_ns = facts.fingerprint, stamp_ns
        frozen = stamp_ns - camera.same_since_ns > self.settings.frozen_after_s * 1e9
        return ("frozen",) if frozen else ()

    def _image_logit(
        self, camera: _Camera, facts: ImageFacts, stamp_ns: int, exposure: Exposure | None
    ) -> tuple[float, tuple[str, ...], float]:
        """Log-odds of one image with its metadata and the sun, what speaks against them, and a factor for that."""
        logit = float(self.coefficients.logit(facts.features))
        reasons: tuple[str, ...] = ()
        agreement = 1.0 - self.coefficients.unusual_share(facts.features)
        if agreement < 0.75:
            reasons = ("unlike the pictures that were fitted on",)
        if exposure is not None:
            extra = exposure_logit(scene_level(facts, exposure), self.settings.exposure)
            if extra * logit < 0 and min(abs(extra), abs(logit)) > 1:
                agreement, reasons = agreement * _PRIOR_DISAGREES, (*reasons, "exposure disagrees with the image")
            logit += extra
        if self._fix is not None and self.settings.sun_weight > 0:
            sun = sun_logit(sun_elevation(latitude=self._fix[0], longitude=self._fix[1], stamp_ns=stamp_ns))
            against = sun * logit < 0 and min(abs(sun), abs(logit)) > 1
            if self._listens_to_sun(camera, stamp_ns, against=against):
                logit += self.settings.sun_weight * sun
                if against:
                    agreement, reasons = agreement * _PRIOR_DISAGREES, (*reasons, "the sun disagrees with the image")
        return logit, reasons, agreement

    def _listens_to_sun(self, camera: _Camera, stamp_ns: int, *, against: bool) -> bool:
        """False once image and sun have disagreed for longer than `sun_patience_s`."""
        if not against:
            camera.sun_against_ns = None
            return True
        if camera.sun_against_ns is None:
            camera.sun_against_ns = stamp_ns
        return stamp_ns - camera.sun_against_ns <= self.settings.sun_patience_s * 1e9

    def _smooth(self, camera: _Camera, logit: float, stamp_ns: int) -> None:
        age_s = max(0, stamp_ns - camera.usable_ns) / 1e9
        if camera.logit is None or self.settings.time_constant_s == 0:
            camera.logit = logit
        else:
            camera.logit += (1.0 - float(np.exp(-age_s / self.settings.time_constant_s))) * (logit - camera.logit)
        camera.usable_ns = max(camera.usable_ns, stamp_ns)

    def _condition(self, camera: _Camera, darkness: float, stamp_ns: int, *, usable: bool) -> Condition:
        if usable:
            return camera.hysteresis.update(darkness, stamp_ns)
        camera.hysteresis.pause(stamp_ns)
        return camera.hysteresis.condition or "twilight"

    def _lidar_factor(self, stamp_ns: int) -> float:
        if self._lidar_health is None or abs(stamp_ns - self._lidar_health[1]) > _LIDAR_OLD_NS:
            return 1.0
        return self._lidar_health[0]


def _entropy(probability: float) -> float:
    """Of a yes-or-no question, in bits."""
    p = min(max(probability, 1e-9), 1 - 1e-9)
    return float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)))
