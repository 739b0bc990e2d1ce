"""The formula and torch's kernel are one attention."""

import pytest
import torch
import torch.nn.functional as F

from etude.nn import attention
from etude.nn.attention import SHORT, attend

WAYS = ["all", "causal", "masked"]


def inputs(t: int, s: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(3, 2, n, 8, dtype=dtype, requires_grad=True) for n in (t, s, s)]


def asked(way: str, t: int, s: int) -> dict:
    mask = torch.arange(s) < torch.tensor([s, 3, 1])[:, None, None, None]
    return {"all": {}, "causal": {"causal": True}, "masked": {"mask": mask.expand(-1, 1, t, s)}}[way]


@pytest.mark.parametrize("way", WAYS)
def test_by_hand(way, monkeypatch):
    """Outputs and gradients of the formula, with dropout that drops nothing, equal the kernel's in float64."""
    t, s = (7, 7) if way == "causal" else (5, 9)
    monkeypatch.setattr(attention, "drop", lambda weights, p: weights)
    q, k, v = inputs(t, s)
    formula = attend(q, k, v, dropout=0.3, **asked(way, t, s))
    kernel = attend(q, k, v, **asked(way, t, s))
    assert torch.allclose(formula, kernel, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(formula)
    for a, b in zip(
        *(torch.autograd.grad((y * weight).sum(), (q, k, v), retain_graph=True) for y in (formula, kernel))
    ):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_half_precision(way, monkeypatch):
    """Short sequences in bf16 go by the formula: as near to the truth as the kernel."""
    t, s = (40, 40) if way == "causal" else (33, 64)
    exact = inputs(t, s)
    half = [x.detach().bfloat16() for x in exact]
    truth = F.scaled_dot_product_attention(
        *exact, attn_mask=asked(way, t, s).get("mask"), is_causal=way == "causal"
    ).detach()  # fmt: skip
    errors = []
    for short in (SHORT, 0):
        monkeypatch.setattr(attention, "SHORT", short)
        errors.append(float((attend(*half, **asked(way, t, s)).double() - truth).norm() / truth.norm()))
    assert errors[0] < 1.5 * errors[1] < 0.02


@pytest.mark.parametrize("way", WAYS)
def test_dropout_keeps_the_mean(way):
    q, k, v = (x.detach() for x in inputs(6, 6))
    exact = attend(q, k, v, **asked(way, 6, 6))
    many = torch.stack([attend(q, k, v, dropout=0.2, **asked(way, 6, 6)) for _ in range(500)])
    assert (many[0] - many[1]).abs().max() > 0.1
    assert (many.mean(0) - exact).norm() < 0.1 * exact.norm()
