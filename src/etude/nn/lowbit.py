"""Linear layers that read their weights as fast as memory gives them, for inference on a CPU.

With one row, as when a text is written token by token, a linear layer does two operations for each weight it reads, so
its speed is that of memory. torch's own reads at a third of that speed; with its weights reordered once by oneDNN into
blocks ("packed"), it reads at all of it. In bf16 there is half to read, in int8 a quarter.

    packed    oneDNN's order, in fp32 (equal to torch's layer to rounding) or bf16
    int8      weight only, symmetric, one scale a row: w ~ scale round(w / scale), scale = max |w| / 127; the inputs
              stay bf16. Of trained weights, whose outliers lie in few rows, this keeps more than one scale for all
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from etude.nn.inference import cast_outputs


class TiedHead(nn.Module):
    """Scores against the rows of an embedding, which it does not hold. (..., D), (V, D) -> (..., V)"""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return nn.functional.linear(x, embedding)


class PackedLinear(nn.Module):
    """x W^T + b, the weights in oneDNN's order. (..., D) -> (..., E) in `dtype`. It cannot be saved or trained."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype):
        super().__init__()
        self.dtype, self.bias = dtype, None if bias is None else bias.detach().to(dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype).contiguous())

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, "none", [], "")


class Int8Linear(nn.Module):
    """x W^T + b, each row of W as int8 with a scale of its own. (..., D) -> (..., E) in bf16. It cannot be trained."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.bias = None if bias is None else bias.detach().to(torch.bfloat16)
        self.weight, scale = quantize_rows(weight.detach())
        self.scale = scale.to(torch.bfloat16)

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        rows = x.to(torch.bfloat16).flatten(0, -2)
        y = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        return (y if self.bias is None else y + self.bias).unflatten(0, x.shape[:-1])


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(E, D) weights -> int8 (E, D) and scales (E,), with weight ~ int8 scale; the error is at most scale / 2."""
    scale = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


def fast_linears(model: nn.Module, *, dtype: torch.dtype = torch.float32, int8: bool = False) -> nn.Module:
    """A copy of `model` in eval mode that answers the same, faster on a CPU; it cannot be trained or saved.

    Its linear layers, and a tied head, are packed, and it computes in `dtype`: equal to rounding in float32; in
    bfloat16 answers come as float32 again. `int8` stores their weights so (and computes in bfloat16). Where torch was
    built without oneDNN, and on other devices than the CPU, the layers stay as they are.
    """
    if int8:
        dtype = torch.bfloat16
    model = copy.deepcopy(model).eval().requires_grad_(False)
    device = next(model.parameters()).device
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear):
                weight, bias = module.weight, module.bias
            elif isinstance(module, TiedHead):
                holder: Any = model.get_submodule(name.rpartition(".")[0])
                weight, bias = holder.embedding.weight, None
            else:
                continue
            model.set_submodule(name, Int8Linear(weight, bias) if int8 else PackedLinear(weight, bias, dtype))
    if dtype != torch.float32:
        model.to(dtype)
        model.register_forward_hook(cast_outputs)
    return model
