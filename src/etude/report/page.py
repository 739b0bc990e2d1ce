"""`report.html`: one self-contained page that shows a run, made from the files of its directory alone.

Needs no torch and no network, and takes any directory that holds a `recipe.json`: a run that trains, was killed,
failed or is done, also one that was moved or lost some files. The page allows itself nothing from outside (its
Content-Security-Policy names the hashes of its own style and script) and is whole without a script.

The file is replaced atomically and reloads itself while the run trains: a browser tab on it is a live dashboard.
"""

import base64
import hashlib
import json
import math
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from etude.errors import MissingError
from etude.report import charts
from etude.report.charts import Series, number, percent

REFRESH = 5
"""Seconds between two reloads of the page of a training run."""

_SHARES = {"accuracy", "top1", "top5", "precision", "recall", "f1", "iou", "miou", "dice", "map", "auc"}
"""Measures that are shares of one, where more is better; also as a word of a longer name, as in accuracy_top5."""
_NOT_MEASURES = {"step", "epoch", "seconds", "time"}
_NAMES = {
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "fid": "FID",
    "bleu": "BLEU",
    "miou": "mIoU",
    "map": "mAP",
    "mae": "MAE",
    "rmse": "RMSE",
}
"""How measures are written where their key is no word."""
_LOGARITHMIC = 30
"""A measure whose values span more than this factor gets a logarithmic axis."""
_COLUMNS = 120
"""Most columns of the heat map of gradient norms."""
_HEALTH = {
    "grad_norms": ("Gradient norms", "gradient norm"),
    "update_ratios": ("Updates beside weights", "|update| / |weights|"),
    "act_norms": ("Outputs", "root mean square"),
    "dead_units": ("Dead units", "share"),
}
"""What is measured by layer: its title, and the name of its value."""
_CLASSES = 120
"""Most classes of a confusion matrix that is drawn; of more there are the tables beside it."""

_FILES = {
    "recipe.json": "everything that defines the run: model, data, optimiser, schedule, seed",
    "env.json": "where it ran: versions, machine, device, precision, command",
    "metrics.jsonl": "what was logged, one JSON object a line; the curves are drawn from it",
    "figures.json": "pictures and tables of the last evaluation",
    "status.json": "how far the run is",
    "result.json": "final figures and the checksum of the weights",
    "weights.safetensors": "the kept weights, in a format that holds only tensors",
    "checkpoints": "what resuming needs: weights, optimiser, step; checksummed",
    "log.txt": "the messages of the run",
    "tensorboard": "the same curves for TensorBoard",
    "replay": "the step that failed, for etude replay",
    "error.txt": "why the run failed",
    "report.html": "this page",
}


# --- reading


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


def _load(path: Path, notes: list[str]) -> Any:
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
            if not _is_number(step):
                continue
            for key, value in record.items():
                kind = type(value)
                if kind is float or kind is int:
                    add(train, key, step, value)
                elif kind is dict and key == "eval":
                    split = str(record.get("split", "test"))
                    for name, measured in value.items():
                        if _is_number(measured):
                            add(evaluated, (split, name), step, measured)
                elif kind is dict and key in _HEALTH:
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


# --- small pieces


def _e(value: Any) -> str:
    return escape(str(value))


def _duration(seconds: float) -> str:
    """12.3 s · 4 min 05 s · 2 h 07 min · 3 d 4 h"""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def _size(count: float) -> str:
    unit, scale = next((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1)) if count >= s or s == 1)
    return f"{count / scale:.3g} {unit}"


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: Any) -> TypeGuard[float]:
    return _is_number(value) and math.isfinite(value)


def _is_share(name: str) -> bool:
    return not _SHARES.isdisjoint(name.split("_"))


def _show(name: str, value: float) -> str:
    return percent(value) if _is_share(name) and not abs(value) > 1 else number(value)


def _phrase(name: str) -> str:
    return _NAMES.get(name) or name.replace("_", " ")


