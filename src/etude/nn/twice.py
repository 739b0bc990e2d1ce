"""Convolution whose input's gradient is differentiated once more, as gradient penalties do, at the price of ordinary
passes.

Of y = x * w with upstream g, the input's gradient is itself a convolution of g, so its derivatives are ordinary ones:
along h (of x's shape), by g it is h * w, by w it is the weight gradient of input h and upstream g. torch computes the
latter as a convolution with kernels as large as pictures, three times slower on a CPU.

Within `backward_in(torch.bfloat16)` what is computed, and the input's gradient where it is to be differentiated, stay
in their own precision; the gradients that follow from them are computed in bf16, as in all training in mixed precision.

The gradient by weights cannot be differentiated further; trying raises a RuntimeError. A node of its own computes it,
so that a pass that asks for the gradient by inputs alone, as a penalty does, does not pay for it.

Shapes: B batch, D and E maps, k kernel.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Low = torch.dtype | None
_LOW: ContextVar[Low] = ContextVar("gradients", default=None)


@contextmanager
def backward_in(dtype: Low) -> Iterator[None]:
    """Within, convolutions are made whose last gradients are computed in `dtype`; None: in their own."""
    token = _LOW.set(dtype)
    try:
        yield
    finally:
        _LOW.reset(token)


def _backward(
    g: Tensor, x: Tensor, w: Tensor, how: tuple[int, int], mask: list[bool], low: Low = None
) -> list[Tensor | None]:
    """The gradients by x, w and a bias, where `mask` says so."""
    stride, padding = how
    settings = [len(w)], [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, mask
    if low is None:
        return list(torch.ops.aten.convolution_backward(g, x, w, *settings))
    found = torch.ops.aten.convolution_backward(g.to(low), x.to(low), w.to(low), *settings)
    return [one if one is None else one.to(g.dtype) for one in found]


class _ByWeight(torch.autograd.Function):
    """The convolution, x being a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.how, ctx.low = (stride, padding), _LOW.get()
        return F.conv2d(x, w, b, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        (g,), (x, w) = grads, ctx.saved_tensors
        _, by_w, by_b = _backward(g, x, w, ctx.how, [False, *ctx.needs_input_grad[1:3]], ctx.low)
        return None, by_w, by_b, None, None


class _ByInput(torch.autograd.Function):
    """y as it is, with the way to x."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, w: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.how, ctx.low = (stride, padding), _LOW.get()
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (g,), (x, w) = grads, ctx.saved_tensors
        if torch.is_grad_enabled():  # it will be differentiated
            return g, _InputGradient.apply(g, w, x.detach(), *ctx.how, ctx.low), None, None, None
        return g, _backward(g, x, w, ctx.how, [True, False, False], ctx.low)[0], None, None, None


class _InputGradient(torch.autograd.Function):
    """(upstream, weight, an input for its shape) -> the gradient by the input."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, w: Tensor, x: Tensor, stride: int, padding: int, low: Low) -> Tensor | None:
        ctx.save_for_backward(g, w)
        ctx.how, ctx.low = (stride, padding), low
        return _backward(g, x, w, ctx.how, [True, False, False])[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (h,), (g, w) = grads, ctx.saved_tensors
        by_g = by_w = None
        if ctx.needs_input_grad[0] and (ctx.low is None or torch.is_grad_enabled()):
            by_g = conv2d(h, w, None, *ctx.how)
        elif ctx.needs_input_grad[0]:
            by_g = F.conv2d(h.to(ctx.low), w.to(ctx.low), None, *ctx.how).to(h.dtype)
        if ctx.needs_input_grad[1]:
            by_w = _backward(g, h, w, ctx.how, [False, True, False], ctx.low)[1]
        return by_g, by_w, None, None, None, None


def conv2d(x: Tensor, w: Tensor, b: Tensor | None = None, stride: int = 1, padding: int = 0) -> Tensor:
    """(B, D, H, W), (E, D, k, k) and (E,) -> (B, E, H', W'), as torch's, to any order in x and once by w and b."""
    y: Any = _ByWeight.apply(x.detach(), w, b, stride, padding)
    found: Any = _ByInput.apply(y, x, w, stride, padding) if x.requires_grad else y
    return found


class Conv2d(nn.Conv2d):
    """A layer of it. Under autocast, where no penalty is taken, it is torch's own."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, E, H', W')"""
        if not torch.is_grad_enabled() or torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        assert isinstance(self.padding, tuple)
        return conv2d(input, self.weight, self.bias, self.stride[0], self.padding[0])
