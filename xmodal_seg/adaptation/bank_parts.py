# SPDX-License-Identifier: Apache-2.0
"""What the adapter holds of each bank: a copy as deployed, what of it adapts, its gate, how reliable its heads are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from xmodal_seg.adaptation.frames import ReferredFrame, reference_predictions
from xmodal_seg.adaptation.gate import Gate
from xmodal_seg.adaptation.light import Reliability, fit_reliability, point_guidance
from xmodal_seg.adaptation.packaged_frames import PackagedFrames
from xmodal_seg.adaptation.parameters import AdaptedParameters, adapted_parameters, separate_copy
from xmodal_seg.adaptation.settings import AdaptationSettings
from xmodal_seg.checkpoint import bank_state
from xmodal_seg.inference import Segmenter
from xmodal_seg.losses import paper_terms
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.structures import Frame
from xmodal_seg.tensor_files import Tensors, hash_tensors


@dataclass(frozen=True, kw_only=True)
class BankParts:
    """Of one bank; what is deployed never changes."""

    base: SegmentationModel
    parameters: AdaptedParameters
    reference: Tensors
    parent: str  # SHA-256 of the deployed bank
    packaged: PackagedFrames
    gate: Gate

    def guidance(self, frame: ReferredFrame, *, settings: AdaptationSettings) -> torch.Tensor:
        """(P,) lambda of each point: its camera's, or its own within a span around it."""
        of_camera = frame.sample.guidance
        span, minimum = settings.step.point_guidance_span, settings.step.min_guidance
        if span == 0:
            return of_camera
        said = reference_predictions(frame, ensemble_heads=self.base.settings.heads.ensemble)
        return point_guidance(of_camera, said, self.reliability, span=span).clamp(min=minimum)

    @cached_property
    def reliability(self) -> dict[str, Reliability]:
        """Of the 2d and the 3d head."""
        found = {}
        for head in ("2d", "3d"):
            logits = [frame.reference[head][frame.sample.batch.visible] for frame in self.packaged]
            labels = [_labels(frame)[frame.sample.batch.visible] for frame in self.packaged]
            found[head] = fit_reliability(torch.cat(logits), torch.cat(labels))
        return found


def bank_parts(
    segmenter: Segmenter,
    bank: str,
    *,
    settings: AdaptationSettings,
    labelled: Sequence[Frame],
    breathe: Callable[[], None],
) -> BankParts:
    """Copy what the adapter needs of `bank`, which must hold the deployed weights still.

    Raises ValueError for a model that cannot adapt: without the mimicry heads of the cross-modal loss, or with a 2D
    network that is not frozen; and where guidance by point is asked for without packaged frames.
    """
    deployed = segmenter.model_of(bank)
    _check(deployed)
    if settings.step.point_guidance_span > 0 and not _any_known(labelled, num_classes=deployed.settings.num_classes):
        raise ValueError("step.point_guidance_span: guidance by point needs packaged labelled frames to calibrate on")
    base = separate_copy(deployed)
    parameters = adapted_parameters(base, scopes=settings.step.adapted)
    with_statistics = settings.step.norm_statistics == "moving"
    reference = parameters.values(base, with_statistics=with_statistics)
    packaged = PackagedFrames(
        labelled,
        base=base,
        reference=reference,
        bank=bank,
        preprocess=segmenter.preprocess,
        settings=settings,
        device=segmenter.device,
        breathe=breathe,
    )
    gate = Gate(base=base, labelled=packaged, settings=settings.gate, device=segmenter.device, breathe=breathe)
    return BankParts(
        base=base,
        parameters=parameters,
        reference=reference,
        parent=hash_tensors(bank_state(base)),
        packaged=packaged,
        gate=gate,
    )


def _any_known(frames: Sequence[Frame], *, num_classes: int) -> bool:
    labels = [frame.labels for frame in frames if frame.labels is not None]
    return any(bool(((values >= 0) & (values < num_classes)).any()) for values in labels)


def _check(model: SegmentationModel) -> None:
    if model.image_backbone is None or not model.image_backbone.frozen:
        raise ValueError("adaptation needs a model with a frozen image backbone, whose 2D features it learns on")
    heads = model.settings.heads
    for term in paper_terms(0.5):
        if term.teacher not in heads.main or (term.student, term.teacher) not in heads.mimic:
            raise ValueError(
                f"adaptation needs the main head {term.teacher!r} and a mimicry head ({term.student!r}, "
                f"{term.teacher!r}); the model has {heads.main} and {heads.mimic}"
            )


def _labels(frame: ReferredFrame) -> torch.Tensor:
    labels = frame.sample.batch.labels
    assert labels is not None, "the packaged frames were checked"
    return labels
