"""U-Net: sizes, the paper's arithmetic, and its blocks by their formula. Equality with milesial's: tests/verify."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude import catalog
from etude.errors import RefusedError, UsageError
from etude.nn.inference import conv_bn_pairs, prepare_for_inference
from etude.nn.tiles import tiled
from etude.verify import golden
from etude.vision.unet import Config, DoubleConv, joined, valid_size
from etude.weights import load_weights


def randomised(**settings: Any) -> nn.Module:
    """A small network in float64, eval mode, whose BatchNorms do something."""
    torch.manual_seed(0)
    model = Config(**{"in_channels": 1, "num_classes": 3, "depth": 2, "width": 4} | settings).build()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            for values in (layer.weight.data, layer.running_var):
                values.uniform_(0.5, 1.5)
            for values in (layer.bias.data, layer.running_mean):
                values.normal_()
    return model.double().eval()


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (17, 33), (64, 80), (572, 20)])
def test_any_size_keeps_its_size(size):
    model: Any = catalog.model("unet", in_channels=2, num_classes=5, width=2)
    assert model(torch.randn(2, 2, *size)).shape == (2, 5, *size)


def test_the_papers_sizes():
    """Figure 1 and figure 2: 572 pixels without padding leave 388; half as many levels lose less."""
    assert valid_size(572) == 388
    assert valid_size(572, depth=1) == 556
    for wrong in (573, 60):
        with pytest.raises(ValueError, match=r"pixels a side|nothing is left"):
            valid_size(wrong)


def test_double_conv_is_the_formula():
    torch.manual_seed(0)
    block: Any = DoubleConv(2, 3).double().eval()
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64)
    y = x
    for conv, bn in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
        y = F.conv2d(y, conv.weight, padding=1)
        mean, var, gamma, beta = (t.view(1, -1, 1, 1) for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
        y = F.relu(gamma * (y - mean) / torch.sqrt(var + 1e-5) + beta)
    torch.testing.assert_close(block(x), y, rtol=1e-12, atol=1e-12)


def test_the_whole_is_its_parts():
    """depth 1: head(decoder([skip, up(encoder_1(pool(skip)))]))."""
    model: Any = randomised(depth=1)
    x = torch.randn(1, 1, 6, 8, dtype=torch.float64)
    skip = model.encoder[0](x)
    below = model.encoder[1](F.max_pool2d(skip, 2))
    y = model.head(model.decoder[0](torch.cat([skip, model.up[0](below)], 1)))
    torch.testing.assert_close(model(x), y, rtol=1e-12, atol=1e-12)


def test_joining_pads_as_the_reference():
    """milesial: the half that rounds down goes before."""
    skip, x = torch.ones(1, 1, 5, 7), torch.ones(1, 2, 4, 4)
    y = joined(skip, x)
    assert y.shape == (1, 3, 5, 7) and y[0, 0].all()
    assert y[0, 1].sum() == 16 and y[0, 1, 0, 1] == 1 and y[0, 1, 0, 0] == 0 and y[0, 1, 4].sum() == 0


def test_he_initialisation():
    """Variance 2 / N; N of a transposed convolution of stride 2 and kernel 2 are its input channels."""
    torch.manual_seed(0)
    model: Any = Config(width=32, depth=2).build()
    assert model.encoder[2].conv2.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.01)
    assert model.up[0].weight.std().item() == pytest.approx(math.sqrt(2 / 128), rel=0.02)
    assert not model.up[0].bias.any() and not model.head.bias.any()


def test_every_weight_learns():
    model = Config(in_channels=1, width=4, depth=3, dropout=0.2).build()
    F.cross_entropy(model(torch.randn(2, 1, 24, 20)), torch.randint(0, 2, (2, 24, 20))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("size", [(96, 70), (65, 131)])
def test_tiles_with_enough_context_equal_the_whole(size):
    """Depth 2 looks 22 pixels to either side."""
    model = randomised()
    x = torch.randn(1, 1, *size, dtype=torch.float64)
    with torch.no_grad():
        pieces = tiled(model, x, tile=32, context=24, multiple=4)
        torch.testing.assert_close(pieces, model(x), rtol=1e-10, atol=1e-10)


def test_it_is_prepared_for_inference():
    """Every BatchNorm is folded, at sizes that need padding too."""
    model = randomised(depth=3)
    assert len(conv_bn_pairs(model)) == 14
    x = torch.randn(1, 1, 21, 35)
    model = model.float()
    with torch.no_grad():
        torch.testing.assert_close(prepare_for_inference(model, channels_last=True)(x), model(x), rtol=1e-4, atol=1e-5)
        assert prepare_for_inference(model, dtype=torch.bfloat16)(x).dtype == torch.float32


def test_milesials_files_are_read(tmp_path):
    """They hold the masks' values beside the weights; anything else that is no tensor is refused."""
    shapes = golden.load("unet").meta["shapes"]
    weights = {name: torch.zeros(shape, dtype=torch.int64 if not shape else None) for name, shape in shapes.items()}
    weights["outc.conv.bias"] += torch.tensor([3.0, 4.0])
    torch.save({**weights, "mask_values": [0, 1]}, tmp_path / "unet_carvana.pth")
    model: Any = load_weights(catalog.model("unet"), tmp_path / "unet_carvana.pth", source="milesial")
    assert model.head.bias.tolist() == [3.0, 4.0] and not model.up[3].weight.any()
    torch.save({**weights, "values": [0, 1]}, tmp_path / "other.pth")
    with pytest.raises(RefusedError, match="its entry 'values' is not a tensor but a list"):
        load_weights(model, tmp_path / "other.pth", source="milesial")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 0}, "depth is 0"),
        ({"depth": 9}, "depth is 9"),
        ({"width": 0}, "must be at least 1"),
        ({"in_channels": 0}, "must be at least 1"),
        ({"num_classes": -1}, "not negative"),
        ({"num_classes": 0}, "num_classes is 0"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(UsageError, match=message):
        catalog.model("unet", **settings)
