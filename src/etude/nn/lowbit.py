"""Linear layers that read their weights as fast as memory gives them, for inference on a CPU.

With one row, as when a text is written token by token, a linear layer does two operations for each weight it reads, so
its speed is that of memory. torch's own reads at a third of that speed; with its weights reordered once into blocks
("packed") it reads at up to all of it, and there is half as much to read in 16 bits, a quarter in int8.

    fp32   packed by oneDNN; equal to torch's layer to rounding
    bf16   packed by oneDNN, with products in bf16, where the CPU has them. Elsewhere the weights, rounded to bf16, are
           held in fp16 by fbgemm and the products are fp32's: no slower than fp32 for many rows, and for one row up to
           three times as fast
    int8   products of integers by fbgemm: symmetric weights with a scale for each output, w ~ s round(w / s),
           s = max |w| / 127, and inputs quantised to the range of each row. Where torch has no fbgemm (ARM), the
           weights alone are int8

A CPU without VNNI adds pairs of 8-bit products in 16 bits, which overflow; there weights keep 7 bits, which costs less
than inputs of 7 bits would. All that lies between the layers stays float32: it costs nothing there, and torch's
attention of a single query takes seven times as long in bf16 as in float32 on a CPU (116 against 16 microseconds, 12
heads over 128 places, one thread).
"""

import copy
import functools
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude import cpu
from etude.nn.tied import TiedHead

WEIGHTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
"""How weights can be kept, by name."""
FEW = 4
"""Rows up to which torch's product with int8 weights alone is the faster; for more they are converted first."""


WIDTH = 32
"""Rows are padded with zeros to a multiple of this: that product reads past the end of other rows."""


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


class HalfLinear(nn.Module):
    """x W^T + b with W rounded to bf16 and held in fp16, products and sums in fp32. (..., D) -> (..., E) in x's type.

    fp16 has more digits than bf16 and a smaller range: weights below 6e-8 become 0, those above 65,504 are cut.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        rounded = weight.detach().to(torch.bfloat16).float()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights that fp16 cuts
            self.packed = torch.ops.quantized.linear_prepack_fp16(rounded, None if bias is None else bias.float())

    def forward(self, x: Tensor, *_: Tensor | None) -> Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(x.float().contiguous(), self.packed).to(x.dtype)


class Int8Linear(nn.Module):
    """x W^T + b by products of integers. (..., D) -> (..., E) in float32. It cannot be trained.

    Each row of x is mapped from its range, least number l to l + r, to [0, 1] and rounded to 255 steps:
    x W^T = r ((x - l) / r) W^T + l sum(W), the sum over the inputs of each output. So a row's answer does not depend on
    the rows beside it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        stored, scale = quantize_rows(weight.detach().float(), 63 if overflows() else 127)
        self.packed = _pack_int8(stored, scale)
        self.sums = stored.sum(1) * scale
        self.bias = None if bias is None else bias.detach().float()

    def forward(self, x: Tensor, *_: Tensor | None) -> Tensor:
        rows = x.float().flatten(0, -2)
        low, high = torch.aminmax(rows, dim=1, keepdim=True)
        span = (high - low).clamp_(torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max)
        y = torch.ops.quantized.linear_dynamic((rows - low).div_(span), self.packed, False)
        y = y.mul_(span).addcmul_(low, self.sums)
        y = y if self.bias is None else y.add_(self.bias)
        return y.unflatten(0, x.shape[:-1])


class Int8WeightLinear(nn.Module):
    """x W^T + b, each row of W as int8 with its own scale, x in 16 or 32 bits. (..., D) -> (..., E) in float32. It
    cannot be trained."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.spare = -weight.shape[1] % WIDTH
        self.weight, self.scale = quantize_rows(F.pad(weight.detach().float(), (0, self.spare)))
        self.bias = torch.zeros_like(self.scale) if bias is None else bias.detach().float()
        # the product knows bf16 scales only, which would move a whole row by up to 0.4 %: it gets ones
        self.ones = torch.ones_like(self.scale, dtype=torch.bfloat16)

    def forward(self, x: Tensor, *_: Tensor | None) -> Tensor:
        rows = F.pad(x, (0, self.spare)).flatten(0, -2).contiguous()
        if len(rows) <= FEW:
            y = torch._weight_int8pack_mm(rows.to(torch.bfloat16), self.weight, self.ones)
        else:  # bf16 holds whole numbers up to 256 exactly
            dtype = torch.bfloat16 if cpu.computes_bf16() else torch.float32
            y = F.linear(rows.to(dtype), self.weight.to(dtype))
        return torch.addcmul(self.bias, y, self.scale).unflatten(0, x.shape[:-1])


def quantize_rows(weight: Tensor, largest: int = 127) -> tuple[Tensor, Tensor]:
    """(E, D) weights -> int8 (E, D), of -largest to largest, and scales (E,), with weight ~ int8 scale; the error is at
    most scale / 2."""
    scale = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / largest
    return (weight / scale[:, None]).round().to(torch.int8), scale


def _pack_int8(stored: Tensor, scale: Tensor) -> Any:
    """fbgemm's order of int8 weights with a scale for each row."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to retire the tensor type that its packing takes
        zeros = torch.zeros(len(scale), dtype=torch.long)
        weight = torch._make_per_channel_quantized_tensor(stored, scale.double(), zeros, 0)
        return torch.ops.quantized.linear_prepack(weight, None)


