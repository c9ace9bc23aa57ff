# SPDX-License-Identifier: Apache-2.0
"""What the segmentation node has to do with adaptation; whatever goes wrong here, sweeps are labelled on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticStatus

from xmodal_seg.adaptation.adapter import OnlineAdapter
from xmodal_seg.adaptation.driving import AdapterThread
from xmodal_seg.adaptation.events import AdaptationStatus, Event
from xmodal_seg.adaptation.labelled_frames import gate_frames
from xmodal_seg.adaptation.light import CameraLight
from xmodal_seg.inference import LabelledFrame, Segmenter
from xmodal_seg.nodes.adaptation_settings import NodeAdaptationSettings
from xmodal_seg.nodes.conversions import diagnostic_status
from xmodal_seg.structures import Frame

_DISTURBING = ("disagreement_lasts", "failed", "gave_up", "state_damaged", "state_failed")
_QUIET = ("paused", "resumed", "step_rejected", "held")  # they come often; the diagnostics show the newest one
_RARE = "sensors_disagree"  # comes often too, but a reader of the log should know: told once in
_RARE_S = 60.0


class AdaptationLink:
    """An adapter with its thread, or the sentence that says why the model has none.

    `serve` and `observe` belong to the thread that infers; the rest may be called from any other. Only `stop` may wait
    for a turn to end; `reset`, `rollback` and `save` of the adapter may wait for the disk.

    Args:
        segmenter: holds the deployed weights still.
        settings: whose mode may be `off`: then nothing is learned before `enable`.
        idle: whether inference has nothing to do.

    Raises ValueError for labelled frames that cannot be read, and for a model that cannot adapt though it shall.
    """

    def __init__(self, *, segmenter: Segmenter, settings: NodeAdaptationSettings, idle: Callable[[], bool]) -> None:
        self._asked = settings.mode
        self._segmenter = segmenter
        self._is_active = False
        self._num_told = 0
        self._rare_told_s = -math.inf  # on the clock of `news`
        self._adapter: OnlineAdapter | None = None
        self._thread: AdapterThread | None = None
        self._refusal = ""
        try:
            self._adapter = _make_adapter(segmenter, settings)
        except ValueError as error:
            if settings.learns or settings.labelled_frames:
                raise
            self._refusal = str(error)
            return
        self._thread = AdapterThread(
            self._adapter,
            device=segmenter.device,
            idle=idle,
            num_threads=settings.num_threads,
            min_interval_s=settings.min_interval_s,
        )

    @property
    def adapter(self) -> OnlineAdapter:
        """Raises ValueError, with the reason, for a model that cannot adapt."""
        if self._adapter is None:
            raise ValueError(self._refusal)
        return self._adapter

    @property
    def is_learning(self) -> bool:
        return self._adapter is not None and self._adapter.is_learning

    def start(self) -> None:
        """With the node's activation. Raises RuntimeError while a stop has yet to take effect."""
        self._is_active = True
        self._start_thread()

    def stop(self, *, timeout_s: float) -> bool:
        """Let the present turn end; False when it has not after `timeout_s`. What was learned stays."""
        self._is_active = False
        return self._thread is None or self._thread.stop(timeout_s=timeout_s)

    def close(self) -> None:
        """Let the adapter's models go, once it has stopped; there is none afterwards."""
        self._adapter, self._thread = None, None
        self._refusal = "adaptation: the model has been freed"

    def enable(self, settings: NodeAdaptationSettings) -> None:
        """Change to the mode of `settings`; an adapter that had failed or given up begins again."""
        self._asked = settings.mode
        if self._adapter is None and not settings.learns:
            return
        self.adapter.enable(settings.mode)
        self._start_thread()

    def apply(self, settings: NodeAdaptationSettings) -> None:
        """Other thresholds, and another mode if another was asked for."""
        if self._adapter is not None:
            self._adapter.apply(settings)
        if settings.mode != self._asked:
            self.enable(settings)

    def serve(self) -> None:
        """Before a frame: put in what is on offer."""
        if self._adapter is None:
            return
        try:
            self._adapter.serve(self._segmenter)
        except Exception as error:  # the frame is labelled with the weights that are there
            self._adapter.fail(error)

    def observe(
        self, frame: Frame, labelled: LabelledFrame, *, lights: Mapping[str, CameraLight], latency_ms: float
    ) -> None:
        """After a frame, when its result is on its way; `latency_ms`: since its messages were taken up, in work."""
        if self._adapter is None:
            return
        try:
            self._adapter.observe(frame, labelled, lights=lights, latency_ms=latency_ms)
        except Exception as error:  # the frame is labelled already, and the next one shall be
            self._adapter.fail(error)

    def news(self, *, now_s: float) -> tuple[list[str], list[str]]:
        """What happened since the last call, at `now_s` on a steady clock: sentences for the log, and problems."""
        if self._adapter is None:
            return [], []
        self._num_told, events = self._adapter.events.after(self._num_told)
        told = [event for event in events if self._is_told(event, now_s=now_s)]
        return [_sentence(event) for event in told], [_sentence(e) for e in events if e.kind in _DISTURBING]

    def status(self, *, name: str) -> DiagnosticStatus:
        """For the diagnostics: WARN while the mode is not the one asked for, sensors disagree, or the disk refuses."""
        if self._adapter is None:
            return diagnostic_status(name=name, level="OK", message=f"not possible: {self._refusal}")
        status, events = self._adapter.status(), self._adapter.events.newest
        values = {**_values(status), "asked for": self._asked, "newest event": _sentence(events[-1]) if events else ""}
        if status.mode == self._asked:
            paused, lasting = (", ".join(status.paused), status.disagreement) if self._adapter.is_learning else ("", "")
            message, fault = f"{status.mode}, paused: {paused}" if paused else status.mode, lasting
        else:
            falls = [_sentence(event) for event in events if event.kind in ("failed", "gave_up")]
            message, fault = f"{status.mode} instead of {self._asked}", falls[-1] if falls else "it fell back"
        faults = "; ".join(filter(None, [fault, status.disk]))
        if not faults:
            return diagnostic_status(name=name, level="OK", message=message, values=values)
        return diagnostic_status(name=name, level="WARN", message=f"{message}: {faults}", values=values)

    def _is_told(self, event: Event, *, now_s: float) -> bool:
        """Whether the log tells an event that is no problem."""
        if event.kind == _RARE:
            if now_s - self._rare_told_s < _RARE_S:
                return False
            self._rare_told_s = now_s
        return event.kind not in (*_QUIET, *_DISTURBING)

    def _start_thread(self) -> None:
        if self._thread is not None and self._is_active and self.is_learning:
            self._thread.start()


def _make_adapter(segmenter: Segmenter, settings: NodeAdaptationSettings) -> OnlineAdapter:
    labelled = gate_frames(
        settings.labelled_frames, checkpoint=segmenter.folder, label_space=segmenter.label_space.name
    )
    return OnlineAdapter(
        segmenter=segmenter,
        settings=settings,
        labelled=labelled,
        state_folder=Path(settings.state_folder) if settings.state_folder else None,
    )


def _values(status: AdaptationStatus) -> dict[str, str]:
    """With the design's words for lambda and for the shares of the classes."""
    words = {"guidance": "lambda", "marginal_kl": "marginal shift"}
    return {words.get(name, name): value for name, value in status.values().items()}


def _sentence(event: Event) -> str:
    return f"{event.kind.replace('_', ' ')}: {event.text}"
