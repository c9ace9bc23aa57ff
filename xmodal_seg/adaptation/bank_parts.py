# SPDX-License-Identifier: Apache-2.0
"""What the adapter holds of each bank: a copy as deployed, what of it adapts, its gate, how reliable its heads are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from xmodal_seg.adaptation.frames import Bin, ReferredFrame, reference_predictions, referred, sample_frame
from xmodal_seg.adaptation.gate import Gate
from xmodal_seg.adaptation.light import FrameLight, Reliability, fit_reliability, point_guidance
from xmodal_seg.adaptation.parameters import AdaptedParameters, adapted_parameters, separate_copy
from xmodal_seg.adaptation.settings import AdaptationSettings
from xmodal_seg.checkpoint import bank_state
from xmodal_seg.inference import Segmenter
from xmodal_seg.losses import paper_terms
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.structures import Frame
from xmodal_seg.tensor_files import Tensors, hash_tensors

LABELLED = "labelled"  # the condition of packaged frames


@dataclass(frozen=True, kw_only=True)
class BankParts:
    """Of one bank; nothing here ever changes."""

    base: SegmentationModel
    parameters: AdaptedParameters
    reference: Tensors
    parent: str  # SHA-256 of the deployed bank
    gate: Gate
    reliability: dict[str, Reliability]  # of the 2d and the 3d head; empty without guidance by point

    def guidance(self, frame: ReferredFrame, *, settings: AdaptationSettings) -> torch.Tensor:
        """(P,) lambda of each point: its camera's, or its own within a span around it."""
        of_camera = frame.sample.guidance
        if not self.reliability:
            return of_camera
        said = reference_predictions(frame, ensemble_heads=self.base.settings.heads.ensemble)
        span, minimum = settings.step.point_guidance_span, settings.step.min_guidance
        return point_guidance(of_camera, said, self.reliability, span=span).clamp(min=minimum)


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
    _check(deployed, settings)
    base = separate_copy(deployed)
    parameters = adapted_parameters(base, scopes=settings.step.adapted)
    with_statistics = settings.step.norm_statistics == "moving"
    reference = parameters.values(base, with_statistics=with_statistics)
    frames = _labelled_frames(segmenter, base, reference, bank, labelled, settings)
    gate = Gate(base=base, labelled=frames, settings=settings.gate, device=segmenter.device, breathe=breathe)
    return BankParts(
        base=base,
        parameters=parameters,
        reference=reference,
        parent=hash_tensors(bank_state(base)),
        gate=gate,
        reliability=_reliability(frames) if settings.step.point_guidance_span > 0 else {},
    )


def _check(model: SegmentationModel, settings: AdaptationSettings) -> None:
    if model.image_backbone is None or not model.image_backbone.frozen:
        raise ValueError("adaptation needs a model with a frozen image backbone, whose 2D features it learns on")
    heads = model.settings.heads
    for term in paper_terms(0.5):
        if term.teacher not in heads.main or (term.student, term.teacher) not in heads.mimic:
            raise ValueError(
                f"adaptation needs the main head {term.teacher!r} and a mimicry head ({term.student!r}, "
                f"{term.teacher!r}); the model has {heads.main} and {heads.mimic}"
            )


def _labelled_frames(
    segmenter: Segmenter,
    base: SegmentationModel,
    reference: Tensors,
    bank: str,
    frames: Sequence[Frame],
    settings: AdaptationSettings,
) -> list[ReferredFrame]:
    """The packaged frames as the gate takes them; the same points are drawn every time."""
    generator = torch.Generator().manual_seed(settings.seed)
    found = []
    for frame in frames:
        seen = segmenter.predict(frame, keep=True).seen
        assert seen is not None, "a model with an image backbone keeps what it saw"
        sample = sample_frame(
            seen,
            bin=Bin(bank=bank, condition=LABELLED),
            light=FrameLight(condition=LABELLED, guidance=0.5, by_camera=(0.5,) * len(frame.cameras)),
            stamp_ns=frame.stamp_ns,
            num_points=settings.memory.points_per_frame,
            min_guidance=0.0,
            generator=generator,
        )
        found.append(referred(base, reference, sample).to("cpu"))
    return found


def _reliability(frames: Sequence[ReferredFrame]) -> dict[str, Reliability]:
    if not frames:
        raise ValueError("step.point_guidance_span: guidance by point needs packaged labelled frames to calibrate on")
    found = {}
    for head in ("2d", "3d"):
        logits = [frame.reference[head][frame.sample.batch.visible] for frame in frames]
        labels = [_labels(frame)[frame.sample.batch.visible] for frame in frames]
        found[head] = fit_reliability(torch.cat(logits), torch.cat(labels))
    return found


def _labels(frame: ReferredFrame) -> torch.Tensor:
    labels = frame.sample.batch.labels
    assert labels is not None, "the gate has checked it"
    return labels
