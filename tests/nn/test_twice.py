"""Convolution for gradient penalties: equal to torch's in value and in the derivatives that a penalty takes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.nn import twice


def penalised(conv, x: Tensor, weights: list[Tensor]) -> tuple[Tensor, ...]:
    """A penalty on the slope of two layers, and its gradients by input and weights."""
    w1, b1, w2 = weights
    y = conv(F.leaky_relu_(conv(x, w1, b1, 2, 1), 0.2), w2, None, 1, 0)
    (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    loss = (slope.flatten(1).norm(dim=1) - 1).square().mean() + y.sum()
    return loss, *torch.autograd.grad(loss, [x, *weights])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equal_to_torchs(layout):
    torch.manual_seed(0)
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    shapes = [(5, 2, 4, 4), (5,), (3, 5, 3, 3)]
    weights = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    for ours, theirs in zip(penalised(twice.conv2d, x, weights), penalised(F.conv2d, x, weights)):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_derivatives_by_the_input_are_right_to_second_order():
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    torch.autograd.gradcheck(lambda x: twice.conv2d(x, w, None, 2, 1), x)
    torch.autograd.gradgradcheck(lambda x: twice.conv2d(x, w, None, 2, 1).square(), x)


def test_a_pass_by_inputs_alone_does_not_pay_for_weights(monkeypatch):
    masks = []
    plain = twice._backward
    monkeypatch.setattr(twice, "_backward", lambda *args: (masks.append(args[4]), plain(*args))[1])
    x, w = torch.randn(2, 2, 6, 6, requires_grad=True), torch.randn(3, 2, 3, 3, requires_grad=True)
    (slope,) = torch.autograd.grad(twice.conv2d(x, w).square().sum(), x, create_graph=True)
    assert masks == [[True, False, False]]
    slope.square().sum().backward()
    assert w.grad is not None


def test_gradients_by_weights_are_not_differentiated_silently():
    x, w = torch.randn(2, 2, 6, 6, requires_grad=True), torch.randn(3, 2, 3, 3, requires_grad=True)
    (by_w,) = torch.autograd.grad(twice.conv2d(x, w).square().sum(), w, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        by_w.sum().backward()


def test_gradients_in_bf16_of_what_is_computed_in_fp32():
    """Value and slope to the bit; the gradients by the weights as near as 8 bits are."""
    torch.manual_seed(0)
    x = torch.randn(8, 4, 16, 16, requires_grad=True)
    weights = [(torch.randn(shape) / 8).requires_grad_() for shape in [(16, 4, 4, 4), (16,), (8, 16, 3, 3)]]
    exact = penalised(twice.conv2d, x, weights)
    with twice.backward_in(torch.bfloat16):
        low = penalised(twice.conv2d, x, weights)
    assert torch.equal(low[0], exact[0])
    for ours, theirs in zip(low[1:], exact[1:]):
        assert ours.dtype == torch.float32 and not torch.equal(ours, theirs)
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_layer():
    torch.manual_seed(0)
    ours = twice.Conv2d(2, 3, 4, stride=2, padding=1)
    theirs = nn.Conv2d(2, 3, 4, stride=2, padding=1)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 2, 8, 8)
    torch.testing.assert_close(ours(x), theirs(x))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
    for p in ours.parameters():  # as in another player's turn
        p.requires_grad_(False)
    x.requires_grad_()
    ours(x).sum().backward()
    assert x.grad is not None
