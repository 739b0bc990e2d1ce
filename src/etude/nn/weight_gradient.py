"""Convolutions on channels-last pictures whose parameters' gradients are computed in a faster way.

On a CPU without AVX-512, oneDNN computes an fp32 convolution's output and the gradient by its input faster in NHWC
memory than in NCHW, but the gradient by a wide 3x3 kernel up to four times slower (64 channels at 256x256: 34 against
141 GFLOP/s, two cores, AVX2). To copy both operands to NCHW first costs a fraction of what that saves. Where fewer
channels leave than enter, as in dense blocks, it is faster with the operands' roles exchanged: the gradient slid over
the input is the input slid over the gradient, mirrored (160 to 32 channels at 32x32: 2.9 against 3.6 ms). And its
kernel for the gradient by a bias costs more than the sum that this gradient is.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from etude import cpu


def copied(x: Tensor, w: Tensor) -> bool:
    """Whether copies of these operands cost less than they save: both channel counts are large, or pictures are."""
    channels, pixels = (w.shape[0], w.shape[1]), x.shape[2] * x.shape[3]
    return min(channels) >= 64 and (channels[0] * channels[1] >= 128 * 128 or pixels >= 64 * 64)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, stride: Any, padding: Any, dilation: Any) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.how = (stride, padding, dilation, False, (0, 0), 1)
        return F.conv2d(x, w, b, stride, padding, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        (x, w), g = ctx.saved_tensors, grads[0].contiguous(memory_format=torch.channels_last)
        by_x, by_w, by_b = ctx.needs_input_grad[:3]
        dx = dw = None
        if by_x:
            dx = torch.ops.aten.convolution_backward(g, x, w, None, *ctx.how, [True, False, False])[0]
        if by_w:
            dw = _by_weight(g, x, w, ctx.how)
        return dx, dw, g.sum((0, 2, 3)) if by_b else None, None, None, None


def _by_weight(g: Tensor, x: Tensor, w: Tensor, how: tuple[Any, ...]) -> Tensor:
    """The gradient by w of the convolution x * w whose output has the gradient g."""
    mask = [False, True, False]
    if copied(x, w):
        operands = (g.contiguous(), x.contiguous(), w.contiguous())
        return torch.ops.aten.convolution_backward(*operands, None, *how, mask)[1]
    exchanged = w.shape[0] < w.shape[1] and g.shape[2:] == x.shape[2:] and how[2] == (1, 1)
    if exchanged:
        found = torch.ops.aten.convolution_backward(x, g, w.transpose(0, 1), None, *how, mask)[1]
        return found.transpose(0, 1).flip(2, 3)
    return torch.ops.aten.convolution_backward(g, x, w, None, *how, mask)[1]


class Conv2d(nn.Conv2d):
    """nn.Conv2d with this gradient, which cannot be differentiated further. (B, C, H, W) -> (B, C', H', W')"""

    def forward(self, input: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        how = (self.stride, self.padding, self.dilation)
        y: Any = _Convolution.apply(input, self.weight, self.bias, *how)
        return y


def speed_up(model: nn.Module) -> None:
    """Make the convolutions of a channels-last fp32 model that gain by it this `Conv2d`, in place."""
    for module in model.modules():
        if type(module) is nn.Conv2d and _gains(module):
            module.__class__ = Conv2d  # the same parameters, hooks and names


def _gains(conv: nn.Conv2d) -> bool:
    plain = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return plain and conv.groups == 1 and min(conv.kernel_size) > 1 and max(conv.stride) == 1


def slow_down(model: nn.Module) -> None:
    """The inverse of `speed_up`: what prepares a model for inference knows torch's own class."""
    found: list[nn.Conv2d] = [module for module in model.modules() if type(module) is Conv2d]
    for conv in found:
        conv.__class__ = nn.Conv2d


def pays() -> bool:
    """Whether this CPU computes the gradient faster on copies, as measured once per machine."""
    measured = cpu.kept("weight-gradients", ("direct", "copied"), _measure)
    return measured["direct"] > cpu.MARGIN * measured["copied"]


def _measure() -> dict[str, float]:
    """Seconds for one picture of 64 channels, 64 x 256."""
    x, g = (torch.ones(1, 64, 64, 256).contiguous(memory_format=torch.channels_last) for _ in range(2))
    w = torch.ones(64, 64, 3, 3).contiguous(memory_format=torch.channels_last)

    def gradient(*operands: Tensor) -> Tensor:
        how = ((1, 1), (1, 1), (1, 1), False, (0, 0), 1, [False, True, False])
        return torch.ops.aten.convolution_backward(*operands, None, *how)[1]

    return cpu.best_seconds(
        {"direct": lambda: gradient(g, x, w), "copied": lambda: gradient(*(t.contiguous() for t in (g, x, w)))}
    )
