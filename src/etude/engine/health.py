"""Gradient health: what a step does to each layer, and the words that say where it is going wrong.

A `Probe` watches one update: the norm of each layer's gradient, the root mean square of its output, the length of the
update beside that of the weights, and the units of an activation that no sample of the batch moves. It is made in the
steps that are due (`every`) and hooks the layers for these alone; it only reads, so that a run with and without it is
the same to the last bit.

A `Judge` reads what was measured, step after step, and says once when something is wrong and once when it is cured. It
keeps nothing that metrics.jsonl does not hold: after a resume it has read that file and goes on where it stood.
"""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from etude.engine.parallel import World, full

Measured = dict[str, dict[str, float]]
"""KINDS -> layer -> value."""
KINDS = ("grad_norms", "act_norms", "update_ratios", "dead_units")

SATURATED = 0.01
"""A sigmoid is saturated within this of 0 or 1, where its slope is below 4 % of its largest; tanh is a sigmoid, twice
as high and as steep."""
VANISHED = 1e-7
"""Of the largest layer's gradient, both per weight: far below this a layer stands still while the others learn. The
median would be dragged down with the rest of a deep network whose gradient shrinks from layer to layer; the largest is
that of the layers near the loss, and what lies below 1e-7 of the median lies below 1e-7 of it, too."""
EXPLODED, GREW = 1e3, 10.0
"""Times the median layer's gradient, both per weight, while also GREW times the layer's own median of the last
measurements. For the whole network: EXPLODED times its own median, and GREW times the largest ever measured."""
REWRITTEN = 1.0
"""An update as long as the weights it changes; about 1e-3 is usual."""
DEAD = 0.5
"""The share of a layer's units."""
AGREE = 2
"""Measurements in a row that must say so before anything is said: a single odd batch, or the first step of a branch
that starts from zero, is no illness."""
ALARMED = 3
MEMORY = 20

_ZEROED = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Threshold)
_SATURATING = {nn.Sigmoid: (0.5, 0.5), nn.Tanh: (0.0, 1.0)}
"""The middle of their range, and half its length."""