def _title(name: str) -> str:
    phrase = _phrase(name)
    return phrase.capitalize() if phrase.islower() else phrase


def _table(columns: Sequence[Any], rows: Sequence[Sequence[Any]], caption: str = "") -> str:
    """Columns of numbers stand to the right, so that their digits align."""

    def counts(value: Any) -> bool:
        return _is_number(value) or str(value) == "–" or str(value).endswith("\u202f%")

    kind = [' class="num"' if rows and all(counts(row[i]) for row in rows) else "" for i in range(len(columns))]
    head = "".join(f'<th scope="col"{k}>{_e(c)}</th>' for k, c in zip(kind, columns))
    body = "".join(
        "<tr>" + "".join(f"<td{k}>{_e(number(v) if _is_number(v) else v)}</td>" for k, v in zip(kind, row)) + "</tr>"
        for row in rows
    )
    title = f"<caption>{_e(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _tree(value: Any) -> str:
    """Nested settings as nested definition lists."""
    if isinstance(value, dict):
        rows = []
        for key, inner in value.items():
            if key == "type":
                continue
            if isinstance(inner, list) and any(isinstance(v, dict) for v in inner):
                rows.append(f'<div class="branch"><dt>{_e(key)}</dt><dd>{_tree(inner)}</dd></div>')
            elif isinstance(inner, dict) and inner:
                kind = f' <span class="type">{_e(inner["type"])}</span>' if "type" in inner else ""
                rows.append(f'<div class="branch"><dt>{_e(key)}{kind}</dt><dd>{_tree(inner)}</dd></div>')
            else:
                rows.append(f"<div><dt>{_e(key)}</dt><dd>{_tree(inner)}</dd></div>")
        return f'<dl class="tree">{"".join(rows)}</dl>' if rows else '<span class="none">defaults</span>'
    if isinstance(value, list):
        if any(isinstance(v, dict) for v in value):
            return _tree({str(i): v for i, v in enumerate(value)})
        shown = ", ".join(_e(v) for v in value[:12])
        return f"{shown} … ({len(value)} in all)" if len(value) > 12 else shown or '<span class="none">none</span>'
    if value is None or value == "":
        return '<span class="none">none</span>'
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _e(value)


def _trees(root: dict[str, Any], first: str, more: str = "") -> str:
    """One card for the plain settings, one for each nested group."""
    plain = {k: v for k, v in root.items() if not isinstance(v, dict)}
    cards = [f'<div class="card"><h3>{_e(first)}</h3>{_tree(plain)}</div>'] if plain.keys() - {"type"} else []
    for key, inner in root.items():
        if isinstance(inner, dict):
            kind = f'<span class="type">{_e(inner["type"])}</span>' if "type" in inner else ""
            cards.append(f'<div class="card"><h3>{_e(key)} {kind}</h3>{_tree(inner)}</div>')
    return f'<div class="trees">{"".join(cards)}{more}</div>'


def _section(identity: str, title: str, body: str, lead: str = "") -> str:
    text = f'<p class="lead">{lead}</p>' if lead else ""
    return f'<section id="{identity}"><h2>{_e(title)}</h2>{text}\n{body}</section>\n'


# --- curves and gradients


def _curves(metrics: Metrics, kept: float | None) -> str:
    first, last = ["loss", "accuracy"], ["lr", "grad_norm"]
    names = [n for n in dict.fromkeys([*first, *metrics.evaluated, *metrics.train]) if n not in last]
    figures = []
    for name in [*names, *last]:
        series = [
            Series(label, np.asarray(x, float), np.asarray(y, float), smoothed=name != "lr")
            for label, (x, y) in metrics.train.get(name, {}).items()
        ] + [
            Series(label, np.asarray(x, float), np.asarray(y, float), dots=True)
            for label, (x, y) in metrics.evaluated.get(name, {}).items()
        ]
        if not series:
            continue
        every = np.concatenate([s.y for s in series])
        finite = every[np.isfinite(every)]
        share = _is_share(name) and bool(finite.size) and finite.min() >= 0 and finite.max() <= 1
        wide = finite.size > 1 and finite.min() > 0 and finite.max() / finite.min() > _LOGARITHMIC
        log = bool(wide) and not share and name != "lr"
        title = _title(name) + (", log scale" if log else "")
        shown = kept if name in metrics.evaluated else None
        figures.append(charts.lines(title, series, log=log, share=share, kept=shown, group="step"))
    if not figures:
        return ""
    lead = "Thin lines: every logged value. Bold lines: their moving average. Dots: evaluations."
    lead += " Dotted: where the kept weights are from." if kept is not None else ""
    return _section("curves", "Curves", f'<div class="grid2">{"".join(figures)}</div>', lead)


