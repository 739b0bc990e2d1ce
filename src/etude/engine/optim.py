"""Optimisers and schedules by name, as frozen dataclasses; torch.optim does the arithmetic, fused where it can.

Conventions, since papers and libraries differ:
- `sgd` is torch's form, v = momentum * v + g; w = w - lr * v (the papers' v = momentum * v + lr * g differs
  whenever lr changes during training).
- `adam` adds weight decay to the gradient (L2), `adamw` decays the weights directly (arXiv 1711.05101).
- `lars` is arXiv 1708.03888: each matrix's step is scaled by trust * |w| / (|g| + weight_decay * |w|).
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from etude.errors import UsageError


@dataclass(frozen=True)
class Optim:
    """One player's optimiser. Fields that a method does not use are ignored by it."""

    name: Literal["sgd", "adam", "adamw", "rmsprop", "lars"] = "sgd"
    lr: float = 0.1
    """Peak learning rate; the schedule multiplies it."""
    momentum: float = 0.9
    """For sgd, rmsprop and lars."""
    nesterov: bool = False
    """For sgd."""
    betas: tuple[float, float] = (0.9, 0.999)
    """For adam and adamw."""
    eps: float = 1e-8
    """For adam, adamw and rmsprop."""
    weight_decay: float = 0.0
    decay_vectors: bool = True
    """Whether biases and normalisation weights (tensors of one dimension) decay too."""
    trust: float = 0.001
    """For lars: the trust coefficient."""

    def __post_init__(self) -> None:
        if not self.lr > 0 or not math.isfinite(self.lr):
            raise UsageError(f"optim.lr is {self.lr}; it must be a positive number", hint="--optim.lr 0.1")
        if self.weight_decay < 0:
            raise UsageError(f"optim.weight_decay is {self.weight_decay}; it must not be negative")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The torch optimiser over `parameters`, vectors in a group of their own when they do not decay."""
        parameters = list(parameters)
        groups = [{"params": parameters}]
        if self.weight_decay and not self.decay_vectors:
            groups = [
                {"params": [p for p in parameters if p.ndim > 1]},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ]
            groups = [group for group in groups if group["params"]]
        decay, fused = self.weight_decay, _fused(self.name, parameters)
        match self.name:
            case "sgd":
                return torch.optim.SGD(
                    groups, self.lr, self.momentum, weight_decay=decay, nesterov=self.nesterov, fused=fused
                )
            case "adam":
                return torch.optim.Adam(groups, self.lr, self.betas, self.eps, decay, fused=fused)
            case "adamw":
                return torch.optim.AdamW(groups, self.lr, self.betas, self.eps, decay, fused=fused)
            case "rmsprop":
                return torch.optim.RMSprop(
                    groups, self.lr, eps=self.eps, weight_decay=decay, momentum=self.momentum, foreach=True
                )
            case "lars":
                return LARS(groups, self.lr, momentum=self.momentum, weight_decay=decay, trust=self.trust)


def _fused(name: str, parameters: list[nn.Parameter]) -> bool:
    """Whether torch's fused kernels take these: floating point, on a device that has them; SGD's takes no shards."""
    if name == "sgd" and any(isinstance(p, DTensor) for p in parameters):
        return False
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda", "mps") for p in parameters)


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling for large batches (You et al., arXiv 1708.03888, Algorithm 1).

    Matrices and kernels take the trust ratio and the weight decay; vectors are plain momentum SGD.
    """

    def __init__(self, params, lr: float, *, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 0.001):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update; parameters without a gradient are left alone."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = p.grad
                if p.ndim > 1:
                    w_norm, g_norm = p.norm(), update.norm()
                    ratio = group["trust"] * w_norm / (g_norm + group["weight_decay"] * w_norm)
                    ratio = torch.where((w_norm > 0) & (g_norm > 0), ratio, 1.0)
                    update = (update + group["weight_decay"] * p) * ratio
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                state["momentum_buffer"].mul_(group["momentum"]).add_(update, alpha=group["lr"])
                p.sub_(state["momentum_buffer"])


@dataclass(frozen=True)
class Schedule:
    """The learning rate over time, as a factor on `Optim.lr`: a function of the step alone."""

    name: Literal["constant", "cosine", "linear", "step", "noam"] = "cosine"
    warmup: int = 0
    """Steps over which the factor rises linearly from 0 (noam: the paper's warm-up)."""
    final: float = 0.0
    """The factor at the end of cosine and linear."""
    fall: float = 1.0
    """The fraction of training at which cosine and linear reach it; it stays from there on."""
    milestones: tuple[float, ...] = (1 / 3, 2 / 3)
    """For step: the fractions of training at which the factor is multiplied by `gamma`."""
    gamma: float = 0.1
    width: int = 512
    """For noam: the model's width d in d^-0.5 min(s^-0.5, s warmup^-1.5) (arXiv 1706.03762, equation 3)."""

    def __post_init__(self) -> None:
        if not 0 <= self.final <= 1:
            raise UsageError(f"schedule.final is {self.final}; the last factor must lie between 0 and 1")
        if not 0 < self.fall <= 1:
            raise UsageError(f"schedule.fall is {self.fall}; it must be a fraction of training, 1 at most")
        if self.warmup < 0 or (self.name == "noam" and self.warmup < 1):
            raise UsageError(f"schedule.warmup is {self.warmup}; {self.name} needs at least {self.name == 'noam':d}")

    def factor(self, step: float, steps: float) -> float:
        """The factor for the update made at `step` (from 0) of `steps`; fractions where small batches are parts of a
        step."""
        if self.name == "noam":
            s = step + 1
            return self.width**-0.5 * min(s**-0.5, s * self.warmup**-1.5)
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        done = (step - self.warmup) / max(1, self.fall * steps - self.warmup)
        match self.name:
            case "constant":
                return 1.0
            case "linear":
                return self.final + (1 - self.final) * (1 - min(done, 1.0))
            case "cosine":
                return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
            case "step":
                return self.gamma ** sum(step >= milestone * steps for milestone in self.milestones)


def by_player(spec) -> dict[str, Optim]:
    """An `Optim`, or a dataclass whose fields are the players' -> {player: Optim}; one player is called "model"."""
    if isinstance(spec, Optim):
        return {"model": spec}
    return {field.name: getattr(spec, field.name) for field in fields(spec)}


class EMA:
    """The exponential moving average of a model's parameters and floating buffers; others are copied.

    The decay warms up as min(decay, (1 + t) / (10 + t)), so that a short run is not held by its initial weights.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        live = model.state_dict()  # detached views of the model's own storage: they follow its values
        first: dict[int, str] = {}  # weights that two layers share have one average
        shared = {n: first.setdefault(id(p), n) for n, p in model.named_parameters(remove_duplicate=False)}
        own = {name: value.clone() for name, value in live.items() if shared.get(name, name) == name}
        self.average = {name: own[shared.get(name, name)] for name in live}
        pairs = [(average, live[name]) for name, average in own.items()]
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        self._average, self._live = [average for average, _ in moving], [value for _, value in moving]
        self._counters = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model's present values."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._average, self._live, 1 - decay)
        for average, live in self._counters:
            average.copy_(live)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the model holds the averages; afterwards its own values again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, live in [*zip(self._average, self._live), *self._counters]:
            held = live.clone()
            live.copy_(average)
            average.copy_(held)
