"""Linear layers that read their weights as fast as memory gives them, for inference on a CPU.

With one row, as when a text is written token by token, a linear layer does two operations for each weight it reads, so
its speed is that of memory. torch's own reads at a third of that speed; with its weights reordered once by oneDNN into
blocks ("packed"), it reads at all of it. In bf16 there is half to read, in int8 a quarter.

    packed    oneDNN's order, in fp32 (equal to torch's layer to rounding) or bf16
    int8      weight only, symmetric, one scale a row: w ~ scale round(w / scale), scale = max |w| / 127; the inputs
              are bf16. Of trained weights, whose outliers lie in few rows, this keeps more than one scale for all

All that lies between the layers stays float32: it costs nothing there, and torch's attention of a single query takes
seven times as long in bf16 as in float32 on a CPU (116 against 16 microseconds, 12 heads over 128 places, one thread).
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from etude.nn.tied import TiedHead

FEW = 4
"""Rows up to which torch's int8 product is the faster; for more the weights are made bf16 first."""


class PackedLinear(nn.Module):
    """x W^T + b, computed in `dtype`, the weights in oneDNN's order. (..., D) -> (..., E) in x's type. It cannot be
    saved or trained."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype):
        super().__init__()
        self.dtype, self.bias = dtype, None if bias is None else bias.detach().to(dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype).contiguous())

    def forward(self, x: Tensor, *_: Tensor | None) -> Tensor:
        y = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, "none", [], "")
        return y.to(x.dtype)


class Int8Linear(nn.Module):
    """x W^T + b, each row of W as int8 with its own scale. (..., D) -> (..., E) in float32. It cannot be trained."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.weight, self.scale = quantize_rows(weight.detach().float())
        self.bias = torch.zeros_like(self.scale) if bias is None else bias.detach().float()
        # the product knows bf16 scales only, which would move a whole row by up to 0.4 %: it gets ones
        self.ones = torch.ones_like(self.scale, dtype=torch.bfloat16)

    def forward(self, x: Tensor, *_: Tensor | None) -> Tensor:
        rows = x.to(torch.bfloat16).flatten(0, -2)
        if len(rows) <= FEW:
            y = torch._weight_int8pack_mm(rows, self.weight, self.ones)
        else:  # bf16 holds whole numbers up to 256 exactly
            y = nn.functional.linear(rows, self.weight.to(torch.bfloat16))
        return torch.addcmul(self.bias, y, self.scale).unflatten(0, x.shape[:-1])


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(E, D) weights -> int8 (E, D) and scales (E,), with weight ~ int8 scale; the error is at most scale / 2."""
    scale = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


def fast_linears(model: nn.Module, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy of `model` in eval mode that answers the same, faster on a CPU; it cannot be trained or saved.

    Its linear layers, and a tied head, keep their weights packed in torch.float32 (equal to rounding) or
    torch.bfloat16, or row by row in torch.int8; what lies between stays as it is. Where torch was built without oneDNN,
    and on other devices than the CPU, the layers stay as they are, too. ValueError for any other type.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.int8):
        raise ValueError(f"weights are kept as float32, bfloat16 or int8, not as {str(dtype).removeprefix('torch.')}")
    model = copy.deepcopy(model).eval().requires_grad_(False)
    device = next(model.parameters()).device
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return model
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            weight, bias = module.weight, module.bias
        elif isinstance(module, TiedHead):
            holder: Any = model.get_submodule(name.rpartition(".")[0])
            weight, bias = holder.embedding.weight, getattr(holder, "output_bias", None)
        else:
            continue
        fast = Int8Linear(weight, bias) if dtype == torch.int8 else PackedLinear(weight, bias, dtype)
        model.set_submodule(name, fast)
    return model
