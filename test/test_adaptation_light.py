# SPDX-License-Identifier: Apache-2.0
"""Lambda of frames, cameras and points."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from adaptation_parts import Light

from xmodal_seg.adaptation.light import (
    FrameLight,
    Reliability,
    camera_guidance,
    fit_reliability,
    frame_light,
    point_guidance,
)
from xmodal_seg.structures import Predictions

P, K = 23, 5


def test_the_frame_takes_the_median_of_its_trusted_cameras() -> None:
    lights = {
        "left": Light(guidance=0.9, condition="day"),
        "front": Light(guidance=0.1, condition="night"),
        "rear": Light(guidance=0.4, condition="twilight"),
        "blocked": Light(guidance=0.0, condition="night", confidence=0.2),
    }

    found = frame_light(["front", "blocked", "left", "rear"], lights, min_confidence=0.5)

    assert found is not None
    assert (found.condition, found.guidance) == ("twilight", 0.4)
    assert found.healthy == (True, False, True, True)
    assert found.by_camera[0] == 0.1


@pytest.mark.parametrize(
    "light", [Light(confidence=0.4), Light(guidance=math.nan), Light(guidance=1.2), Light(confidence=math.nan)]
)
def test_without_a_trusted_camera_there_is_no_light(light: Light) -> None:
    assert frame_light(["front"], {"front": light}, min_confidence=0.5) is None
    assert frame_light(["other"], {"front": Light()}, min_confidence=0.5) is None


def test_points_take_the_lambda_of_their_camera() -> None:
    light = FrameLight(condition="day", guidance=0.6, by_camera=(0.9, math.nan, 0.1))

    values = camera_guidance(torch.tensor([2, 0, -1, 1]), light, minimum=0.2)

    torch.testing.assert_close(values, torch.tensor([0.2, 0.9, 0.6, 0.6]))


def test_reliability_is_the_share_of_right_answers() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4000, K, generator=generator) * 3
    sure = logits.softmax(dim=1).amax(dim=1)
    right = torch.rand(4000, generator=generator) < 0.3 + 0.5 * sure  # over-confident
    labels = torch.where(right, logits.argmax(dim=1), (logits.argmax(dim=1) + 1) % K)
    labels[::7] = -100

    reliability = fit_reliability(logits, labels)(logits)

    for low, high in ((0.3, 0.6), (0.6, 0.9), (0.9, 1.0)):
        rows = (sure > low) & (sure <= high) & (labels >= 0)
        assert abs(float(reliability[rows].mean()) - float(right[rows].float().mean())) < 0.05


def test_reliability_needs_labels() -> None:
    with pytest.raises(ValueError, match="labelled points to fit it on, got none"):
        fit_reliability(torch.zeros(3, K), torch.full((3,), -100))


def test_points_lean_on_the_more_reliable_head_within_the_span() -> None:
    generator = torch.Generator().manual_seed(2)
    main = {"2d": torch.randn(P, K, generator=generator) * 4, "3d": torch.randn(P, K, generator=generator)}
    predictions = Predictions(main=main, mimic={}, ensemble_heads=("3d",), visible=torch.ones(P, dtype=torch.bool))
    reliability = {"2d": Reliability(slope=1.3, offset=-0.2), "3d": Reliability(slope=0.7, offset=0.1)}
    of_camera = torch.linspace(0, 1, P)

    values = point_guidance(of_camera, predictions, reliability, span=0.2).numpy()

    def trust(head: str) -> np.ndarray:
        greatest = main[head].softmax(dim=1).amax(dim=1).numpy().astype(np.float64)
        curve = reliability[head]
        return 1 / (1 + np.exp(-(curve.slope * np.log(greatest / (1 - greatest)) + curve.offset)))

    expected = np.clip(of_camera.numpy() + 0.2 * (trust("2d") - trust("3d")), 0, 1)
    np.testing.assert_allclose(values, expected, atol=1e-5)
    assert np.abs(values - of_camera.numpy()).max() <= 0.2
