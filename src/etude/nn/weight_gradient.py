"""Convolutions on channels-last pictures whose weight gradient is computed on channels-first copies.

On a CPU without AVX-512, oneDNN computes an fp32 convolution's output and the gradient by its input faster in NHWC
memory than in NCHW, but the gradient by a wide 3x3 kernel up to four times slower (64 channels at 256x256: 34 against
141 GFLOP/s, two cores, AVX2). To copy both operands first costs a fraction of what that saves.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from etude import cpu

NARROW = 64
"""Input and output channels below which the copies cost more than they save."""


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, stride: Any, padding: Any, dilation: Any) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.how = (stride, padding, dilation, False, (0, 0), 1)
        return F.conv2d(x, w, b, stride, padding, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        (g,), (x, w) = grads, ctx.saved_tensors
        by_input, *by_parameters = ctx.needs_input_grad[:3]
        dx = dw = db = None
        sizes = [len(w)] if by_parameters[1] else None
        if by_input:
            dx = torch.ops.aten.convolution_backward(g, x, w, None, *ctx.how, [True, False, False])[0]
        if any(by_parameters):
            copies = (t.contiguous() for t in (g, x, w))
            _, dw, db = torch.ops.aten.convolution_backward(*copies, sizes, *ctx.how, [False, *by_parameters])
        return dx, dw, db, None, None, None


class Conv2d(nn.Conv2d):
    """nn.Conv2d with this gradient, which cannot be differentiated further. (B, C, H, W) -> (B, C', H', W')"""

    def forward(self, input: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(input)
        how = (self.stride, self.padding, self.dilation)
        y: Any = _Convolution.apply(input, self.weight, self.bias, *how)
        return y


def use_copies(model: nn.Module) -> int:
    """Make the convolutions of a channels-last fp32 model that gain by it this `Conv2d`, in place; returns how many."""
    found = [module for module in model.modules() if type(module) is nn.Conv2d and _gains(module)]
    for module in found:
        module.__class__ = Conv2d  # the same parameters, hooks and names
    return len(found)


def _gains(conv: nn.Conv2d) -> bool:
    plain = conv.padding_mode == "zeros" and not isinstance(conv.padding, str) and conv.groups == 1
    wide = min(conv.in_channels, conv.out_channels) >= NARROW and min(conv.kernel_size) > 1
    return plain and wide and max(conv.stride) == 1


def copies_pay() -> bool:
    """Whether this CPU computes the gradient faster with the copies."""
    measured = cpu.kept("weight-gradients", _measure)
    return measured["direct"] > cpu.MARGIN * measured["copied"]


def _measure() -> dict[str, float]:
    """Seconds for one picture of 64 channels, 64 x 256."""
    x, g = (torch.ones(1, 64, 64, 256).contiguous(memory_format=torch.channels_last) for _ in range(2))
    w = torch.ones(64, 64, 3, 3).contiguous(memory_format=torch.channels_last)

    def gradient(*operands: Tensor) -> Tensor:
        how = ((1, 1), (1, 1), (1, 1), False, (0, 0), 1, [False, True, False])
        return torch.ops.aten.convolution_backward(*operands, None, *how)[1]

    copied = w.contiguous()
    return cpu.best_seconds(
        {"direct": lambda: gradient(g, x, w), "copied": lambda: gradient(g.contiguous(), x.contiguous(), copied)}
    )
