# SPDX-License-Identifier: Apache-2.0
"""Frames stay in step, batches move whole, and the ensemble is the mean softmax with 3D for unseen points."""

import numpy as np
import pytest
import torch

from xmodal_seg.structures import Batch, Frame, Predictions, sum_of_softmax

NUM_POINTS, NUM_CLASSES = 13, 5


def make_frame() -> Frame:
    generator = np.random.default_rng(0)
    return Frame(
        points=generator.normal(size=(NUM_POINTS, 3)).astype(np.float32),
        intensity=generator.random(NUM_POINTS, dtype=np.float32),
        labels=np.arange(NUM_POINTS),
    )


@pytest.mark.parametrize("mask", [np.arange(NUM_POINTS) % 3 == 0, np.array([7, 2, 2])])
def test_select_keeps_everything_in_step(mask: np.ndarray) -> None:
    frame = make_frame()
    chosen = frame.select(mask)
    np.testing.assert_array_equal(chosen.points, frame.points[mask])
    np.testing.assert_array_equal(chosen.intensity, frame.intensity[mask])
    np.testing.assert_array_equal(chosen.labels, frame.labels[mask])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"points": np.zeros((4, 2), np.float32)}, r"points: expected \(N, 3\) float32"),
        ({"points": np.zeros((4, 3))}, "points: expected"),
        ({"points": np.zeros((4, 3), np.float32), "intensity": np.zeros(3, np.float32)}, "intensity: expected"),
        ({"points": np.zeros((4, 3), np.float32), "labels": np.zeros((4, 1), np.int64)}, "labels: expected"),
    ],
)
def test_bad_frames_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Frame(**fields)


def make_predictions(visible: torch.Tensor, heads: tuple[str, ...] = ("fused", "3d")) -> Predictions:
    torch.manual_seed(1)
    main = {head: torch.randn(NUM_POINTS, NUM_CLASSES) for head in heads}
    return Predictions(main=main, mimic={}, ensemble_heads=heads, visible=visible)


def test_sum_of_softmax_equals_the_plain_formula() -> None:
    logits = [torch.randn(NUM_POINTS, NUM_CLASSES, dtype=torch.bfloat16) for _ in range(2)]
    expected = sum(head.float().softmax(dim=1) for head in logits)
    torch.testing.assert_close(sum_of_softmax(logits), expected)


def test_ensemble_of_seen_points() -> None:
    predictions = make_predictions(torch.ones(NUM_POINTS, dtype=torch.bool))
    expected = (predictions.main["fused"].softmax(1) + predictions.main["3d"].softmax(1)) / 2
    torch.testing.assert_close(predictions.ensemble(), expected)


def test_unseen_points_take_the_3d_head_alone() -> None:
    visible = torch.arange(NUM_POINTS) % 2 == 0
    predictions = make_predictions(visible)
    torch.testing.assert_close(predictions.ensemble()[~visible], predictions.main["3d"].softmax(1)[~visible])


def test_unseen_points_of_a_model_without_3d_head_say_nothing() -> None:
    visible = torch.arange(NUM_POINTS) % 2 == 0
    probs = make_predictions(visible, heads=("fused",)).ensemble()
    assert (probs[~visible] == 0).all()
    torch.testing.assert_close(probs[visible].sum(1), torch.ones(int(visible.sum())))


def test_batch_moves_every_tensor() -> None:
    batch = Batch(
        images=torch.zeros(2, 3, 13, 17),
        voxel_coords=torch.zeros(4, 4, dtype=torch.int32),
        voxel_feats=torch.ones(4, 1),
        point_to_voxel=torch.zeros(NUM_POINTS, dtype=torch.int64),
        uv=torch.zeros(NUM_POINTS, 2),
        image_index=torch.full((NUM_POINTS,), -1),
        point_index=torch.arange(NUM_POINTS),
        frame_index=torch.zeros(NUM_POINTS, dtype=torch.int64),
        spatial_shape=(3, 4, 5),
        num_frames=1,
    )
    moved = batch.to("meta")
    assert all(value.device.type == "meta" for value in vars(moved).values() if isinstance(value, torch.Tensor))
    assert moved.labels is None
    assert moved.num_points == NUM_POINTS
    assert not batch.visible.any()