def _health(records: dict[str, list[tuple[float, dict[str, Any]]]]) -> str:
    """A heat map a kind: two and two where there are several, as they are compared with each other."""
    learning = {name for _, norms in records.get("grad_norms", []) for name in norms}
    if "act_norms" in records:  # those of the layers that the other maps show
        records = records | {
            "act_norms": [(s, {n: v for n, v in values.items() if n in learning}) for s, values in records["act_norms"]]
        }
    dead = records.get("dead_units", [])
    none_dead = bool(dead) and all(share == 0 for _, shares in dead for share in shares.values())
    kinds = [kind for kind in _HEALTH if any(values for _, values in records.get(kind, []))]
    kinds = [kind for kind in kinds if not (kind == "dead_units" and none_dead)]
    if not kinds:
        return ""
    columns = _COLUMNS if len(kinds) == 1 else _COLUMNS // 2
    figures = [_by_layer(kind, records[kind], columns, narrow=len(kinds) > 1) for kind in kinds]
    body = "".join(figures) if len(kinds) == 1 else f'<div class="grid2">{"".join(figures)}</div>'
    lead = (
        "What each layer went through over time, the layer nearest the input on top. A row of gradients that fades has "
        "all but stopped learning; a column that stands out was a step with large gradients. An update is usually "
        "about a thousandth of the weights it changes. A unit is dead that is 0, or saturated, for every sample of the "
        "batch."
        if len(kinds) > 1
        else "The norm of each layer's gradient over time, the layer nearest the input on top. A row that fades has "
        "all but stopped learning; a column that stands out was a step with large gradients."
    )
    if none_dead:
        lead += " None was."
    if max(len(records[kind]) for kind in kinds) > columns:
        lead += " Each column is the largest of its steps."
    return _section("gradients", "Gradient health" if len(kinds) > 1 else "Gradient norms by layer", body, lead)


def _by_layer(kind: str, records: list[tuple[float, dict[str, Any]]], most: int, *, narrow: bool) -> str:
    title, lead = _HEALTH[kind]
    layers = list(dict.fromkeys(name for _, norms in records for name in norms))
    steps = np.array([step for step, _ in records], float)
    # NaN: not logged; infinite: logged, but not finite
    table = np.array([[_norm(norms, name) for _, norms in records] for name in layers])
    bins = list(pairwise(np.linspace(0, len(steps), min(most, len(steps)) + 1).astype(int).tolist()))
    cells = np.stack([table[:, a:b].max(1, initial=0, where=~np.isnan(table[:, a:b])) for a, b in bins], axis=1)
    cells[np.stack([np.isnan(table[:, a:b]).all(1) for a, b in bins], axis=1)] = np.nan
    middles = np.array([steps[a:b].mean() for a, b in bins])
    first_last = [(float(steps[a]), float(steps[b - 1])) for a, b in bins]
    names = [number(a) + (f" to {number(b)}" if b > a else "") for a, b in first_last]
    marks = None
    if len(bins) > (8 if narrow else 16):
        at = np.arange(len(bins))
        wanted = charts.ticks(float(middles[0]), float(middles[-1]), 4 if narrow else 8)
        marks = [(float(np.interp(t, middles, at)), number(t)) for t in wanted]
    share = kind == "dead_units"
    return charts.heat(
        title, cells, layers, names, row="layer", column="step", log=not share, marks=marks, lead=lead, share=share,
        narrow=narrow,
    )  # fmt: skip


