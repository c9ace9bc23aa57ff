# SPDX-License-Identifier: Apache-2.0
"""Frames as they are kept: sampled, referred to the frozen model, balanced over the classes, some held out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from adaptation_parts import make_segmenter, stream_frame

from xmodal_seg.adaptation.frames import Bin, ReferredFrame, SampledFrame, predict, referred, sample_frame
from xmodal_seg.adaptation.light import FrameLight
from xmodal_seg.adaptation.memory import BalancedFrames, FrameMemory
from xmodal_seg.adaptation.parameters import adapted_parameters, separate_copy
from xmodal_seg.adaptation.settings import MemorySettings
from xmodal_seg.inference import SeenFrame, Segmenter
from xmodal_seg.structures import NO_CAMERA

DAY, NIGHT = Bin(bank="default", condition="day"), Bin(bank="default", condition="night")
LIGHT = FrameLight(condition="day", guidance=0.7, by_camera=(0.7,))


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return make_segmenter()


def sample(seen: SeenFrame, *, num_points: int = 50, light: FrameLight = LIGHT, seed: int = 0) -> SampledFrame:
    return sample_frame(
        seen,
        bin=DAY,
        light=light,
        stamp_ns=3,
        num_points=num_points,
        min_guidance=0.1,
        generator=torch.Generator().manual_seed(seed),
    )


def seen_of(segmenter: Segmenter, number: int = 0) -> SeenFrame:
    seen = segmenter.predict(stream_frame(number), keep=True).seen
    assert seen is not None
    return seen


def test_kept_inputs_give_the_served_answer(segmenter: Segmenter) -> None:
    """Learning runs the very forward pass that serves: on the served frame, its probabilities come out again."""
    frame = stream_frame(0)
    labelled = segmenter.predict(frame, keep=True)
    assert labelled.seen is not None
    model = separate_copy(segmenter.model_of("default"))

    kept = sample(labelled.seen, num_points=10_000)
    with torch.no_grad():
        probs = predict(model, {}, kept).ensemble()

    assert kept.batch.num_points == frame.num_points
    probability = torch.from_numpy(labelled.probability)[kept.batch.point_index]
    torch.testing.assert_close(probs.amax(dim=1), probability, atol=2e-3, rtol=0)  # 2D features are kept in 16 bits
    exact = replace(kept, feats_2d=labelled.seen.feats_2d[_visible_order(labelled.seen, kept)])
    with torch.no_grad():
        again = predict(model, {}, exact).ensemble().amax(dim=1)
    torch.testing.assert_close(again, probability, atol=1e-6, rtol=1e-6)


def _visible_order(seen: SeenFrame, kept: SampledFrame) -> torch.Tensor:
    row = torch.full((int(seen.batch.point_index.max()) + 1,), -1)
    row[seen.batch.point_index[seen.batch.visible]] = torch.arange(int(seen.batch.visible.sum()))
    return row[kept.batch.point_index[kept.batch.visible]]


def test_points_are_drawn_and_all_voxels_stay(segmenter: Segmenter) -> None:
    seen = seen_of(segmenter)
    num_visible = int(seen.batch.visible.sum())
    assert 40 < num_visible < seen.batch.num_points

    kept = sample(seen, num_points=40)

    assert kept.batch.num_points == 40
    blind = int((~kept.batch.visible).sum())
    assert 0 < blind <= 10
    assert kept.feats_2d.shape == (40 - blind, 3)
    assert kept.feats_2d.dtype == torch.float16
    assert not kept.feats_2d.is_inference()
    assert torch.equal(kept.batch.voxel_coords, seen.batch.voxel_coords)
    assert kept.batch.images.numel() == 0
    assert len(kept.batch.point_index.unique()) == 40
    torch.testing.assert_close(kept.guidance, torch.full((40,), 0.7))
    assert torch.equal(sample(seen, num_points=40).batch.point_index, kept.batch.point_index)
    assert not torch.equal(sample(seen, num_points=40, seed=1).batch.point_index, kept.batch.point_index)


def test_points_of_a_camera_that_is_not_trusted_count_as_unseen(segmenter: Segmenter) -> None:
    light = FrameLight(condition="day", guidance=0.5, by_camera=(float("nan"),))
    kept = sample(seen_of(segmenter), light=light)
    assert (kept.batch.image_index == NO_CAMERA).all()
    assert len(kept.feats_2d) == 0
    with torch.no_grad():
        assert predict(separate_copy(segmenter.model_of("default")), {}, kept).ensemble().sum() > 0


def test_predicting_with_other_values_leaves_the_model_alone(segmenter: Segmenter) -> None:
    model = separate_copy(segmenter.model_of("default"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    values = {
        name: tensor + 1 for name, tensor in adapted_parameters(model, scopes=("fusion_norms",)).values(model).items()
    }
    kept = sample(seen_of(segmenter))

    with torch.no_grad():
        changed, usual = predict(model, values, kept), predict(model, {}, kept)

    assert not torch.equal(changed.main["fused"], usual.main["fused"])
    assert torch.equal(changed.main["3d"], usual.main["3d"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_reference_speaks_once(segmenter: Segmenter) -> None:
    model = separate_copy(segmenter.model_of("default"))
    kept = sample(seen_of(segmenter))
    frame = referred(model, {}, kept)
    with torch.no_grad():
        said = predict(model, {}, kept)
    assert all(torch.equal(frame.reference[head], said.main[head]) for head in ("2d", "3d", "fused"))
    assert torch.equal(frame.class_counts, torch.bincount(said.ensemble().argmax(1), minlength=6))


@pytest.fixture(scope="module")
def template(segmenter: Segmenter) -> ReferredFrame:
    return referred(separate_copy(segmenter.model_of("default")), {}, sample(seen_of(segmenter)))


def with_counts(template: ReferredFrame, stamp_ns: int, counts: list[int], bin: Bin = DAY) -> ReferredFrame:
    kept = replace(template.sample, stamp_ns=stamp_ns, bin=bin)
    return replace(template, sample=kept, class_counts=torch.tensor(counts))


def stamps(frames: list[ReferredFrame]) -> list[int]:
    return [frame.sample.stamp_ns for frame in frames]


def test_a_frame_with_a_rare_class_outlives_the_common_ones(template: ReferredFrame) -> None:
    memory = BalancedFrames(capacity=4)
    memory.add(with_counts(template, 0, [90, 5, 0]))
    memory.add(with_counts(template, 1, [80, 0, 7]))
    for number in range(2, 12):
        memory.add(with_counts(template, number, [100, 0, 0]))
    assert stamps(memory.frames) == [0, 1, 10, 11]
    for number in range(12, 80):
        memory.add(with_counts(template, number, [100, 3, 0]))
    assert 0 not in stamps(memory.frames)
    for number in range(80, 400):
        memory.add(with_counts(template, number, [100, 3, 0]))
    assert 1 not in stamps(memory.frames)
    assert 399 in stamps(memory.frames)


def test_each_nth_frame_of_a_bin_is_held_out(template: ReferredFrame) -> None:
    memory = FrameMemory(settings=MemorySettings(capacity=5, probe_capacity=2, probe_every=3, min_frames=4))
    for number in range(12):
        memory.add(with_counts(template, number, [1, 1, 1]))
        memory.add(with_counts(template, 100 + number, [1, 1, 1], NIGHT))
        assert memory.is_ready(DAY) == (memory.num_frames(DAY) >= 4)
    held_out = stamps(memory.probes(DAY))
    learned = stamps(memory.draw(DAY, 99, generator=torch.Generator()))
    assert len(held_out) == memory.num_probes(DAY) == 2
    assert set(held_out) <= {2, 5, 8, 11}
    assert len(learned) == 5
    assert not set(learned) & {2, 5, 8, 11}
    assert set(stamps(memory.other_probes(DAY))) <= {102, 105, 108, 111}
    assert memory.other_probes(Bin(bank="other", condition="day")) == []


def test_the_same_seed_draws_the_same_frames(template: ReferredFrame) -> None:
    memory = FrameMemory(settings=MemorySettings())
    for number in range(30):
        memory.add(with_counts(template, number, [1, 1, 1]))

    def draw(seed: int) -> list[int]:
        return stamps(memory.draw(DAY, 4, generator=torch.Generator().manual_seed(seed)))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert len(set(draw(1))) == 4
