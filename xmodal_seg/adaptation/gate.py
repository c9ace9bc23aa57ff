# SPDX-License-Identifier: Apache-2.0
"""The gate: what a candidate says on frames that nobody learned from, against the frozen reference and the truth.

A falling loss, falling entropy and growing agreement between the branches all go along with collapse; agreement with a
frozen reference, where that is sure, does not. Hence nothing here looks at the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from xmodal_seg.adaptation.frames import ReferredFrame, predict, reference_predictions
from xmodal_seg.adaptation.parameters import are_finite, distance
from xmodal_seg.adaptation.settings import GateSettings
from xmodal_seg.metrics import ConfusionMatrix
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.structures import Predictions

Verdict = Literal["publish", "hold", "reject"]
_LEAST_SHARE = 1e-6
_WHERE = {"": "", "other_": "other conditions: ", "labelled_": "packaged frames: "}  # by the metrics' prefix


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """publish: serve it; hold: learn on; reject: go back to what was served last."""

    verdict: Verdict
    reasons: tuple[str, ...]  # why it is not 'publish'
    metrics: dict[str, float]


NOT_FINITE = Judgement(verdict="reject", reasons=("a weight is not a number",), metrics={})


@dataclass(frozen=True, kw_only=True)
class _Tally:
    """Sums over the points of some frames."""

    points: int
    agreeing: int
    sure: int
    sure_agreeing: int
    reference_counts: torch.Tensor  # (K,) by label
    counts: torch.Tensor
    reference_mass: torch.Tensor  # (K,) sums of probabilities
    mass: torch.Tensor

    def __add__(self, other: _Tally) -> _Tally:
        return _Tally(**{name: value + vars(other)[name] for name, value in vars(self).items()})


class Gate:
    """Judges candidates of one bank.

    Args:
        base: the bank as it was deployed.
        labelled: frames with ground truth that come with the package; the truth is in their batch. May be empty; looked
            at for the first time when a candidate is judged.
        settings: thresholds.
        device: of the model.
        breathe: called before each forward pass.
    """

    def __init__(
        self,
        *,
        base: SegmentationModel,
        labelled: Sequence[ReferredFrame],
        settings: GateSettings,
        device: torch.device,
        breathe: Callable[[], None],
    ) -> None:
        self._base = base
        self._labelled = labelled
        self._settings = settings
        self._device = device
        self._breathe = breathe

    @property
    def has_labelled(self) -> bool:
        return bool(self._labelled)

    @cached_property
    def _reference_miou(self) -> float:
        return self._miou(None)

    def apply(self, settings: GateSettings) -> None:
        """Judge by other thresholds from now on."""
        self._settings = settings

    def judge(
        self,
        values: Mapping[str, torch.Tensor],
        *,
        reference: Mapping[str, torch.Tensor],
        probes: Sequence[ReferredFrame],
        other_probes: Sequence[ReferredFrame] = (),
        compares_labelled: bool = False,
    ) -> Judgement:
        """Compare `values` with `reference` on held-out frames of the present and of other conditions.

        With `compares_labelled` the packaged frames, which show what is true, stand in for held-out ones as well.
        Each group of frames must pass by itself, so that many easy frames cannot hide the few of another condition.
        """
        if not are_finite(values):
            return NOT_FINITE
        metrics = {"distance": distance(values, reference)}
        rejecting: list[str] = []
        holding: list[str] = []
        if not metrics["distance"] <= self._settings.max_distance:
            rejecting.append(f"a weight moved by {metrics['distance']:.3g}, more than {self._settings.max_distance:g}")
        stand_in = self._labelled if compares_labelled else ()
        for name, frames in (("", probes), ("other_", other_probes), ("labelled_", stand_in)):
            if frames:
                self._compare(self._tally(values, frames), name, metrics, rejecting, holding)
        if self._labelled:
            metrics["labelled_loss"] = self._reference_miou - self._miou(values)
            if not metrics["labelled_loss"] <= self._settings.max_labelled_loss:
                rejecting.append(f"{metrics['labelled_loss']:.1f} mIoU points lost on the packaged frames")
        verdict: Verdict = "reject" if rejecting else "hold" if holding else "publish"
        return Judgement(verdict=verdict, reasons=(*rejecting, *holding), metrics=metrics)

    def _compare(
        self, tally: _Tally, prefix: str, metrics: dict[str, float], rejecting: list[str], holding: list[str]
    ) -> None:
        """Add what the tally shows to the metrics and to the reasons; a number that is none speaks against it."""
        settings = self._settings
        sure = tally.sure_agreeing / tally.sure if tally.sure else 1.0
        agreement = tally.agreeing / max(tally.points, 1)
        marginal_kl = _marginal_kl(tally)
        kept = _least_kept(tally, watched_share=settings.watched_share)
        metrics.update(
            {
                f"{prefix}sure_agreement": sure,
                f"{prefix}agreement": agreement,
                f"{prefix}marginal_kl": marginal_kl,
                f"{prefix}class_kept": kept,
            }
        )
        where = _WHERE[prefix]
        if not sure >= settings.reject_sure_agreement:
            rejecting.append(f"{where}{100 * sure:.1f} % agreement where the reference is sure")
        elif not sure >= settings.publish_sure_agreement:
            holding.append(f"{where}{100 * sure:.1f} % agreement where the reference is sure")
        if not agreement >= settings.min_agreement:
            rejecting.append(f"{where}{100 * agreement:.1f} % agreement with the reference")
        if not marginal_kl <= settings.max_marginal_kl:
            rejecting.append(f"{where}shares of the classes moved by a KL of {marginal_kl:.3f}")
        if not kept >= 1 - settings.max_class_loss:
            rejecting.append(f"{where}a class kept only {100 * kept:.0f} % of its points")

    def _tally(self, values: Mapping[str, torch.Tensor], frames: Sequence[ReferredFrame]) -> _Tally:
        first, *others = (self._tally_frame(values, frame) for frame in frames)
        return sum(others, start=first)

    @torch.no_grad()
    def _tally_frame(self, values: Mapping[str, torch.Tensor], frame: ReferredFrame) -> _Tally:
        here = frame.to(self._device)
        probs = self._predict(values, here).ensemble()
        reference = self._reference(here).ensemble()
        best, expected = reference.max(dim=1)
        labels = probs.argmax(dim=1)
        agrees, sure = labels == expected, best > self._settings.sure_probability
        num_classes = probs.shape[1]
        return _Tally(
            points=len(labels),
            agreeing=int(agrees.sum()),
            sure=int(sure.sum()),
            sure_agreeing=int((agrees & sure).sum()),
            reference_counts=torch.bincount(expected, minlength=num_classes),
            counts=torch.bincount(labels, minlength=num_classes),
            reference_mass=reference.sum(dim=0),
            mass=probs.sum(dim=0),
        )

    @torch.no_grad()
    def _miou(self, values: Mapping[str, torch.Tensor] | None) -> float:
        """mIoU in percent on the packaged frames; of the reference if `values` is None."""
        confusion = ConfusionMatrix(num_classes=self._base.settings.num_classes)
        for frame in self._labelled:
            here = frame.to(self._device)
            predictions = self._reference(here) if values is None else self._predict(values, here)
            assert here.sample.batch.labels is not None
            confusion.update(here.sample.batch.labels, predictions.ensemble().argmax(dim=1))
        return confusion.mean_iou()

    def _predict(self, values: Mapping[str, torch.Tensor], frame: ReferredFrame) -> Predictions:
        self._breathe()
        return predict(self._base, values, frame.sample)

    def _reference(self, frame: ReferredFrame) -> Predictions:
        return reference_predictions(frame, ensemble_heads=self._base.settings.heads.ensemble)


def _marginal_kl(tally: _Tally) -> float:
    """KL(reference || candidate) of the mean probabilities."""
    total = max(tally.points, 1)
    reference = (tally.reference_mass / total).clamp(min=_LEAST_SHARE)
    candidate = (tally.mass / total).clamp(min=_LEAST_SHARE)
    divergence = float((reference * (reference / candidate).log()).sum())
    return 0.0 if divergence < 0 else divergence  # rounding may leave less; NaN stays NaN


def _least_kept(tally: _Tally, *, watched_share: float) -> float:
    """Of the classes with more than `watched_share` of the points: the least ratio of points now and before."""
    watched = tally.reference_counts > watched_share * max(tally.points, 1)
    if not bool(watched.any()):
        return 1.0
    return float((tally.counts[watched] / tally.reference_counts[watched]).min())
