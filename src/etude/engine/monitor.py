"""The explanation of a NaN: which operator made it, in which layer or in the loss, at which line, from which samples.

A training step is a function of the weights before it and of (seed, step), so a step that failed can be kept as
tensors and taken again: `etude replay RUN` does. Taken again, it runs under a mode that sees every operator of the
forward and the backward pass. The first one that makes a number that is not finite from finite ones is the cause, if
the loss or the gradient that failed descends from it; numbers that are infinite on purpose, such as the -Inf of a
mask, are told apart from those that came about.
"""

import linecache
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from etude.data.base import Batch
from etude.engine import causes, health
from etude.errors import UsageError
from etude.tasks.base import LossFn


class NonFinite(Exception):
    """Raised by an update whose loss or gradient is NaN or Inf, before the weights are touched."""

    def __init__(self, loss_fn: LossFn, batch: Batch, player: str, number: int):
        super().__init__(f"the loss or a gradient of player {player} is not finite")
        self.loss_fn, self.batch, self.player, self.number = loss_fn, batch, player, number


@dataclass
class Finding:
    """Where the first value that is not finite came from."""

    what: str
    """One line that names it."""
    layer: str | None = None
    samples: list[int] = field(default_factory=list)
    """Indices in the training split."""
    given: bool = False
    """Whether the batch was to blame as it came, so that the steps before have nothing to tell."""

    def after(self, trend: str) -> "Finding":
        """The same, with what the steps before tell."""
        return replace(self, what=f"{self.what}; {trend}") if trend and not self.given else self

    def json(self) -> dict[str, Any]:
        """As plain values."""
        return {"what": self.what, "layer": self.layer, "samples": self.samples}


def explain(
    model: nn.Module, loss_fn: LossFn, batch: Batch, player: str, parts: int, autocast: AbstractContextManager
) -> Finding:
    """Take an update again, part by part, with every operator watched, and name the first value that is not finite, in
    the order of cause: input, weights, forward pass, loss, backward pass."""
    if given := explain_inputs(batch):
        return given
    for name, p in model.named_parameters():
        if not torch.isfinite(p).all():
            kind = "NaN" if torch.isnan(p).any() else "infinite"
            return Finding(f"the weight {name} was {kind} before the step", health.layer(name))
    mine = model if player == "model" else model.get_submodule(player)
    model.zero_grad()
    with _only(model, mine):
        for micro in split_batch(batch, parts):
            found = _explain_part(model, loss_fn, micro, autocast)
            if found:
                return found
        return _explain_norm(mine) or Finding(
            "the step was finite when it was taken again: the values lie at the edge of the number format"
        )


def explain_inputs(batch: Batch) -> Finding | None:
    """What the batch alone tells: an input that is not finite, and whose. None where all are finite."""
    indices = _indices(batch)
    for name, value in batch.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            bad = _samples(value, indices)
            kind = "NaN" if torch.isnan(value).any() else "infinite"
            return Finding(f"the input {name!r} of {_these(bad)} is {kind}", None, bad, given=True)
    return None


def explain_error(model: nn.Module, loss_fn: LossFn, batch: Batch, autocast: AbstractContextManager) -> str:
    """Take a forward pass again that an operator refused: which operator, where, and which sample's index was out of
    range. Empty where it is not refused again."""
    with _Watch(model, batch) as watch, torch.no_grad():
        try:
            with autocast:
                loss_fn(model, batch)
        except Exception as error:
            return watch.refusal(error)
    return ""


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """A batch as the parts that are accumulated."""
    if parts == 1:
        return [batch]
    for name, value in batch.items():
        if len(value) % parts:
            raise UsageError(
                f"a batch of {len(value)} samples ({name}) does not divide into {parts} parts", hint="--accumulate 1"
            )
    chunks = {name: value.chunk(parts) for name, value in batch.items()}
    return [{name: chunk[i] for name, chunk in chunks.items()} for i in range(parts)]


def _explain_part(model: nn.Module, loss_fn: LossFn, batch: Batch, autocast: AbstractContextManager) -> Finding | None:
    with _Watch(model, batch) as watch, torch.autograd.set_multithreading_enabled(False):
        with autocast:
            loss, _ = loss_fn(model, batch)
        if not torch.isfinite(loss):
            made = watch.origin(loss)
            return made.finding() if made else Finding(f"the loss is {loss.item()}")
        loss.backward()
        bad = [(name, p) for name, p in model.named_parameters() if p.grad is not None and not _finite(p.grad)]
        made = [one for one in (watch.origin(p.grad) for _, p in bad if p.grad is not None) if one]
    if made:
        return min(made, key=lambda one: one.number).finding()
    if bad:
        return Finding(f"the gradient of the weight {bad[0][0]} is not finite", health.layer(bad[0][0]))
    return None