def every(log_every: int, steps: int) -> int:
    """Steps from one measurement to the next: fifty measurements a run, but a third as often as is logged at most. A
    measured step of a small network costs a third more than others (docs/health.md): spread over these, 1 %."""
    return max(3 * log_every, steps // 50)


def layer(parameter: str) -> str:
    """The layer that a parameter belongs to; one of the model itself is a layer of its own."""
    return parameter.rpartition(".")[0] or parameter


class Probe:
    """Measures one update at a time, in the order `outputs` (around the passes), `before`, `after` (around the
    optimiser's step)."""

    def __init__(self, model: nn.Module):
        watched = [
            (name or "model", module)
            for name, module in model.named_modules()
            if module._parameters or isinstance(module, (*_ZEROED, *_SATURATING))
        ]
        self._hooks = [(module, self._hook(name, module)) for name, module in watched]
        self._order = {name: place for place, (name, _) in enumerate(watched)}
        self._squares: dict[str, list[tuple[Tensor, int]]] = {}
        self._alive: dict[str, Tensor] = {}
        self._channels = False

    @contextlib.contextmanager
    def outputs(self) -> Iterator[None]:
        """Within, the outputs of layers with weights and of activations are measured: over all parts of a batch."""
        self._squares, self._alive = {}, {}
        handles = [module.register_forward_hook(hook) for module, hook in self._hooks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str, module: nn.Module) -> Callable[[nn.Module, tuple, Any], None]:
        saturating = next((place for kind, place in _SATURATING.items() if isinstance(module, kind)), None)
        unit_wise = saturating is not None or isinstance(module, _ZEROED)
        channels = isinstance(module, _ConvNd | _NormBase | nn.GroupNorm)

        def after(module: nn.Module, inputs: tuple, output: Any) -> None:
            while isinstance(output, tuple | list) and output:
                output = output[0]
            if not (isinstance(output, Tensor) and output.is_floating_point() and output.numel()):
                return
            if output.layout != torch.strided:
                return
            value, count = output.detach(), output.numel()
            if value.dtype in (torch.bfloat16, torch.float16):
                value = value.float()
            if unit_wise:
                axes = self._but_units(value)
                norms = torch.linalg.vector_norm(value, dim=axes) if axes else value.abs()
                alive = norms > 0  # a norm is exactly 0 where everything is (or too small to be squared)
                if saturating:
                    middle, half = saturating
                    away = (value - middle).abs_()
                    alive = (away.amin(axes) if axes else away) < half * (1 - 2 * SATURATED)
                known = self._alive.get(name)
                self._alive[name] = alive if known is None or known.shape != alive.shape else alive | known
                value = norms
            else:
                self._channels = channels
            self._squares.setdefault(name, []).append((torch.linalg.vector_norm(value), count))

        return after

    def _but_units(self, value: Tensor) -> list[int]:
        """The axes that samples and places lie on. Units are what the layer before has as units: the second axis (a
        channel) after a convolution, else the last."""
        unit = 1 if value.ndim > 3 or (self._channels and value.ndim > 1) else value.ndim - 1
        return [axis for axis in range(value.ndim) if axis != unit]

    @torch.no_grad()
    def before(self, parameters: Sequence[tuple[str, Tensor]], norms: Sequence[Tensor]) -> None:
        """The weights that are about to move, and the norms of their gradients, in the same order."""
        self._names, self._moving, self._norms = [name for name, _ in parameters], [p for _, p in parameters], norms
        self._held = [p.detach().clone() for p in self._moving]

    @torch.no_grad()
    def after(self, world: World) -> Measured:
        """What was measured; the same on all processes."""
        weights = [full(norm) for norm in torch._foreach_norm(self._held)]
        moved = [full(norm) for norm in torch._foreach_norm(torch._foreach_sub(self._moving, self._held))]
        passes = [norm for seen in self._squares.values() for norm, _ in seen]
        dead = [] if world.size > 1 else [1 - alive.float().mean() for alive in self._alive.values()]
        numbers = torch.stack([value.float() for value in (*self._norms, *moved, *weights, *passes, *dead)]).tolist()
        take = iter(numbers)
        gradients, steps, lengths = ({name: next(take) for name in self._names} for _ in range(3))
        sums = {
            name: (sum((next(take) ** 2 for _ in seen), 0.0), sum(count for _, count in seen))
            for name, seen in self._squares.items()
        }
        shares = dict(zip(self._alive, take))
        if world.size > 1:
            sums, shares = self._share(world, sums)
        changed, weight = _by_layer(steps), _by_layer(lengths)
        # a layer of zeros has no length that an update could be compared with
        ratios = {name: changed[name] / weight[name] for name in changed if weight[name] > 0}
        order = self._order
        return {
            "grad_norms": _by_layer(gradients),
            "act_norms": {n: math.sqrt(sums[n][0] / sums[n][1]) for n in sorted(sums, key=order.__getitem__)},
            "update_ratios": ratios,
            "dead_units": {n: shares[n] for n in sorted(shares, key=order.__getitem__)},
        }

    def _share(
        self, world: World, sums: dict[str, tuple[float, int]]
    ) -> tuple[dict[str, tuple[float, int]], dict[str, float]]:
        """Sums over all processes, and the dead units: those that are so on each."""
        gathered = world.gather((sums, {name: alive.cpu() for name, alive in self._alive.items()}))
        whole = {
            name: (
                sum((theirs[name][0] for theirs, _ in gathered), 0.0),
                sum(theirs[name][1] for theirs, _ in gathered),
            )
            for name in sums
        }
        alive = {name: torch.stack([theirs[name] for _, theirs in gathered]).any(0) for name in self._alive}
        return whole, {name: 1 - float(one.float().mean()) for name, one in alive.items()}


def _by_layer(norms: dict[str, float]) -> dict[str, float]:
    """Norms of parameters -> norms of layers, weight and bias together."""
    squares: dict[str, float] = {}
    for name, norm in norms.items():
        squares[layer(name)] = squares.get(layer(name), 0.0) + norm * norm
    return {name: square**0.5 for name, square in squares.items()}


def line(measured: Measured) -> Measured:
    """As metrics.jsonl holds it: what is only looked at is kept to four digits; what overflowed is left out, as JSON
    knows finite numbers only."""
    return {
        kind: {
            name: value if kind == "grad_norms" else float(f"{value:.4g}")
            for name, value in values.items()
            if math.isfinite(value)
        }
        for kind, values in measured.items()
    }


def parse(document: dict[str, Any]) -> Measured | None:
    """What `line` made, out of a line of metrics.jsonl: its numbers, if one is damaged. None for other lines."""
    if "grad_norms" not in document:
        return None
    held = {kind: document[kind] for kind in KINDS if isinstance(document.get(kind), dict)}
    return {
        kind: {name: value for name, value in values.items() if type(value) is float and math.isfinite(value)}
        for kind, values in held.items()
    }


# --- what it means


class Alarms:
    """Says what a task finds amiss in its own logs: once a kind, when it was so in ALARMED logged steps in a row, or in
    as many as `after` says of the kind."""

    def __init__(self, after: Mapping[str, int] | None = None) -> None:
        self._after = after or {}
        self._often: dict[str, int] = {}
        self._told: set[str] = set()

    def __call__(self, amiss: dict[str, str]) -> list[str]:
        """What is to be said of a logged step, a line each. `amiss`: kind -> words."""
        self._often = {kind: self._often.get(kind, 0) + 1 for kind in amiss}
        due = [
            kind
            for kind, often in self._often.items()
            if often >= self._after.get(kind, ALARMED) and kind not in self._told
        ]
        self._told |= set(due)
        return [amiss[kind] for kind in due]


class Judge:
    """Says what appears and what is cured, each once. `sizes`: the number of weights of each layer."""

    def __init__(self, sizes: dict[str, int], players: Sequence[str]):
        self._sizes, self._players = sizes, players
        self.last: Measured = {}
        self._ill: set[tuple[str, str]] = set()
        self._advised: set[str] = set()
        self._disagree: dict[tuple[str, str], int] = {}
        self._past: dict[str, deque[float]] = {}
        self._largest: dict[str, float] = {}

    @staticmethod
    def of(parameters: dict[str, nn.Parameter], players: Sequence[str]) -> "Judge":
        """A judge of these parameters' layers."""
        sizes: dict[str, int] = {}
        for name, p in parameters.items():
            sizes[layer(name)] = sizes.get(layer(name), 0) + p.numel()
        return Judge(sizes, players)

    def __call__(self, measured: Measured) -> list[str]:
        """What is to be said of a step, a line each."""
        self.last = measured
        found: dict[str, dict[str, tuple[bool, float]]] = {kind: {} for kind in _WORDS}
        for player in self._players:
            mine = {
                name: norm / math.sqrt(self._sizes.get(name, 1))
                for name, norm in measured.get("grad_norms", {}).items()
                if player == "model" or name == player or name.startswith(f"{player}.")
            }
            if mine:
                self._gradients(player, mine, found)
        for name, ratio in measured.get("update_ratios", {}).items():
            found["rewritten"][name] = (ratio > REWRITTEN * self._half("rewritten", name), ratio)
        for name, share in measured.get("dead_units", {}).items():
            found["dead"][name] = (share > DEAD * self._half("dead", name), share)
        said = []
        for kind, layers in found.items():
            appeared, cured = self._changes(kind, {name: ill for name, (ill, _) in layers.items()})
            if appeared:
                said.append(
                    _appeared(kind, {name: layers[name][1] for name in appeared}, advise=kind not in self._advised)
                )
                self._advised.add(kind)
            if cured:
                said.append(f"{_WORDS[kind][1]} {_listed(cured)}")
        return said

    def _half(self, kind: str, name: str) -> float:
        """What is ill is well again below half of where it began, so that nothing is said over and over."""
        return 0.5 if (kind, name) in self._ill else 1.0

    def _gradients(self, player: str, mine: dict[str, float], found: dict[str, dict[str, tuple[bool, float]]]) -> None:
        """Gradients per weight (root mean squares) of one player's layers, against each other and their own past."""
        largest, middle = max(mine.values()), median(mine.values())
        for name, value in mine.items():
            if largest > 0:
                limit = VANISHED * (10 if ("vanishing", name) in self._ill else 1)
                found["vanishing"][name] = (value < limit * largest, value / largest)
            past = self._past.setdefault(name, deque(maxlen=MEMORY))
            grew = len(past) > AGREE and value > GREW * median(past)
            above = value / middle if middle > 0 else math.inf
            stays = ("exploding", name) in self._ill and value > median(past)
            found["exploding"][name] = (above > EXPLODED and (grew or stays), above)
            past.append(value)
        total = math.sqrt(sum(value * value * self._sizes.get(name, 1) for name, value in mine.items()))
        past = self._past.setdefault(f"all of {player}", deque(maxlen=MEMORY))
        ever = self._largest.get(player, math.inf)
        often = median(past) if past else math.inf
        found["growing"][player] = (len(past) > AGREE and total > max(EXPLODED * often, GREW * ever), total / often)
        if not found["growing"][player][0]:
            past.append(total)
            self._largest[player] = max(total, self._largest.get(player, 0.0))

    def _changes(self, kind: str, ill: dict[str, bool]) -> tuple[list[str], list[str]]:
        """The layers of which AGREE measurements in a row now say otherwise than before: (ill, well)."""
        changed: tuple[list[str], list[str]] = [], []
        for name, now in ill.items():
            key = (kind, name)
            self._disagree[key] = self._disagree.get(key, 0) + 1 if now != (key in self._ill) else 0
            if self._disagree[key] == AGREE:
                self._disagree[key] = 0
                (self._ill.add if now else self._ill.discard)(key)
                changed[0 if now else 1].append(name)
        return changed


_WORDS = {
    "vanishing": (
        "gradients vanish in",
        "gradients no longer vanish in",
        "{:.2g} of the largest layer's per weight",
        "he_normal with relu, BatchNorm or residuals",
    ),
    "exploding": (
        "gradients explode in",
        "gradients no longer explode in",
        "{:.2g} times the median layer's per weight, and growing",
        "--clip 1.0, or a lower --optim.lr",
    ),
    "growing": (
        "gradients explode in all layers of",
        "gradients no longer explode in all layers of",
        "{:.2g} times what they were",
        "--clip 1.0, or a lower --optim.lr",
    ),
    "rewritten": (
        "updates are too large in",
        "updates are no longer too large in",
        "{:.2g} times the weights that they change, where 0.001 is usual",
        "a lower --optim.lr, or --schedule.warmup",
    ),
    "dead": (
        "units are dead in",
        "units live again in",
        "{:.0%} of them give the same for every sample of the batch (0, or saturated)",
        "a lower --optim.lr, he_normal with relu, BatchNorm before the activation",
    ),
}
"""What is said when it appears, when it is cured, how far it goes, what usually helps."""


def _appeared(kind: str, values: dict[str, float], *, advise: bool) -> str:
    begin, _, far, helps = _WORDS[kind]
    worst = (min if kind == "vanishing" else max)(values.values())
    upto = ("down to " if kind == "vanishing" else "up to ") if len(values) > 1 else ""
    advice = f"; what usually helps: {helps}" if advise else ""
    return f"{begin} {_listed(list(values))}: {upto}{far.format(worst)}{advice}"


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} other layers"


