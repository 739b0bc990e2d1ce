"""Residual blocks by their formula, and the options of small networks. Equality with torchvision: tests/verify."""

import math
from typing import Any

import jaxtyping
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from etude import catalog
from etude.errors import UsageError
from etude.vision.deformable import DeformConv2d
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
    block: Any = Bottleneck(8, 2, stride=1)
    randomise(block).double().eval()
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    y = F.relu(normalise(block.bn1, F.conv2d(x, block.conv1.weight)))
    y = F.relu(normalise(block.bn2, F.conv2d(y, block.conv2.weight, padding=1)))
    y = F.relu(normalise(block.bn3, F.conv2d(y, block.conv3.weight)) + x)
    torch.testing.assert_close(block(x), y, rtol=1e-12, atol=1e-12)
    strided: Any = Bottleneck(8, 2, stride=2)
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


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("dilated_from", [2, 3])
def test_dilation_keeps_what_the_strided_network_computes(bottleneck, dilated_from):
    """With the same weights, every second (fourth ...) unit of the dilated network is the strided one's: only rows and
    columns that it left out are new."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"depths": (1, 2, 2), "width": 4, "in_channels": 1, "stem": "cifar"}
    strided: Any = randomise(Config(**settings, bottleneck=bottleneck).build()).double().eval()
    dilated = Config(**settings, bottleneck=bottleneck, dilated_from=dilated_from).build().double().eval()
    dilated.load_state_dict(strided.state_dict())
    x = torch.randn(2, 1, 16, 16, dtype=torch.float64)
    step = 2 ** (4 - dilated_from)
    found = dilated.features(x)
    assert found.shape[2] == 4 * step
    torch.testing.assert_close(found[..., ::step, ::step], strided.features(x), rtol=1e-10, atol=1e-10)


def test_dilations_are_torchvisions():
    """replace_stride_with_dilation=[False, True, True]: the first block of a stage has the dilation from before it."""
    model = Config(depths=(1, 1, 2, 2), width=4, bottleneck=True, dilated_from=3).build()
    convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and name.endswith("conv2")}
    assert {name: (m.stride[0], m.dilation[0], m.padding[0]) for name, m in convs.items()} == {
        "layer1.0.conv2": (1, 1, 1),
        "layer2.0.conv2": (2, 1, 1),
        "layer3.0.conv2": (1, 1, 1),
        "layer3.1.conv2": (1, 2, 2),
        "layer4.0.conv2": (1, 2, 2),
        "layer4.1.conv2": (1, 4, 4),
    }


@pytest.mark.parametrize("size", ["resnet18", "resnet50"])
def test_deformable_stages(size):
    """The 3x3s of the last stage have offsets; they start on the grid with every mask at 1/2."""
    torch.manual_seed(0)
    model: Any = catalog.model(size, deformable_from=4, width=8, num_classes=5, in_channels=1, stem="cifar")
    moving = {name for name, m in model.named_modules() if isinstance(m, DeformConv2d)}
    depth = sizes[size].depths[3]
    inside = ("conv2",) if size == "resnet50" else ("conv1", "conv2")
    assert moving == {f"layer4.{i}.{conv}" for i in range(depth) for conv in inside}
    plain: Any = catalog.model(size, width=8, num_classes=5, in_channels=1, stem="cifar")
    weights = {name: w for name, w in model.state_dict().items() if ".offset." not in name}
    for name in moving:
        weights[f"{name}.weight"] = 0.5 * weights[f"{name}.weight"]
        assert not model.get_parameter(f"{name}.offset.weight").any()
    plain.load_state_dict(weights)
    x = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(model.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-4)
    F.cross_entropy(model.train()(x), torch.tensor([1, 4])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_sampling_positions():
    """An undeformed unit of the last stage looks at a square around its own place, three 3x3 convolutions wide."""
    model = Config(width=4, in_channels=1, stem="cifar", deformable_from=4).build().eval()
    found = model.sampling_positions(torch.randn(2, 1, 32, 32), layers=3)
    assert found is not None and found.shape == (2, 4, 4, 729, 2)
    torch.testing.assert_close(found[0, 1, 2].mean(0), torch.tensor([8.0, 16.0]))
    assert found[0, 1, 2].aminmax(dim=0).max.tolist() == [8 + 24, 16 + 24]  # stride 8 at stage 4, 1 + 1 + 1 taps
    assert Config(width=4, in_channels=1, stem="cifar").build().sampling_positions(torch.randn(2, 1, 32, 32)) is None
    imagenet = Config(width=4, in_channels=1, dilated_from=4, bottleneck=True).build().eval()
    dilated = imagenet.sampling_positions(torch.randn(1, 1, 64, 64))
    assert dilated is not None and dilated.shape == (1, 4, 4, 9, 2)
    torch.testing.assert_close(dilated[0, 1, 2].mean(0), torch.tensor([16.0, 32.0]))


@pytest.mark.parametrize("bottleneck", [False, True])
def test_without_shortcuts_it_is_a_plain_stack(bottleneck):
    torch.manual_seed(0)
    model: Any = Config(depths=(1, 1), width=4, bottleneck=bottleneck, residual=False, stem="cifar").build().eval()
    assert not any("downsample" in name for name in model.state_dict())
    block = model.layer2[0]
    x = torch.randn(2, 4 * block.expansion, 6, 6)
    y = F.relu(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))))
    if bottleneck:
        y = F.relu(block.bn3(block.conv3(y)))
    torch.testing.assert_close(block(x), y)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_without_normalisation_convolutions_have_biases(bottleneck):
    model = Config(depths=(1, 1), width=4, bottleneck=bottleneck, normalise=False, deformable_from=2).build()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    for module in model.modules():
        if isinstance(module, nn.Conv2d | DeformConv2d):
            assert isinstance(module.bias, nn.Parameter) and not module.bias.any()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dilated_from": 5}, "dilated_from is 5; the stages are 1 to 4"),
        ({"deformable_from": 0}, "deformable_from is 0; the stages are 1 to 4"),
        ({"zero_init_residual": True, "normalise": False}, "zero_init_residual needs residual and normalise"),
        ({"zero_init_residual": True, "residual": False}, "zero_init_residual needs residual and normalise"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(UsageError, match=message):
        catalog.model("resnet18", **settings)


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
