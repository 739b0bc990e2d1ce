"""Residual blocks by their formula, and the options of small networks. Equality with torchvision: tests/verify."""

import math
from typing import Any

import jaxtyping
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from etude.vision.resnet import BasicBlock, Bottleneck, Config, sizes


def randomise(module: nn.Module) -> nn.Module:
    """Weights and statistics that leave no term of a formula at zero or one."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None:
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_()
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 1.5)
    return module


def normalise(bn: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    """Algorithm 2 of arXiv 1502.03167 with the running statistics."""
    mean, var, gamma, beta = (t.view(1, -1, 1, 1) for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias))  # pyright: ignore[reportOptionalMemberAccess]
    return gamma * (x - mean) / torch.sqrt(var + 1e-5) + beta


def test_basic_block_is_the_formula():
    """y = relu(BN(conv(relu(BN(conv(x))))) + BN(W_s x)), the first 3x3 and W_s with the stride."""
    torch.manual_seed(0)
    block: Any = BasicBlock(3, 4, stride=2)
    randomise(block).double().eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    y = F.relu(normalise(block.bn1, F.conv2d(x, block.conv1.weight, stride=2, padding=1)))
    y = normalise(block.bn2, F.conv2d(y, block.conv2.weight, padding=1))
    projection, bn = block.downsample
    y = F.relu(y + normalise(bn, F.conv2d(x, projection.weight, stride=2)))
    torch.testing.assert_close(block(x), y, rtol=1e-12, atol=1e-12)


def test_bottleneck_is_the_formula():
    """1x1, 3x3 with the stride, 1x1 to four times the width; the identity where the shapes agree."""
    torch.manual_seed(0)
    block = Bottleneck(8, 2, stride=1)
    randomise(block).double().eval()
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    y = F.relu(normalise(block.bn1, F.conv2d(x, block.conv1.weight)))
    y = F.relu(normalise(block.bn2, F.conv2d(y, block.conv2.weight, padding=1)))
    y = F.relu(normalise(block.bn3, F.conv2d(y, block.conv3.weight)) + x)
    torch.testing.assert_close(block(x), y, rtol=1e-12, atol=1e-12)
    strided = Bottleneck(8, 2, stride=2)
    assert (strided.conv1.stride, strided.conv2.stride, strided.conv3.stride) == ((1, 1), (2, 2), (1, 1))


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 2), ("cifar", 8)])
def test_stems(stem, side):
    """224x224 pictures lose a factor of 32 in resolution, 32x32 ones (CIFAR) only 8."""
    model = Config(depths=(1, 1, 1, 1), width=4, num_classes=7, stem=stem).build()
    x = torch.randn(2, 3, 64, 64)
    assert model.features(x).shape == (2, 32, side, side)
    assert model(x).shape == (2, 7)


def test_small_network_for_digits_learns():
    """Grey 8x8 pictures, two narrow stages: every parameter gets a gradient, and a few steps fit a batch."""
    torch.manual_seed(0)
    model = Config(depths=(1, 1), width=8, in_channels=1, num_classes=4, stem="cifar", dropout=0.1).build()
    x, y = torch.randn(16, 1, 8, 8), torch.arange(16) % 4
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("bottleneck", [False, True])
def test_zero_init_residual_starts_as_identity(bottleneck):
    """With the last scale of a block at zero its branch adds nothing: the output is relu of the shortcut."""
    model = Config(depths=(1,), width=4, bottleneck=bottleneck, zero_init_residual=True).build().eval()
    block = model.get_submodule("layer1.0")
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(block(x), F.relu(block.get_submodule("downsample")(x)))


def test_convolutions_start_he_normal_over_the_fan_out():
    torch.manual_seed(0)
    weight = sizes["resnet18"].build().get_parameter("layer3.0.conv2.weight")
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (256 * 3 * 3)), rel=0.01)


def test_unknown_stem(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users, whose types nobody checks
    with pytest.raises(ValueError, match="stem 'cifra' is neither"):
        Config(stem="cifra")  # pyright: ignore[reportArgumentType]


def test_shapes_are_checked_in_tests():
    """The suite checks the shapes that forwards declare: a picture without its batch dimension is caught."""
    with pytest.raises(jaxtyping.TypeCheckError):
        Config(depths=(1,), width=4).build()(torch.randn(3, 8, 8))