# --- how it came to a NaN


def growth(weights: dict[str, Tensor], start: dict[str, Tensor]) -> dict[str, float]:
    """How many times as long each layer's weights are as they were at the start."""

    def lengths(held: dict[str, Tensor]) -> dict[str, float]:
        return _by_layer({name: float(held[name].double().norm()) for name in start})

    now, then = lengths(weights), lengths(start)
    return {name: now[name] / then[name] for name in then if 0 < then[name] < math.inf}


def trend(norms: Sequence[tuple[int, float]], grown: dict[str, float], last: Measured, *, clipped: bool) -> str:
    """What the steps before a failure tell of its cause, or nothing. `norms`: (step, gradient norm), the last ones."""
    said = []
    if grown:
        name = max(grown, key=lambda n: grown[n] if math.isfinite(grown[n]) else math.inf)
        largest = grown[name]
        if not largest <= 100:
            far = f"{largest:.2g} times as long as at the start" if math.isfinite(largest) else "beyond all numbers"
            said.append(f"the weights of {name} have grown {far}")
    ratios = last.get("update_ratios", {})
    if ratios and (name := max(ratios, key=ratios.__getitem__)) and ratios[name] > REWRITTEN:
        said.append(f"one update changed {name} by {ratios[name]:.2g} times its length")
    advice = ["lower --optim.lr"] if said else []
    recent = [(step, norm) for step, norm in norms if math.isfinite(norm) and norm > 0][-MEMORY:]
    if recent:
        since, least = min(recent, key=lambda pair: pair[1])
        step, most = max(recent, key=lambda pair: (pair[0] >= since, pair[1]))
        if most > 100 * least:
            said.append(f"the gradient norm grew from {least:.2g} at step {since} to {most:.2g} at step {step}")
            advice += [] if clipped else ["set --clip 1.0"]
    return f"{', and '.join(said)}: {' or '.join(advice or ['lower --optim.lr'])}" if said else ""
