"""Deformable convolution: a kernel whose taps move (Dai et al., 2017, arXiv 1703.06211; v2 Zhu et al., 1811.11168).

    y(p) = sum_k w_k m_k(p) x(p + p_k + dp_k(p))

A tap k of the kernel looks at its place p_k on the grid moved by an offset dp_k(p), a fraction of a pixel as well, and
weighs what it finds there by a mask m_k(p) (v2; 1 in v1). Offsets and masks differ from place to place, and a plain
convolution predicts them from the same input. x between pixels is bilinear, and zero outside of the picture.

Equals torchvision 0.29.1's `ops.deform_conv2d`, outputs and gradients, to 1e-5 relative in fp32 (`etude verify
deformable`): v1, v2, weight groups, offset groups. Plain PyTorch on every device, and differentiable twice.

How: with channels innermost a pixel is one row of a table, and a tap is a weighted sum of four rows, which is what
`embedding_bag` computes in one pass. The columns (B, P, Q, K, C) that this makes are the operand of one matrix product;
they are the largest tensor of the computation, and no two of their size live at a time.

Shapes: B batch, C channels, H W height and width, O output channels, P Q output height and width, K taps of the kernel,
G offset groups; R = B H W G rows of the table, N = B P Q K G samples.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, fx, nn

from etude.errors import UsageError

Pair = int | tuple[int, int]
Table = Float[Tensor, "R c"]
Corners = Int[Tensor, "N 4"]
Weights = Float[Tensor, "N 4"]
Samples = Float[Tensor, "N c"]
Kernel = Float[Tensor, "groups K share out"]
PART = 1 << 14
"""Samples at a time where a second tensor of the columns' size would be made."""


def pair(value: Pair) -> tuple[int, int]:
    """One number for both directions, or (vertical, horizontal)."""
    return (value, value) if isinstance(value, int) else value


