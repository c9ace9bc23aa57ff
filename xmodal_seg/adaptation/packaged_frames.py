# SPDX-License-Identifier: Apache-2.0
"""Labelled frames that come with a deployment, as one bank's gate takes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import overload

import torch

from xmodal_seg.adaptation.frames import Bin, ReferredFrame, referred, sample_frame
from xmodal_seg.adaptation.light import FrameLight
from xmodal_seg.adaptation.settings import AdaptationSettings
from xmodal_seg.config import PreprocessSettings
from xmodal_seg.inference import SeenFrame
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.preprocess import prepare
from xmodal_seg.structures import Frame
from xmodal_seg.tensor_files import Tensors

LABELLED = "labelled"  # the condition of packaged frames


class PackagedFrames(Sequence[ReferredFrame]):
    """Points of each frame with what the reference says about them.

    For all frames that takes seconds on a CPU, so they are made ready when somebody looks at one, or one by one before.
    The same points are drawn whenever that is.

    Args:
        frames: with ground truth.
        base: the bank as it was deployed.
        reference: its adapted parameters.
        bank: its name.
        preprocess: as the frames of the drive are prepared.
        settings: seed and points of a frame.
        device: of the model.
        breathe: called before each forward pass.

    Raises ValueError for frames without labels or without the intensity that the model takes. Not thread-safe.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        *,
        base: SegmentationModel,
        reference: Tensors,
        bank: str,
        preprocess: PreprocessSettings,
        settings: AdaptationSettings,
        device: torch.device,
        breathe: Callable[[], None],
    ) -> None:
        if any(frame.labels is None for frame in frames):
            raise ValueError("gate: expected ground truth in every packaged frame, one has no labels")
        if preprocess.point_feats == "intensity" and any(frame.intensity is None for frame in frames):
            raise ValueError("gate: the model takes LiDAR intensity, and a packaged frame has none")
        self._waiting = deque(frames)
        self._ready: list[ReferredFrame] = []
        self._base = base
        self._reference = reference
        self._bin = Bin(bank=bank, condition=LABELLED)
        self._preprocess = preprocess
        self._num_points = settings.memory.points_per_frame
        self._device = device
        self._breathe = breathe
        self._generator = torch.Generator().manual_seed(settings.seed)

    def __len__(self) -> int:
        return len(self._ready) + len(self._waiting)

    @overload
    def __getitem__(self, index: int) -> ReferredFrame: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[ReferredFrame]: ...

    def __getitem__(self, index: int | slice) -> ReferredFrame | Sequence[ReferredFrame]:
        while self.make_one_ready():
            pass
        return self._ready[index]

    def make_one_ready(self) -> bool:
        """The next one; False if there was none."""
        if not self._waiting:
            return False
        drawn = self._generator.get_state()
        try:
            self._ready.append(self._referred(self._waiting[0]))
        except BaseException:
            self._generator.set_state(drawn)  # whoever tries again draws the same points
            raise
        self._waiting.popleft()
        return True

    def _referred(self, frame: Frame) -> ReferredFrame:
        sample = sample_frame(
            self._see(frame),
            bin=self._bin,
            light=FrameLight(condition=LABELLED, guidance=0.5, by_camera=(0.5,) * len(frame.cameras)),
            stamp_ns=frame.stamp_ns,
            num_points=self._num_points,
            min_guidance=0.0,
            generator=self._generator,
        )
        self._breathe()
        return referred(self._base, self._reference, sample).to("cpu")

    def _see(self, frame: Frame) -> SeenFrame:
        batch = prepare([frame], settings=self._preprocess, image_size=self._base.image_size).to(self._device)
        self._breathe()
        with torch.inference_mode():
            return SeenFrame(batch=batch, feats_2d=self._base.image_feats(batch))
