# SPDX-License-Identifier: Apache-2.0
"""Learner: the adapted values of one bin, the optimiser that moves them, and the average that may be served."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from xmodal_seg.adaptation.frames import Bin, ReferredFrame, predict
from xmodal_seg.adaptation.parameters import AdaptedParameters, are_finite
from xmodal_seg.adaptation.settings import StepSettings
from xmodal_seg.adaptation.step import frame_loss, pseudo_labels
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.structures import Predictions
from xmodal_seg.tensor_files import Tensors

_USUAL_STEPS = 50  # over which the usual gradient is known
_MIN_USUAL_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One optimiser step."""

    accepted: bool
    loss: float
    gradient_norm: float
    terms: dict[str, float]  # means over the frames, before their weights
    guidance: float  # mean lambda


class Learner:
    """Not thread-safe. `base` is never changed: the values that adapt live beside it.

    Args:
        base: the bank as it was deployed, a copy of the adapter's own, in eval mode, without gradients.
        parameters: what adapts.
        settings: of a step.
        bin: what it learns for.
        guidance: (P,) lambda of each point of a frame.
        breathe: called before each forward pass; may wait until nobody needs the processor.
    """

    def __init__(
        self,
        *,
        base: SegmentationModel,
        parameters: AdaptedParameters,
        settings: StepSettings,
        bin: Bin,
        guidance: Callable[[ReferredFrame], torch.Tensor],
        breathe: Callable[[], None],
    ) -> None:
        self.bin = bin
        self.base = base
        self.learning_rate = settings.learning_rate
        self.accepted = 0  # steps since it was made
        self.steps_behind = 0  # its values: since the reference, also those taken before a restart or a rollback
        self.since_reset = 0
        self.since_judged = 0
        self.rejected = 0
        self.strikes = 0
        self._settings = settings
        self._parameters = parameters
        self._guidance = guidance
        self._breathe = breathe
        self._moves_statistics = settings.norm_statistics == "moving"
        self.reference: Tensors = parameters.values(base, with_statistics=self._moves_statistics)
        self._usual_norms: deque[float] = deque(maxlen=_USUAL_STEPS)
        self.restart(self.reference)

    @property
    def candidate(self) -> Tensors:
        """Copies of the average over steps, the values that may be served."""
        values = {name: tensor.clone() for name, tensor in self._average.items()}
        values.update({name: self._live[name].detach().clone() for name in self._statistics})
        return values

    @property
    def live(self) -> Tensors:
        """Copies of the values at the last step."""
        return {name: tensor.detach().clone() for name, tensor in self._live.items()}

    def restart(self, values: Tensors, *, steps: int = 0) -> None:
        """Go on from `values`, which have `steps` steps behind them, with an optimiser that remembers nothing."""
        self.steps_behind = steps
        names = self._parameters.weights
        self._live: Tensors = {name: values[name].clone() for name in self.reference}
        self._average: Tensors = {name: values[name].clone() for name in names}
        for name in names:
            self._live[name].requires_grad_(True)
        self._optimizer = torch.optim.Adam([self._live[name] for name in names], lr=self.learning_rate)
        self._usual_norms.clear()
        self.since_judged = 0

    def strike(self, values: Tensors, *, steps: int = 0) -> None:
        """Go back to `values`, which have `steps` steps behind them, and on at half the rate."""
        self.strikes += 1
        self.learning_rate /= 2
        self.restart(values, steps=steps)

    def forgive(self) -> None:
        """No strikes and the full rate again."""
        self.strikes = 0
        self.learning_rate = self._settings.learning_rate
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate

    def step(self, frames: Sequence[ReferredFrame]) -> StepReport:
        """One optimiser step on frames that are on the model's device.

        A step whose loss or gradient is not finite, or whose gradient is far above the usual, changes nothing.
        """
        labels = self._pseudo_labels(frames)
        self._optimizer.zero_grad(set_to_none=True)
        before = {name: self._live[name].clone() for name in self._statistics}
        total, terms, guidance = 0.0, dict[str, float](), 0.0
        for frame, taught in zip(frames, labels, strict=True):
            self._breathe()
            lambdas = self._guidance(frame)
            loss, parts = frame_loss(
                self._forward(frame), frame, guidance=lambdas, pseudo_labels=taught, settings=self._settings
            )
            (loss / len(frames)).backward()
            total += float(loss.detach()) / len(frames)
            guidance += float(lambdas.mean()) / len(frames)
            for name, value in parts.items():
                terms[name] = terms.get(name, 0.0) + float(value) / len(frames)
        norm = self._clip()
        accepted = self._is_usual(total, norm)
        if accepted:
            self._apply()
        else:
            self.rejected += 1
            with torch.no_grad():
                for name, tensor in before.items():
                    self._live[name].copy_(tensor)
        return StepReport(accepted=accepted, loss=total, gradient_norm=norm, terms=terms, guidance=guidance)

    @property
    def _statistics(self) -> tuple[str, ...]:
        return self._parameters.statistics if self._moves_statistics else ()

    def _pseudo_labels(self, frames: Sequence[ReferredFrame]) -> Sequence[torch.Tensor | None]:
        if self._settings.pseudo_label_weight == 0:
            return [None] * len(frames)
        teachers = []
        values = self.candidate
        with torch.no_grad():
            for frame in frames:
                self._breathe()
                teachers.append(predict(self.base, values, frame.sample))
        return pseudo_labels(teachers)

    def _forward(self, frame: ReferredFrame) -> Predictions:
        if not self._moves_statistics:
            return predict(self.base, self._live, frame.sample)
        norms = [self.base.get_submodule(name) for name in {key.rpartition(".")[0] for key in self._statistics}]
        for norm in norms:
            norm.train()
        try:
            return predict(self.base, self._live, frame.sample)
        finally:
            for norm in norms:
                norm.eval()

    def _clip(self) -> float:
        weights = [self._live[name] for name in self._parameters.weights]
        return float(nn.utils.clip_grad_norm_(weights, self._settings.max_gradient_norm))

    def _is_usual(self, loss: float, norm: float) -> bool:
        if not (torch.isfinite(torch.tensor([loss, norm])).all()):
            return False
        usual = statistics.median(self._usual_norms) if len(self._usual_norms) >= _MIN_USUAL_STEPS else None
        if usual is not None and norm > self._settings.spike_factor * usual and norm > self._settings.max_gradient_norm:
            return False
        self._usual_norms.append(norm)
        return True

    def _apply(self) -> None:
        self._optimizer.step()
        decay, pull_back = self._settings.ema_decay, self._settings.pull_back
        with torch.no_grad():
            for name in self._parameters.weights:
                self._live[name].lerp_(self.reference[name], pull_back)
                self._average[name].lerp_(self._live[name], 1 - decay)
        self.accepted += 1
        self.steps_behind += 1
        self.since_reset += 1
        self.since_judged += 1

    def is_finite(self) -> bool:
        """Whether the live values and their average are numbers."""
        return are_finite(self._live) and are_finite(self._average)