@fx.wrap  # one node of a traced graph: what it does depends on shapes
def deform_conv2d(
    input: Float[Tensor, "B C H W"],
    offset: Float[Tensor, "B off P Q"],
    weight: Float[Tensor, "O c kh kw"],
    bias: Float[Tensor, " O"] | None = None,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    mask: Float[Tensor, "B taps P Q"] | None = None,
) -> Float[Tensor, "B O P Q"]:
    """Convolve with moved taps; torchvision.ops.deform_conv2d's meaning and order of arguments.

    offset (B, 2 G K, P, Q), in pixels: channel 2 (g K + k) moves tap k of offset group g down, the next one right.
    mask (B, G K, P, Q): its factor; without one this is v1. weight (O, C / groups, kh, kw): groups and G follow from
    the shapes. UsageError where the shapes do not fit, with the expected one.
    """
    stride, padding, dilation = pair(stride), pair(padding), pair(dilation)
    groups, offset_groups = _check(input, offset, weight, bias, stride, padding, dilation, mask)
    (b, c, _, _), (o, _, kh, kw), (p, q) = input.shape, weight.shape, offset.shape[2:]
    device = input.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
    index, share = _corners(offset, mask, input.shape, (kh, kw), stride, padding, dilation, offset_groups)
    table = input.to(dtype).permute(0, 2, 3, 1).reshape(-1, c // offset_groups)
    kernel = weight.to(dtype).view(groups, o // groups, c // groups, kh * kw).permute(0, 3, 2, 1)
    y = _Convolve.apply(table, index, share.to(dtype), kernel)
    y = y if bias is None else y + bias.to(dtype)
    y = y.view(b, p, q, o).permute(0, 3, 1, 2)
    return y.contiguous() if input.is_contiguous() else y  # else channels stay innermost, as they are in the input


def _expect(name: str, tensor: Tensor, *shape: int | str) -> None:
    found = tuple(tensor.shape)
    if len(found) != len(shape) or any(isinstance(n, int) and n != m for n, m in zip(shape, found)):
        wanted = ", ".join(map(str, shape))
        raise UsageError(f"deform_conv2d: {name} must have the shape ({wanted}), not {found}")


def _check(input, offset, weight, bias, stride, padding, dilation, mask) -> tuple[int, int]:
    """(groups, offset groups), or a UsageError that names the expected and the found shape."""
    _expect("input", input, "B", "C", "H", "W")
    _expect("weight", weight, "O", "C / groups", "kh", "kw")
    b, c, h, w = input.shape
    o, per_group, kh, kw = weight.shape
    if not per_group or c % per_group or not o or o % (c // per_group):
        raise UsageError(
            f"deform_conv2d: weight {tuple(weight.shape)} does not fit {c} input channels: its second size must divide "
            f"them, and the groups that follow must divide its first"
        )
    p, q = (
        (size + 2 * pad - d * (k - 1) - 1) // s + 1
        for size, k, s, pad, d in zip((h, w), (kh, kw), stride, padding, dilation)
    )
    if p < 1 or q < 1:
        raise UsageError(f"deform_conv2d: a kernel of {kh} x {kw} is larger than the padded input of {h} x {w}")
    taps = kh * kw
    _expect("offset", offset, b, f"{2 * taps} G", p, q)
    offset_groups = offset.shape[1] // (2 * taps)
    if not offset_groups or offset.shape[1] % (2 * taps) or c % offset_groups:
        raise UsageError(
            f"deform_conv2d: offset must have {2 * taps} G channels ({kh} x {kw} taps, 2 numbers each, G offset groups "
            f"that divide the {c} input channels), not {offset.shape[1]}"
        )
    if mask is not None:
        _expect("mask", mask, b, offset_groups * taps, p, q)
    if bias is not None:
        _expect("bias", bias, o)
    return c // per_group, offset_groups


def _corners(
    offset: Tensor,
    mask: Tensor | None,
    shape: tuple[int, ...],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> tuple[Corners, Weights]:
    """The four pixels around each tap's position, as rows of the table, and their weights.

    Positions are at least float32: bfloat16 could not tell the pixels of a row of 512 apart.
    """
    (b, _, *size), (p, q), taps = shape, offset.shape[2:], kernel[0] * kernel[1]
    device, dtype = offset.device, torch.promote_types(offset.dtype, torch.float32)
    moved = offset.to(dtype).reshape(b, groups, taps, 2, p, q).permute(3, 0, 4, 5, 2, 1).contiguous()  # y and x apart
    rows, columns = (torch.arange(n, device=device) * s - pad for n, s, pad in zip((p, q), stride, padding))
    down, right = (torch.arange(n, device=device) * d for n, d in zip(kernel, dilation))
    grid_y = (rows[:, None, None] + down[:, None]).expand(p, *kernel).reshape(p, 1, taps, 1)
    grid_x = (columns[:, None, None] + right).expand(q, *kernel).reshape(1, q, taps, 1)

    sides = []
    for position, n in zip((moved[0] + grid_y, moved[1] + grid_x), size):
        low = position.detach().floor()
        part = position - low
        # times zero outside, not set to zero: an offset that is NaN stays seen
        weights = ((1 - part) * ((low >= 0) & (low < n)), part * ((low >= -1) & (low < n - 1)))
        near = low.int()  # of NaN or out of int32's range: any integer; the clamp makes it a pixel
        sides.append((weights, (near.clamp(0, n - 1), near.clamp(-1, n - 2) + 1)))
    (weight_y, y), (weight_x, x) = sides
    if mask is not None:
        factor = mask.to(dtype).reshape(b, groups, taps, p, q).permute(0, 3, 4, 2, 1)
        weight_y = tuple(w * factor for w in weight_y)
    first = torch.arange(b, device=device, dtype=torch.int32).view(b, 1, 1, 1, 1) * size[0]
    group = torch.arange(groups, device=device, dtype=torch.int32)
    index = [((first + j) * size[1] + i) * groups + group for j in y for i in x]
    weight = [v * u for v in weight_y for u in weight_x]
    return torch.stack(index, -1).view(-1, 4), torch.stack(weight, -1).view(-1, 4)


class _Convolve(torch.autograd.Function):
    """Sample and multiply by the kernel (groups, K, C / groups, O / groups). -> (B P Q, O)

    The backward pass samples the columns again: a thirtieth of its time, for half of the memory.
    """

    @staticmethod
    def forward(ctx: Any, table: Table, index: Corners, weight: Weights, kernel: Kernel) -> Float[Tensor, "n O"]:
        ctx.save_for_backward(table, index, weight, kernel)
        columns = _grouped(_Sample.apply(table, index, weight), kernel)
        return (columns @ kernel.flatten(1, 2)).transpose(0, 1).flatten(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (table, index, weight, kernel), (grad,) = ctx.saved_tensors, grads
        by_table, _, by_weight, by_kernel = ctx.needs_input_grad
        groups, taps, share, _ = kernel.shape
        grad = grad.unflatten(1, (groups, -1)).transpose(0, 1)
        kernel_grad = None
        if by_kernel:
            kernel_grad = _grouped(_Sample.apply(table, index, weight), kernel).mT @ grad
            kernel_grad = kernel_grad.view(kernel.shape)
        if not (by_table or by_weight):
            return None, None, None, kernel_grad
        values = (grad @ kernel.flatten(1, 2).mT).unflatten(2, (taps, share))
        values = values.permute(1, 2, 0, 3).reshape(-1, table.shape[1])
        return (
            _Scatter.apply(values, index, weight, len(table)) if by_table else None,
            None,
            _Match.apply(table, index, values) if by_weight else None,
            kernel_grad,
        )


def _grouped(columns: Samples, kernel: Kernel) -> Float[Tensor, "groups n Kc"]:
    """The columns, apart for each group of the kernel."""
    groups, taps, share, _ = kernel.shape
    return columns.view(-1, taps, groups, share).permute(2, 0, 1, 3).flatten(2)


# Sampling is the form  T = sum over n, j of weight[n, j] <table[index[n, j]], values[n]>,  linear in each of its three
# tensors. Its derivatives by them are the three functions below, and theirs are these again.


class _Sample(torch.autograd.Function):
    """By the values: out[n] = sum_j weight[n, j] table[index[n, j]]. (R, c), (N, 4), (N, 4) -> (N, c)"""

    @staticmethod
    def forward(ctx: Any, table: Table, index: Corners, weight: Weights) -> Samples:
        ctx.save_for_backward(table, index, weight)
        return F.embedding_bag(index, table, mode="sum", per_sample_weights=weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (table, index, weight), (values,) = ctx.saved_tensors, grads
        by_table, _, by_weight = ctx.needs_input_grad
        return (
            _Scatter.apply(values, index, weight, len(table)) if by_table else None,
            None,
            _Match.apply(table, index, values) if by_weight else None,
        )


class _Scatter(torch.autograd.Function):
    """By the table: out[r] = sum of weight[n, j] values[n] where index[n, j] = r. (N, c), (N, 4), (N, 4) -> (R, c)

    Sorted by r, the samples that go to one row are one bag: sums in a fixed order, without atomic additions.
    """

    @staticmethod
    def forward(ctx: Any, values: Samples, index: Corners, weight: Weights, rows: int) -> Table:
        ctx.save_for_backward(values, index, weight)
        goal, order = index.flatten().sort(stable=True)
        starts = torch.searchsorted(goal, torch.arange(rows, device=goal.device, dtype=goal.dtype))
        weight = weight.flatten()[order]
        return F.embedding_bag(order // 4, values, starts, mode="sum", per_sample_weights=weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (values, index, weight), (table,) = ctx.saved_tensors, grads
        by_values, _, by_weight, _ = ctx.needs_input_grad
        return (
            _Sample.apply(table, index, weight) if by_values else None,
            None,
            _Match.apply(table, index, values) if by_weight else None,
            None,
        )


class _Match(torch.autograd.Function):
    """By the weights: out[n, j] = <table[index[n, j]], values[n]>. (R, c), (N, 4), (N, c) -> (N, 4)"""

    @staticmethod
    def forward(ctx: Any, table: Table, index: Corners, values: Samples) -> Weights:
        ctx.save_for_backward(table, index, values)
        weight = torch.ones(index.shape, dtype=table.dtype, device=table.device, requires_grad=True)
        parts = []
        with torch.enable_grad():  # torch has this product as the gradient of `embedding_bag` by its weights
            for corners, w, v in zip(index.split(PART), weight.split(PART), values.split(PART)):
                bags = F.embedding_bag(corners, table.detach(), mode="sum", per_sample_weights=w)
                parts += torch.autograd.grad(bags, w, v)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (table, index, values), (weight,) = ctx.saved_tensors, grads
        by_table, _, by_values = ctx.needs_input_grad
        return (
            _Scatter.apply(values, index, weight, len(table)) if by_table else None,
            None,
            _Sample.apply(table, index, weight) if by_values else None,
        )


class DeformConv2d(nn.Module):
    """A convolution that predicts where its taps look. (B, C, H, W) -> (B, O, P, Q)

    Its own plain convolution, `offset`, has the same kernel, stride and dilation; it gives the offsets and, if
    `modulated` (v2), the masks before their sigmoid. It starts at zero: the taps on the grid, each mask at 1/2
    (1811.11168, section 3.2, which also trains it at a tenth of the learning rate).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        *,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        offset_groups: int = 1,
        bias: bool = True,
        modulated: bool = True,
    ):
        super().__init__()
        for name, n in (("groups", groups), ("offset_groups", offset_groups)):
            if n < 1 or in_channels % n:
                raise UsageError(f"{name} is {n}; it must divide the {in_channels} input channels")
        self.stride, self.padding, self.dilation = pair(stride), pair(padding), pair(dilation)
        kernel = pair(kernel_size)
        self.moves = 2 * offset_groups * kernel[0] * kernel[1]
        predicted = self.moves * 3 // 2 if modulated else self.moves
        self.offset = nn.Conv2d(in_channels, predicted, kernel, self.stride, self.padding, self.dilation)
        plain = nn.Conv2d(in_channels, out_channels, kernel, groups=groups, bias=bias)  # for its initialisation
        self.weight, self.bias = plain.weight, plain.bias
        self.reset_offset()

    def reset_offset(self) -> None:
        """Back to the grid, every mask to 1/2."""
        nn.init.zeros_(self.offset.weight)
        if self.offset.bias is not None:
            nn.init.zeros_(self.offset.bias)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B O P Q"]:
        predicted = self.offset(x)
        mask = predicted[:, self.moves :].sigmoid() if self.offset.out_channels > self.moves else None
        return deform_conv2d(
            x,
            predicted[:, : self.moves],
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            mask=mask,
        )


def sampling_positions(
    model: nn.Module, layers: list[DeformConv2d | nn.Conv2d], x: Float[Tensor, "B C H W"]
) -> Float[Tensor, "B P Q S 2"]:
    """Where the units of the last of these layers look in the input of the first, when `model` sees x.

    The layers follow on each other in the model. Position (y, x), in pixels of the first layer's input; S is the
    product of their numbers of taps, as each position is traced back through the layer before it (1703.06211, figure
    6: three layers, 729 positions a unit). Where a position falls between units, the nearest one's offsets count. Of
    several offset groups the first is taken.
    """
    offsets: dict[nn.Module, Tensor] = {}
    hooks = [
        (layer.offset if isinstance(layer, DeformConv2d) else layer).register_forward_hook(
            lambda _, inputs, output, layer=layer: offsets.update({layer: output})
        )
        for layer in layers
    ]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()

    p, q = offsets[layers[-1]].shape[2:]
    units = torch.cartesian_prod(torch.arange(p), torch.arange(q)).to(x.device)
    positions = units.view(1, p * q, 2).expand(len(x), -1, -1).float()
    sample = torch.arange(len(x), device=x.device)[:, None]
    for layer in reversed(layers):
        kernel, moved = layer.weight.shape[2:], offsets[layer].float()
        taps = torch.cartesian_prod(*(torch.arange(k) for k in kernel)).to(moved) * positions.new_tensor(layer.dilation)
        taps = taps - positions.new_tensor(layer.padding)
        if isinstance(layer, DeformConv2d):
            y, x_ = (positions[..., i].round().long().clamp(0, moved.shape[2 + i] - 1) for i in (0, 1))
            taps = taps + moved[sample, : taps.numel(), y, x_].unflatten(-1, (-1, 2))
        positions = (positions[:, :, None] * positions.new_tensor(layer.stride) + taps).flatten(1, 2)
    return positions.view(len(x), p, q, -1, 2)


sizes: dict[str, Any] = {}
"""A block, not a network: `etude.model("resnet18", deformable_from=4)` uses it."""

RENAME: dict[str, tuple[tuple[str, str], ...]] = {}
