"""Speed side by side with what people use: `etude bench`. One file a comparison; ours and the peer's run in turns."""

import datetime
import platform
import statistics
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from etude.errors import UsageError, nearest

NAMES = ("mlp", "resnet", "mobilenet", "augment")
Row = dict[str, Any]
"""{"name", "what", "ours", "peer", "unit", "peer_name", "peer_version", "ratio", "target"}; "note" if no peer ran."""


def run(names: list[str] | None = None, *, threads: int = 2, compiled: bool = False) -> dict[str, Any]:
    """Measure; returns {"machine": {...}, "rows": [...]}. `compiled` adds the variants that compile for minutes."""
    for name in names or ():
        if name not in NAMES:
            raise UsageError(f"unknown benchmark {name!r}; there are {', '.join(NAMES)}", hint=nearest(name, NAMES))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        modules = [import_module(f"etude.bench.{name}") for name in names or NAMES]
        rows = [row for module in modules for row in module.run(compiled=compiled)]
    finally:
        torch.set_num_threads(before)
    return {"machine": machine(threads), "rows": rows}


def machine(threads: int) -> dict[str, Any]:
    """Where and when the figures were taken."""
    from etude.engine.run import cpu_name, version

    return {
        "etude": version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "threads": threads,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "date": datetime.date.today().isoformat(),
    }


def in_turns(*contestants: Callable[[], Any], rounds: int, warmup: int = 1) -> list[float]:
    """Median seconds of each contestant, taken in turns so that a drifting machine favours none."""
    for contestant in contestants:
        for _ in range(warmup):
            contestant()
    times: list[list[float]] = [[] for _ in contestants]
    for _ in range(rounds):
        for contestant, taken in zip(contestants, times):
            begun = time.perf_counter()
            contestant()
            taken.append(time.perf_counter() - begun)
    return [statistics.median(taken) for taken in times]


def row(
    name: str, what: str, ours: float, peer: float, *, unit: str, peer_name: str, peer_version: str, target: float
) -> Row:
    """A comparison of rates: the ratio says how many times the peer's speed ours is."""
    return {
        "name": name,
        "what": what,
        "ours": round(ours, 2),
        "peer": round(peer, 2),
        "unit": unit,
        "peer_name": peer_name,
        "peer_version": peer_version,
        "ratio": round(ours / peer, 3),
        "target": target,
    }