def _norm(norms: dict[str, Any], name: str) -> float:
    if name not in norms:
        return math.nan
    return float(norms[name]) if _is_finite(norms[name]) else math.inf


# --- blocks of figures.json


def _matrix(block: dict[str, Any]) -> str:
    values = np.array(block["values"], float)
    labels = [str(v) for v in block["labels"]]
    row, column = str(block.get("row", "row")), str(block.get("column", "column"))
    title = str(block["title"])
    if values.shape != (len(labels), len(labels)):
        raise ValueError(f"values are {values.shape} for {len(labels)} labels")
    if not (np.isfinite(values).all() and (values >= 0).all() and (values == np.round(values)).all()):
        return charts.heat(title, values, labels, labels, row=row, column=column)
    counts = values.astype(np.int64)
    total, right = counts.sum(1), counts.diagonal()
    lead = f"{number(right.sum())} of {number(total.sum())} right ({percent(right.sum() / max(total.sum(), 1))})."
    figure = ""
    if len(labels) <= _CLASSES:
        figure = charts.confusion(title, counts, labels, row=row, column=column)
        lead += " Colour is the share of the row: blue on the diagonal, orange beside it."
    by_share = np.argsort(right / np.maximum(total, 1), kind="stable").tolist()
    hardest = [
        [labels[i], int(total[i] - right[i]), percent(right[i] / total[i])] for i in by_share if right[i] < total[i]
    ]
    wrong = counts - np.diag(right)
    pairs = [divmod(i, len(labels)) for i in np.argsort(-wrong, axis=None, kind="stable")[:10].tolist()]
    frequent = [[labels[r], labels[c], int(wrong[r, c])] for r, c in pairs if wrong[r, c]]
    side = "<p>No mistakes.</p>"
    if hardest:
        side = _table(["class", "wrong", "right"], hardest[:10], "Hardest classes")
        side += _table([row, column, "times"], frequent, "Most frequent mistakes")
    return f'<p class="lead">{lead}</p><div class="beside">{figure}<div class="side">{side}</div></div>'


def _images(block: dict[str, Any]) -> str:
    items = []
    for item in block["items"]:
        png = base64.b64decode(item["png"], validate=True)
        if png[:8] != b"\x89PNG\r\n\x1a\n":
            raise ValueError("an item is no PNG")
        width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
        scale = max(1, round(112 / max(width, height, 1)))  # tiny pictures grow by whole pixels
        pixels = ' class="pixels"' if scale > 1 else ""
        caption = _e(item.get("caption", ""))
        detail = f"<small>{_e(item['detail'])}</small>" if item.get("detail") else ""
        large = ' class="large"' if width * scale > 160 else ""
        items.append(
            f'<li{large}><img{pixels} src="data:image/png;base64,{base64.b64encode(png).decode()}" '
            f'width="{width * scale}" height="{height * scale}" alt="{caption}"><p>{caption}{detail}</p></li>'
        )
    return f'<ul class="pictures">{"".join(items)}</ul>' if items else "<p>None.</p>"


def _rows(block: dict[str, Any]) -> str:
    rows = block["rows"]
    more = f'<p class="lead">The first 200 of {len(rows):,} rows.</p>' if len(rows) > 200 else ""
    return _table(block["columns"], rows[:200]) + more


def _series(block: dict[str, Any]) -> list[Series]:
    points = {str(k): np.array(v, float).reshape(-1, 2) for k, v in block["series"].items() if len(v)}
    if not points:
        raise ValueError("there are no points")
    return [Series(name, p[:, 0], p[:, 1]) for name, p in points.items()]


