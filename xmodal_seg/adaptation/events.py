# SPDX-License-Identifier: Apache-2.0
"""What happened to the adaptation, and how it stands: for diagnostics, reports and logs."""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass
from typing import Literal

from xmodal_seg.adaptation.settings import Mode

Kind = Literal[
    "paused",
    "resumed",
    "sensors_disagree",
    "disagreement_lasts",
    "step_rejected",
    "published",
    "held",
    "rejected",
    "rolled_back",
    "gave_up",
    "reset",
    "saved",
    "restored",
    "state_damaged",
    "state_failed",
    "mode",
    "failed",
]
_KEPT = 500


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something worth a line in the diagnostics."""

    frame: int  # how many frames had been observed
    stamp_ns: int  # of the last of them
    kind: Kind
    text: str


class EventLog:
    """The newest events, and how many there were of each kind. Thread-safe."""

    def __init__(self) -> None:
        self.frames = 0  # observed so far
        self._stamp_ns = 0
        self._lock = threading.Lock()
        self._events: deque[Event] = deque(maxlen=_KEPT)
        self._counts: Counter[str] = Counter()

    def advance(self, *, stamp_ns: int) -> None:
        """Another frame was observed."""
        self.frames += 1
        self._stamp_ns = stamp_ns

    def add(self, kind: Kind, text: str) -> None:
        """Something happened at the present frame."""
        with self._lock:
            self._events.append(Event(frame=self.frames, stamp_ns=self._stamp_ns, kind=kind, text=text))
            self._counts[kind] += 1

    @property
    def newest(self) -> tuple[Event, ...]:
        """Oldest first."""
        with self._lock:
            return tuple(self._events)

    def after(self, number: int) -> tuple[int, tuple[Event, ...]]:
        """How many events there were so far, and those after the first `number` that are still kept."""
        with self._lock:
            total = sum(self._counts.values())
            num_new = min(total - number, len(self._events))
            return total, tuple(self._events)[len(self._events) - num_new :]

    @property
    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)


@dataclass(frozen=True, kw_only=True)
class AdaptationStatus:
    """How it stands. Numbers that are not known yet are NaN."""

    mode: Mode
    bin: str  # '' before the first frame whose light is known
    paused: tuple[str, ...]
    frames: int
    steps: int  # accepted, of all bins
    rejected_steps: int
    publications: int
    version: str  # on offer in the bin
    strikes: int
    learning_rate: float
    guidance: float  # mean lambda of the last step
    loss: float  # of the last step; no sign of health
    sure_agreement: float  # of the last judgement
    agreement: float
    marginal_kl: float
    labelled_loss: float
    distance: float  # largest change of a number on offer, against the reference
    num_frames: int  # in the bin's memory
    num_probes: int
    dropped: int  # frames that waited too long for the adapter
    disagreement: str  # of the sensors, where it has lasted: a sentence; else ''
    disk: str  # what it refused the last time: a sentence; else ''

    def values(self) -> dict[str, str]:
        """By name, as diagnostics have them."""
        texts = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in vars(self).items()}
        return {**texts, "paused": ", ".join(self.paused)}
