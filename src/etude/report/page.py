"""`report.html`: one self-contained page that shows a run, made from the files of its directory alone.

Needs no torch and no network, and takes any directory that holds a `recipe.json`: a run that trains, was killed,
failed or is done, also one that was moved or lost some files. The page allows itself nothing from outside (its
Content-Security-Policy names the hashes of its own style and script) and is whole without a script.

The file is replaced atomically and reloads itself while the run trains: a browser tab on it is a live dashboard.
"""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from etude.errors import MissingError
from etude.report import charts
from etude.report.blocks import sections_of
from etude.report.charts import Series, number
from etude.report.files import HEALTH, Metrics, load, read_metrics
from etude.report.parts import (
    bytes_of,
    cell,
    duration,
    e,
    is_finite,
    is_number,
    is_share,
    phrase,
    section,
    shell,
    show,
    table_of,
    title_of,
    trees,
)

_LOGARITHMIC = 30
"""A measure whose values span more than this factor gets a logarithmic axis."""
_COLUMNS = 120
"""Most columns of the heat map of gradient norms."""
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
        share = is_share(name) and bool(finite.size) and finite.min() >= 0 and finite.max() <= 1
        wide = finite.size > 1 and finite.min() > 0 and finite.max() / finite.min() > _LOGARITHMIC
        log = bool(wide) and not share and name != "lr"
        title = title_of(name) + (", log scale" if log else "")
        shown = kept if name in metrics.evaluated else None
        figures.append(charts.lines(title, series, log=log, share=share, kept=shown, group="step"))
    if not figures:
        return ""
    lead = "Thin lines: every logged value. Bold lines: their moving average. Dots: evaluations."
    lead += " Dotted: where the kept weights are from." if kept is not None else ""
    return section("curves", "Curves", f'<div class="grid2">{"".join(figures)}</div>', lead)


def _health(records: dict[str, list[tuple[float, dict[str, Any]]]]) -> str:
    """A heat map a kind: two and two where there are several, as they are compared with each other."""
    learning = {name for _, norms in records.get("grad_norms", []) for name in norms}
    if "act_norms" in records:  # those of the layers that the other maps show
        records = records | {
            "act_norms": [(s, {n: v for n, v in values.items() if n in learning}) for s, values in records["act_norms"]]
        }
    dead = records.get("dead_units", [])
    none_dead = bool(dead) and all(share == 0 for _, shares in dead for share in shares.values())
    kinds = [kind for kind in HEALTH if any(values for _, values in records.get(kind, []))]
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
    return section("gradients", "Gradient health" if len(kinds) > 1 else "Gradient norms by layer", body, lead)


def _by_layer(kind: str, records: list[tuple[float, dict[str, Any]]], most: int, *, narrow: bool) -> str:
    title, lead = HEALTH[kind]
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
    return float(norms[name]) if is_finite(norms[name]) else math.inf


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
        return step / steps if is_finite(step) and is_finite(steps) and steps > 0 else None


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
        if name != "step" and is_number(value):
            chosen = best.get("split") != "test"
            below = f"weights of step {number(best['step'])}" if is_number(best.get("step")) else ""
            below += f", best on {best['split']}" if chosen and "split" in best else ""
            value = run.result.get("eval", {}).get(name, value)
            return _Headline(name, value, "test", f"Test {phrase(name)}", below, best.get("step") if chosen else None)
    for name in sorted(run.metrics.evaluated, key=lambda n: (not is_share(n), n == "loss")):
        splits = run.metrics.evaluated[name]
        split = "validation" if "validation" in splits else next(reversed(splits))
        x, y = splits[split]
        chosen = split == "validation" and (is_share(name) or name == "loss") and np.isfinite(y).any()
        at = len(y) - 1
        if chosen:
            at = int(np.nanargmax(y) if is_share(name) else np.nanargmin(y))
        label = f"{'best ' if chosen else ''}{split} {phrase(name)}"
        label = label[:1].upper() + label[1:]
        return _Headline(name, y[at], split, label, f"at step {number(x[at])}", x[at] if chosen else None)
    return None


