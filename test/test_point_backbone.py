# SPDX-License-Identifier: Apache-2.0
"""The 3D network: size, initialisation, and the same result as a dense U-Net and as spconv's own path."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sparse_grids import conv3d_weight, from_dense, random_voxels, to_dense
from torch import nn
from torch.nn import functional as F  # noqa: N812

from xmodal_seg.config import PointBackboneSettings
from xmodal_seg.models.point_backbone import PointBackbone, SpconvGrid
from xmodal_seg.voxels import voxelize

SHAPE, EVEN_SHAPE = (7, 10, 13), (8, 12, 16)  # cells; EVEN_SHAPE: the next multiples of 2^(levels - 1)
SMALL = PointBackboneSettings(in_channels=2, base_channels=3, num_levels=3, block_reps=2)


def small_backbone() -> PointBackbone:
    """Three levels, with batch norms that are not at their start values."""
    backbone = PointBackbone(settings=SMALL)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm1d):
            for values in (module.weight, module.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
            for values in (module.bias, module.running_mean):
                nn.init.normal_(values, std=0.1)
    return backbone


def make_native(backbone: PointBackbone) -> PointBackbone:
    """Let spconv's modules run on a CPU, which they do with their first algorithm only."""
    from spconv.core import ConvAlgo

    for module in backbone.modules():
        if hasattr(module, "algo"):
            module.algo = ConvAlgo.Native
    return backbone


def run(backbone: PointBackbone, coords: torch.Tensor, feats: torch.Tensor, num_frames: int = 2) -> torch.Tensor:
    return backbone(coords, feats, spatial_shape=SHAPE, num_frames=num_frames)


def run_spconv(backbone: PointBackbone, coords: torch.Tensor, feats: torch.Tensor) -> torch.Tensor:
    grid = SpconvGrid(coords, spatial_shape=SHAPE, num_frames=2, num_levels=SMALL.num_levels)
    return make_native(backbone).run(grid, feats)


