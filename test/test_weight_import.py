# SPDX-License-Identifier: Apache-2.0
"""xMUDA's 3D weights: names and shapes of a SparseConvNet checkpoint, and the same output as a dense reference."""

from pathlib import Path

import pytest
import torch
from programs import load_program

from xmodal_seg.checkpoint import load_checkpoint
from xmodal_seg.config import PointBackboneSettings
from xmodal_seg.labels import NUSCENES_6
from xmodal_seg.models.point_backbone import PointBackbone
from xmodal_seg.training.weight_import import convert, import_xmuda

SMALL = PointBackboneSettings(base_channels=3, num_levels=3, block_reps=1)


# --------------------------------------------------------------- a checkpoint in SparseConvNet's layout, by its rules


def norm(state: dict, name: str, width: int, generator: torch.Generator) -> None:
    state[f"{name}.weight"] = 1 + 0.3 * torch.randn(width, generator=generator)
    state[f"{name}.bias"] = 0.2 * torch.randn(width, generator=generator)
    state[f"{name}.running_mean"] = 0.2 * torch.randn(width, generator=generator)
    state[f"{name}.running_var"] = 0.5 + torch.rand(width, generator=generator)


def conv(state: dict, name: str, volume: int, num_in: int, num_out: int, generator: torch.Generator) -> None:
    state[f"{name}.weight"] = (
        torch.randn(volume, 1, num_in, num_out, generator=generator) * (2 / volume / num_in) ** 0.5
    )


def unet(state: dict, name: str, widths: list[int], reps: int, generator: torch.Generator) -> None:
    """SparseConvNet's recursive U: blocks, [identity, (norm, down, U, norm, up)], join, blocks."""
    for number in range(reps):
        norm(state, f"{name}.{number}.0", widths[0], generator)
        conv(state, f"{name}.{number}.1", 27, widths[0], widths[0], generator)
    if len(widths) == 1:
        return
    inner = f"{name}.{reps}.1"
    norm(state, f"{inner}.0", widths[0], generator)
    conv(state, f"{inner}.1", 8, widths[0], widths[1], generator)
    unet(state, f"{inner}.2", widths[1:], reps, generator)
    norm(state, f"{inner}.3", widths[1], generator)
    conv(state, f"{inner}.4", 8, widths[1], widths[0], generator)
    for number in range(reps):
        width = widths[0] * (2 if number == 0 else 1)
        norm(state, f"{name}.{reps + 2 + number}.0", width, generator)
        conv(state, f"{name}.{reps + 2 + number}.1", 27, width, widths[0], generator)


