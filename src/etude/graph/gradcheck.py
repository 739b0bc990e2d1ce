"""The chain rule, checked: what autograd says of each layer against central finite differences in float64.

For a layer's parameters theta and a direction d of length 1, the derivative of the loss L along d is

    autograd            g . d,   g = dL/dtheta
    finite difference   (L(theta + h d) - L(theta - h d)) / 2h

with error O(h^2) where L is smooth. Along two directions a layer: a random one, which meets every entry, and that of g
itself, along which most is felt. Dropout draws the same masks at every evaluation, and BatchNorm's running statistics
are put back, so L is one function.

ReLU and max-pooling bend. A kink that lies within h of theta spoils the difference, in proportion to h as fewer kinks
lie within a smaller step; a wrong backward does not care about h. So the step shrinks, tenfold at a time, until the two
agree, which is "ok" at the step that the table shows. A kink at theta itself (a ReLU at exactly 0, equal entries under
a maximum) remains at every step: there the differences to the two sides disagree however small the step, and autograd
has to choose. Such a layer is checked again at a point a little aside, which is on no kink; if it agrees there it is a
"kink". All else is "FAILED".

Where the layers of a model fail, every module call is checked alone on the inputs that it had, and the innermost that
fails are named: a wrong backward spoils the gradients of all layers before it, but only its own alone.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from etude.errors import UsageError
from etude.graph.subject import Subject, project

STEPS = (1e-5, 1e-6, 1e-7, 1e-8)
"""h, as a share of the norm of what is moved (at least 1)."""
TOLERANCE = 1e-5
"""Relative."""
ROUNDING = 200 * torch.finfo(torch.float64).eps
"""Of an evaluation, as a share of |L|: a difference cannot be told from 0 below ROUNDING |L| / h."""
NEAR = 1e-2
"""An error that shrank with the step, to less than this share, is a kink's."""
ASIDE = 1e-3
"""How far aside a layer is moved off a kink, as a share of the norm of what is moved (at least 1)."""


@dataclass(frozen=True)
class Row:
    """One layer's outcome; of its directions the one that agreed worst."""

    layer: str
    type: str
    parameters: int
    autograd: float
    difference: float
    error: float
    """|autograd - difference| / max(|autograd|, |difference|)."""
    step: float
    """h of the difference shown."""
    verdict: str
    """"ok", "zero" (both too small for float64 to tell from 0), "kink" or "FAILED"."""

    @property
    def ok(self) -> bool:
        return self.verdict != "FAILED"

    def cells(self) -> list[str]:
        """As cells of a table."""
        numbers = [f"{self.autograd:+.6e}", f"{self.difference:+.6e}", f"{self.error:.1e}", f"{self.step:.0e}"]
        return [self.layer, self.type, f"{self.parameters:,}" if self.parameters else "", *numbers, self.verdict]

    def json(self) -> dict[str, Any]:
        """JSON knows no infinity or NaN: such a number is null."""
        said = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}
        return said | {"ok": self.ok}


@dataclass(frozen=True)
class Outcome:
    rows: list[Row]
    culprits: list[Row]
    """Where rows failed: the innermost modules whose own backward is wrong."""

    @property
    def ok(self) -> bool:
        return all(row.ok for row in self.rows)

    def said(self) -> str:
        """In words."""
        failed = [row.layer for row in self.rows if not row.ok]
        if not failed:
            return f"all {len(self.rows)} agree"
        names = ", ".join(f"{row.layer} ({row.type})" for row in self.culprits)
        blame = f"the backward pass of {names} is wrong" if names else "each module alone agrees: look between them"
        return f"{len(failed)} of {len(self.rows)} FAILED; {blame}"