def _explain_norm(mine: nn.Module) -> Finding | None:
    """Gradients may be finite, each by itself, and their norm, a sum of squares, not."""
    reach = {name: float(p.grad.abs().amax()) for name, p in mine.named_parameters() if p.grad is not None}
    name = max(reach, key=reach.__getitem__, default="")
    if not reach or reach[name] < 1e18:
        return None
    far = f"the gradient of the weight {name} reaches {reach[name]:.2g}"
    return Finding(f"{far}: overflow of the gradient's norm, a sum of squares", health.layer(name))


@contextmanager
def _only(model: nn.Module, mine: nn.Module) -> Iterator[None]:
    """Within, only this player's weights take gradients."""
    own = set(mine.parameters())
    others = [p for p in model.parameters() if p.requires_grad and p not in own]
    for p in others:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in others:
            p.requires_grad_(True)


def _indices(batch: Batch) -> list[int]:
    return batch["index"].tolist() if "index" in batch else []


def _finite(tensor: Tensor) -> bool:
    values = tensor if tensor.layout == torch.strided else tensor.values()
    return bool(torch.isfinite(values).all())


def _samples(tensor: Tensor, indices: list[int]) -> list[int]:
    """The samples whose row in `tensor` is not finite; none where its rows are not the samples."""
    if tensor.ndim == 0 or len(tensor) != len(indices) or tensor.layout != torch.strided:
        return []
    bad = ~torch.isfinite(tensor.detach().float())
    return [indices[i] for i in (bad.flatten(1).any(1) if bad.ndim > 1 else bad).nonzero().flatten().tolist()]


def _these(samples: list[int]) -> str:
    shown = ", ".join(map(str, samples[:8])) + (", ..." if len(samples) > 8 else "")
    return f"sample{'s' * (len(samples) != 1)} {shown}" if samples else "the batch"


# --- watching every operator


@dataclass(frozen=True)
class _Place:
    """Where an operator was called: the innermost layer (None: outside the model) and the user's line."""

    operator: str
    layer: str | None
    source: str

    def __str__(self) -> str:
        where = "the loss" if self.layer is None else f"layer {self.layer}" if self.layer else "the model's own forward"
        return f"{self.operator} in {where}" + (f" ({self.source})" if self.source else "")


@dataclass(frozen=True)
class _Made:
    """A number that is not finite, and what made it."""

    number: int
    place: _Place
    cause: causes.Cause
    samples: list[int]
    backward: bool

    def finding(self) -> Finding:
        begin = "the backward pass of " if self.backward else ""
        got = f" got {self.cause.got}" if self.cause.got else ""
        by = f" {'from' if got else 'fails for'} {_these(self.samples)}" if self.samples or not got else ""
        return Finding(f"{begin}{self.place}{got}{by}: {self.cause.words}", self.place.layer or None, self.samples)


_PURPOSE = "on purpose"
"""Stands in the place of an origin for numbers that the program itself set to Inf, and for memory not yet written."""
_UNWRITTEN = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted"}
_PACKAGE = Path(__file__).parents[1]


