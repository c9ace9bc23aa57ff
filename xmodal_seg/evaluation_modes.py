# SPDX-License-Identifier: Apache-2.0
"""How weights follow the light during an evaluation: the modes off, select, shadow and on, and what they follow.

off      one bank from the first frame to the last
select   the bank that the estimated light asks for
shadow   select, and the adapter learns, but nothing it learned is served
on       select, and what the adapter learned is served once its gate lets it pass
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal, get_args

from xmodal_seg.adaptation.adapter import OnlineAdapter
from xmodal_seg.adaptation.settings import AdaptationSettings
from xmodal_seg.bag_evaluation import FrameLight, Mode
from xmodal_seg.inference import LabelledFrame, Segmenter
from xmodal_seg.lighting import LightingEstimator
from xmodal_seg.lighting_health import seeing_cameras
from xmodal_seg.lighting_state import BankSelector, BankSettings, common_light
from xmodal_seg.structures import Frame

ModeName = Literal["off", "select", "shadow", "on"]
MODES: tuple[ModeName, ...] = get_args(ModeName)


class LightOfFrames:
    """The light of one frame after the other, from its images and the health of its sweep."""

    def __init__(self, *, estimator: LightingEstimator, min_confidence: float = BankSettings().min_confidence) -> None:
        """Cameras less sure than `min_confidence` do not count."""
        self._estimator = estimator
        self._min_confidence = min_confidence

    def __call__(self, frame: Frame) -> FrameLight:
        """Condition and confidence are those of the camera with the median darkness among the sure ones."""
        self._estimator.update_lidar(frame.points, frame.stamp_ns)
        for view in frame.cameras:
            self._estimator.update(view.name, view.image, view.stamp_ns)
        cameras = self._estimator.current(frame.stamp_ns)
        common = common_light(cameras, min_confidence=self._min_confidence)
        if common is None:
            return FrameLight(confidence=max((camera.confidence for camera in cameras), default=None), cameras=cameras)
        sure = [camera for camera in cameras if camera.confidence >= self._min_confidence]
        median = sorted(sure, key=lambda camera: camera.darkness)[(len(sure) - 1) // 2]
        return FrameLight(
            guidance=common.guidance, confidence=common.confidence, condition=median.condition, cameras=cameras
        )


class FixedBank:
    """Mode off."""

    keeps = False

    def choose(self, frame: Frame, light: FrameLight) -> Frame:
        """The light changes nothing."""
        return frame

    def observe(self, frame: Frame, labelled: LabelledFrame, light: FrameLight) -> None:
        pass

    def facts(self) -> dict[str, Any]:
        return {}


class SelectedBank:
    """Mode select."""

    keeps = False

    def __init__(self, *, segmenter: Segmenter, settings: BankSettings) -> None:
        self._segmenter = segmenter
        self._settings = settings
        self._selector = BankSelector(banks=segmenter.banks, served=segmenter.bank, settings=settings)

    def choose(self, frame: Frame, light: FrameLight) -> Frame:
        """Serve what the light asks for; cameras that see nothing are left out."""
        self._segmenter.use_bank(self._selector.update(light.cameras, frame.stamp_ns))
        return seeing_cameras(frame, light.cameras)

    def observe(self, frame: Frame, labelled: LabelledFrame, light: FrameLight) -> None:
        pass

    def facts(self) -> dict[str, Any]:
        return {"bank": self._settings.model_dump(mode="json")}


class Adapting:
    """Modes shadow and on: the adapter's turns are counted in frames, so that a second run takes the same ones."""

    def __init__(
        self, *, segmenter: Segmenter, bank: BankSettings, settings: AdaptationSettings, labelled: Sequence[Frame]
    ) -> None:
        self._segmenter = segmenter
        self._settings = settings
        self._num_labelled = len(labelled)
        self._largest_distance = 0.0
        self._select = SelectedBank(segmenter=segmenter, settings=bank)
        self.adapter = OnlineAdapter(segmenter=segmenter, settings=settings, labelled=labelled)

    @property
    def keeps(self) -> bool:
        return self.adapter.is_learning

    def choose(self, frame: Frame, light: FrameLight) -> Frame:
        """The bank that the light asks for, with what was learned for it."""
        seen = self._select.choose(frame, light)
        if self.adapter.serve(self._segmenter) is not None:
            self._largest_distance = max(self._largest_distance, self.adapter.status().distance)
        return seen

    def observe(self, frame: Frame, labelled: LabelledFrame, light: FrameLight) -> None:
        """Let the adapter look, and learn where a turn is due."""
        self.adapter.observe(frame, labelled, lights={camera.name: camera for camera in light.cameras})
        self.adapter.step_if_due()

    def facts(self) -> dict[str, Any]:
        status = {name: _json(value) for name, value in asdict(self.adapter.status()).items()}
        return {
            **self._select.facts(),
            "num_adapted": self.adapter.num_adapted,
            "num_labelled_frames": self._num_labelled,
            "largest_distance": self._largest_distance,  # of served weights from the reference, over the whole drive
            "status": status,
            "events": self.adapter.events.counts,
            "newest_events": [asdict(event) for event in self.adapter.events.newest],
            "settings": self._settings.model_dump(mode="json"),
        }


def check_mode(name: ModeName, *, banks: Sequence[str]) -> None:
    """Raises ValueError for 'select' with banks between which no light ever chooses: it would be 'off'."""
    if name == "select" and not {"day", "night"} <= set(banks):
        raise ValueError(f"mode select: expected a checkpoint with the banks day and night, got {', '.join(banks)}")


def make_mode(
    name: ModeName,
    *,
    segmenter: Segmenter,
    bank: BankSettings,
    adaptation: AdaptationSettings,
    labelled: Sequence[Frame] = (),
) -> Mode:
    """The mode `name` around a segmenter of its own; modes that learn are judged on the `labelled` frames too.

    Raises ValueError as `check_mode` does, and for a model that cannot adapt.
    """
    check_mode(name, banks=segmenter.banks)
    if name == "off":
        return FixedBank()
    if name == "select":
        return SelectedBank(segmenter=segmenter, settings=bank)
    settings = adaptation.model_copy(update={"mode": name})
    return Adapting(segmenter=segmenter, bank=bank, settings=settings, labelled=labelled)


def _json(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value
