"""A function of one number, written as arithmetic: data without a file, for seeing what a network can fit.

An expression is parsed to a syntax tree and computed by a walk over it that knows numbers, x, pi, e, + - * / **, and
the functions of the table below: nothing in it is ever run as code.
"""

import ast
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from etude.data import order
from etude.data.base import Batch, Data, Dataset
from etude.errors import UsageError, nearest

Array = NDArray[np.float64]
LONGEST = 500
"""Characters of an expression."""
MOST = 1_000_000
"""Points of a split."""

FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "tanh": np.tanh,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "abs": np.abs,
    "sign": np.sign,
    "floor": np.floor,
    "relu": lambda x: np.maximum(x, 0.0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}
OPERATORS: dict[type[ast.AST], Callable[..., Array]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Pow: np.power,
    ast.USub: np.negative,
    ast.UAdd: np.positive,
}
CONSTANTS = {"pi": math.pi, "e": math.e}
HINT = f"numbers, x, pi, e, + - * / ** and {', '.join(FUNCTIONS)}, e.g. sin(3*x)+0.3*x"


def evaluate(expression: str, x: Array) -> Array:
    """The values of an expression at the points x: (n,) -> (n,). UsageError names what is not arithmetic, or the point
    at which it has no finite value."""
    if len(expression) > LONGEST:
        raise UsageError(f"the expression has {len(expression):,} characters; {LONGEST} are the most")
    try:
        tree = ast.parse(expression.strip().replace("^", "**"), mode="eval")
        with np.errstate(all="ignore"):
            values = np.broadcast_to(_compute(tree.body, x), x.shape).astype(np.float64)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{expression!r} is not arithmetic", hint=HINT) from None
    finite = np.abs(values) <= np.finfo(np.float32).max  # NaN is not; a network computes in float32
    if not finite.all():
        where = x[~finite][0]
        raise UsageError(f"{expression!r} has no finite value at x = {where:.4g}", hint="--data.low and --data.high")
    return values


def _compute(node: ast.AST, x: Array) -> Array:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return np.float64(value)  # pyright: ignore[reportReturnType] - a scalar broadcasts like an array
        case ast.Name(id="x"):
            return x
        case ast.Name(id=name) if name in CONSTANTS:
            return np.float64(CONSTANTS[name])  # pyright: ignore[reportReturnType]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_compute(left, x), _compute(right, x))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_compute(operand, x))
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](_compute(argument, x))
        case ast.Call(func=ast.Name(id=name)) | ast.Name(id=name):
            near = nearest(name, [*FUNCTIONS, *CONSTANTS, "x"])
            taken = name in FUNCTIONS
            raise UsageError(
                f"{name} takes one number in parentheses" if taken else f"{name!r} is not known in an expression",
                hint=near if near and not taken else HINT,
            )
    raise UsageError(f"{ast.unparse(node)!r} is not arithmetic", hint=HINT)


@dataclass(frozen=True)
class Function(Data):
    """y = f(x) on [low, high]: training points are drawn evenly, with noise if wanted; test points lie on a grid."""

    expression: str = "sin(3*x) + 0.3*x"
    """Arithmetic in x; `FUNCTIONS` lists what it may call."""
    low: float = -3.0
    high: float = 3.0
    noise: float = 0.0
    """Standard deviation of what is added to the y of training points."""
    train: int = 1024
    """Points to learn from."""
    test: int = 1000

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UsageError(f"data.low {self.low} must lie below data.high {self.high}")
        if not 0 <= self.noise < math.inf or self.train < 1 or self.test < 2:
            raise UsageError(
                f"data.noise {self.noise} must not be negative, data.train {self.train} and data.test {self.test} not "
                "below 1 and 2"
            )
        if max(self.train, self.test) > MOST:
            raise UsageError(f"data.train {self.train:,} and data.test {self.test:,} must not be above {MOST:,}")
        evaluate(self.expression, np.linspace(self.low, self.high, self.test))

    def open(self) -> "FunctionSet":
        return FunctionSet(self)

    def prepare(self, raw: Any) -> Tensor:
        """A number, or text that says one -> (1,)."""
        try:
            value = float(raw)
        except (TypeError, ValueError, OverflowError):
            raise UsageError(f"{raw!r} is not a number", hint="etude predict RUN 0.5 1.5") from None
        if not math.isfinite(value):
            raise UsageError(f"{raw!r} is not a finite number")
        return torch.tensor([value])

    def collate(self, samples: list[Tensor]) -> Batch:
        """{"x": (B, 1)} as the network takes it."""
        return {"x": self.scale(torch.stack(samples))}

    def scale(self, x: Tensor) -> Tensor:
        """To mean 0 and variance 1: [low, high] -> [-sqrt 3, sqrt 3]."""
        return (2 * (x - self.low) / (self.high - self.low) - 1) * 3**0.5


class FunctionSet(Dataset):
    """{"x": (B, 1) scaled, "y": (B, 1), "at": (B,) unscaled, "index": (B,)}."""

    def __init__(self, data: Function):
        self.data, self.sizes = data, {"train": data.train, "test": data.test}
        self.facts = {"source": data.expression, "sizes": self.sizes}
        drawn = order.uniform(0x5EED, 0, np.arange(data.train), 1)[:, 0]
        noise = order.uniform(0x5EED, 1, np.arange(data.train), 2).T
        gauss = np.sqrt(-2 * np.log1p(-noise[0])) * np.cos(2 * np.pi * noise[1])  # Box and Muller, 1958
        x = {"train": data.low + (data.high - data.low) * drawn, "test": np.linspace(data.low, data.high, data.test)}
        y = {split: evaluate(data.expression, points) for split, points in x.items()}
        y["train"] = y["train"] + data.noise * gauss
        self._points = {s: (torch.from_numpy(x[s]).float(), torch.from_numpy(y[s]).float()) for s in x}

    def fetch(self, split: str, indices, *, epochs=None, seed: int = 0) -> Batch:
        rows = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        x, y = (values[rows] for values in self._points[split])
        return {"x": self.data.scale(x[:, None]), "y": y[:, None], "at": x, "index": rows}

    def samples(self, split: str, count: int) -> list[tuple[str, Any]]:
        """Points of the split with their true values."""
        count = min(count, self.sizes[split])
        rows = [i * self.sizes[split] // count for i in range(count)]
        x, y = self._points[split]
        return [(f"{split} x = {x[i]:.4g}, truly {y[i]:.4g}", float(x[i])) for i in rows]