def make_state(settings: PointBackboneSettings, *, num_classes: int = 6, dual: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    widths = [settings.base_channels * (level + 1) for level in range(settings.num_levels)]
    state: dict[str, torch.Tensor] = {}
    conv(state, "net_3d.sparseModel.1", 27, settings.in_channels, widths[0], generator)
    unet(state, "net_3d.sparseModel.2", widths, settings.block_reps, generator)
    norm(state, "net_3d.sparseModel.3", widths[0], generator)
    for name in ("linear", "linear2")[: 1 + dual]:
        state[f"{name}.weight"] = torch.randn(num_classes, widths[0], generator=generator)
        state[f"{name}.bias"] = torch.randn(num_classes, generator=generator)
    return state


def save(path: Path, state: dict, **extra: object) -> Path:
    torch.save({"model": state, **extra}, path)
    return path


# ------------------------------------------------------------------------- a dense reference that reads that checkpoint


class DenseReference:
    """The network on a dense grid with axes x, y, z, weights used as SparseConvNet's rules say, masked to voxels."""

    def __init__(self, state: dict[str, torch.Tensor], settings: PointBackboneSettings) -> None:
        self.state, self.settings = state, settings

    def kernel(self, name: str) -> torch.Tensor:
        """(V, 1, in, out) -> conv3d's (out, in, x, y, z): the first offset is the lowest corner, z runs fastest."""
        weight = self.state[f"{name}.weight"]
        size = {27: 3, 8: 2}[weight.shape[0]]
        kernel = torch.empty(weight.shape[3], weight.shape[2], size, size, size)
        for offset in range(weight.shape[0]):
            x, y, z = offset // size**2, offset // size % size, offset % size
            kernel[:, :, x, y, z] = weight[offset, 0].T
        return kernel

    def norm_relu(self, name: str, dense: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        mean, var = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        shape = (1, -1, 1, 1, 1)
        scaled = (dense - mean.view(shape)) / torch.sqrt(var.view(shape) + 1e-4) * weight.view(shape) + bias.view(shape)
        return torch.relu(scaled) * mask

    def block(self, name: str, dense: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        active = self.norm_relu(f"{name}.0", dense, mask)
        return torch.nn.functional.conv3d(active, self.kernel(f"{name}.1"), padding=1) * mask

    def level(self, name: str, dense: torch.Tensor, mask: torch.Tensor, depth: int) -> torch.Tensor:
        reps = self.settings.block_reps
        for number in range(reps):
            dense = self.block(f"{name}.{number}", dense, mask)
        if depth == self.settings.num_levels - 1:
            return dense
        inner = f"{name}.{reps}.1"
        coarse_mask = torch.nn.functional.max_pool3d(mask, 2)
        active = self.norm_relu(f"{inner}.0", dense, mask)
        coarse = torch.nn.functional.conv3d(active, self.kernel(f"{inner}.1"), stride=2) * coarse_mask
        coarse = self.level(f"{inner}.2", coarse, coarse_mask, depth + 1)
        active = self.norm_relu(f"{inner}.3", coarse, coarse_mask)
        kernel = self.kernel(f"{inner}.4").transpose(0, 1)  # conv_transpose3d wants (in, out, ...)
        up = torch.nn.functional.conv_transpose3d(active, kernel, stride=2) * mask
        dense = torch.cat([dense, up], dim=1)
        for number in range(reps):
            dense = self.block(f"{name}.{reps + 2 + number}", dense, mask)
        return dense

    def __call__(self, feats: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        prefix = "net_3d.sparseModel"
        dense = torch.nn.functional.conv3d(feats, self.kernel(f"{prefix}.1"), padding=1) * mask
        dense = self.level(f"{prefix}.2", dense, mask, 0)
        return self.norm_relu(f"{prefix}.3", dense, mask)


@pytest.mark.parametrize(
    "settings", [SMALL, PointBackboneSettings(base_channels=2, num_levels=2, block_reps=2, in_channels=3)]
)
def test_imported_network_equals_the_dense_reference(settings: PointBackboneSettings, tmp_path: Path) -> None:
    state = make_state(settings)
    weights = import_xmuda(save(tmp_path / "model_3d_000100.pth", state))
    assert weights.settings == settings
    backbone = PointBackbone(settings=settings).eval()
    backbone.load_state_dict(weights.backbone)

    size = (8, 12, 16)  # cells in x, y, z, all different: a swapped axis would show
    generator = torch.Generator().manual_seed(1)
    mask = (torch.rand(1, 1, *size, generator=generator) < 0.3).float()
    feats = torch.randn(1, settings.in_channels, *size, generator=generator) * mask
    expected = DenseReference(state, settings)(feats, mask)
    x, y, z = mask[0, 0].nonzero().T
    coords = torch.stack([torch.zeros_like(x), z, y, x], dim=1).int().contiguous()
    with torch.no_grad():
        answer = backbone(coords, feats[0, :, x, y, z].T.contiguous(), spatial_shape=size[::-1], num_frames=1)
    assert answer.shape == (int(mask.sum()), settings.base_channels)
    torch.testing.assert_close(answer, expected[0, :, x, y, z].T, atol=2e-5, rtol=1e-4)


def test_the_papers_network_is_complete(tmp_path: Path) -> None:
    settings = PointBackboneSettings()
    weights = import_xmuda(save(tmp_path / "model_3d_100000.pth", make_state(settings), iteration=100000))
    parameters = [tensor for name, tensor in weights.backbone.items() if name.rsplit(".", 1)[1] in ("weight", "bias")]
    assert weights.settings == settings
    assert len(parameters) == 78
    assert sum(tensor.numel() for tensor in parameters) == 2_688_656
    assert {role: head["weight"].shape for role, head in weights.heads.items()} == {"main": (6, 16), "mimic": (6, 16)}


def test_convert_puts_every_offset_in_its_place() -> None:
    weight = torch.arange(27 * 2 * 5, dtype=torch.float32).reshape(27, 1, 2, 5)
    ours = convert(weight)
    assert ours.shape == (5, 3, 3, 3, 2)
    for x, y, z in ((0, 0, 1), (0, 2, 0), (2, 1, 0)):
        torch.testing.assert_close(ours[:, z, y, x, :], weight[9 * x + 3 * y + z, 0].T)


def test_program_makes_a_checkpoint_that_labels_a_cloud(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    state = make_state(SMALL)
    source = save(tmp_path / "model_3d.pth", {f"module.{name}": tensor for name, tensor in state.items()})
    out = tmp_path / "imported"
    assert load_program("import_weights").main([str(source), "--label-space", "nuscenes_6", "--out", str(out)]) == 0
    checkpoint = load_checkpoint(out)
    model = checkpoint.build_model()
    assert checkpoint.label_space == NUSCENES_6
    assert model.image_backbone is None
    torch.testing.assert_close(model.heads.main["3d"].weight, state["linear.weight"])
    assert "nuscenes_6" in capsys.readouterr().out


def damaged_states() -> dict[str, tuple[dict, str]]:
    complete = make_state(SMALL)
    without = {name: t for name, t in complete.items() if name != "net_3d.sparseModel.2.1.1.1.weight"}
    more = {**complete, "net_3d.sparseModel.9.weight": torch.zeros(1)}
    wrong = {**complete, "net_3d.sparseModel.2.1.1.2.0.1.weight": torch.zeros(27, 1, 6, 5)}
    other = {"net_2d.conv.weight": torch.zeros(1)}
    return {
        "missing": (without, "not xMUDA's 3D network"),
        "left over": (more, "left over"),
        "wrong shape": (wrong, "do not fit"),
        "other network": (other, "is it a model_3d"),
        "no tensors": ({"a": 1}, "expected a state dict"),
    }


@pytest.mark.parametrize("case", damaged_states())
def test_a_checkpoint_that_does_not_fit_is_refused(case: str, tmp_path: Path) -> None:
    state, sentence = damaged_states()[case]
    with pytest.raises(ValueError, match=sentence):
        import_xmuda(save(tmp_path / "model.pth", state))


def test_program_ends_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    program = load_program("import_weights")
    garbage = tmp_path / "garbage.pth"
    garbage.write_bytes(b"not a checkpoint")
    assert program.main([str(garbage), "--label-space", "nuscenes_6", "--out", str(tmp_path / "a")]) == 1
    assert "cannot be read" in capsys.readouterr().err
    source = save(tmp_path / "model.pth", make_state(SMALL))
    assert program.main([str(source), "--label-space", "semantic_kitti_10", "--out", str(tmp_path / "b")]) == 1
    assert "10 classes, the checkpoint has a head for 6" in capsys.readouterr().err
