"""From what a user names to its drawing: trace, fold, and what is unfolded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from etude.graph import draw as drawn
from etude.graph.fold import Group, fold, named, shown, to_depth, usual
from etude.graph.subject import Subject, subject
from etude.graph.trace import Trace, trace


@dataclass(frozen=True)
class Drawing:
    """A traced computation, with the groups that are unfolded."""

    title: str
    note: str
    trace: Trace
    root: Group
    opened: set[int]

    def _sheet(self) -> dict[str, Any]:
        said = f"forward pass on {self.note}"
        return drawn.sheet(self.trace, self.root, title=self.title, note=said)

    def svg(self) -> str:
        """As SVG, self-contained."""
        return drawn.svg(self._sheet(), self.opened)

    def page(self) -> str:
        """As a page whose modules unfold at a click."""
        return drawn.page(self._sheet(), self.opened)

    @property
    def flops(self) -> int:
        """Of the forward pass; a multiplication and an addition are two."""
        return sum(op.flops for op in self.trace.ops)

    @property
    def parameters(self) -> int:
        """Of the model."""
        return sum(self.trace.parameters.values())

    def rows(self) -> list[list[str]]:
        """The whole in a few lines."""
        rows = [
            ["model", self.title],
            ["on", self.note],
            ["parameters", f"{self.parameters:,}"],
            ["FLOPs", f"{self.flops:,}"],
            ["operators", f"{len(self.trace.ops):,}"],
        ]
        return rows + ([["scalar", f"{self.trace.loss:.6g}"]] if self.trace.loss is not None else [])

    def json(self) -> dict[str, Any]:
        """What is seen, as plain values. JSON knows no infinity or NaN: such a number is null."""
        nodes, edges = shown(self.root, self.opened)
        for seen in (*nodes, *edges):
            seen["gradient"] = _finite(seen["gradient"])
        inputs = [{"name": v.name, "shape": list(v.shape), "dtype": v.dtype} for v in self.trace.inputs]
        return {
            "what": self.title,
            "on": self.note,
            "inputs": inputs,
            "parameters": self.parameters,
            "flops": self.flops,
            "backward": self.trace.backward,
            "scalar": _finite(self.trace.loss),
            "nodes": nodes,
            "edges": edges,
        }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def draw(
    what: str | Subject, *, backward: bool = False, depth: int | None = None, unfold: Sequence[str] = ()
) -> Drawing:
    """Run a subject once and fold what it did; `depth` levels of modules are unfolded, or those named in `unfold`."""
    it = subject(what) if isinstance(what, str) else what
    with torch.random.fork_rng(devices=[]):
        if backward:
            for tensor in it.inputs.values():
                if tensor.is_floating_point() and tensor.is_leaf:
                    tensor.requires_grad_()
        else:
            it.model.eval()
        found = trace(it.model, it, it.inputs, backward=it.scalar if backward else None, name=it.result)
    root = fold(found)
    opened = named(root, unfold) if unfold else usual(root) if depth is None else to_depth(root, depth)
    return Drawing(it.title, it.note, found, root, opened)
