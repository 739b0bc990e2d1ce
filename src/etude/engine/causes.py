"""Why an operator made a number that is not finite: its name and operands -> words, with what helps.

Pure functions of values: what watches the operators is monitor.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NAMES = {
    "_softmax": "softmax", "_log_softmax": "log_softmax", "_to_copy": "cast", "native_batch_norm": "batch_norm",
    "native_layer_norm": "layer_norm", "native_group_norm": "group_norm", "addmm": "linear", "baddbmm": "bmm",
    "linalg_vector_norm": "norm", "nll_loss_forward": "nll_loss", "nll_loss2d_forward": "nll_loss",
    "lift_fresh": "constant", "scalar_tensor": "constant",
    "_scaled_dot_product_flash_attention_for_cpu": "attention", "mkldnn_rnn_layer": "lstm", "_cudnn_rnn": "rnn",
    "true_divide": "div", "mkldnn_convolution": "convolution", "_batch_norm_with_update": "batch_norm",
}  # fmt: skip
"""The names that users know them by, where torch's own differ."""

SLOPES = {
    "sqrt": "the slope of the square root is infinite at 0; add a small number inside it, or clamp first",
    "rsqrt": "the slope of 1/sqrt is infinite at 0; add a small number inside it",
    "log": "the slope of the log is infinite at 0; add a small number inside it, or clamp first",
    "pow": "the slope of a power below 1 is infinite at 0; add a small number to the base, or clamp first",
    "acos": "the slope of acos is infinite at -1 and 1; clamp the input just inside",
    "asin": "the slope of asin is infinite at -1 and 1; clamp the input just inside",
    "acosh": "the slope of acosh is infinite at 1; clamp the input just above",
    "atanh": "the slope of atanh is infinite at -1 and 1; clamp the input just inside",
    "hypot": "the length of (x, y) has no slope at (0, 0); use sqrt(x^2 + y^2 + eps)",
    "logsumexp": "logsumexp has no slope where all its entries are -Inf; leave one open",
    "div": "division by a number whose square is 0; clamp the divisor, or add a small number to it",
    "reciprocal": "division by a number whose square is 0; clamp the divisor, or add a small number to it",
}
"""Where the backward pass of a function fails though its value is finite. torch itself sees to the norm at the zero
vector, atan2 at (0, 0) and the std of equal values: their slope there is 0."""

_PRODUCTS = {
    "linear", "mm", "bmm", "mv", "dot", "convolution", "convolution_backward", "attention", "lstm", "rnn", "sum",
    "cumsum", "prod", "cumprod", "mean", "var", "std", "norm", "square", "pow", "add", "mul", "addcmul", "lerp",
    "logsumexp", "nll_loss", "mse_loss",
}  # fmt: skip
"""Operators that multiply or add up: infinite numbers that they make of finite ones are too large for the format."""


@dataclass(frozen=True)
class Cause:
    """Why, in words that follow a colon; and the operand at fault, where there is one."""

    words: str
    got: str = ""
    overflow: bool = False


def name_of(func: torch._ops.OpOverload) -> str:
    """aten._log_softmax.default -> log_softmax; in-place operators as their plain ones."""
    name = func.overloadpacket.__name__
    name = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    return NAMES.get(name, name)


