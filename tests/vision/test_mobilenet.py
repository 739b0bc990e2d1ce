"""Depthwise separable and inverted residual blocks. Equality with torchvision: tests/verify."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from etude import catalog
from etude.vision.mobilenet import ConfigV1, ConfigV2, InvertedResidual, depthwise_separable, scaled


def test_separable_cost_ratio():
    """Section 3.1 of 1704.04861: against a full convolution 1/C_out + 1/k^2 of the multiplications, hence weights."""
    weights = [p.numel() for p in depthwise_separable(32, 48, stride=1).parameters() if p.ndim == 4]
    assert sum(weights) / (32 * 48 * 3 * 3) == pytest.approx(1 / 48 + 1 / 9)


def test_separable_is_a_product_of_kernels():
    """Without BatchNorm's effect and on positive maps it is one full convolution with kernel p[o, c] d[c, i, j]."""
    torch.manual_seed(0)
    block: Any = depthwise_separable(3, 5, stride=2).double().eval()
    depthwise, pointwise = block[0][0].weight, block[1][0].weight
    with torch.no_grad():
        depthwise.abs_()
        pointwise.abs_()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    kernel = pointwise * depthwise[:, 0]
    scale = 1 / (1 + 1e-5)  # two BatchNorms of variance 1, each dividing by sqrt(1 + eps)
    torch.testing.assert_close(block(x), F.conv2d(x, kernel, stride=2, padding=1) * scale, rtol=1e-12, atol=1e-12)


def test_inverted_residual():
    """The last projection is linear, so its output has both signs; the shortcut is there where the shapes agree."""
    torch.manual_seed(0)
    block = InvertedResidual(4, 4, stride=1, expansion=6).eval()
    x = torch.randn(2, 4, 6, 6)
    assert (block.conv(x) < 0).any() and (block.conv(x) > 0).any()
    torch.testing.assert_close(block(x), x + block.conv(x))
    for stride, out_channels in ((2, 4), (1, 8)):
        other = InvertedResidual(4, out_channels, stride=stride, expansion=6).eval()
        torch.testing.assert_close(other(x), other.conv(x))
    depthwise = block.conv.get_submodule("1.0")
    assert isinstance(depthwise, nn.Conv2d) and depthwise.groups == depthwise.in_channels == 24


@pytest.mark.parametrize(
    ("channels", "multiplier", "expected"),
    [(32, 1.0, 32), (32, 0.75, 24), (24, 0.5, 16), (16, 0.35, 8), (96, 0.35, 32), (24, 0.35, 8), (1280, 1.4, 1792)],
)
def test_scaled_widths(channels, multiplier, expected):
    """Multiples of 8; 24 * 0.5 = 12 goes up to 16, as 8 would be a third below."""
    assert scaled(channels, multiplier) == expected


@pytest.mark.parametrize(("multiplier", "millions"), [(1.0, 4.2), (0.75, 2.6), (0.5, 1.3), (0.25, 0.5)])
def test_v1_parameters_of_table_7(multiplier, millions):
    with torch.device("meta"):
        model = ConfigV1(width_multiplier=multiplier).build()
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize("config", [ConfigV1, ConfigV2])
def test_small_grey_pictures(config):
    """28x28 pictures keep 2x2 maps with a stem of stride 1; every parameter gets a gradient."""
    model = config(in_channels=1, num_classes=10, width_multiplier=0.25, stem_stride=1).build()
    x = torch.randn(4, 1, 28, 28)
    assert model.features(x).shape[2:] == (2, 2)
    F.cross_entropy(model(x), torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_full_resolution_is_halved_five_times():
    model = catalog.model("mobilenet_v1", width_multiplier=0.25).eval()
    assert model.get_submodule("features")(torch.randn(1, 3, 224, 224)).shape == (1, 256, 7, 7)
