"""Gradient norms layer by layer, and the explanation of a NaN: which layer, which samples, forward or backward.

A training step is a function of the weights before it and of (seed, step), so a step that failed can be kept as
tensors and taken again: `etude replay RUN` does.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from etude.data.base import Batch
from etude.engine.parallel import full
from etude.tasks.base import LossFn


class NonFinite(Exception):
    """Raised by an update whose loss or gradient is NaN or Inf, before the weights are touched."""

    def __init__(self, loss_fn: LossFn, batch: Batch, player: str, number: int):
        super().__init__(f"the loss or a gradient of player {player} is not finite")
        self.loss_fn, self.batch, self.player, self.number = loss_fn, batch, player, number


def layer_norms(model: nn.Module) -> dict[str, float]:
    """The 2-norm of each layer's gradient (its weight and bias together), in the model's order."""
    named = [(name.rpartition(".")[0] or name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    norms = [full(norm) for norm in torch._foreach_norm([grad for _, grad in named])]
    squares: dict[str, float] = {}
    for (layer, _), norm in zip(named, torch.stack(norms).cpu().double().tolist()):
        squares[layer] = squares.get(layer, 0.0) + norm * norm
    return {layer: square**0.5 for layer, square in squares.items()}


@dataclass
class Finding:
    """Where the first value that is not finite came from."""

    what: str
    """One line that names it."""
    layer: str | None = None
    samples: list[int] = field(default_factory=list)
    """Indices in the training split."""

    def json(self) -> dict[str, Any]:
        """As plain values."""
        return {"what": self.what, "layer": self.layer, "samples": self.samples}


def explain(model: nn.Module, loss_fn: LossFn, batch: Batch, parts: int, autocast: AbstractContextManager) -> Finding:
    """Take an update again, part by part, with every layer watched, and name the first value that is not finite, in
    the order of cause: input, weights, forward pass, loss, backward pass."""
    finding = Finding("")
    for micro in split_batch(batch, parts):
        finding = _explain_part(model, loss_fn, micro, autocast)
        if finding.layer or finding.samples:
            break
    return finding


def explain_inputs(batch: Batch) -> Finding:
    """What the batch alone tells: an input that is not finite, and whose."""
    indices = batch["index"].tolist() if "index" in batch else []
    for name, value in batch.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            bad = _samples(value, indices)
            return Finding(f"the input {name!r} of {_these(bad)} is not finite", None, bad)
    return Finding("the inputs are finite; which layer is at fault is not told for sharded weights")


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """A batch as the parts that are accumulated."""
    if parts == 1:
        return [batch]
    chunks = {name: value.chunk(parts) for name, value in batch.items()}
    return [{name: chunk[i] for name, chunk in chunks.items()} for i in range(parts)]


def _explain_part(model: nn.Module, loss_fn: LossFn, batch: Batch, autocast: AbstractContextManager) -> Finding:
    indices = batch["index"].tolist() if "index" in batch else []

    found = explain_inputs(batch)
    if found.samples or found.what.startswith("the input "):
        return found
    for name, p in model.named_parameters():
        if not torch.isfinite(p).all():
            return Finding(f"the weight {name} was not finite before the step", name.rpartition(".")[0] or name)

    watch = _Watch(model)
    try:
        with autocast:
            loss, _ = loss_fn(model, batch)
        if watch.forward:
            name, output, inputs_finite = watch.forward
            bad = _samples(output, indices)
            cause = "" if inputs_finite else " (its input already was: an operation between layers made it)"
            return Finding(f"the output of layer {name} is not finite for {_these(bad)}{cause}", name, bad)
        if not torch.isfinite(loss):
            return Finding(f"every layer's output is finite, but the loss is {loss.item()}", None, [])
        model.zero_grad()
        loss.backward()
    finally:
        watch.remove()
    if watch.backward:
        layer, rows = watch.backward
        bad = [indices[i] for i in rows if i < len(indices)]
        if layer is None:
            return Finding(
                f"the loss is finite, but its gradient at the model's output is not, for {_these(bad)}", None, bad
            )
        return Finding(
            f"the backward pass of layer {layer} made a gradient that is not finite, for {_these(bad)}", layer, bad
        )
    for name, p in model.named_parameters():
        if p.grad is not None and not torch.isfinite(p.grad).all():
            return Finding(f"the gradient of the weight {name} is not finite", name.rpartition(".")[0] or name)
    return Finding("the step was finite when it was taken again: the values lie at the edge of the number format")


def _samples(tensor: Tensor, indices: list[int]) -> list[int]:
    """The samples whose row in `tensor` is not finite; none where its rows are not the samples."""
    if tensor.ndim == 0 or len(tensor) != len(indices):
        return []
    bad = ~torch.isfinite(tensor.detach().float())
    return [indices[i] for i in (bad.flatten(1).any(1) if bad.ndim > 1 else bad).nonzero().flatten().tolist()]


def _these(samples: list[int]) -> str:
    shown = ", ".join(map(str, samples[:8])) + (", ..." if len(samples) > 8 else "")
    return f"sample{'s' * (len(samples) != 1)} {shown}" if samples else "the batch"


class _Watch:
    """Hooks on every leaf module: the first output in the forward pass, and the first gradient of an output in the
    backward pass, that is not finite."""

    def __init__(self, model: nn.Module):
        self.forward: tuple[str, Tensor, bool] | None = None
        self.backward: tuple[str | None, list[int]] | None = None
        """The layer whose backward pass it came out of (None: the loss's), and the rows."""
        self._passed: str | None = None
        leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
        self._handles = [module.register_forward_hook(self._hook(name)) for name, module in leaves]

    def _hook(self, name: str):
        def after(module: nn.Module, inputs: tuple, output: Any) -> None:
            outputs = [o for o in (output if isinstance(output, tuple | list) else [output]) if isinstance(o, Tensor)]
            for value in outputs:
                if self.forward is None and not torch.isfinite(value).all():
                    finite = all(
                        torch.isfinite(i).all() for i in inputs if isinstance(i, Tensor) and i.is_floating_point()
                    )
                    self.forward = (name, value.detach(), bool(finite))
                if value.requires_grad:
                    value.register_hook(lambda grad: self._gradient(name, grad))

        return after

    def _gradient(self, name: str, grad: Tensor) -> None:
        """The gradient of layer `name`'s output, which the backward pass of what comes after it has made."""
        if self.backward is None and not torch.isfinite(grad).all():
            rows = (~torch.isfinite(grad)).flatten(1).any(1).nonzero().flatten().tolist() if grad.ndim > 1 else []
            self.backward = (self._passed, rows)
        self._passed = name

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