def _lines(block: dict[str, Any]) -> str:
    x, y = str(block.get("x", "")), str(block.get("y", ""))
    known = [Series(s.name, s.x[at], s.y[at]) for s in _series(block) if (at := np.isfinite(s.x)).any()]
    return f'<div class="grid2">{charts.lines("", known, x=x, y=y, log=bool(block.get("log")))}</div>'


def _scatter(block: dict[str, Any]) -> str:
    x, y = str(block.get("x", "")), str(block.get("y", ""))
    return f'<div class="grid2">{charts.scatter("", _series(block), x=x, y=y)}</div>'


def _text(block: dict[str, Any]) -> str:
    return f'<pre class="text">{_e(block["text"])}</pre>'


_BLOCKS: dict[str, Callable[[dict[str, Any]], str]] = {
    "matrix": _matrix,
    "images": _images,
    "table": _rows,
    "lines": _lines,
    "scatter": _scatter,
    "text": _text,
}


def _figures(blocks: Any, notes: list[str]) -> list[tuple[str, str, str]]:
    """(id, title, section) of each block of a kind that this version knows."""
    out = []
    for i, block in enumerate(blocks if isinstance(blocks, list) else []):
        if not isinstance(block, dict) or block.get("kind") not in _BLOCKS:
            continue
        title = str(block.get("title", block["kind"]))
        try:
            body = _BLOCKS[block["kind"]]({"title": title, **block})
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            notes.append(f"figures.json: “{title}” could not be drawn ({type(error).__name__}: {error}).")
            continue
        out.append((f"figure-{i}", title, _section(f"figure-{i}", title, body)))
    return out


# --- the page


@dataclass(frozen=True)
class _Run:
    """The files of a run directory, as far as they could be read."""

    path: Path
    recipe: dict[str, Any]
    env: dict[str, Any]
    status: dict[str, Any]
    result: dict[str, Any]
    metrics: Metrics
    error: str

    @property
    def name(self) -> str:
        return str(self.recipe.get("recipe", self.path.name))

    @property
    def config(self) -> dict[str, Any]:
        return self.recipe.get("config") or {}

    @property
    def state(self) -> str:
        state = self.status.get("state")
        if state in ("failed", "stopped"):
            return state
        if self.result:
            return "done"
        return str(state or ("failed" if self.error else "new"))

    @property
    def seed(self) -> Any:
        return self.result.get("seed", self.config.get("seed"))

    @property
    def done(self) -> float | None:
        """The share of the steps that is done."""
        step, steps = self.status.get("step"), self.status.get("steps")
        return step / steps if _is_finite(step) and _is_finite(steps) and steps > 0 else None


@dataclass(frozen=True)
class _Headline:
    """The figure that a run is known by."""

    measure: str
    value: float
    split: str
    label: str
    below: str
    kept: float | None = None
    """The step whose weights were kept, where it was chosen."""


def _headline(run: _Run) -> _Headline | None:
    """The result's measure; before there is one, the best on held-out samples. Without those, the last: a test split
    chooses nothing."""
    best = run.result.get("best") or {}
    for name, value in best.items():
        if name != "step" and _is_number(value):
            chosen = best.get("split") != "test"
            below = f"weights of step {number(best['step'])}" if _is_number(best.get("step")) else ""
            below += f", best on {best['split']}" if chosen and "split" in best else ""
            value = run.result.get("eval", {}).get(name, value)
            return _Headline(name, value, "test", f"Test {_phrase(name)}", below, best.get("step") if chosen else None)
    for name in sorted(run.metrics.evaluated, key=lambda n: (not _is_share(n), n == "loss")):
        splits = run.metrics.evaluated[name]
        split = "validation" if "validation" in splits else next(reversed(splits))
        x, y = splits[split]
        chosen = split == "validation" and (_is_share(name) or name == "loss") and np.isfinite(y).any()
        at = len(y) - 1
        if chosen:
            at = int(np.nanargmax(y) if _is_share(name) else np.nanargmin(y))
        label = f"{'best ' if chosen else ''}{split} {_phrase(name)}"
        label = label[:1].upper() + label[1:]
        return _Headline(name, y[at], split, label, f"at step {number(x[at])}", x[at] if chosen else None)
    return None


