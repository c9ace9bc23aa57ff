# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show: spconv's implicit GEMM against our own tables, precision, training steps, memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_frame
from rich.console import Console
from tiny_world import tiny_recipe

from xmodal_seg.config import PointBackboneSettings
from xmodal_seg.inference import Segmenter
from xmodal_seg.models.point_backbone import PointBackbone
from xmodal_seg.training.run import make_trainer, set_up

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPUS = [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cuda:0"]
NUM_VOXELS, CELLS = 20_000, 256


@pytest.fixture(autouse=True)
def exact_convolutions() -> Iterator[None]:
    """cuDNN takes 10-bit fractions for float32 by itself."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def network_and_voxels() -> tuple[PointBackbone, torch.Tensor, torch.Tensor]:
    """The paper's network with running statistics of the data, and the voxels of two frames, close to each other."""
    torch.manual_seed(0)
    network = PointBackbone(settings=PointBackboneSettings(bn_momentum=1.0))
    z_y_x = torch.randint(0, CELLS, (NUM_VOXELS, 3)) // torch.tensor([16, 1, 1])
    coords = torch.unique(torch.cat([torch.randint(0, 2, (NUM_VOXELS, 1)), z_y_x], dim=1), dim=0).int()
    coords = coords[torch.randperm(len(coords))].contiguous()
    feats = torch.rand(len(coords), 1)
    with torch.no_grad():
        run(network, coords, feats, "cpu")
    return network, coords, feats


def run(network: PointBackbone, coords: torch.Tensor, feats: torch.Tensor, device: str) -> torch.Tensor:
    shape = (CELLS, CELLS, CELLS)
    return network.to(device)(coords.to(device), feats.to(device), spatial_shape=shape, num_frames=2)


@pytest.mark.parametrize("device", GPUS)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_implicit_gemm_gives_what_our_tables_give(device: str, autocast: bool, training: bool) -> None:
    network, coords, feats = network_and_voxels()
    other = copy.deepcopy(network)
    expected = run(network.train(training), coords, feats, "cpu")
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
        found = run(other.train(training), coords, feats, device)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=1e-3)

    expected.square().mean().backward()
    found.square().mean().backward()
    for (name, one), two in zip(network.named_parameters(), other.parameters(), strict=True):
        assert one.grad is not None
        assert two.grad is not None, name
        scale = float(one.grad.abs().max())
        torch.testing.assert_close(two.grad.cpu(), one.grad, atol=2e-3 * scale, rtol=2e-3, msg=name)


def test_frozen_statistics_leave_a_gradient() -> None:
    """Adaptation trains scales and shifts in eval mode."""
    network, coords, feats = network_and_voxels()
    run(network.eval(), coords, feats, "cuda").square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for n, p in network.named_parameters() if "norm" in n)


@pytest.mark.parametrize("device", GPUS)
def test_the_shipped_weights_label_as_on_a_cpu(device: str) -> None:
    frame = make_frame()
    for bank in ("day", "night"):
        expected, found = (Segmenter.load(None, device=each) for each in ("cpu", device))
        for segmenter in (expected, found):
            segmenter.use_bank(bank)
        there, here = expected.predict(frame), found.predict(frame)
        np.testing.assert_allclose(here.probability, there.probability, atol=5e-3)
        assert (here.labels == there.labels).mean() > 0.99


def test_bfloat16_changes_few_labels() -> None:
    exact, mixed = (Segmenter.load(None, device="cuda", precision=each) for each in ("float32", "bfloat16"))
    assert (exact.predict(make_frame()).labels == mixed.predict(make_frame()).labels).mean() > 0.97


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_steps_on_a_gpu(world: Path, tmp_path: Path, precision: str) -> None:
    losses = {}
    for accelerator in ("cpu", "gpu"):
        recipe = tiny_recipe(world, accelerator=accelerator, precision=precision)
        trainer = make_trainer(set_up(recipe), tmp_path / accelerator, console=Console(quiet=True))
        trainer.model.train()
        losses[accelerator] = [trainer.train_step(*trainer.batches(step))["loss"] for step in range(3)]
    assert losses["gpu"] == pytest.approx(losses["cpu"], rel=0.02)


def test_closing_gives_the_memory_back() -> None:
    before = torch.cuda.memory_allocated()
    segmenter = Segmenter.load(None, device="cuda")
    segmenter.warm_up(num_cameras=1)
    assert torch.cuda.memory_allocated() > before
    segmenter.close()
    del segmenter
    assert torch.cuda.memory_allocated() - before < 2**20
