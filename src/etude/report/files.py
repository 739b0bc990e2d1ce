"""A run's files as far as they can be read: none is trusted to be whole."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etude.report.parts import is_number

_NOT_MEASURES = {"step", "epoch", "seconds", "time"}
HEALTH = {
    "grad_norms": ("Gradient norms", "gradient norm"),
    "update_ratios": ("Updates beside weights", "|update| / |weights|"),
    "act_norms": ("Outputs", "root mean square"),
    "dead_units": ("Dead units", "share"),
}
"""What is measured by layer: its title, and the name of its value."""

Curve = tuple[list[float], list[float]]
"""Steps and values."""


@dataclass
class Metrics:
    """What `metrics.jsonl` holds: measure -> player or split -> curve."""

    train: dict[str, dict[str, Curve]] = field(default_factory=dict)
    evaluated: dict[str, dict[str, Curve]] = field(default_factory=dict)
    health: dict[str, list[tuple[float, dict[str, Any]]]] = field(default_factory=dict)
    """Kind of measurement -> (step, layer -> value)."""
    epochs: float = 0
    skipped: int = 0
    """Lines that are no JSON object; a last line cut off by a kill is not counted."""


def load(path: Path, notes: list[str]) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        notes.append(f"{path.name} is damaged or incomplete: what it holds is left out.")
        return {}


def _parse(lines: Sequence[str]) -> list[Any]:
    """Each line's JSON, None for what is none. One call for all is three times as fast as one call each."""
    try:
        return json.loads(f"[{','.join(lines)}]")
    except ValueError:
        return [None] if len(lines) == 1 else [_parse([line])[0] for line in lines]


def read_metrics(path: Path) -> Metrics:
    """`metrics.jsonl` -> its curves. A key `critic/loss` is the measure `loss` of the player `critic`."""
    found = Metrics()
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = [line for line in text.split("\n") if line.strip()]
    if lines and not text.endswith("\n") and _parse(lines[-1:]) == [None]:
        del lines[-1]
    train: dict[str, Curve] = {}
    evaluated: dict[tuple[str, str], Curve] = {}

    def add(curves: dict[Any, Curve], key: Any, step: float, value: Any) -> None:
        curve = curves.get(key)
        if curve is None:
            curve = curves[key] = ([], [])
        curve[0].append(step)
        curve[1].append(value)

    for start in range(0, len(lines), 4096):  # piece by piece, as long lists of objects slow the garbage collector
        for record in _parse(lines[start : start + 4096]):
            if not isinstance(record, dict):
                found.skipped += 1
                continue
            step = record.get("step")
            if not is_number(step):
                continue
            for key, value in record.items():
                kind = type(value)
                if kind is float or kind is int:
                    add(train, key, step, value)
                elif kind is dict and key == "eval":
                    split = str(record.get("split", "test"))
                    for name, measured in value.items():
                        if is_number(measured):
                            add(evaluated, (split, name), step, measured)
                elif kind is dict and key in HEALTH:
                    found.health.setdefault(key, []).append((step, value))
    if "epoch" in train:
        found.epochs = train["epoch"][1][-1]
    for key, curve in train.items():
        player, _, name = key.rpartition("/")
        if name not in _NOT_MEASURES:
            found.train.setdefault(name, {})[player or "train"] = curve
    for (split, key), curve in evaluated.items():
        player, _, name = key.rpartition("/")
        found.evaluated.setdefault(name, {})[f"{split} {player}".strip()] = curve
    return found
