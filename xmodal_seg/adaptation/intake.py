# SPDX-License-Identifier: Apache-2.0
"""Intake: what the thread of inference does for adaptation, which is to look at each frame and to set some aside."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from xmodal_seg.adaptation.events import EventLog
from xmodal_seg.adaptation.frames import Bin, SampledFrame, sample_frame
from xmodal_seg.adaptation.guards import FrameFacts, Guards, Reason, sector_ranges
from xmodal_seg.adaptation.light import CameraLight, FrameLight, frame_light
from xmodal_seg.adaptation.settings import AdaptationSettings
from xmodal_seg.inference import LabelledFrame, SeenFrame
from xmodal_seg.structures import Frame, Predictions

_WAITING = 4
_NS = 10**9


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A frame set aside."""

    sample: SampledFrame
    ready: torch.cuda.Event | None  # of the stream of inference: the tensors are there


class Intake:
    """`observe` belongs to the thread of inference, `take`, `begin_turn` and `confirm` to the adapter's.

    At most four frames wait; when the adapter is behind, the oldest goes, since the newest is worth more.
    """

    def __init__(self, *, settings: AdaptationSettings, device: torch.device, events: EventLog) -> None:
        self.bin: Bin | None = None
        self.paused: tuple[Reason, ...] = ()
        self.dropped = 0
        self._settings = settings
        self._device = device
        self._events = events
        self._lock = threading.Lock()
        self._guards = Guards(settings=settings.guards)
        self._waiting: deque[Arrival] = deque()
        self._bins: dict[str, Bin] = {}
        self._frames_since_turn = 0
        self._kept_ns: int | None = None
        self._lasting: dict[Bin, str] = {}  # disagreements of the sensors, and what is to be said about them
        self._generator = torch.Generator().manual_seed(settings.seed)

    def apply(self, settings: AdaptationSettings) -> None:
        """Other settings from the next frame on; may come from any thread."""
        with self._lock:
            self._settings = settings
            self._guards.apply(settings.guards)

    def bin_of(self, bank: str) -> Bin | None:
        """The bin under which the bank was last seen; None: not yet."""
        return self._bins.get(bank)

    @property
    def disagreement(self) -> str:
        """What is to be said about sensors that have disagreed for long in the present bin; '' where they have not."""
        return "" if self.bin is None else self._lasting.get(self.bin, "")

    def forget_usual(self) -> None:
        """How far the sensors agree from now on is what is usual; may come from any thread."""
        with self._lock:
            self._guards.forget_usual()
            self._lasting.clear()

    def observe(
        self,
        frame: Frame,
        labelled: LabelledFrame,
        *,
        lights: Mapping[str, CameraLight],
        latency_ms: float | None,
        moved_m: float | None,
    ) -> tuple[Reason, ...]:
        """Why learning pauses with this frame; where nothing speaks against it, set it aside if it is worth it."""
        names = [camera.name for camera in frame.cameras]
        light = frame_light(names, lights, min_confidence=self._settings.guards.min_confidence)
        facts = FrameFacts(
            stamp_ns=frame.stamp_ns,
            camera_stamps_ns=tuple(camera.stamp_ns for camera in frame.cameras),
            bin=None if light is None else Bin(bank=labelled.bank, condition=light.condition),
            latency_ms=latency_ms,
            moved_m=moved_m,
            ranges_m=sector_ranges(frame.points),
        )
        with self._lock:
            reasons = self._guards.check(facts)
            self._note(facts, reasons)
            wanted = not reasons and light is not None and labelled.seen is not None
            if wanted and self._guards.has_moved and self._is_spaced(facts.stamp_ns):
                assert light is not None
                assert labelled.seen is not None
                self._set_aside(labelled.seen, light, facts)
        return reasons

    def take(self) -> tuple[Arrival, ...]:
        """The frames that wait, oldest first."""
        with self._lock:
            waiting = tuple(self._waiting)
            self._waiting.clear()
            return waiting

    def begin_turn(self) -> Bin | None:
        """The bin to learn in, if a turn is due and nothing speaks against it."""
        with self._lock:
            if self._frames_since_turn < self._settings.period_frames:
                return None
            self._frames_since_turn = 0
            return None if self.paused else self.bin

    def confirm(self, bin: Bin, said: Predictions) -> bool:
        """Whether the reference's heads agree on a frame as they usually do; where not, learning pauses."""
        with self._lock:
            disagree = self._guards.sensors_disagree(bin, said)
            before, lasting = self._lasting.get(bin, ""), self._guards.lasting_disagreement(bin)
            self._lasting[bin] = lasting
            if disagree:
                self._guards.unsettle()
                self.paused = ("sensors_disagree",)
        if disagree:
            text = "2D and 3D heads agree far less than usual: calibration or sensor fault"
            self._events.add("sensors_disagree", text)
        if lasting and not before:
            self._events.add("disagreement_lasts", f"{bin}: {lasting}")
        return not disagree

    def _note(self, facts: FrameFacts, reasons: tuple[Reason, ...]) -> None:
        self._frames_since_turn += 1
        self._events.advance(stamp_ns=facts.stamp_ns)
        if facts.bin is not None:
            self.bin = facts.bin
            self._bins[facts.bin.bank] = facts.bin
        if reasons != self.paused:
            self._events.add("paused" if reasons else "resumed", ", ".join(reasons) or "learning goes on")
        self.paused = reasons

    def _is_spaced(self, stamp_ns: int) -> bool:
        gap_ns = None if self._kept_ns is None else stamp_ns - self._kept_ns
        return gap_ns is None or gap_ns < 0 or gap_ns >= self._settings.memory.min_gap_s * _NS

    def _set_aside(self, seen: SeenFrame, light: FrameLight, facts: FrameFacts) -> None:
        assert facts.bin is not None
        sample = sample_frame(
            seen,
            bin=facts.bin,
            light=light,
            stamp_ns=facts.stamp_ns,
            num_points=self._settings.memory.points_per_frame,
            min_guidance=self._settings.step.min_guidance,
            generator=self._generator,
        )
        ready = None
        if self._device.type == "cuda":
            ready = torch.cuda.Event()
            ready.record(torch.cuda.current_stream(self._device))
        if len(self._waiting) == _WAITING:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(Arrival(sample=sample, ready=ready))
        self._guards.kept(facts)
        self._kept_ns = facts.stamp_ns