def _loss_tile(run: _Run, split: str) -> tuple[str, str, str] | None:
    """The loss of the evaluated split; before the first evaluation, of training."""
    if is_number(loss := run.result.get("eval", {}).get("loss")):
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
        tiles.append((headline.label, show(headline.measure, headline.value), headline.below))
    loss = _loss_tile(run, headline.split if headline else "")
    if loss and not (headline and headline.measure == "loss"):
        tiles.append(loss)
    if is_finite(step := status.get("step", result.get("steps"))):
        steps, epochs = status.get("steps", step), run.metrics.epochs
        of = f"{number(epochs, 3)} epochs" if epochs else ""
        tiles.append(("Steps", number(step), f"of {number(steps)}" if is_finite(steps) and steps != step else of))
    if is_finite(seconds := status.get("seconds", result.get("seconds"))):
        left = (
            f"about {duration(status['eta'])} left" if run.state == "training" and is_finite(status.get("eta")) else ""
        )
        tiles.append(("Duration", duration(seconds), left))
    if is_finite(speed := status.get("samples_per_second")):
        tiles.append(("Speed", number(round(speed) if speed >= 10 else speed, 3), "samples a second"))
    if is_finite(params := result.get("params", run.env.get("params"))):
        scales = (("B", 1e9), ("M", 1e6), ("k", 1e4))
        unit, scale = next(((u, s) for u, s in scales if params >= s), ("", 1))
        scale = 1e3 if unit == "k" else scale
        short = f"{params / scale:.3g}\u202f{unit}" if unit else number(params)
        tiles.append(("Parameters", short, number(params) if unit else ""))
    cells = "".join(
        f'<div><dt>{e(name)}</dt><dd>{e(value)}</dd><dd class="sub">{e(below)}</dd></div>'
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
        counts = ", ".join(f"{number(count)} {split}" for split, count in sizes.items() if is_number(count))
        facts.append(f"{data['source']}" + (f" ({counts})" if counts else ""))
    bar = ""
    if state in ("training", "stopped", "failed") and run.done is not None:
        share = f"{100 * run.done:.0f}"
        bar = f'<progress max="100" value="{share}" aria-label="Progress">{share} %</progress>'
    contents = "".join(f'<a href="#{i}">{e(t)}</a>' for i, t in links)
    return (
        f'<header><p class="over">etude {e(run.recipe.get("etude", ""))} · report of a run</p>'
        f'<div class="title"><h1>{e(run.name)}</h1><span class="badge {e(state)}">{e(state)}</span></div>'
        f'<p class="facts">{"".join(f"<span>{e(f)}</span>" for f in facts)}</p>'
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
    items = "".join(f"<li><p>{e(what)}</p><pre><code>{e(command)}</code></pre></li>" for what, command in steps)
    check = ""
    if digest := run.result.get("weights_sha256"):
        check = "On the same machine and versions the weights have the sha256"
        check = f'<p class="lead">{check} <code>{e(digest)}</code>.</p>'
    return section("reproduce", "Reproduce", f'<ol class="steps">{items}</ol>{check}', "A click selects a command.")


def _result(run: _Run) -> str:
    train, evaluated = run.result.get("train") or {}, run.result.get("eval") or {}
    every = [n for n in dict.fromkeys([*evaluated, *train]) if not n.endswith("grad_norm")]
    names = [n for n in every if is_number(evaluated.get(n, train.get(n)))]
    if not names:
        return ""
    rows = [[title_of(n), *(cell(n, d.get(n)) for d in (train, evaluated))] for n in names]
    return f'<div class="card">{table_of(["measure", "train", "test"], rows, "result")}</div>'


def _environment(run: _Run) -> str:
    env = run.env | ({"started": _when(run.env["started"])} if "started" in run.env else {})
    return section("environment", "Environment and result", trees(env, "machine", _result(run))) if env else ""


def _listing(run: _Run) -> str:
    there = sorted(path.name for path in run.path.iterdir() if not path.name.startswith("."))
    rows = []
    for name in [*(n for n in _FILES if n in there or n == "report.html"), *(n for n in there if n not in _FILES)]:
        path, size = run.path / name, ""
        if path.is_dir():
            size = f"{sum(1 for _ in path.iterdir())} inside"
        elif name != "report.html":
            size = bytes_of(path.stat().st_size)
        rows.append([name + "/" * path.is_dir(), size, _FILES.get(name, "")])
    return section("files", "Files of this run", table_of(["file", "size", "what it holds"], rows))


def _notices(run: _Run, notes: Sequence[str]) -> str:
    out = []
    resume = f"<code>{e(f'etude resume {shlex.quote(str(run.path))}')}</code>"
    if run.state == "failed":
        message = run.error.strip() or "No error.txt was written."
        out.append(
            f'<div class="notice bad"><strong>The run failed.</strong> {e(message.splitlines()[-1])}'
            f"<details><summary>The whole message</summary><pre>{e(message[-20_000:])}</pre></details></div>"
        )
    if run.state == "stopped":
        out.append(f'<div class="notice"><strong>Stopped and saved.</strong> Go on with {resume}</div>')
    if run.state == "training":
        out.append(f'<div class="notice" id="stale" hidden><b></b> It may have ended. If so, go on with {resume}</div>')
    if not (run.metrics.train or run.metrics.evaluated):
        out.append('<div class="notice">Nothing is logged yet: the curves begin with <code>metrics.jsonl</code>.</div>')
    if notes:
        out.append(f'<div class="notice">{"<br>".join(e(n) for n in notes)}</div>')
    return "".join(out)


def render(run: Path) -> str:
    """The page of the run in this directory, a function of its files alone.

    Raises MissingError where there is no `recipe.json`. Any other file may be missing, cut off or damaged: its part is
    left out, and the page says so.
    """
    run = Path(run)
    if not (run / "recipe.json").is_file():
        raise MissingError(f"{run} is not a run directory: it has no recipe.json", hint="etude report RUN")
    notes: list[str] = []
    loaded = {name: load(run / f"{name}.json", notes) for name in ("recipe", "env", "status", "result")}
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
    shown = sections_of(load(run / "figures.json", notes), notes)
    sections = [
        ("curves", "Curves", _curves(metrics, headline.kept if headline else None)),
        *shown,
        ("gradients", "Gradients", _health(metrics.health)),
        ("recipe", "Recipe", section("recipe", "Recipe", trees(view.config, "run")) if view.config else ""),
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