def _loss_tile(run: _Run, split: str) -> tuple[str, str, str] | None:
    """The loss of the evaluated split; before the first evaluation, of training."""
    if _is_number(loss := run.result.get("eval", {}).get("loss")):
        return "Test loss", number(loss, 3), "of the same weights"
    curves = run.metrics.evaluated.get("loss", {}) or run.metrics.train.get("loss", {})
    if not curves:
        return None
    name = split if split in curves else next(iter(curves))
    x, y = curves[name]
    return f"{name.capitalize()} loss", number(y[-1], 3), f"at step {number(x[-1])}"


def _tiles(run: _Run, headline: _Headline | None) -> str:
    status, result = run.status, run.result
    tiles: list[tuple[str, str, str]] = []
    if headline:
        tiles.append((headline.label, _show(headline.measure, headline.value), headline.below))
    loss = _loss_tile(run, headline.split if headline else "")
    if loss and not (headline and headline.measure == "loss"):
        tiles.append(loss)
    if _is_finite(step := status.get("step", result.get("steps"))):
        steps, epochs = status.get("steps", step), run.metrics.epochs
        of = f"{number(epochs, 3)} epochs" if epochs else ""
        tiles.append(("Steps", number(step), f"of {number(steps)}" if _is_finite(steps) and steps != step else of))
    if _is_finite(seconds := status.get("seconds", result.get("seconds"))):
        left = (
            f"about {_duration(status['eta'])} left"
            if run.state == "training" and _is_finite(status.get("eta"))
            else ""
        )
        tiles.append(("Duration", _duration(seconds), left))
    if _is_finite(speed := status.get("samples_per_second")):
        tiles.append(("Speed", number(round(speed) if speed >= 10 else speed, 3), "samples a second"))
    if _is_finite(params := result.get("params", run.env.get("params"))):
        scales = (("B", 1e9), ("M", 1e6), ("k", 1e4))
        unit, scale = next(((u, s) for u, s in scales if params >= s), ("", 1))
        scale = 1e3 if unit == "k" else scale
        short = f"{params / scale:.3g}\u202f{unit}" if unit else number(params)
        tiles.append(("Parameters", short, number(params) if unit else ""))
    cells = "".join(
        f'<div><dt>{_e(name)}</dt><dd>{_e(value)}</dd><dd class="sub">{_e(below)}</dd></div>'
        for name, value, below in tiles
    )
    return f'<dl class="tiles">{cells}</dl>' if tiles else ""


def _header(run: _Run, links: Sequence[tuple[str, str]]) -> str:
    env, data, state = run.env, run.env.get("data") or {}, run.state
    facts = [f"run {run.path}"]
    if env.get("started"):
        facts.append(f"started {_when(env['started'])}")
    facts += [str(env[k]) for k in ("device", "precision") if env.get(k)]
    if env.get("threads"):
        facts.append(f"{env['threads']} threads")
    if isinstance(data, dict) and data.get("source"):
        sizes = data.get("sizes", data)
        counts = ", ".join(f"{number(count)} {split}" for split, count in sizes.items() if _is_number(count))
        facts.append(f"{data['source']}" + (f" ({counts})" if counts else ""))
    bar = ""
    if state in ("training", "stopped", "failed") and run.done is not None:
        share = f"{100 * run.done:.0f}"
        bar = f'<progress max="100" value="{share}" aria-label="Progress">{share} %</progress>'
    contents = "".join(f'<a href="#{i}">{_e(t)}</a>' for i, t in links)
    return (
        f'<header><p class="over">etude {_e(run.recipe.get("etude", ""))} · report of a run</p>'
        f'<div class="title"><h1>{_e(run.name)}</h1><span class="badge {_e(state)}">{_e(state)}</span></div>'
        f'<p class="facts">{"".join(f"<span>{_e(f)}</span>" for f in facts)}</p>'
        f"<nav>{contents}</nav>{bar}</header>"
    )


