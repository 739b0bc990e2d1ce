"""The perceptron's formulas, computed by hand."""

import math
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn

from etude.basics.mlp import Config
from etude.nn.activations import INITS, Swish


def phi(x):
    """The normal distribution function."""
    return 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


FORMULAS = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(0, x),
    "swish": lambda x: x / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * phi(x),
    "tanh": lambda x: (np.exp(x) - np.exp(-x)) / (np.exp(x) + np.exp(-x)),
}


@pytest.mark.parametrize("activation", FORMULAS)
def test_forward_is_the_formula(activation):
    """z_i = sum_j w_ij x_j + b_i, summed term by term, then the activation; the head has none."""
    torch.manual_seed(0)
    model: Any = Config(in_features=6, hidden=(5, 4), num_classes=3, activation=activation).build().double()
    with torch.no_grad():
        for layer in (*model.hidden, model.head):
            layer.bias.normal_()
    x = torch.randn(2, 3, 2, dtype=torch.float64)
    expected = []
    for sample in x.flatten(1).tolist():
        for layer in (*model.hidden, model.head):
            w, b = layer.weight.tolist(), layer.bias.tolist()
            sample = [sum(wij * xj for wij, xj in zip(row, sample)) + bi for row, bi in zip(w, b)]
            if layer is not model.head:
                sample = FORMULAS[activation](np.array(sample)).tolist()
        expected.append(sample)
    np.testing.assert_allclose(model(x).detach().numpy(), expected, rtol=1e-12)


def test_swish_beta_learns():
    """Its gradient is the sum of x^2 s(beta x) (1 - s(beta x)); at beta = 0 Swish is x / 2."""
    swish = Swish().double()
    x = torch.linspace(-3, 3, 11, dtype=torch.float64)
    swish(x).sum().backward()
    s = 1 / (1 + np.exp(-x.numpy()))
    assert swish.beta.grad is not None
    assert swish.beta.grad.item() == pytest.approx((x.numpy() ** 2 * s * (1 - s)).sum(), rel=1e-12)
    with torch.no_grad():
        swish.beta.zero_()
        torch.testing.assert_close(swish(x), x / 2)
    assert len(list(Config(activation="swish", hidden=(3, 3)).build().activations.parameters())) == 2


@pytest.mark.parametrize(
    ("init", "variance", "bound"),
    [
        ("xavier_uniform", 2 / (600 + 300), math.sqrt(6 / (600 + 300))),
        ("xavier_normal", 2 / (600 + 300), math.inf),
        ("he_uniform", 2 / 600, math.sqrt(6 / 600)),
        ("he_normal", 2 / 600, math.inf),
    ],
)
def test_initialisation(init, variance, bound):
    torch.manual_seed(0)
    layer = Config(in_features=600, hidden=(300,), init=init).build().hidden[0]
    assert isinstance(layer, nn.Linear)
    assert layer.weight.var().item() == pytest.approx(variance, rel=0.02)
    assert layer.weight.abs().max().item() <= bound
    if math.isfinite(bound):
        assert layer.weight.abs().max().item() > 0.999 * bound
    assert not layer.bias.any()


def test_every_initialisation_is_tested():
    assert set(INITS) == {"xavier_uniform", "xavier_normal", "he_uniform", "he_normal"}


def test_dropout_keeps_the_mean():
    """Inverted scaling: a kept unit is multiplied by 1 / (1 - p), a dropped one is zero; none is in evaluation."""
    torch.manual_seed(0)
    model: Any = Config(in_features=4, hidden=(5000,), dropout=0.3).build()
    x = torch.rand(1, 4)
    full = model.activations[0](model.hidden[0](x))
    kept = model.dropout(full) / full.clamp_min(1e-9)
    assert torch.all((kept < 1e-6) | ((kept - 1 / 0.7).abs() < 1e-4))
    assert (model.dropout(full) > 0).sum() / (full > 0).sum() == pytest.approx(0.7, abs=0.03)
    model.eval()
    torch.testing.assert_close(model.dropout(full), full)


def test_unknown_names_are_named(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users, whose types nobody checks
    with pytest.raises(ValueError, match=r"'rely' is not one of sigmoid, relu"):
        Config(activation="rely")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"'zero' is not one of xavier_uniform"):
        Config(init="zero")  # pyright: ignore[reportArgumentType]
