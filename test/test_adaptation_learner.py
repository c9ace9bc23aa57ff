# SPDX-License-Identifier: Apache-2.0
"""One step: its loss against plain numpy, what it moves and what it must not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from adaptation_parts import make_segmenter, stream_frame

from xmodal_seg.adaptation.frames import Bin, ReferredFrame, predict, referred, sample_frame
from xmodal_seg.adaptation.learner import Learner
from xmodal_seg.adaptation.light import FrameLight
from xmodal_seg.adaptation.parameters import adapted_parameters, separate_copy
from xmodal_seg.adaptation.settings import StepSettings
from xmodal_seg.adaptation.step import frame_loss, pseudo_labels
from xmodal_seg.labels import UNLABELED
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.structures import Predictions
from xmodal_seg.training.pseudo_labels import class_thresholds, refine

BIN = Bin(bank="default", condition="night")
SEGMENTER = make_segmenter(trained=True)


def base_model() -> SegmentationModel:
    return separate_copy(SEGMENTER.model_of("default"))


def make_frames(model: SegmentationModel, *, number: int = 3, guidance: float = 0.4) -> list[ReferredFrame]:
    frames = []
    for index in range(number):
        seen = SEGMENTER.predict(stream_frame(index), keep=True).seen
        assert seen is not None
        kept = sample_frame(
            seen,
            bin=BIN,
            light=FrameLight(condition="night", guidance=guidance, by_camera=(guidance,)),
            stamp_ns=index,
            num_points=60,
            min_guidance=0.0,
            generator=torch.Generator().manual_seed(index),
        )
        frames.append(referred(model, {}, kept))
    return frames


def make_learner(model: SegmentationModel | None = None, **settings: Any) -> Learner:
    model = model or base_model()
    return Learner(
        base=model,
        parameters=adapted_parameters(model, scopes=("point_norms", "fusion_norms")),
        settings=StepSettings(**settings),
        bin=BIN,
        guidance=lambda frame: frame.sample.guidance,
        breathe=lambda: None,
    )


def softmax(logits: torch.Tensor) -> np.ndarray:
    values = np.exp(logits.detach().numpy().astype(np.float64))
    return values / values.sum(axis=1, keepdims=True)


def kl(teacher: torch.Tensor, student: torch.Tensor) -> np.ndarray:
    p, q = softmax(teacher), softmax(student)
    return (p * np.log(p / q)).sum(axis=1)


@pytest.mark.parametrize("guidance", [0.0, 0.2, 0.4, 1.0])
def test_the_loss_equals_numpy(guidance: float) -> None:
    model = base_model()
    frame = make_frames(model, number=1, guidance=guidance)[0]
    moved = {name: value + 0.3 for name, value in make_learner(model).reference.items()}
    said = predict(model, moved, frame.sample)
    taught = torch.arange(60) % 7 - 1
    taught[taught < 0] = -100
    settings = StepSettings(cross_modal_weight=0.3, reference_weight=1.7, pseudo_label_weight=0.6)

    loss, terms = frame_loss(said, frame, guidance=frame.sample.guidance, pseudo_labels=taught, settings=settings)

    seen = said.visible.numpy()
    # where the image is hardly trusted, the frozen 3D head teaches instead of the moving one
    teacher_3d = frame.reference["3d"] if guidance < 0.25 else said.main["3d"]
    align = kl(said.main["fused"], said.mimic["3d", "fused"])[seen].mean()
    guide_2d = guidance * kl(said.main["2d"], said.mimic["fused", "2d"])[seen].mean()
    guide_3d = (1 - guidance) * kl(teacher_3d, said.mimic["fused", "3d"])[seen].mean()
    anchor_3d = kl(frame.reference["3d"], said.main["3d"]).mean()
    anchor_fused = kl(frame.reference["fused"], said.main["fused"])[seen].mean()
    known = (taught >= 0).numpy()
    entropy = {
        head: -np.log(softmax(said.main[head])[np.arange(60), taught.clamp(min=0).numpy()]) for head in ("3d", "fused")
    }
    pl_3d, pl_fused = entropy["3d"][known].mean(), entropy["fused"][known & seen].mean()
    expected = 0.3 * (align + guide_2d + guide_3d) + 1.7 * (anchor_3d + anchor_fused) + 0.6 * (pl_3d + pl_fused)
    np.testing.assert_allclose(float(loss.detach()), expected, rtol=1e-4)
    np.testing.assert_allclose(float(terms["reference_fused"]), anchor_fused, rtol=1e-3)
    assert anchor_fused > 1e-3


def test_a_loss_without_terms_is_refused() -> None:
    model = base_model()
    frame = make_frames(model, number=1)[0]
    settings = StepSettings(cross_modal_weight=0, reference_weight=0, pseudo_label_weight=0)
    with pytest.raises(ValueError, match="every weight of the loss is 0"):
        frame_loss(
            predict(model, {}, frame.sample),
            frame,
            guidance=frame.sample.guidance,
            pseudo_labels=None,
            settings=settings,
        )


def test_pseudo_labels_are_those_of_offline_training() -> None:
    generator = torch.Generator().manual_seed(4)

    def said(num_points: int) -> Predictions:
        logits = torch.randn(num_points, 5, generator=generator) * 2
        logits[:, 4] -= 20  # a class nobody is labelled with
        return Predictions(
            main={"3d": logits}, mimic={}, ensemble_heads=("3d",), visible=torch.ones(num_points, dtype=torch.bool)
        )

    teachers = [said(31), said(18)]
    probs = torch.cat([each.ensemble() for each in teachers]).numpy()
    labels, probability = probs.argmax(1).astype(np.uint8), probs.max(1)
    thresholds = class_thresholds(labels, probability, num_classes=5)
    expected = refine(labels, probability, np.append(thresholds, UNLABELED))

    found = pseudo_labels(teachers)

    assert [len(each) for each in found] == [31, 18]
    np.testing.assert_array_equal(torch.cat(found).numpy(), expected)


def test_a_step_moves_only_scales_and_shifts() -> None:
    """Statistics, heads and projection of the model stay bit by bit; scale and shift move beside it."""
    model = base_model()
    learner = make_learner(model, learning_rate=1e-3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frames = make_frames(model)

    reports = [learner.step(frames) for _ in range(5)]

    assert all(report.accepted for report in reports)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    live = learner.live
    assert set(live) == set(learner.reference)
    assert not any("running" in name for name in live)
    assert all(not torch.equal(live[name], learner.reference[name]) for name in live)


def test_moving_statistics_move_and_are_part_of_what_is_served() -> None:
    learner = make_learner(norm_statistics="moving")
    learner.step(make_frames(learner.base))
    moved = [name for name in learner.candidate if not torch.equal(learner.candidate[name], learner.reference[name])]
    assert any("running_var" in name for name in moved)
    assert not learner.base.training
    assert not any(module.training for module in learner.base.modules())


def test_cross_modal_terms_alone_give_main_heads_and_2d_no_gradient() -> None:
    """Why scales and shifts of the trunk are what must adapt: nothing else that serves is reached."""
    model = base_model().requires_grad_(True)
    frame = make_frames(model, number=1)[0]
    settings = StepSettings(reference_weight=0, pseudo_label_weight=0)
    loss, _ = frame_loss(
        predict(model, {}, frame.sample),
        frame,
        guidance=frame.sample.guidance,
        pseudo_labels=None,
        settings=settings,
    )
    loss.backward()
    reached = {
        name.split(".")[0] + "." + name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None
    }
    assert reached == {"point_backbone.layers", "fusion.project_3d", "fusion.mix", "heads.mimic"}


def test_the_pull_back_and_the_average_are_what_they_say() -> None:
    learner = make_learner(pull_back=0.25, ema_decay=0.9, learning_rate=1e-3)
    name = next(iter(learner.reference))
    average = learner.candidate[name]
    for _ in range(3):
        learner.step(make_frames(learner.base))
        average = 0.9 * average + 0.1 * learner.live[name]
    torch.testing.assert_close(learner.candidate[name], average)


def test_the_first_step_is_one_rate_long_less_the_pull_back() -> None:
    learner = make_learner(pull_back=0.25, learning_rate=1e-3)
    learner.step(make_frames(learner.base))
    farthest = max(float((learner.live[n] - learner.reference[n]).abs().max()) for n in learner.reference)
    assert farthest == pytest.approx(0.75e-3, rel=1e-2)


def test_the_reference_term_holds_the_main_heads() -> None:
    """The same steps drift several times as far without it."""

    def drift(reference_weight: float) -> float:
        learner = make_learner(
            reference_weight=reference_weight,
            cross_modal_weight=1.0,
            pseudo_label_weight=0,
            pull_back=0,
            learning_rate=1e-3,
        )
        frames = make_frames(learner.base, guidance=0.0)
        for _ in range(60):
            learner.step(frames)
        with torch.no_grad():
            said = [predict(learner.base, learner.live, frame.sample) for frame in frames]
        return float(np.mean([kl(f.reference["3d"], s.main["3d"]).mean() for f, s in zip(frames, said, strict=True)]))

    assert drift(0.0) > 3 * drift(3.0)


@pytest.mark.parametrize("what", ["feats", "spike"])
def test_a_step_with_a_bad_gradient_changes_nothing(what: str) -> None:
    learner = make_learner(spike_factor=3.0, max_gradient_norm=0.01, ema_decay=0.5)
    frames = make_frames(learner.base)
    for _ in range(6):
        assert learner.step(frames).accepted
    live, candidate = learner.live, learner.candidate
    if what == "feats":
        kept = replace(frames[0].sample, feats_2d=torch.full_like(frames[0].sample.feats_2d, float("nan")))
        bad = [replace(frames[0], sample=kept)]
    else:
        wrong = {head: logits.roll(1, dims=1) * 30 for head, logits in frames[0].reference.items()}
        bad = [replace(frames[0], reference=wrong)]

    report = learner.step(bad)

    assert not report.accepted
    assert learner.rejected == 1
    assert learner.accepted == 6
    for name in live:
        assert torch.equal(learner.live[name], live[name])
        assert torch.equal(learner.candidate[name], candidate[name])
    assert learner.step(frames).accepted


def test_a_strike_goes_back_and_halves_the_rate() -> None:
    learner = make_learner(learning_rate=4e-4)
    frames = make_frames(learner.base)
    learner.step(frames)
    learner.strike(learner.reference)
    assert (learner.strikes, learner.learning_rate) == (1, 2e-4)
    assert all(torch.equal(learner.live[name], learner.reference[name]) for name in learner.reference)
    learner.step(frames)
    learner.forgive()
    assert (learner.strikes, learner.learning_rate) == (0, 4e-4)


def test_steps_are_the_same_every_time() -> None:
    def values() -> torch.Tensor:
        learner = make_learner()
        for _ in range(3):
            learner.step(make_frames(learner.base))
        return torch.cat(list(learner.candidate.values()))

    assert torch.equal(values(), values())
