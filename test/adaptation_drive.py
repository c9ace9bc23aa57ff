# SPDX-License-Identifier: Apache-2.0
"""A drive with an adapter on board: good frames, spoiled frames, other light, and what was served meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from adaptation_parts import DAY, make_segmenter, make_settings, score, stream_frame

from xmodal_seg.adaptation.adapter import OnlineAdapter
from xmodal_seg.adaptation.driving import label_and_adapt
from xmodal_seg.adaptation.events import Event
from xmodal_seg.adaptation.light import CameraLight
from xmodal_seg.checkpoint import bank_state
from xmodal_seg.structures import Frame
from xmodal_seg.tensor_files import hash_tensors

HELD_OUT = [stream_frame(5000 + number, seed=1) for number in range(12)]
DARK = [stream_frame(5000 + number, seed=1, brightness=0.5) for number in range(12)]


class Drive:
    """A segmenter, its adapter and the frames that they have seen."""

    def __init__(self, *, banks: tuple[str, ...] = (), trained: bool = True, **settings: Any) -> None:
        folder, labelled = settings.pop("state_folder", None), settings.pop("labelled", ())
        self.segmenter = make_segmenter(*banks, trained=trained)
        self.deployed = self.state()
        self.adapter = OnlineAdapter(
            segmenter=self.segmenter, settings=make_settings(**settings), labelled=labelled, state_folder=folder
        )
        self.versions: list[str] = []
        self.number = 0

    def go(
        self,
        frames: int,
        *,
        lights: Mapping[str, CameraLight] | Callable[[Frame], Mapping[str, CameraLight]] = DAY,
        spoil: Callable[[Frame], Frame | None] = lambda frame: frame,
        brightness: float = 1.0,
    ) -> None:
        """`lights` as they are, or as somebody estimates them from each frame; a frame that is lost is not labelled."""
        for _ in range(frames):
            frame = spoil(stream_frame(self.number, brightness=brightness))
            self.number += 1
            if frame is None:
                continue
            seen = lights(frame) if callable(lights) else lights
            self.versions.append(label_and_adapt(self.adapter, self.segmenter, frame, lights=seen).model_version)

    def state(self) -> str:
        """A hash of all that serves."""
        return hash_tensors(bank_state(self.segmenter.model_of(self.segmenter.bank)))

    def served(self, frames: list[Frame] | None = None) -> float:
        self.adapter.serve(self.segmenter)
        return score(self.segmenter, HELD_OUT if frames is None else frames)

    def events(self, kind: str) -> list[Event]:
        return [event for event in self.adapter.events.newest if event.kind == kind]