class DenseGrid:
    """The grid as dense tensors: conv3d, and zeros in every cell without a voxel."""

    def __init__(self, coords: torch.Tensor, num_levels: int) -> None:
        self._coords, self._shapes = [coords.long()], [EVEN_SHAPE]
        for _ in range(num_levels - 1):
            self._coords.append(torch.unique(self._coords[-1] // torch.tensor([1, 2, 2, 2]), dim=0))
            depth, height, width = self._shapes[-1]
            self._shapes.append((depth // 2, height // 2, width // 2))

    def convolve(self, conv: Any, kind: str, level: int, feats: torch.Tensor) -> torch.Tensor:
        source, target = level + (kind == "up"), level + (kind == "down")
        grid = to_dense(self._coords[source], feats, shape=self._shapes[source])
        if kind == "subm":
            grid = F.conv3d(grid, conv3d_weight(conv.weight), padding=1)
        elif kind == "down":
            grid = F.conv3d(grid, conv3d_weight(conv.weight), stride=2)
        else:
            grid = F.conv_transpose3d(grid, conv.weight.movedim(-1, 0), stride=2)
        return from_dense(grid, self._coords[target])


def run_dense(backbone: PointBackbone, coords: torch.Tensor, feats: torch.Tensor) -> torch.Tensor:
    return backbone.run(DenseGrid(coords, SMALL.num_levels), feats)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("run_reference", [run_dense, run_spconv])
def test_whole_network_with_gradients(run_reference: Callable[..., torch.Tensor], training: bool) -> None:
    coords = random_voxels(SHAPE)
    backbone = small_backbone().train(training)
    reference = copy.deepcopy(backbone)
    feats = torch.randn(len(coords), SMALL.in_channels, requires_grad=True)
    feats_again = feats.detach().clone().requires_grad_()
    result, expected = run(backbone, coords, feats), run_reference(reference, coords, feats_again)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    grad_out = torch.randn_like(result)
    result.backward(grad_out)
    expected.backward(grad_out)
    assert feats.grad is not None
    torch.testing.assert_close(feats.grad, feats_again.grad, rtol=1e-3, atol=1e-4)
    for (name, ours), other in zip(backbone.named_parameters(), reference.parameters(), strict=True):
        assert ours.grad is not None, name
        torch.testing.assert_close(
            ours.grad, other.grad, rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )
    for ours, other in zip(backbone.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(ours, other)


@pytest.mark.real_data
def test_a_real_sweep_equals_spconv_below_its_bound(real_data: Path) -> None:
    path = next((real_data / "nuscenes_sample").glob("*LIDAR_TOP*.bin"))
    points = torch.from_numpy(np.fromfile(path, np.float32).reshape(-1, 5)[:, :3].copy())
    points = points[points[:, :2].norm(dim=1) < 30]
    voxels = voxelize(
        points, torch.zeros(len(points), dtype=torch.int64), torch.ones(len(points), 1), voxel_size=0.05, max_cells=4096
    )
    assert np.prod(voxels.spatial_shape, dtype=np.float64) < 2**30
    settings = PointBackboneSettings(base_channels=4)
    backbone = make_native(PointBackbone(settings=settings)).eval()
    sizes: dict[str, Any] = {"spatial_shape": voxels.spatial_shape, "num_frames": 1}
    with torch.no_grad():
        ours = backbone(voxels.coords, voxels.feats, **sizes)
        spconvs = backbone.run(SpconvGrid(voxels.coords, num_levels=7, **sizes), voxels.feats)
    torch.testing.assert_close(ours, spconvs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("in_channels", "num_parameters"), [(1, 2_688_656), (3, 2_689_520)])
def test_the_papers_network_has_its_size(in_channels: int, num_parameters: int) -> None:
    backbone = PointBackbone(settings=PointBackboneSettings(in_channels=in_channels))
    parameters = list(backbone.parameters())
    assert sum(parameter.numel() for parameter in parameters) == num_parameters
    assert len(parameters) == 78
    assert backbone.out_channels == 16
    assert all(module.eps == 1e-4 for module in backbone.modules() if isinstance(module, nn.BatchNorm1d))
    assert all(module.momentum == 0.01 for module in backbone.modules() if isinstance(module, nn.BatchNorm1d))


def test_weights_start_as_sparseconvnets() -> None:
    backbone = PointBackbone(settings=PointBackboneSettings())
    convolutions = [module.weight for module in backbone.modules() if hasattr(module, "indice_key")]
    assert len(convolutions) == 26
    for weight in convolutions:
        num_inputs = weight[0].numel()  # C_in * k^3
        assert weight.mean().abs() < 5 * (2 / num_inputs / weight.numel()) ** 0.5
        if weight.numel() > 4000:
            assert weight.std().item() == pytest.approx((2 / num_inputs) ** 0.5, rel=0.06)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm1d):
            assert module.weight.eq(1).all()
            assert module.bias.eq(0).all()


def test_resetting_draws_all_weights_anew() -> None:
    backbone = small_backbone()
    before = {name: values.clone() for name, values in backbone.state_dict().items()}
    backbone.reset_parameters()
    assert not [
        name
        for name, values in backbone.state_dict().items()
        if values.is_floating_point() and values.equal(before[name])
    ]


def test_eval_is_deterministic_and_leaves_the_network_as_it_is() -> None:
    coords = random_voxels(SHAPE)
    feats = torch.randn(len(coords), SMALL.in_channels)
    backbone = small_backbone().eval()
    before = copy.deepcopy(backbone.state_dict())
    with torch.no_grad():
        first, second = run(backbone, coords, feats), run(backbone, coords, feats)
    assert first.equal(second)
    assert all(values.equal(before[name]) for name, values in backbone.state_dict().items())


def test_the_order_of_the_voxels_does_not_matter() -> None:
    coords = random_voxels(SHAPE)
    feats, order = torch.randn(len(coords), SMALL.in_channels), torch.randperm(len(coords))
    backbone = small_backbone().eval()
    with torch.no_grad():
        torch.testing.assert_close(run(backbone, coords[order], feats[order]), run(backbone, coords, feats)[order])


def test_frames_of_a_batch_do_not_see_each_other() -> None:
    coords = random_voxels(SHAPE)
    feats = torch.randn(len(coords), SMALL.in_channels)
    backbone = small_backbone().eval()
    with torch.no_grad():
        together = run(backbone, coords, feats)
        for frame in range(2):
            mine = coords[:, 0] == frame
            alone = (coords[mine] - torch.tensor([frame, 0, 0, 0])).int().contiguous()
            torch.testing.assert_close(run(backbone, alone, feats[mine], num_frames=1), together[mine])


def test_no_voxels_give_no_rows() -> None:
    result = run(PointBackbone(settings=SMALL), torch.zeros(0, 4, dtype=torch.int32), torch.zeros(0, 2))
    assert result.shape == (0, SMALL.base_channels)
    assert result.dtype == torch.float32


def test_a_single_voxel_is_enough() -> None:
    with torch.no_grad():
        result = run(small_backbone().eval(), torch.tensor([[1, 6, 9, 12]], dtype=torch.int32), torch.ones(1, 2))
    assert result.shape == (1, SMALL.base_channels)
    assert result.isfinite().all()


def test_one_level_is_a_network_too() -> None:
    settings = PointBackboneSettings(num_levels=1, base_channels=3)
    coords = random_voxels(SHAPE)
    assert run(PointBackbone(settings=settings), coords, torch.ones(len(coords), 1)).shape == (len(coords), 3)


def test_float32_under_autocast() -> None:
    coords = random_voxels(SHAPE)
    feats = torch.randn(len(coords), SMALL.in_channels)
    backbone = small_backbone().eval()
    with torch.no_grad():
        plain = run(backbone, coords, feats)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert run(backbone, coords, feats.bfloat16().float()).dtype == torch.float32
            assert run(backbone, coords, feats).equal(plain)


def test_spconv_keeps_the_graph_in_eval_mode() -> None:
    coords = random_voxels(SHAPE)
    feats = torch.randn(len(coords), SMALL.in_channels)
    backbone = small_backbone().eval()
    convolutions = [module for module in backbone.modules() if hasattr(module, "indice_key")]
    for grad_enabled in (True, False):
        with torch.set_grad_enabled(grad_enabled):
            assert run_spconv(backbone, coords, feats).requires_grad == grad_enabled
        # What spconv's implicit GEMM looks at.
        assert {conv.training for conv in convolutions} == {grad_enabled}
        assert not backbone.norm.training


def test_a_state_dict_fits_another_network_exactly() -> None:
    coords = random_voxels(SHAPE)
    feats = torch.randn(len(coords), SMALL.in_channels)
    one, other = small_backbone().eval(), PointBackbone(settings=SMALL).eval()
    assert one.state_dict()["encoder.1.0.conv.weight"].shape == (6, 3, 3, 3, 6)
    other.load_state_dict(one.state_dict(), strict=True)
    with torch.no_grad():
        assert run(one, coords, feats).equal(run(other, coords, feats))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"voxel_coords": torch.zeros(4, 5, dtype=torch.int32).t()},
            r"expected contiguous \(V, 4\) int32, got not cont",
        ),
        ({"voxel_coords": torch.zeros(5, 4, dtype=torch.int64)}, "voxel_coords: .*int64"),
        ({"voxel_coords": torch.zeros(5, 3, dtype=torch.int32)}, r"voxel_coords: .*\(5, 3\)"),
        ({"voxel_coords": torch.zeros(5, 4, dtype=torch.int32)}, "expected each voxel once, but rows 0 and 1"),
        ({"voxel_feats": torch.zeros(5, 1)}, r"voxel_feats: expected \(5, 2\), got \(5, 1\)"),
        ({"voxel_feats": torch.zeros(5, 2, device="meta")}, "voxel_feats: expected on cpu"),
        ({"spatial_shape": (7, 10, 4)}, r"within \[2, 7, 10, 4\], got \[1, 2, 3, 0\] to \[1, 2, 3, 4\]"),
        ({"num_frames": 1}, r"within \[1, 7, 10, 13\]"),
    ],
)
def test_wrong_input_is_named(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "voxel_coords": torch.tensor([[1, 2, 3, x] for x in range(5)], dtype=torch.int32),
        "voxel_feats": torch.ones(5, 2),
        "spatial_shape": SHAPE,
        "num_frames": 2,
    }
    with pytest.raises(ValueError, match=message):
        PointBackbone(settings=SMALL)(**{**good, **change})


def test_negative_coordinates_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \[0, 0, -1, 0\]"):
        run(PointBackbone(settings=SMALL), torch.tensor([[0, 0, -1, 0]], dtype=torch.int32), torch.ones(1, 2))


def test_a_missing_spconv_says_which_wheel_to_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spconv.pytorch", None)
    with pytest.raises(ImportError, match=r"spconv-cu120 \(Python 3.10 and 3.11\) or spconv-cu126"):
        PointBackbone(settings=SMALL)
