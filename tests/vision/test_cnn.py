"""The convolutional network by hand: sums over places, largest of four, and what it costs."""

import math
from dataclasses import replace
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from etude.nn.activations import ACTIVATIONS, INITS
from etude.vision.cnn import Config, example, sizes

SMALL = Config(in_channels=2, side=7, channels=(3, 2), kernel=3, hidden=(4,), num_classes=3)


def convolve(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """y[d, i, j] = b[d] + sum over c, u, v of w[d, c, u, v] x[c, i + u - k // 2, j + v - k // 2], term by term."""
    (maps, channels, k, _), (_, height, width) = w.shape, x.shape
    y = np.zeros((maps, height, width))
    for d, i, j in np.ndindex(*y.shape):
        y[d, i, j] = b[d]
        for c, u, v in np.ndindex(channels, k, k):
            row, column = i + u - k // 2, j + v - k // 2
            if 0 <= row < height and 0 <= column < width:
                y[d, i, j] += w[d, c, u, v] * x[c, row, column]
    return y


def pool(x: np.ndarray) -> np.ndarray:
    """The largest of each two by two; an odd last row or column is left out."""
    y = np.zeros((x.shape[0], x.shape[1] // 2, x.shape[2] // 2))
    for d, i, j in np.ndindex(*y.shape):
        y[d, i, j] = max(x[d, 2 * i + u, 2 * j + v] for u in (0, 1) for v in (0, 1))
    return y


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_forward_is_the_formula(kernel):
    torch.manual_seed(0)
    model: Any = replace(SMALL, kernel=kernel).build().double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    pictures = torch.randn(2, 2, 7, 7, dtype=torch.float64)
    for picture, logits in zip(pictures, model(pictures)):
        x = picture.numpy()
        for block in model.blocks:
            x = pool(np.maximum(0, convolve(x, block.conv.weight.detach().numpy(), block.conv.bias.detach().numpy())))
        assert x.shape == (2, 1, 1)  # 7 -> 3 -> 1
        x = x.reshape(-1)
        w, b = model.hidden[0].weight.detach().numpy(), model.hidden[0].bias.detach().numpy()
        x = np.maximum(0, w @ x + b)
        expected = model.head.weight.detach().numpy() @ x + model.head.bias.detach().numpy()
        np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=1e-12, atol=1e-12)


def test_an_edge_by_hand():
    """A kernel of -1 and 1 side by side answers only where dark meets light."""
    model: Any = Config(in_channels=1, side=4, channels=(1,), kernel=3, hidden=(), num_classes=2).build()
    with torch.no_grad():
        model.blocks[0].conv.weight.copy_(torch.tensor([[0.0, 0, 0], [-1, 1, 0], [0, 0, 0]]))
    x = torch.tensor([[0.0, 0, 5, 5]] * 4).view(1, 1, 4, 4)
    convolved = model.blocks[0].conv(x)[0, 0]
    assert torch.equal(convolved, torch.tensor([[0.0, 0, 5, 0]] * 4))
    assert torch.equal(model.features(x)[0, 0], torch.tensor([[0.0, 5], [0, 5]]))


@settings(max_examples=20, deadline=None)
@given(
    in_channels=st.sampled_from([1, 3]),
    channels=st.lists(st.integers(1, 5), min_size=0, max_size=3).map(tuple),
    extra=st.integers(0, 9),
    kernel=st.sampled_from([1, 3, 5, 7]),
    hidden=st.lists(st.integers(1, 6), max_size=2).map(tuple),
    activation=st.sampled_from(list(ACTIVATIONS)),
)
def test_shapes_and_parameters(in_channels, channels, extra, kernel, hidden, activation):
    """A block has k k C D + D parameters, a fully connected layer n m + m, a learnable Swish one."""
    config = Config(in_channels, (1 << len(channels)) + extra, channels, kernel, hidden, 4, activation)
    model = config.build()
    assert model(*example(config)).shape == (2, 4)
    maps, expected = in_channels, 0
    for width in channels:
        expected += kernel * kernel * maps * width + width
        maps = width
    features, side = model.features(*example(config)), config.side // 2 ** len(channels)
    assert features.shape == (2, maps, side, side)
    width = maps * side * side
    for after in (*hidden, 4):
        expected += width * after + after
        width = after
    expected += (len(channels) + len(hidden)) * (activation == "swish")
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_parameters_of_the_size():
    """832 and 51,264 in the convolutions; 7 x 7 x 64 places and maps to 128 units, these to 10 classes."""
    count = sum(parameter.numel() for parameter in sizes["cnn"].build().parameters())
    assert count == 832 + 51_264 + (3136 * 128 + 128) + (128 * 10 + 10) == 454_922


@pytest.mark.parametrize("init", INITS)
def test_initialisation_counts_the_kernel(init):
    """Of a convolution, n_in is k k C and n_out k k D."""
    torch.manual_seed(0)
    model: Any = Config(in_channels=8, side=4, channels=(64,), kernel=5, init=init).build()
    n_in, n_out = 25 * 8, 25 * 64
    variance = 2 / n_in if init.startswith("he") else 2 / (n_in + n_out)
    conv = model.blocks[0].conv
    assert conv.weight.var().item() == pytest.approx(variance, rel=0.05)
    if init.endswith("uniform"):
        assert conv.weight.abs().max().item() <= math.sqrt(3 * variance)
    assert not any(m.bias.any() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None)


def test_moved_pictures_move_the_maps():
    """Convolution commutes with shifts, and pooling with shifts by two: away from the border, the maps are the same."""
    torch.manual_seed(0)
    model = Config(channels=(4,), side=16, kernel=3).build()
    x = torch.zeros(1, 1, 16, 16)
    x[..., 4:10, 4:10] = torch.randn(6, 6)
    moved = model.features(x.roll((2, 4), (2, 3)))
    torch.testing.assert_close(moved, model.features(x).roll((1, 2), (2, 3)))


def test_dropout_is_off_in_evaluation():
    model = replace(SMALL, dropout=0.5).build()
    x = example(SMALL)[0]
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_every_parameter_has_a_gradient():
    torch.manual_seed(0)
    for activation in ACTIVATIONS:
        model = replace(SMALL, activation=activation, side=9).build()
        model(torch.randn(8, 2, 9, 9)).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"activation": "rely"}, "'rely' is not one of sigmoid, relu"),
        ({"init": "zero"}, "'zero' is not one of xavier_uniform"),
        ({"kernel": 4}, "kernel is 4; it must be odd"),
        ({"side": 3}, "side is 3; 2 blocks halve it to nothing"),
    ],
)
def test_bad_settings_are_named(change, words, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users, whose types nobody checks
    with pytest.raises(ValueError, match=words):
        Config(**change)
