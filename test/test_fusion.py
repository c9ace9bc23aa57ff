# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from xmodal_seg.config import FusionSettings
from xmodal_seg.models.fusion import Fusion

D, C, P = 11, 5, 7


def _fusion(**settings) -> Fusion:
    return Fusion(settings=FusionSettings(hidden=13, **settings), channels_2d=D, channels_3d=C)


def test_the_papers_mlp_has_its_size():
    fusion = Fusion(settings=FusionSettings(), channels_2d=1024, channels_3d=16)

    projection = 16 * 1024 + 1024
    layers = (2048 * 1024 + 1024 + 2 * 1024) + (1024 * 1024 + 1024 + 2 * 1024)
    assert sum(p.numel() for p in fusion.parameters()) == projection + layers
    assert fusion.out_channels == 1024


def test_mlp_equals_the_written_out_formula():
    fusion = _fusion(dropout=0.0)
    feats_2d, feats_3d = torch.randn(P, D), torch.randn(P, C)
    linear1, norm1, _, _, linear2, norm2, _, _ = fusion.mix
    x = torch.cat([feats_2d, fusion.project_3d(feats_3d)], dim=1)
    for linear, norm in ((linear1, norm1), (linear2, norm2)):
        x = x @ linear.weight.T + linear.bias
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + norm.eps).sqrt()
        x = nn.functional.gelu(x)

    torch.testing.assert_close(fusion(feats_2d, feats_3d), x, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "width", "num_parameters"),
    [
        ("vanilla", 13, (C * D + D) + (2 * D * 13 + 13)),
        ("xmuda", 64, (D + C) * 64 + 64),
    ],
)
def test_single_layer_kinds(kind, width, num_parameters):
    fusion = _fusion(kind=kind)

    out = fusion(torch.randn(P, D), torch.randn(P, C))

    assert out.shape == (P, width) == (P, fusion.out_channels)
    assert bool((out >= 0).all())
    assert bool((out == 0).any())
    assert sum(p.numel() for p in fusion.parameters()) == num_parameters


@pytest.mark.parametrize("detach", [True, False])
def test_detach_3d_cuts_only_the_3d_gradient(detach):
    fusion = _fusion(detach_3d=detach)
    feats_2d, feats_3d = torch.randn(P, D, requires_grad=True), torch.randn(P, C, requires_grad=True)

    fusion(feats_2d, feats_3d).square().sum().backward()

    assert feats_2d.grad is not None
    assert (feats_3d.grad is None) == detach
    assert bool((fusion.project_3d.weight.grad != 0).any())


def test_dropout_acts_in_training_only():
    fusion = _fusion(dropout=0.5)
    feats = torch.randn(P, D), torch.randn(P, C)

    assert not torch.equal(fusion(*feats), fusion(*feats))
    fusion.eval()
    assert torch.equal(fusion(*feats), fusion(*feats))


def test_one_point_in_training_is_refused_with_a_sentence():
    fusion = _fusion()
    with pytest.raises(ValueError, match="at least 2 points that a camera sees"):
        fusion(torch.randn(1, D), torch.randn(1, C))

    assert fusion.eval()(torch.randn(1, D), torch.randn(1, C)).shape == (1, 13)
