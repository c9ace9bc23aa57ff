# SPDX-License-Identifier: Apache-2.0
"""Two ways to drive an adapter: frame by frame, the same every time, or in a thread of its own beside inference."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch

from xmodal_seg.adaptation.adapter import OnlineAdapter
from xmodal_seg.adaptation.light import CameraLight
from xmodal_seg.inference import LabelledFrame, Segmenter
from xmodal_seg.structures import Frame

_IDLE_CHECK_S = 0.002
_TURN_CHECK_S = 0.02


def label_and_adapt(
    adapter: OnlineAdapter, segmenter: Segmenter, frame: Frame, *, lights: Mapping[str, CameraLight]
) -> LabelledFrame:
    """Label a frame with what serves, then learn from it; everything counts in frames, nothing in wall time."""
    adapter.serve(segmenter)
    labelled = segmenter.predict(frame, keep=adapter.is_learning)
    adapter.observe(frame, labelled, lights=lights)
    adapter.step_if_due()
    return labelled


class AdapterThread:
    """Runs an adapter's turns in a thread with its own number of torch threads and, on a GPU, its own stream.

    Args:
        adapter: driven by nobody else.
        device: of its models.
        idle: whether inference has nothing to do; no forward pass begins while it is False.
        num_threads: of torch, in this thread alone.
        min_interval_s: between two turns.
    """

    def __init__(
        self,
        adapter: OnlineAdapter,
        *,
        device: torch.device,
        idle: Callable[[], bool],
        num_threads: int,
        min_interval_s: float,
    ) -> None:
        self._adapter = adapter
        # One for good: what one stream has freed no other may take, so a new one each time would strand memory.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._idle = idle
        self._num_threads = num_threads
        self._min_interval_s = min_interval_s
        self._stopping = threading.Event()
        self._has_own_threads = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Begin; nothing while it runs already. Raises RuntimeError while a stop has yet to take effect."""
        if self.is_alive:
            if self._stopping.is_set():
                raise RuntimeError("adaptation: still at the turn it was in when it was stopped")
            return
        self._stopping.clear()
        self._adapter.before_forward = self._wait_until_idle
        num_threads = torch.get_num_threads()
        self._has_own_threads.clear()
        self._thread = threading.Thread(target=self._run, name="adaptation", daemon=True)
        self._thread.start()
        # torch keeps the number set last for every thread that has not computed yet: inference shall not inherit ours.
        self._has_own_threads.wait()
        torch.set_num_threads(num_threads)

    def stop(self, *, timeout_s: float) -> bool:
        """Let the present turn end; False when it still runs after `timeout_s`."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        if self.is_alive:
            return False
        self._adapter.before_forward = None  # else the two would hold each other, and with them the models
        return True

    def _run(self) -> None:
        torch.set_num_threads(self._num_threads)
        self._has_own_threads.set()
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            while not self._stopping.is_set():
                started_s = time.monotonic()
                self._wait_until_idle()
                if self._stopping.is_set():
                    return
                try:
                    has_learned = bool(self._adapter.step_if_due())
                    if not self._stopping.is_set():
                        self._adapter.make_packaged_frame_ready()
                except Exception as error:
                    self._adapter.fail(error)
                    return
                rest_s = self._min_interval_s - (time.monotonic() - started_s) if has_learned else _TURN_CHECK_S
                self._stopping.wait(max(rest_s, 0.0))

    def _wait_until_idle(self) -> None:
        while not self._idle() and not self._stopping.is_set():
            time.sleep(_IDLE_CHECK_S)
