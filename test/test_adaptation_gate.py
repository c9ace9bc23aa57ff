# SPDX-License-Identifier: Apache-2.0
"""The gate's numbers against plain numpy, and that every one of its conditions stops something by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from adaptation_parts import CPU, make_segmenter, stream_frame

from xmodal_seg.adaptation.frames import Bin, ReferredFrame, predict, referred, sample_frame
from xmodal_seg.adaptation.gate import Gate
from xmodal_seg.adaptation.light import FrameLight
from xmodal_seg.adaptation.parameters import adapted_parameters, separate_copy
from xmodal_seg.adaptation.settings import GateSettings
from xmodal_seg.metrics import ConfusionMatrix
from xmodal_seg.tensor_files import Tensors

SEGMENTER = make_segmenter(trained=True)
BASE = separate_copy(SEGMENTER.model_of("default"))
REFERENCE = adapted_parameters(BASE, scopes=("point_norms", "fusion_norms")).values(BASE)
EASY = {
    "publish_sure_agreement": 0.0,
    "reject_sure_agreement": 0.0,
    "min_agreement": 0.0,
    "max_marginal_kl": 1e9,
    "max_class_loss": 1.0,
    "max_labelled_loss": 100.0,
    "max_distance": 1e9,
}


def make_frames(first: int, *, number: int = 3) -> list[ReferredFrame]:
    frames = []
    for index in range(first, first + number):
        seen = SEGMENTER.predict(stream_frame(index), keep=True).seen
        assert seen is not None
        kept = sample_frame(
            seen,
            bin=Bin(bank="default", condition="day"),
            light=FrameLight(condition="day", guidance=0.5, by_camera=(0.5,)),
            stamp_ns=index,
            num_points=90,
            min_guidance=0.0,
            generator=torch.Generator().manual_seed(index),
        )
        frames.append(referred(BASE, {}, kept))
    return frames


PROBES, OTHERS, LABELLED = make_frames(0), make_frames(20), make_frames(40)


def make_gate(*, labelled: list[ReferredFrame] | None = None, **settings: Any) -> Gate:
    return Gate(
        base=BASE,
        labelled=LABELLED if labelled is None else labelled,
        settings=GateSettings(**settings),
        device=CPU,
        breathe=lambda: None,
    )


def shifted(amount: float, *, seed: int = 1) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: value + amount * torch.randn(value.shape, generator=generator) for name, value in REFERENCE.items()}


def test_the_reference_itself_passes() -> None:
    judgement = make_gate().judge(REFERENCE, reference=REFERENCE, probes=PROBES, other_probes=OTHERS)

    assert (judgement.verdict, judgement.reasons) == ("publish", ())
    assert judgement.metrics["sure_agreement"] == judgement.metrics["other_agreement"] == 1
    assert judgement.metrics["distance"] == judgement.metrics["labelled_loss"] == 0
    assert abs(judgement.metrics["marginal_kl"]) < 1e-6


def test_metrics_equal_numpy() -> None:
    values = shifted(0.5)

    found = make_gate(**EASY).judge(values, reference=REFERENCE, probes=PROBES, other_probes=OTHERS).metrics

    with torch.no_grad():
        now = np.concatenate([predict(BASE, values, frame.sample).ensemble().numpy() for frame in PROBES])
        before = np.concatenate([predict(BASE, {}, frame.sample).ensemble().numpy() for frame in PROBES])
    agrees, sure = now.argmax(1) == before.argmax(1), before.max(1) > 0.9
    assert found["agreement"] == pytest.approx(agrees.mean())
    assert found["sure_agreement"] == pytest.approx(agrees[sure].mean())
    p, q = before.mean(0), now.mean(0)
    assert found["marginal_kl"] == pytest.approx((p * np.log(p / q)).sum(), rel=1e-3)
    counts, kept = np.bincount(before.argmax(1), minlength=6), np.bincount(now.argmax(1), minlength=6)
    watched = counts > 0.01 * len(before)
    assert found["class_kept"] == pytest.approx((kept[watched] / counts[watched]).min())
    assert found["distance"] == pytest.approx(max(float((values[n] - REFERENCE[n]).abs().max()) for n in values))
    assert 0 < found["agreement"] < 1

    def miou(weights: Tensors) -> float:
        confusion = ConfusionMatrix(num_classes=6)
        for frame in LABELLED:
            with torch.no_grad():
                labels = predict(BASE, weights, frame.sample).ensemble().argmax(1)
            confusion.update(frame.sample.batch.labels, labels)
        return confusion.mean_iou()

    assert found["labelled_loss"] == pytest.approx(miou(REFERENCE) - miou(values), abs=1e-3)


@pytest.mark.parametrize(
    ("threshold", "verdict", "message"),
    [
        ({"publish_sure_agreement": 1.0}, "hold", "agreement where the reference is sure"),
        ({"publish_sure_agreement": 1.0, "reject_sure_agreement": 1.0}, "reject", "where the reference is sure"),
        ({"min_agreement": 1.0}, "reject", "agreement with the reference"),
        ({"max_marginal_kl": 1e-4}, "reject", "shares of the classes moved by a KL of"),
        ({"max_class_loss": 0.01}, "reject", "a class kept only"),
        ({"max_labelled_loss": 0.01}, "reject", "mIoU points lost on the packaged frames"),
        ({"max_distance": 0.1}, "reject", "a weight moved by"),
    ],
)
def test_every_condition_stops_by_itself(threshold: dict, verdict: str, message: str) -> None:
    values = shifted(0.7)
    assert make_gate(**EASY).judge(values, reference=REFERENCE, probes=PROBES).verdict == "publish"

    judgement = make_gate(**{**EASY, **threshold}).judge(values, reference=REFERENCE, probes=PROBES)

    assert judgement.verdict == verdict
    assert len(judgement.reasons) == 1
    assert message in judgement.reasons[0]


def test_harm_under_another_condition_stops_too() -> None:
    settings = {**EASY, "min_agreement": 0.9}
    broken = [replace(frame, reference={h: x.roll(1, 1) for h, x in frame.reference.items()}) for frame in OTHERS]

    judgement = make_gate(**settings).judge(REFERENCE, reference=REFERENCE, probes=PROBES, other_probes=broken)

    assert judgement.verdict == "reject"
    assert judgement.reasons[0].startswith("other conditions: ")


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_rejected(bad: float) -> None:
    values = shifted(0.0)
    next(iter(values.values()))[2] = bad
    judgement = make_gate(**EASY).judge(values, reference=REFERENCE, probes=PROBES)
    assert (judgement.verdict, judgement.reasons) == ("reject", ("a weight is not a number",))


def test_predictions_that_are_no_numbers_are_rejected_though_every_weight_is_one() -> None:
    values = {name: torch.full_like(value, 3e38) for name, value in REFERENCE.items()}
    with torch.no_grad():
        assert not torch.isfinite(predict(BASE, values, PROBES[0].sample).ensemble()).all()

    judgement = make_gate(**EASY).judge(values, reference=REFERENCE, probes=PROBES)

    assert judgement.verdict == "reject"
    assert any("a KL of nan" in reason for reason in judgement.reasons)


def test_packaged_frames_stand_in_for_held_out_ones() -> None:
    values = shifted(0.7)
    gate = make_gate(**{**EASY, "min_agreement": 1.0})
    assert gate.judge(values, reference=REFERENCE, probes=()).verdict == "publish"

    judgement = gate.judge(values, reference=REFERENCE, probes=(), compares_labelled=True)

    assert judgement.verdict == "reject"
    assert judgement.reasons[0].startswith("packaged frames: ")
    same = gate.judge(REFERENCE, reference=REFERENCE, probes=(), compares_labelled=True)
    assert (same.verdict, same.metrics["labelled_agreement"]) == ("publish", 1)


def test_it_works_without_packaged_frames() -> None:
    gate = make_gate(labelled=[])
    assert not gate.has_labelled
    assert "labelled_loss" not in gate.judge(REFERENCE, reference=REFERENCE, probes=PROBES).metrics
