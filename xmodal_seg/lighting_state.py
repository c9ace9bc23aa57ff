# SPDX-License-Identifier: Apache-2.0
"""Condition and weight bank over time: hysteresis in level and in seconds, so that a tunnel is not a night."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import Field, model_validator

from xmodal_seg.config import Settings

Condition = Literal["day", "twilight", "night"]
DYNAMIC: dict[str, Any] = {"dynamic": True}  # a node may change it while it runs
CONDITIONS: tuple[Condition, ...] = ("day", "twilight", "night")
_JUMP_BACK_NS = 2_000_000_000  # less is the disorder of several cameras
_ABSENCE_NS = 15_000_000_000  # no camera is as slow as that
_UNSURE_NS = 30_000_000_000  # three pictures of the slowest camera; longer, and a robot may be somewhere else
_MOST_OF_A_GAP_S = 5.0
_LONGEST_PERIOD_NS = 10_000_000_000
_NUM_GAPS = 9
_MISSING_PERIODS = 2.5


def is_jump(newest_ns: int, stamp_ns: int) -> bool:
    """Whether a stamp does not go on from the newest one: it is over 2 s back or 15 s ahead."""
    return not -_JUMP_BACK_NS <= stamp_ns - newest_ns <= _ABSENCE_NS


class HysteresisSettings(Settings):
    """Levels of darkness and how long they must hold; day mirrors night."""

    night_enter: float = Field(
        default=0.8, json_schema_extra=DYNAMIC, gt=0.5, lt=1, description="darkness above which night begins"
    )
    night_leave: float = Field(
        default=0.6, json_schema_extra=DYNAMIC, gt=0, lt=1, description="darkness below which night ends"
    )
    enter_s: float = Field(
        default=5.0, json_schema_extra=DYNAMIC, ge=0, description="how long day or night must hold to be entered, s"
    )
    leave_s: float = Field(
        default=10.0, json_schema_extra=DYNAMIC, ge=0, description="how long it must be over to be left for twilight, s"
    )

    @model_validator(mode="after")
    def _check(self) -> HysteresisSettings:
        if not 0.5 <= self.night_leave <= self.night_enter:
            raise ValueError(
                f"night_leave: expected 0.5 to night_enter ({self.night_enter:g}), got {self.night_leave:g}"
            )
        return self

    def target(self, darkness: float, present: Condition | None) -> Condition:
        """The condition that `darkness` speaks for while `present` (None: nothing yet) is served."""
        night = self.night_leave if present == "night" else self.night_enter
        day = 1.0 - (self.night_leave if present == "day" else self.night_enter)
        if darkness > night:
            return "night"
        return "day" if darkness < day else "twilight"


class Rhythm:
    """How often something comes: the median of the newest gaps, without those that are silence."""

    def __init__(self) -> None:
        self._last_ns: int | None = None
        self._gaps_ns: deque[int] = deque(maxlen=_NUM_GAPS)

    def note(self, now_ns: int) -> None:
        """It has come."""
        gap_ns = 0 if self._last_ns is None else now_ns - self._last_ns
        if 0 < gap_ns <= _LONGEST_PERIOD_NS:
            self._gaps_ns.append(gap_ns)
        self._last_ns = now_ns

    def limit_ns(self, *, least_s: float) -> float:
        """What has not come for longer than this has stopped coming: 2.5 usual periods, but not below `least_s`."""
        usual_ns = median_low(self._gaps_ns) if self._gaps_ns else 0
        return max(least_s * 1e9, _MISSING_PERIODS * usual_ns)


class Hysteresis:
    """Follows darkness; the first value decides at once, later ones must hold for a while.

    Day and night are entered when they alone were wanted for `enter_s`. They are left for twilight when they were not
    wanted for `leave_s`, whatever was wanted instead, so that darkness that goes to and fro holds no condition.

    Two values alone change nothing, however far apart their stamps: a gap counts for half the wait at most, and for 5 s
    or 2.5 usual gaps. A stamp over 2 s back or 15 s ahead is a jump: the condition stays, and the count begins anew.

    A sample that is not sure (`pause`) says nothing, so its time does not count, and what was counted before is kept;
    after more than 30 s without a sure sample the count begins anew.
    """

    def __init__(self, settings: HysteresisSettings) -> None:
        self.settings = settings
        self.condition: Condition | None = None  # None before the first value
        self._wanted: Condition | None = None  # by the newest sure sample, where it is another one
        self._held_ns = 0.0  # for how long the same was wanted
        self._away_ns = 0.0  # for how long the condition was not
        self._unsure_since_ns: int | None = None  # None: the newest sample was sure
        self._newest_ns: int | None = None
        self._rhythm = Rhythm()  # of the stamps

    def update(self, darkness: float, stamp_ns: int) -> Condition:
        """Take a sample that is sure."""
        self._count(stamp_ns)
        self._unsure_since_ns = None
        target = self.settings.target(darkness, self.condition)
        if self.condition is None or target == self.condition:
            self.condition = target
            self._forget()
            return target
        if target != self._wanted:
            self._wanted, self._held_ns = target, 0.0
        if target != "twilight" and self._held_ns >= self.settings.enter_s * 1e9:
            self.condition = target
            self._forget()
        elif self.condition != "twilight" and self._away_ns >= self.settings.leave_s * 1e9:
            self.condition = "twilight"
            if target == "twilight":
                self._forget()
        return self.condition

    def pause(self, stamp_ns: int) -> None:
        """Take a sample that is not sure: the time until the next one does not count."""
        self._count(stamp_ns)
        if self._unsure_since_ns is None:
            self._unsure_since_ns = stamp_ns

    @property
    def is_changing(self) -> bool:
        return self._wanted is not None

    def interrupt(self) -> None:
        """Start counting anew, from the next stamp on: what was wanted was not seen all the time."""
        self._forget()
        self._unsure_since_ns, self._newest_ns = None, None

    def _forget(self) -> None:
        self._wanted, self._away_ns = None, 0.0

    def _count(self, stamp_ns: int) -> None:
        """Add the time since the newest sample to what that one wanted, if it was sure."""
        passed_ns = min(self._passed(stamp_ns), self._rhythm.limit_ns(least_s=_MOST_OF_A_GAP_S))
        if self._unsure_since_ns is not None:
            if stamp_ns - self._unsure_since_ns > _UNSURE_NS:
                self._forget()
        elif self._wanted is not None:
            self._held_ns += min(passed_ns, self.settings.enter_s * 1e9 / 2)
            self._away_ns += min(passed_ns, self.settings.leave_s * 1e9 / 2)

    def _passed(self, stamp_ns: int) -> int:
        """Time since the newest stamp; 0 for an older one and after a jump."""
        self._rhythm.note(stamp_ns)
        newest_ns = self._newest_ns
        if newest_ns is None or is_jump(newest_ns, stamp_ns):
            self.interrupt()
            self._newest_ns = stamp_ns
            return 0
        self._newest_ns = max(newest_ns, stamp_ns)
        return self._newest_ns - newest_ns


class Light(Protocol):
    """What the choice of a bank needs to know of a camera (lighting.CameraLighting has it)."""

    @property
    def darkness(self) -> float: ...

    @property
    def guidance(self) -> float: ...

    @property
    def confidence(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class CommonLight:
    """What the healthy cameras say together."""

    darkness: float  # median
    guidance: float  # median
    confidence: float  # median over all cameras, the unhealthy ones too
    num_healthy: int


def common_light(cameras: Sequence[Light], *, min_confidence: float) -> CommonLight | None:
    """Medians over the cameras that are confident enough, None where there is none."""
    healthy = [camera for camera in cameras if camera.confidence >= min_confidence]
    if not healthy:
        return None
    return CommonLight(
        darkness=float(np.median([camera.darkness for camera in healthy])),
        guidance=float(np.median([camera.guidance for camera in healthy])),
        confidence=float(np.median([camera.confidence for camera in cameras])),
        num_healthy=len(healthy),
    )


class BankSettings(Settings):
    """When the weight bank follows the light."""

    hold_s: float = Field(default=20.0, ge=0, description="how long another bank must be due before it is served, s")
    min_confidence: float = Field(default=0.3, ge=0, le=1, description="cameras less sure than this do not count")


class BankSelector:
    """The weight bank after the light: 'day' by day, 'night' by night, by twilight the one that is served.

    A bank that the checkpoint lacks is never asked for. Cameras that are not healthy change nothing: while none is, the
    time does not count.
    """

    def __init__(self, *, banks: Sequence[str], served: str, settings: BankSettings) -> None:
        self.bank = served
        self._banks = frozenset(banks)
        self._settings = settings
        self._hysteresis = Hysteresis(HysteresisSettings(enter_s=settings.hold_s, leave_s=settings.hold_s))

    @property
    def condition(self) -> Condition | None:
        return self._hysteresis.condition

    def reset(self) -> None:
        """After a jump in time: forget what was about to change; bank and condition stay."""
        self._hysteresis.interrupt()

    def update(self, cameras: Sequence[Light], stamp_ns: int) -> str:
        """The bank to serve from now on."""
        light = common_light(cameras, min_confidence=self._settings.min_confidence)
        if light is None:
            self._hysteresis.pause(stamp_ns)
            return self.bank
        condition = self._hysteresis.update(light.darkness, stamp_ns)
        if condition in self._banks:
            self.bank = condition
        return self.bank
