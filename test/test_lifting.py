# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch.nn import functional

from xmodal_seg.models.lifting import lift


def _every_pixel(size: tuple[int, int]) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return torch.stack([columns, rows], dim=-1).reshape(-1, 2)


@pytest.mark.parametrize(("map_size", "image_size"), [((3, 5), (13, 17)), ((13, 17), (13, 17)), ((1, 4), (16, 64))])
def test_integer_pixels_equal_full_upsampling(map_size, image_size):
    feature_map = torch.randn(2, 6, *map_size, dtype=torch.float64)
    pixels = _every_pixel(image_size)
    full = functional.interpolate(feature_map, image_size, mode="bilinear", align_corners=False)

    for image in range(2):
        index = torch.full((len(pixels),), image)
        lifted = lift(feature_map, pixels.double(), index, image_size)
        torch.testing.assert_close(lifted, full[image].flatten(1).T)


def test_fractional_pixels_equal_grid_sample():
    image_size = (13, 17)
    feature_map = torch.randn(3, 6, 4, 5, dtype=torch.float64)
    uv = torch.rand(101, 2, dtype=torch.float64) * torch.tensor([19.0, 15.0]) - 1.0  # some just outside the image
    index = torch.randint(0, 3, (101,))
    grid = (2 * uv + 1) / torch.tensor([17.0, 13.0]) - 1

    lifted = lift(feature_map, uv, index, image_size)

    for image in range(3):
        points = (index == image).nonzero().squeeze(1)
        sampled = functional.grid_sample(
            feature_map[image : image + 1],
            grid[points][None, None],
            mode="bilinear",
            padding_mode="border",
            align_corners=False,
        )
        torch.testing.assert_close(lifted[points], sampled[0, :, 0].T)


def test_float32_keeps_the_digits():
    feature_map = torch.randn(1, 8, 28, 50)
    uv = torch.rand(500, 2) * torch.tensor([800.0, 448.0]) - 0.5
    index = torch.zeros(500, dtype=torch.int64)

    lifted = lift(feature_map, uv, index, (448, 800))

    expected = lift(feature_map.double(), uv.double(), index, (448, 800))
    assert lifted.dtype == torch.float32
    torch.testing.assert_close(lifted.double(), expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_gradient_reaches_the_map(mode):
    feature_map = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    uv = torch.rand(11, 2, dtype=torch.float64) * torch.tensor([17.0, 13.0]) - 0.5
    index = torch.randint(0, 2, (11,))

    assert torch.autograd.gradcheck(lambda values: lift(values, uv, index, (13, 17), mode=mode), (feature_map,))


def test_nearest_reads_the_pixel_that_holds_the_point():
    feature_map = torch.arange(13 * 17, dtype=torch.float32).view(1, 1, 13, 17)
    uv = torch.tensor([[4.0, 2.0], [4.49, 1.51], [-0.5, -0.5], [16.49, 12.49], [30.0, 30.0]])
    index = torch.zeros(5, dtype=torch.int64)

    lifted = lift(feature_map, uv, index, (13, 17), mode="nearest")

    pixel = 2 * 17 + 4
    assert lifted.squeeze(1).tolist() == [pixel, pixel, 0, 13 * 17 - 1, 13 * 17 - 1]


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_half_resolution_map_and_no_points(mode):
    feature_map = torch.randn(1, 4, 7, 9)
    empty = lift(feature_map, torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), (13, 17), mode=mode)
    assert empty.shape == (0, 4)

    corner = lift(feature_map, torch.tensor([[0.0, 0.0]]), torch.tensor([0]), (13, 17), mode="nearest")
    assert torch.equal(corner[0], feature_map[0, :, 0, 0])
