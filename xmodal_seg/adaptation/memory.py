# SPDX-License-Identifier: Apache-2.0
"""Memory of frames: for each bin some to learn from and some held out for the gate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from xmodal_seg.adaptation.frames import Bin, ReferredFrame
from xmodal_seg.adaptation.settings import MemorySettings


class BalancedFrames:
    """At most `capacity` frames, oldest first; when full, the one of least worth goes, never the newest.

    Worth is rarity, halved for every `4 * capacity` frames that came later. A frame is rare by the sum over classes of
    its share of the class's points in the memory, so that the only frame with a pedestrian outlives many with nothing
    but road, though not for ever.
    """

    def __init__(self, *, capacity: int) -> None:
        self.frames: list[ReferredFrame] = []
        self._arrived: list[int] = []  # which one each frame was
        self._num_added = 0
        self._capacity = capacity

    def add(self, frame: ReferredFrame) -> None:
        """Keep `frame`, and let another go where there is no room."""
        self.frames.append(frame)
        self._arrived.append(self._num_added)
        self._num_added += 1
        if len(self.frames) > self._capacity:
            ages = self._num_added - np.array(self._arrived)
            worth = _rarity([kept.class_counts for kept in self.frames]) * 0.5 ** (ages / (4 * self._capacity))
            least = int(worth[:-1].argmin())
            del self.frames[least], self._arrived[least]

    def draw(self, number: int, *, generator: torch.Generator) -> list[ReferredFrame]:
        """`number` different frames, or all where there are fewer."""
        order = torch.randperm(len(self.frames), generator=generator)[:number]
        return [self.frames[index] for index in order.tolist()]


class FrameMemory:
    """The frames of every bin."""

    def __init__(self, *, settings: MemorySettings) -> None:
        self._settings = settings
        self._train: dict[Bin, BalancedFrames] = {}
        self._probes: dict[Bin, BalancedFrames] = {}
        self._added: dict[Bin, int] = {}

    def add(self, frame: ReferredFrame) -> None:
        """Keep a frame to learn from; each `probe_every`-th of a bin is held out instead."""
        bin = frame.sample.bin
        number = self._added.get(bin, 0)
        self._added[bin] = number + 1
        held_out = number % self._settings.probe_every == self._settings.probe_every - 1
        capacity = self._settings.probe_capacity if held_out else self._settings.capacity
        frames = self._probes if held_out else self._train
        frames.setdefault(bin, BalancedFrames(capacity=capacity)).add(frame)

    def is_ready(self, bin: Bin) -> bool:
        """Whether there are enough frames to learn from."""
        return self.num_frames(bin) >= self._settings.min_frames

    def draw(self, bin: Bin, number: int, *, generator: torch.Generator) -> list[ReferredFrame]:
        """Frames to learn from; none where the bin is unknown."""
        return self._train[bin].draw(number, generator=generator) if bin in self._train else []

    def probes(self, bin: Bin) -> list[ReferredFrame]:
        """Held-out frames of the bin."""
        return list(self._probes[bin].frames) if bin in self._probes else []

    def other_probes(self, bin: Bin) -> list[ReferredFrame]:
        """Held-out frames of the same bank under other conditions; those of other banks have another reference."""
        others = [frames for other, frames in self._probes.items() if other.bank == bin.bank and other != bin]
        return [frame for frames in others for frame in frames.frames]

    def num_frames(self, bin: Bin) -> int:
        return len(self._train[bin].frames) if bin in self._train else 0

    def num_probes(self, bin: Bin) -> int:
        return len(self._probes[bin].frames) if bin in self._probes else 0


def _rarity(class_counts: Sequence[torch.Tensor]) -> NDArray[np.float64]:
    """(F,) from F counts of (K,) points by class."""
    counts = torch.stack(list(class_counts)).double().numpy()
    return (counts / counts.sum(axis=0).clip(min=1)).sum(axis=1)