def forward(name: str, operands: Sequence[Tensor | float], output: Tensor) -> Cause:
    """What made `output` not finite. `operands` are tensors and numbers in the operator's order, as before it ran."""
    bad = torch.isnan(output) if torch.isnan(output).any() else ~torch.isfinite(output)
    tensors = [one for one in operands if isinstance(one, Tensor) and one.is_floating_point()]
    if any(one.numel() == 0 for one in tensors) or (name in ("var", "std") and tensors[0].numel() < 2):
        return Cause("the mean of nothing: no element was selected (an empty mask?); divide by max(count, 1)")
    held = [_at(one, bad, output) for one in operands]
    known = [value for value in held if value is not None]
    a, b = [*held, None, None][:2]
    got = f"{a:.4g}" if a is not None else ""
    limit = torch.finfo(output.dtype).max
    dtype = str(output.dtype).removeprefix("torch.")

    if name in ("log", "log2", "log10") and a is not None:
        if a == 0:
            return Cause("the log of 0 is -Inf; clamp the input (clamp(min=1e-12)) or use log_softmax, logsigmoid", "0")
        return Cause("a negative number has no log; clamp the input, or check the sign", got)
    if name == "log1p" and a is not None:
        return Cause("log1p has no value at or below -1; clamp the input", got)
    if name == "sqrt" and a is not None:
        return Cause("a negative number has no square root; clamp the input at 0", got)
    if name == "rsqrt" and a is not None:
        return Cause(_division(1.0) if a == 0 else "a negative number has no square root; clamp the input", got)
    if name == "reciprocal" and a == 0:
        return Cause(_division(1.0), "0")
    if name in ("div", "remainder", "fmod", "floor_divide") and a is not None and b == 0:
        return Cause(_division(a), f"{got} / 0")
    if name == "pow" and a is not None and b is not None:
        if a == 0 and b < 0:
            return Cause(_division(1.0), f"0 to the power {b:g}")
        if a < 0 and math.isfinite(b) and not float(b).is_integer():
            return Cause("a negative number has no fractional power; clamp the base at 0", f"{got} to the power {b:g}")
    if name in ("acos", "asin", "atanh", "acosh", "erfinv") and a is not None:
        domain = "at or above 1" if name == "acosh" else "between -1 and 1"
        return Cause(f"{name} is defined {domain} only; clamp the input", got)
    over_rows = name in ("softmax", "log_softmax", "logsumexp", "attention")
    if over_rows and any(torch.isneginf(one).any() for one in tensors):
        return Cause("all entries of a row are -Inf (everything is masked); leave one open, or skip such rows")
    labels = [one for one in operands if isinstance(one, Tensor) and not one.is_floating_point()]
    if name == "nll_loss" and labels and bool((labels[0] == operands[-1]).all()):  # ignore_index
        return Cause("the mean of nothing: every label is ignored (an empty mask?)")
    if len(known) > 1 and name in ("sub", "add") and all(map(math.isinf, known[:2])):
        return Cause("Inf - Inf has no value; mask with a large finite number instead", "Inf - Inf")
    if len(known) > 1 and name == "mul" and 0 in known[:2] and any(map(math.isinf, known[:2])):
        return Cause("0 x Inf has no value; select with torch.where instead of multiplying by a mask", "0 x Inf")
    if name == "constant" or any(isinstance(one, float) and math.isnan(one) for one in operands):
        return Cause("a constant that is NaN")
    constants = [one for one in tensors if torch.isnan(one).any()]
    if constants:
        return Cause(f"an operand of shape {tuple(constants[0].shape)}, neither a weight nor of the batch, is NaN")

    reach = max(
        (float(one[torch.isfinite(one)].abs().amax()) for one in tensors if torch.isfinite(one).any()), default=0
    )
    if name == "cast":
        words = f"overflow: beyond {limit:.4g}, the largest {dtype} number; scale it down, or stay in float32"
        return Cause(words, got, overflow=True)
    if name in ("exp", "exp2", "expm1", "cosh", "sinh"):
        words = f"overflow: the result is beyond {limit:.2g}, the largest {dtype} number; subtract the largest first "
        return Cause(words + "(logsumexp, log_softmax), or clamp", got, overflow=True)
    if name in _PRODUCTS or reach > math.sqrt(limit) / 1e3:
        words = f"overflow: from numbers up to {reach:.2g} to one beyond {limit:.2g}, the largest {dtype} number"
        return Cause(words, overflow=True)
    return Cause(f"not finite, from numbers up to {reach:.2g}", got)


def backward(name: str, actual: Cause) -> Cause:
    """The same for the backward pass of the operator `name`; `actual` is what its own arithmetic says."""
    if actual.overflow or name not in SLOPES:
        return actual
    return Cause(SLOPES[name])


def _division(a: float) -> str:
    helps = "clamp the divisor, or add a small number to it"
    if a == 0:
        return f"0 divided by 0 (the mean over an empty mask, the direction of a zero vector, a spread of 0?); {helps}"
    return f"division by 0; {helps}"


def _at(operand: Tensor | float, bad: Tensor, output: Tensor) -> float | None:
    """An operand's value where the output first is not finite, for operators that work element by element."""
    if not isinstance(operand, Tensor):
        return float(operand)
    try:
        spread = operand.expand(output.shape) if operand.shape != output.shape else operand
    except RuntimeError:
        return None
    return float(spread[bad][0]) if bad.any() else None