class _Watch(TorchDispatchMode):
    """Sees each operator, forward and backward, and keeps of every tensor that is not finite what made it so."""

    def __init__(self, model: nn.Module, batch: Batch):
        super().__init__()
        self._indices = _indices(batch)
        self._origins: dict[int, _Made | str] = {}
        """By storage: views of a tensor share its origin."""
        self._rows = {key for value in batch.values() if (key := _key(value)) is not None}
        """Storages whose first dimension is the sample, as they descend from the batch."""
        self._places: dict[int, _Place] = {}
        """By autograd's sequence number: where the node of a backward pass was made."""
        self._layers: list[str] = []
        self._count = 0
        self._refused: tuple[_Place, list[Any]] | None = None
        self._handles = [
            handle
            for name, module in model.named_modules()
            for handle in (
                module.register_forward_pre_hook(self._enter(name)),
                module.register_forward_hook(self._leave),
            )
        ]

    def _enter(self, name: str) -> Callable[[nn.Module, tuple], None]:
        return lambda module, inputs: self._layers.append(name)

    def _leave(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        self._layers.pop()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for handle in self._handles:
            handle.remove()

    def origin(self, tensor: Tensor) -> _Made | None:
        """What made a tensor not finite."""
        made = self._origins.get(_key(tensor) or 0)
        return made if isinstance(made, _Made) else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        keys = [_key(one) for one in before]
        writes = func._schema.is_mutable
        operands = [one.clone() if writes and isinstance(one, Tensor) else one for one in tree_leaves(args)]
        place = self._place(func)
        try:
            out = func(*args, **kwargs)
        except Exception:
            self._refused = self._refused or (place, operands)
            raise
        held = [one for one in operands if isinstance(one, Tensor)] if writes else before
        descends = any(key in self._rows for key in keys)
        made: _Made | str | None = None
        for one in tree_leaves(out):
            if not isinstance(one, Tensor):
                continue
            key = _key(one)
            rows = descends and one.ndim > 0 and len(one) == len(self._indices)
            if key is not None and (rows or key not in keys):
                (self._rows.add if rows else self._rows.discard)(key)
            if not one.is_floating_point() or _finite(one):
                if key not in keys or writes:
                    self._origins.pop(key or 0, None)
                continue
            made = made or self._made(func, place, held, keys, operands, one, rows)
            if key is not None:
                self._origins[key] = made
        return out

    def _made(
        self,
        func: Any,
        place: _Place,
        held: list[Tensor],
        keys: list[int | None],
        operands: list[Any],
        out: Tensor,
        rows: bool,
    ) -> _Made | str:
        """What made `out` not finite: this operator, or what made one of its operands so."""
        name = causes.name_of(func)
        if name in _UNWRITTEN:
            return _PURPOSE
        origins = [
            self._origins.get(key or 0) for one, key in zip(held, keys) if one.is_floating_point() and not _finite(one)
        ]
        known = [origin for origin in origins if isinstance(origin, _Made)]
        if known:
            return min(known, key=lambda origin: origin.number)
        numbers = [one for one in operands if isinstance(one, int | float) and not isinstance(one, bool)]
        purpose = bool(origins) or any(math.isinf(number) for number in numbers)
        if purpose and not torch.isnan(out).any():
            return _PURPOSE
        self._count += 1
        values = [one for one in operands if isinstance(one, Tensor | int | float) and not isinstance(one, bool)]
        cause = causes.forward(name, values, out.detach())
        backward = torch._C._current_autograd_node() is not None
        if backward:
            cause = causes.backward(place.operator, cause)
        samples = _samples(out, self._indices) if rows else []
        return _Made(self._count, place, cause, samples, backward)

    def _place(self, func: Any) -> _Place:
        """Of an operator of the forward pass: here. Of the backward pass: where the node was made that it works for."""
        node = torch._C._current_autograd_node()
        if node is not None:
            known = self._places.get(node._sequence_nr())
            return known or _Place(node.name().removesuffix("0").removesuffix("Backward"), "", "")
        number = torch._C._autograd._get_sequence_nr() - 1  # pyright: ignore[reportAttributeAccessIssue] - not in the stubs
        layer = self._layers[-1] if self._layers else None
        place = _Place(causes.name_of(func), layer, _source())
        if torch.is_grad_enabled():
            self._places.setdefault(number, place)
        return place

    def refusal(self, error: Exception) -> str:
        """What an operator refused, in words: the index that is out of range, and whose."""
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        if self._refused is None:
            where = next((f"layer {name}" for name in reversed(self._layers) if name), "the loss")
            return f"{where} refuses the batch: {said}"
        place, operands = self._refused
        tensors = [one for one in operands if isinstance(one, Tensor)]
        table = next((t for t in tensors if t.is_floating_point()), None)
        index = next((t for t in tensors if not t.is_floating_point() and t.dtype != torch.bool), None)
        if table is not None and index is not None and place.operator in ("nll_loss", "embedding"):
            label = place.operator == "nll_loss"
            size = table.shape[min(1, table.ndim - 1) if label else 0]
            out = (index < 0) | (index >= size)
            if label:
                out &= index != next((n for n in reversed(operands) if isinstance(n, int)), -100)
            if out.any():
                rows = (out.flatten(1).any(1) if out.ndim > 1 else out).nonzero().flatten().tolist()
                whose = f" of sample {self._indices[rows[0]]}" if len(out) == len(self._indices) else ""
                value = int(index[out][0])
                what, of = ("label", "classes") if label else ("index", "rows")
                return f"{what} {value}{whose} is out of range in {place}: there are {size} {of}, 0 to {size - 1}"
        return f"{place} refuses the batch: {said}"


def _key(tensor: Tensor) -> int | None:
    """The storage's identity; a sparse tensor has none."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else None


@cache
def _passed_over() -> tuple[str, ...]:
    """What is in the names of files that are torch's or ours."""
    return (str(Path(torch.__file__).parent), __file__, "/jaxtyping/", "/beartype/", "<")


def _source() -> str:
    """file:line of the innermost frame that is neither torch's nor ours: "tasks/classify.py:63"."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if not any(ours in name for ours in _passed_over()):
            path = Path(name)
            short = path.relative_to(_PACKAGE).as_posix() if path.is_relative_to(_PACKAGE) else path.name
            return f"{short}:{frame.f_lineno}" if linecache.getline(name, frame.f_lineno) else short
        frame = frame.f_back
    return ""