def _when(iso: Any) -> str:
    try:
        return datetime.fromisoformat(str(iso)).strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return str(iso)


def _reproduce(run: _Run) -> str:
    place = shlex.quote(str(run.path))
    pins = [
        f"{package}=={version.partition('+')[0]}"
        for package in ("etude", "torch")
        if (version := str(run.env.get(package, "")))
    ]
    train = str(run.env.get("command", ""))
    if "train" not in train.split():  # begun from Python, or rewritten by another verb
        train = f"etude train {run.name}" + (f" --steps {run.config['steps']}" if "steps" in run.config else "")
    if run.seed is not None and "--seed" not in train:
        train += f" --seed {run.seed}"
    steps = [
        ("Install the same versions.", f"pip install {' '.join(pins or ['etude'])}"),
        ("Train it again: the same seed gives the same samples, flips and initial weights.", train),
        ("Go on from the last checkpoint, if it was stopped.", f"etude resume {place}"),
        ("Measure it again.", f"etude eval {place}"),
        ("Use it.", f"etude predict {place} FILE"),
        ("Write this page again.", f"etude report {place}"),
    ]
    if run.state == "done":
        del steps[2]
    items = "".join(f"<li><p>{_e(what)}</p><pre><code>{_e(command)}</code></pre></li>" for what, command in steps)
    check = ""
    if digest := run.result.get("weights_sha256"):
        check = "On the same machine and versions the weights have the sha256"
        check = f'<p class="lead">{check} <code>{_e(digest)}</code>.</p>'
    return _section("reproduce", "Reproduce", f'<ol class="steps">{items}</ol>{check}', "A click selects a command.")


def _cell(name: str, value: Any) -> Any:
    if not _is_number(value):
        return "–"
    return percent(value) if _is_share(name) else value


def _result(run: _Run) -> str:
    train, evaluated = run.result.get("train") or {}, run.result.get("eval") or {}
    every = [n for n in dict.fromkeys([*evaluated, *train]) if not n.endswith("grad_norm")]
    names = [n for n in every if _is_number(evaluated.get(n, train.get(n)))]
    if not names:
        return ""
    rows = [[_title(n), *(_cell(n, d.get(n)) for d in (train, evaluated))] for n in names]
    return f'<div class="card">{_table(["measure", "train", "test"], rows, "result")}</div>'


def _environment(run: _Run) -> str:
    env = run.env | ({"started": _when(run.env["started"])} if "started" in run.env else {})
    return _section("environment", "Environment and result", _trees(env, "machine", _result(run))) if env else ""


def _listing(run: _Run) -> str:
    there = sorted(path.name for path in run.path.iterdir() if not path.name.startswith("."))
    rows = []
    for name in [*(n for n in _FILES if n in there or n == "report.html"), *(n for n in there if n not in _FILES)]:
        path, size = run.path / name, ""
        if path.is_dir():
            size = f"{sum(1 for _ in path.iterdir())} inside"
        elif name != "report.html":
            size = _size(path.stat().st_size)
        rows.append([name + "/" * path.is_dir(), size, _FILES.get(name, "")])
    return _section("files", "Files of this run", _table(["file", "size", "what it holds"], rows))


def _notices(run: _Run, notes: Sequence[str]) -> str:
    out = []
    resume = f"<code>{_e(f'etude resume {shlex.quote(str(run.path))}')}</code>"
    if run.state == "failed":
        message = run.error.strip() or "No error.txt was written."
        out.append(
            f'<div class="notice bad"><strong>The run failed.</strong> {_e(message.splitlines()[-1])}'
            f"<details><summary>The whole message</summary><pre>{_e(message[-20_000:])}</pre></details></div>"
        )
    if run.state == "stopped":
        out.append(f'<div class="notice"><strong>Stopped and saved.</strong> Go on with {resume}</div>')
    if run.state == "training":
        out.append(f'<div class="notice" id="stale" hidden><b></b> It may have ended. If so, go on with {resume}</div>')
    if not (run.metrics.train or run.metrics.evaluated):
        out.append('<div class="notice">Nothing is logged yet: the curves begin with <code>metrics.jsonl</code>.</div>')
    if notes:
        out.append(f'<div class="notice">{"<br>".join(_e(n) for n in notes)}</div>')
    return "".join(out)