def gradcheck(subject: Subject) -> Outcome:
    """Every layer with parameters of its own, and the floating inputs; see above. The subject must be in float64."""
    model, inputs = subject.model, subject.inputs
    layers: list[tuple[str, str, list[Tensor]]] = []
    for name, module in model.named_modules():
        own: list[Tensor] = [p for p in module.parameters(recurse=False) if p.requires_grad]
        if own:
            layers.append((name or "(model)", type(module).__name__, own))
    floats = [(name, t) for name, t in inputs.items() if t.is_floating_point() and t.layout is torch.strided]
    groups = [*[("input " + name, "", [tensor]) for name, tensor in floats], *layers]
    function = _Function(lambda: subject.scalar(subject()), model.buffers())
    with torch.random.fork_rng(devices=[]):
        for _, tensor in floats:
            tensor.requires_grad_()
        rows = list(_rows(function, groups))
        culprits = [] if all(row.ok for row in rows) else _blame(subject)
    return Outcome(rows, culprits)


class _Function:
    """A scalar of tensors that are changed in place; each evaluation starts from the same buffers."""

    def __init__(self, scalar: Callable[[], Tensor], buffers: Iterable[Tensor]) -> None:
        self.scalar = scalar
        self.buffers = [(buffer, buffer.clone()) for buffer in buffers]

    def __call__(self) -> Tensor:
        with torch.no_grad():
            for buffer, kept in self.buffers:
                buffer.copy_(kept)
        value = self.scalar()
        if value.dtype is not torch.float64:
            raise UsageError(f"the loss comes out in {str(value.dtype).removeprefix('torch.')}, not in float64")
        return value

    def gradient(self, tensors: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        """Its value, and the gradient of each tensor; zero where there is none."""
        with torch.enable_grad():
            value = self()
            if not value.requires_grad:
                raise UsageError("the loss does not depend on any parameter or input")
            found = torch.autograd.grad(value, tensors, allow_unused=True)
        return value.item(), [torch.zeros_like(t) if g is None else g.detach() for t, g in zip(tensors, found)]

    @torch.no_grad()
    def moved(self, tensors: Sequence[Tensor], direction: Sequence[Tensor], h: float) -> float:
        """Its value at tensors + h direction."""
        kept = [t.clone() for t in tensors]
        try:
            for t, d in zip(tensors, direction):
                t.add_(d, alpha=h)
            return self().item()
        finally:
            for t, k in zip(tensors, kept):
                t.copy_(k)


def _rows(function: _Function, groups: Sequence[tuple[str, str, list[Tensor]]]) -> Iterator[Row]:
    value, gradients = function.gradient([t for _, _, group in groups for t in group])
    left = iter(gradients)
    generator = torch.Generator().manual_seed(2)

    def drawn(group: Sequence[Tensor]) -> list[Tensor]:
        return _unit([torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in group])

    for name, kind, group in groups:
        gradient = [next(left) for _ in group]
        directions = [drawn(group)] + ([_unit(gradient)] if any(bool(g.any()) for g in gradient) else [])
        outcomes = []
        for direction in directions:
            outcome, bent = _compare(function, value, group, gradient, direction)
            if outcome[0] == "FAILED" and bent and _agrees_aside(function, group, drawn(group), direction):
                outcome = ("kink", *outcome[1:])
            outcomes.append(outcome)
        order = ("ok", "zero", "kink", "FAILED")
        worst = max(outcomes, key=lambda outcome: (order.index(outcome[0]), outcome[3]))
        told = [outcome for outcome in outcomes if outcome[0] != "zero"]
        if worst[0] == "zero" and told:  # too little along one direction says nothing against the other
            worst = told[0]
        verdict, autograd, difference, error, step = worst
        parameters = 0 if name.startswith("input ") else sum(t.numel() for t in group)
        yield Row(name, kind, parameters, autograd, difference, error, step, verdict)


def _unit(direction: Sequence[Tensor]) -> list[Tensor]:
    norm = torch.stack([d.norm() for d in direction]).norm()
    return [d / norm for d in direction]


@torch.no_grad()
def _agrees_aside(
    function: _Function, tensors: Sequence[Tensor], aside: Sequence[Tensor], direction: Sequence[Tensor]
) -> bool:
    kept, far = [t.clone() for t in tensors], ASIDE * _scale(tensors)
    try:
        for t, d in zip(tensors, aside):
            t.add_(d, alpha=far)
        value, gradient = function.gradient(tensors)
        return _compare(function, value, tensors, gradient, direction)[0][0] != "FAILED"
    finally:
        for t, k in zip(tensors, kept):
            t.copy_(k)


def _scale(tensors: Sequence[Tensor]) -> float:
    return max(1.0, float(torch.stack([t.detach().norm() for t in tensors]).norm()))


def _compare(
    function: _Function,
    value: float,
    tensors: Sequence[Tensor],
    gradient: Sequence[Tensor],
    direction: Sequence[Tensor],
) -> tuple[tuple[str, float, float, float, float], bool]:
    """(verdict, autograd, difference, relative error, step) along one direction; and whether the point itself is on a
    kink: the differences to the two sides do not come nearer to each other with the step, as they do where L is
    smooth."""
    autograd = sum(float((g * d).sum()) for g, d in zip(gradient, direction))
    best = ("FAILED", autograd, math.nan, math.inf, STEPS[0])
    errors: list[float] = []
    bends: list[float] = []
    for share in STEPS:
        h = share * _scale(tensors)
        ahead, behind = function.moved(tensors, direction, h), function.moved(tensors, direction, -h)
        difference = (ahead - behind) / (2 * h)
        size, gap = max(abs(autograd), abs(difference)), abs(autograd - difference)
        noise = ROUNDING * max(abs(value), 1e-3) / h
        if not math.isfinite(gap):
            return ("FAILED", autograd, difference, math.inf, h), False
        error = gap / size if size else 0.0
        if size <= noise:
            return ("zero", autograd, difference, 0.0, h), False
        if gap <= TOLERANCE * size or gap <= noise < NEAR * size:
            return ("ok", autograd, difference, error, h), False
        if error < best[3]:
            best = ("FAILED", autograd, difference, error, h)
        errors.append(error)
        bends.append(abs(ahead - 2 * value + behind) / h)
    if best[3] < NEAR and best[3] < 0.3 * errors[0]:
        return ("kink", *best[1:]), False
    return best, bends[1] > 0.5 * bends[0] and bends[1] > TOLERANCE * abs(autograd)


# -------------------------------------------------------------------- who is to blame


def _blame(subject: Subject) -> list[Row]:
    """The innermost modules whose backward, alone on the inputs they had, is not the derivative of their forward."""
    calls: list[tuple[str, nn.Module, tuple, dict, list[Tensor]]] = []
    with ExitStack() as stack:
        for name, module in subject.model.named_modules():

            def keep(module: nn.Module, args: tuple, kwargs: dict, name: str = name) -> None:
                args, kwargs = tree_map_only(Tensor, lambda t: t.detach().clone(), (args, kwargs))
                buffers = [buffer.clone() for buffer in module.buffers()]
                calls.append((name, module, args, kwargs, buffers))

            stack.callback(module.register_forward_pre_hook(keep, with_kwargs=True).remove)
        with torch.no_grad():
            subject()
    failed: dict[str, Row] = {}
    for name, module, args, kwargs, buffers in calls:
        if name not in failed and (row := _alone(subject, name, module, args, kwargs, buffers)) is not None:
            failed[name] = row
    return [row for name, row in failed.items() if not any(_within(other, name) for other in failed)]


def _within(inner: str, outer: str) -> bool:
    return inner != outer and (inner.startswith(outer + ".") or not outer)


def _alone(
    subject: Subject, name: str, module: nn.Module, args: tuple, kwargs: dict, buffers: list[Tensor]
) -> Row | None:
    """Its row where it fails."""
    with torch.no_grad():
        for buffer, kept in zip(module.buffers(), buffers):
            buffer.copy_(kept)
    moved = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.is_floating_point()]
    moved = [t.requires_grad_() for t in moved if t.layout is torch.strided and bool(t.isfinite().all())]
    moved += [p for p in module.parameters() if p.requires_grad]

    def scalar() -> Tensor:
        subject.seed()
        given, named = tree_map_only(Tensor, lambda t: t.clone() if t.is_floating_point() else t, (args, kwargs))
        return project(module(*given, **named))  # clones, as the module may write into what it is given

    if not moved:
        return None
    try:
        rows = list(_rows(_Function(scalar, module.buffers()), [(name or "(model)", type(module).__name__, moved)]))
    except UsageError:  # nothing to differentiate, such as a tokenizer or a mask
        return None
    return rows[0] if not rows[0].ok else None
