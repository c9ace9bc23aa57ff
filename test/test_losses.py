# SPDX-License-Identifier: Apache-2.0
"""Losses against plain numpy, and where their gradients go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from xmodal_seg.labels import IGNORE_INDEX
from xmodal_seg.losses import MimicTerm, PointSum, kl_divergence, mimic_losses, paper_terms, segmentation_losses
from xmodal_seg.structures import Head, Predictions

P, K = 17, 5
PAIRS: tuple[tuple[Head, Head], ...] = (("3d", "fused"), ("fused", "2d"), ("fused", "3d"))


def numpy_softmax(logits: torch.Tensor) -> NDArray[np.float64]:
    values = np.exp(logits.detach().numpy().astype(np.float64))
    return values / values.sum(axis=1, keepdims=True)


def numpy_kl(teacher: torch.Tensor, student: torch.Tensor) -> NDArray[np.float64]:
    p, q = numpy_softmax(teacher), numpy_softmax(student)
    return (p * np.log(p / q)).sum(axis=1)


@pytest.fixture
def predictions() -> Predictions:
    generator = torch.Generator().manual_seed(3)
    visible = torch.ones(P, dtype=torch.bool)
    visible[[2, 11]] = False

    def logits() -> torch.Tensor:
        return torch.randn(P, K, generator=generator).mul(3).requires_grad_()

    return Predictions(
        main={"2d": logits(), "3d": logits(), "fused": logits()},
        mimic={pair: logits() for pair in PAIRS},
        ensemble_heads=("fused", "3d"),
        visible=visible,
    )


def total(losses: dict[str, PointSum]) -> torch.Tensor:
    return torch.stack([loss.mean() for loss in losses.values()]).sum()


def test_kl_divergence_equals_numpy(predictions: Predictions) -> None:
    teacher, student = predictions.main["2d"], predictions.main["3d"]
    np.testing.assert_allclose(
        kl_divergence(teacher, student).detach().numpy(), numpy_kl(teacher, student), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("guidance", [0.0, 0.3, 1.0])
def test_align_and_guide_equal_numpy(predictions: Predictions, guidance: float) -> None:
    seen = predictions.visible.numpy()
    main, mimic = predictions.main, predictions.mimic
    align = numpy_kl(main["fused"], mimic[("3d", "fused")])[seen].mean()
    guide = guidance * numpy_kl(main["2d"], mimic[("fused", "2d")])[seen].mean()
    guide += (1 - guidance) * numpy_kl(main["3d"], mimic[("fused", "3d")])[seen].mean()
    assert total(mimic_losses(predictions, paper_terms(guidance))).item() == pytest.approx(align + guide, rel=1e-5)


@pytest.mark.parametrize(("guidance", "teacher"), [(1.0, "2d"), (0.0, "3d")])
def test_lambda_one_and_zero_are_the_single_term(predictions: Predictions, guidance: float, teacher: Head) -> None:
    guided = mimic_losses(predictions, paper_terms(guidance))
    single = mimic_losses(
        predictions, [MimicTerm(teacher="fused", student="3d"), MimicTerm(teacher=teacher, student="fused")]
    )
    assert list(guided) == list(single) == ["3d_from_fused", f"fused_from_{teacher}"]
    assert torch.equal(total(guided), total(single))


def test_gradients_reach_students_at_visible_points_only(predictions: Predictions) -> None:
    total(mimic_losses(predictions, paper_terms(1.0))).backward()
    assert all(logits.grad is None for logits in predictions.main.values())
    assert predictions.mimic[("fused", "3d")].grad is None  # lambda 1 skips the 3D teacher
    for pair in (("3d", "fused"), ("fused", "2d")):
        gradient = predictions.mimic[pair].grad  # type: ignore[index]
        assert gradient is not None
        assert torch.equal(gradient.abs().sum(dim=1) > 0, predictions.visible)


def test_guidance_for_each_point(predictions: Predictions) -> None:
    guidance = torch.linspace(0, 1, P)
    losses = mimic_losses(predictions, paper_terms(guidance))
    seen = predictions.visible.numpy()
    by_hand = (guidance.numpy() * numpy_kl(predictions.main["2d"], predictions.mimic[("fused", "2d")]))[seen].mean()
    assert losses["fused_from_2d"].mean().item() == pytest.approx(by_hand, rel=1e-5)
    constant = mimic_losses(predictions, paper_terms(torch.full((P,), 0.3)))
    assert total(constant).item() == pytest.approx(total(mimic_losses(predictions, paper_terms(0.3))).item(), rel=1e-6)


def test_segmentation_equals_numpy_with_class_weights(predictions: Predictions) -> None:
    labels = torch.arange(P) % K
    labels[[0, 5]] = IGNORE_INDEX
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5])
    losses = segmentation_losses(predictions, labels, class_weights=weights)
    assert set(losses) == {"2d", "3d", "fused"}
    for head, loss in losses.items():
        counted = labels.numpy() >= 0
        if head != "3d":
            counted &= predictions.visible.numpy()
        probs = numpy_softmax(predictions.main[head])[counted]
        truth = labels.numpy()[counted]
        weight = weights.numpy()[truth]
        expected = -(weight * np.log(probs[np.arange(truth.size), truth])).sum() / weight.sum()
        assert loss.mean().item() == pytest.approx(expected, rel=1e-5)


def test_segmentation_equals_torch_where_all_is_visible(predictions: Predictions) -> None:
    labels = torch.arange(P) % K
    expected = torch.nn.functional.cross_entropy(predictions.main["3d"], labels)
    assert segmentation_losses(predictions, labels)["3d"].mean().item() == pytest.approx(expected.item(), rel=1e-6)


def test_labels_for_each_head(predictions: Predictions) -> None:
    by_head: dict[Head, torch.Tensor] = {
        "2d": torch.zeros(P, dtype=torch.int64),
        "3d": torch.full((P,), IGNORE_INDEX),
        "fused": torch.ones(P, dtype=torch.int64),
    }
    losses = segmentation_losses(predictions, by_head)
    shared = segmentation_losses(predictions, by_head["fused"])
    assert torch.equal(losses["fused"].value, shared["fused"].value)
    assert losses["3d"].mean().item() == 0.0  # nothing labelled: no loss, and no NaN


def test_shares_of_two_processes_add_up(predictions: Predictions) -> None:
    labels = torch.arange(P) % K
    whole = segmentation_losses(predictions, labels)["3d"]
    first, second = labels.clone(), labels.clone()
    first[7:], second[:7] = IGNORE_INDEX, IGNORE_INDEX
    shares = [segmentation_losses(predictions, part)["3d"] for part in (first, second)]
    common = shares[0].weight + shares[1].weight
    summed = sum(share.mean(total_weight=common).item() for share in shares)
    assert summed == pytest.approx(whole.mean().item(), rel=1e-6)


def test_bad_requests_are_refused(predictions: Predictions) -> None:
    with pytest.raises(ValueError, match=r"lambda in \[0, 1\], got 1.5"):
        paper_terms(1.5)
    with pytest.raises(ValueError, match="loss term 2d_from_3d: the model has the main heads"):
        mimic_losses(predictions, [MimicTerm(teacher="3d", student="2d")])
    with pytest.raises(ValueError, match=r"weight of fused_from_2d: expected one per point, \(17,\), got \(3,\)"):
        mimic_losses(predictions, paper_terms(torch.ones(3)))
    with pytest.raises(ValueError, match=r"labels: expected \(17,\), one per point, got \(4,\)"):
        segmentation_losses(predictions, torch.zeros(4, dtype=torch.int64))