@functools.cache
def has_onednn(dtype: torch.dtype) -> bool:
    """Whether this torch packs weights of this type on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    with cpu.plainly():
        try:
            found = PackedLinear(torch.full((16, 16), 0.5), None, dtype)(torch.ones(1, 16))
        except (RuntimeError, AttributeError):
            return False
        return bool((found == 8).all())


def has_fbgemm() -> bool:
    """Whether this torch has fbgemm's kernels, for int8 and fp16 weights, on this CPU, and means to use them."""
    return torch.backends.quantized.engine in ("x86", "fbgemm") and _has_fbgemm()


@functools.cache
def _has_fbgemm() -> bool:
    with cpu.plainly():
        try:
            half = HalfLinear(torch.full((16, 16), 0.5), None)(torch.ones(1, 16))
            whole = Int8Linear(torch.full((16, 16), 0.5), None)(torch.ones(2, 16))
        except (RuntimeError, AttributeError):
            return False
        return bool((half == 8).all()) and torch.allclose(whole, torch.tensor(8.0), atol=0.1)


@functools.cache
def overflows() -> bool:
    """Whether fbgemm's sums of two 8-bit products overflow on this CPU, as they do without VNNI."""
    with cpu.plainly():
        weight = torch.full((32, 64), 127, dtype=torch.int8)
        largest = torch.ops.quantized.linear_dynamic(torch.ones(1, 64), _pack_int8(weight, torch.ones(32)), False)
        return bool((largest < 127 * 64 - 1).any())


def fast_layer(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Module | None:
    """The fastest layer of these weights kept in `dtype` on this CPU; None where none is faster than torch's own."""
    if dtype == torch.int8:
        return Int8Linear(weight, bias) if has_fbgemm() else Int8WeightLinear(weight, bias)
    if dtype == torch.bfloat16 and not (cpu.computes_bf16() and has_onednn(dtype)):
        if has_fbgemm():
            return HalfLinear(weight, bias)
        weight, dtype = weight.to(torch.bfloat16).float(), torch.float32
    return PackedLinear(weight, bias, dtype) if has_onednn(dtype) else None


def kernels() -> dict[str, str]:
    """What computes a linear layer on this CPU, by the type its weights are kept in, in words."""
    plain = "fp32 by oneDNN, packed" if has_onednn(torch.float32) else "fp32 by torch's own layer"
    half, whole = plain, "int8 weights alone"
    if cpu.computes_bf16() and has_onednn(torch.bfloat16):
        half = "bf16 products by oneDNN, packed"
    elif has_fbgemm():
        half = "fp32 products of weights held in 16 bits, by fbgemm"
    if has_fbgemm():
        whole = f"int8 products by fbgemm, {'7-bit weights (no VNNI)' if overflows() else '8-bit weights (VNNI)'}"
    return {"fp32": plain, "bf16": half, "int8": whole}


def fast_linears(model: nn.Module, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy of `model` in eval mode that answers the same, faster on a CPU; it cannot be trained or saved.

    Its linear layers, and a tied head, keep their weights in torch.float32 (equal to rounding), torch.bfloat16 or
    torch.int8; what lies between stays as it is. On other devices than the CPU, and where no kernel is faster than
    torch's own, layers stay as they are. ValueError for any other type.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.int8):
        raise ValueError(f"weights are kept as float32, bfloat16 or int8, not as {str(dtype).removeprefix('torch.')}")
    model = copy.deepcopy(model).eval().requires_grad_(False)
    if next(model.parameters(), torch.empty(0)).device.type != "cpu":
        return model
    layers: dict[nn.Module, nn.Module | None] = {}  # one module may have several names
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if type(module) is nn.Linear and name:  # no subclass: it may compute otherwise
            weight, bias = module.weight, module.bias
        elif isinstance(module, TiedHead):
            holder: Any = model.get_submodule(name.rpartition(".")[0])
            weight, bias = holder.embedding.weight, getattr(holder, "output_bias", None)
        else:
            continue
        if weight.numel() and module not in layers:
            layers[module] = fast_layer(weight, bias, dtype)
        if (fast := layers.get(module)) is not None:
            model.set_submodule(name, fast)
    return model