_PATTERNS = """<svg width="0" height="0" aria-hidden="true" focusable="false"><defs>
<pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
<path d="M0 0v5"/></pattern>
<pattern id="dots" width="5" height="5" patternUnits="userSpaceOnUse"><circle cx="2.5" cy="2.5" r=".9"/></pattern>
</defs></svg>"""


def render(run: Path) -> str:
    """The page of the run in this directory, a function of its files alone.

    Raises MissingError where there is no `recipe.json`. Any other file may be missing, cut off or damaged: its part is
    left out, and the page says so.
    """
    run = Path(run)
    if not (run / "recipe.json").is_file():
        raise MissingError(f"{run} is not a run directory: it has no recipe.json", hint="etude report RUN")
    notes: list[str] = []
    loaded = {name: _load(run / f"{name}.json", notes) for name in ("recipe", "env", "status", "result")}
    for name, value in loaded.items():
        if not isinstance(value, dict):
            notes.append(f"{name}.json holds no object and is left out.")
            loaded[name] = {}
    metrics = read_metrics(run / "metrics.jsonl")
    if metrics.skipped:
        notes.append(f"metrics.jsonl: {metrics.skipped:,} unreadable lines are left out.")
    error = run / "error.txt"
    message = error.read_text(encoding="utf-8", errors="replace") if error.exists() else ""
    view = _Run(run, **loaded, metrics=metrics, error=message)

    headline = _headline(view)
    figures = _figures(_load(run / "figures.json", notes), notes)
    sections = [
        ("curves", "Curves", _curves(metrics, headline.kept if headline else None)),
        *figures,
        ("gradients", "Gradients", _health(metrics.health)),
        ("recipe", "Recipe", _section("recipe", "Recipe", _trees(view.config, "run")) if view.config else ""),
        ("environment", "Environment", _environment(view)),
        ("reproduce", "Reproduce", _reproduce(view)),
        ("files", "Files", _listing(view)),
    ]
    sections = [s for s in sections if s[2]]
    live = view.state == "training"
    written = max((f.stat().st_mtime for f in (run / "status.json", run / "metrics.jsonl") if f.exists()), default=0)
    part = f"{100 * view.done:.0f}\u202f% · " if live and view.done is not None else ""
    main = f"{_tiles(view, headline)}\n{_notices(view, notes)}\n{''.join(body for _, _, body in sections)}"
    header = _header(view, [(i, t) for i, t, _ in sections])
    return shell(f"{part}{view.name}", header, main, live=live, written=written)


def shell(title: str, header: str, main: str, *, live: bool = False, written: float = 0) -> str:
    """The whole page around its content; where `live`, it reloads itself. `written`: when its files last changed."""
    here = Path(__file__).parent
    style, script = (here / "page.css").read_text(), (here / "page.js").read_text()
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}; base-uri 'none'; form-action 'none'">
{f'<noscript><meta http-equiv="refresh" content="{REFRESH}"></noscript>' if live else ""}
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{_e(title)} · etude</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body{f' data-refresh="{REFRESH}" data-written="{written:.0f}"' if live else ""}>
{_PATTERNS}
{header}
<main>
{main}</main>
<footer>Made by etude from the files of this directory. This page loads nothing from anywhere.</footer>
<script>{script}</script>
</body>
</html>
"""


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def replace(folder: Path, page: str) -> Path:
    """Replace `report.html` in one step, so that no reader ever sees half a page. Returns its path."""
    target, temporary = folder / "report.html", folder / f".report.{os.getpid()}.tmp"
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target
