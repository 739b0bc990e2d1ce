"""Dropout: how many, how much, when; what its gradient is."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.nn.dropout import Dropout, dropout


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 0.95), st.integers(0, 99), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_share_and_scale(p, seed, dtype):
    torch.manual_seed(seed)
    y = dropout(torch.ones(101, 397, dtype=dtype), p)
    zero = (y == 0).double().mean().item()
    assert abs(zero - p) < 5 * math.sqrt(p * (1 - p) / y.numel()) + 2**-16
    kept = y[y != 0].double()
    assert torch.allclose(kept, torch.full_like(kept, 1 / (1 - p)), rtol=1e-2 if dtype == torch.bfloat16 else 1e-3)
    assert y.dtype == dtype


def test_it_is_drawn_from_torchs_generator():
    x = torch.ones(1000)
    torch.manual_seed(1)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.5), first) and not torch.equal(first, second)


def test_neighbours_are_independent():
    """Four numbers come from one word."""
    torch.manual_seed(0)
    kept = dropout(torch.ones(40_000), 0.3).view(-1, 4) != 0
    correlation = torch.corrcoef(kept.T.double()) - torch.eye(4)
    assert correlation.abs().max() < 0.04


def test_gradient_and_modes():
    torch.manual_seed(0)
    x = torch.randn(7, 9, requires_grad=True)
    module = Dropout(0.4)
    y = module(x)
    y.sum().backward()
    assert x.grad is not None and torch.allclose(y, x * x.grad)
    assert module.eval()(x) is x and Dropout(0.0)(x) is x
    with pytest.raises(ValueError, match=r"dropout is 1\.0"):
        Dropout(1.0)
