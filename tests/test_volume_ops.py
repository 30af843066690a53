"""The replaced layers give what PyTorch's own give: values, gradients, and the names in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iris_pipeline.model.volume_ops import Conv3d, HalvingMaxPool3d, InstanceNorm3d, upsample_trilinear


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        yield


def gradients(layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Of a weighted sum of what comes out, with respect to x and to the parameters."""
    x = x.clone().requires_grad_()
    out = layer(x)
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
    return torch.autograd.grad((out * weights).sum(), [x, *layer.parameters()])


@pytest.mark.parametrize("grid", [(4, 6, 8), (16, 16, 16)])
@pytest.mark.parametrize(("size", "padding", "bias"), [(3, 1, False), (3, 1, True), (1, 0, True)])
def test_convolution_is_pytorchs(grid: tuple[int, int, int], size: int, padding: int, bias: bool) -> None:
    ours, own = (kind(5, 7, size, padding=padding, bias=bias) for kind in (Conv3d, nn.Conv3d))
    own.load_state_dict(ours.state_dict())
    x = torch.randn(1, 5, *grid)
    torch.testing.assert_close(ours(x), own(x), atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(gradients(ours, x), gradients(own, x), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_a_convolution_by_hand() -> None:
    """A kernel that sums a voxel and its neighbour below in x; beyond the rim is zero."""
    layer = Conv3d(1, 1, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0, 1, 1, :2] = 1.0
        out = layer(torch.tensor([1.0, 2.0, 4.0]).expand(1, 1, 2, 2, 3).contiguous())
    assert out[0, 0, 1, 1].tolist() == [1.0, 3.0, 6.0]


def test_a_convolution_keeps_other_types() -> None:
    """float64 (oneDNN has none), and bfloat16 under autocast."""
    layer = Conv3d(2, 3, 3, padding=1)
    x = torch.randn(1, 2, 4, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize("batch", [1, 2])
def test_instance_norm_is_pytorchs(batch: int) -> None:
    ours, own = (kind(6, affine=True) for kind in (InstanceNorm3d, nn.InstanceNorm3d))
    with torch.no_grad():
        ours.weight.normal_()
        ours.bias.normal_()
    own.load_state_dict(ours.state_dict())
    x = 3.0 + 5.0 * torch.randn(batch, 6, 4, 8, 6)
    torch.testing.assert_close(ours(x), own(x), atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(gradients(ours, x), gradients(own, x), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_instance_norm_by_hand() -> None:
    """Mean 3, variance 5 of 0, 2, 4, 6; each sample and each channel by itself."""
    layer = InstanceNorm3d(2, affine=True, eps=0.0)
    x = torch.tensor([0.0, 2.0, 4.0, 6.0]).view(1, 1, 1, 2, 2)
    out = layer(torch.cat([x, 100 + 10 * x], dim=1))
    expected = (torch.tensor([-3.0, -1.0, 1.0, 3.0]) / 5**0.5).view(1, 1, 1, 2, 2)
    torch.testing.assert_close(out, expected.expand(1, 2, 1, 2, 2))


@pytest.mark.parametrize("training", [True, False])
def test_pooling_is_pytorchs(training: bool) -> None:
    x = torch.randn(2, 3, 6, 4, 8)
    with torch.set_grad_enabled(training):
        assert torch.equal(HalvingMaxPool3d()(x), F.max_pool3d(x, 2))


def test_pooling_finds_the_maximum_at_each_corner() -> None:
    for corner in range(8):
        x = torch.zeros(1, 1, 2, 2, 2)
        x.view(-1)[corner] = 1.0
        with torch.inference_mode():
            assert HalvingMaxPool3d()(x).tolist() == [[[[[1.0]]]]]


@pytest.mark.parametrize("factor", [2, 4])
def test_upsampling_is_interpolation(factor: int) -> None:
    x = torch.randn(2, 3, 4, 1, 6)
    own = F.interpolate(x, scale_factor=factor, mode="trilinear", align_corners=False)
    torch.testing.assert_close(upsample_trilinear(x, factor), own)
    with torch.autocast(
        "cpu", dtype=torch.bfloat16
    ):  # products would be rounded to bfloat16 without being asked
        torch.testing.assert_close(upsample_trilinear(x, factor), own)
    half = upsample_trilinear(x.bfloat16(), factor)
    exact = F.interpolate(x.bfloat16().float(), scale_factor=factor, mode="trilinear", align_corners=False)
    assert half.dtype == torch.bfloat16
    assert torch.all((half.float() - exact).abs() <= exact.abs() / 256 + 1e-6), "rounded once, to 8 bits"
    assert upsample_trilinear(x.double(), factor).dtype == torch.float64
