"""The page of a study: its variants side by side, made from the files of their directories alone."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from etude.errors import MissingError
from etude.report import charts
from etude.report.blocks import sections_of
from etude.report.charts import Series
from etude.report.files import HEALTH, Metrics, load, read_metrics
from etude.report.parts import (
    cell,
    duration,
    e,
    is_finite,
    is_number,
    is_share,
    section,
    shell,
    show,
    table_of,
    title_of,
    tree,
)

FILE = "study.json"
_MOST_LAYERS = 400


@dataclass
class _Variant:
    label: str
    path: Path
    changes: dict[str, str]
    outcome: dict[str, Any]
    status: dict[str, Any]
    metrics: Metrics
    blocks: list[Any] = field(default_factory=list)

    @property
    def state(self) -> str:
        return str(self.outcome.get("state") or self.status.get("state") or "waiting")


def render(study: Path) -> str:
    """The page, a function of the study's files. MissingError where there is no `study.json`."""
    study = Path(study)
    notes: list[str] = []
    if not (study / FILE).is_file():
        raise MissingError(f"{study} is not a study: it has no {FILE}")
    document = load(study / FILE, notes)
    document = document if isinstance(document, dict) else {}
    for name in ("recipes", "changes", "outcomes"):
        if not isinstance(document.get(name), dict):
            document[name] = {}
    labels = [label for label in document["recipes"] if (study / label).parent == study]  # none leads elsewhere
    variants = [_variant(study, document, label, notes) for label in labels]
    sections = [
        ("results", "Results", _results(variants)),
        ("measures", "Measures", _against(variants, document)),
        ("curves", "Curves", _curves(variants)),
        ("layers", "Layers", _layers(variants)),
        *_shared(variants, notes),
        ("variants", "Variants", _links(variants)),
    ]
    sections = [s for s in sections if s[2]]
    done = sum(v.outcome != {} for v in variants)
    live = done < len(variants)
    state = "training" if live else "done"
    links = "".join(f'<a href="#{i}">{e(t)}</a>' for i, t, _ in sections)
    header = (
        f'<header><p class="over">etude {e(document.get("etude", ""))} · report of a study</p>'
        f'<div class="title"><h1>{e(document.get("study", study.name))}</h1>'
        f'<span class="badge {state}">{done} of {len(variants)} done</span></div>'
        f'<p class="lead">{e(document.get("question", ""))}</p>'
        f'<p class="facts"><span>study {e(study)}</span><span>{e(document.get("command", ""))}</span></p>'
        f"<nav>{links}</nav></header>"
    )
    warned = f'<div class="notice">{"<br>".join(e(n) for n in notes)}</div>' if notes else ""
    files = [study / FILE, *(v.path / name for v in variants for name in ("status.json", "metrics.jsonl"))]
    written = max((f.stat().st_mtime for f in files if f.exists()), default=0)
    body = warned + "".join(body for _, _, body in sections)
    return shell(str(document.get("study", study.name)), header, body, live=live, written=written)


def _variant(study: Path, document: dict[str, Any], label: str, notes: list[str]) -> _Variant:
    path = study / label
    loaded = load(path / "status.json", notes), load(path / "figures.json", notes)
    return _Variant(
        label,
        path,
        changes=_dict(document["changes"].get(label)),
        outcome=_dict(document["outcomes"].get(label)),
        status=_dict(loaded[0]),
        metrics=read_metrics(path / "metrics.jsonl"),
        blocks=loaded[1] if isinstance(loaded[1], list) else [],
    )


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _results(variants: list[_Variant]) -> str:
    """A row a variant: what it changes, and its measures on what it learned from and on what it did not."""
    ended = [v for v in variants if v.outcome.get("state") == "done"]
    names = list(dict.fromkeys(name for v in ended for name in v.outcome.get("test", {})))
    columns = ["variant", "changes"]
    columns += [f"{split} {title_of(name).lower()}" for name in names for split in ("train", "test")]
    columns += ["steps", "time", "state"]
    rows = []
    for v in variants:
        row: list[Any] = [v.label, ", ".join(f"{name} {value}" for name, value in v.changes.items()) or "nothing"]
        for name in names:
            row += [cell(name, (v.outcome.get(split) or {}).get(name)) for split in ("train", "test")]
        seconds = v.outcome.get("seconds")
        row += [v.outcome.get("steps", v.status.get("step", "–"))]
        row += [duration(seconds) if is_finite(seconds) else "–", v.state]
        rows.append(row)
    failed = [v for v in variants if v.outcome.get("state") == "failed"]
    said = "".join(
        f'<div class="notice bad"><strong>{e(v.label)} stopped.</strong> {e(v.outcome.get("error", ""))}</div>'
        for v in failed
    )
    lead = "The same seed, data and order of samples; only the named fields differ. Train and test are measured alike, "
    return section("results", "Results", table_of(columns, rows) + said, lead + "without augmentation, at the end.")


def _against(variants: list[_Variant], document: dict[str, Any]) -> str:
    """Where one numeric field varies: each measure against it."""
    varied = document.get("varied", [])
    if len(varied) != 1:
        return ""
    points = [
        (x, v) for v in variants if v.outcome.get("test") and (x := _numeric(v.changes.get(varied[0]))) is not None
    ]
    if len(points) < 3:
        return ""
    figures = []
    for name in dict.fromkeys(name for _, v in points for name in v.outcome["test"]):
        series = []
        for split in ("train", "test"):
            known = [(x, v.outcome[split][name]) for x, v in points if is_number(v.outcome.get(split, {}).get(name))]
            if known:
                x, y = np.array(sorted(known), float).T
                series.append(Series(split, x, y, dots=True))
        values = np.concatenate([s.y for s in series])
        log = not is_share(name) and values.min() > 0 and values.max() / values.min() > 10
        spread = [x for x, _ in points]
        title, x_name = title_of(name) + (", log scale" if log else ""), varied[0].split(".")[-1]
        log_x = min(spread) > 0 and max(spread) / min(spread) > 10
        figures.append(charts.lines(title, series, x=x_name, log=log, share=is_share(name), log_x=log_x))
    return section("measures", f"Measures against {varied[0]}", f'<div class="grid2">{"".join(figures)}</div>')


def _numeric(text: str | None) -> float | None:
    """ "0.1" or "(64,)" as a number."""
    try:
        value = float((text or "").strip("(),"))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _curves(variants: list[_Variant]) -> str:
    """Each measure over the steps, a line a variant."""
    figures = []
    wanted: list[tuple[str, Callable[[Metrics], Iterable[tuple[str, Any]]]]] = [
        ("training", lambda m: ((name, next(iter(curves.values()))) for name, curves in m.train.items())),
        (
            "held-out",
            lambda m: ((name, _longest(curves)) for name, curves in m.evaluated.items()),
        ),
    ]
    for split, curves_of in wanted:
        found: dict[str, list[Series]] = {}
        for v in variants:
            for name, (x, y) in curves_of(v.metrics):
                dots = split == "held-out"
                series = Series(v.label, np.asarray(x, float), np.asarray(y, float), smoothed=not dots, dots=dots)
                found.setdefault(name, []).append(series)
        for name, series in sorted(found.items(), key=lambda item: (item[0] != "loss", item[0])):
            values = np.concatenate([s.y for s in series])
            finite = values[np.isfinite(values)]
            if name == "lr" or not finite.size:
                continue
            share = is_share(name) and finite.min() >= 0 and finite.max() <= 1
            log = not share and finite.min() > 0 and finite.max() / finite.min() > 30
            title = f"{title_of(name)}, {split}" + (", log scale" if log else "")
            figures.append(charts.lines(title, series, log=bool(log), share=bool(share), group="step"))
    return section("curves", "Curves", f'<div class="grid2">{"".join(figures)}</div>') if figures else ""


def _longest(curves: dict[str, Any]) -> Any:
    """The curve of the split that was measured most often: where samples are held out, the test split has one point."""
    return max(curves.values(), key=lambda curve: len(curve[0]))


def _layers(variants: list[_Variant]) -> str:
    """What was seen of each layer at the first step and at the last, from the input (left) to the output (right)."""
    figures = []
    for kind, (title, _) in HEALTH.items():
        log = kind != "dead_units"
        known = [(v.label, v.metrics.health[kind]) for v in variants if v.metrics.health.get(kind)]
        # a variant may have layers of its own, such as an activation that learns: those of all can be compared
        layers = [name for name in known[0][1][0][1] if all(name in r[0][1] for _, r in known)] if known else []
        if kind == "act_norms":  # an activation's output shows less than its layer's
            weighted = {name for v in variants for _, norms in v.metrics.health.get("grad_norms", []) for name in norms}
            layers = [name for name in layers if name in weighted]
        if not 2 < len(layers) <= _MOST_LAYERS:
            continue
        for at, when in ((0, "at the first step"), (-1, "at the last")):
            series = []
            for label, records in known:
                values = [x if is_finite(x := records[at][1].get(name)) else math.nan for name in layers]
                series.append(Series(label, np.arange(1, len(layers) + 1.0), np.array(values, float), dots=True))
            if not series or (kind == "dead_units" and not any((s.y > 0).any() for s in series)):
                continue
            log_here = log and any((s.y > 0).any() for s in series)
            shown = f"{title} by layer, {when}" + (", log scale" if log_here else "")
            figures.append(charts.lines(shown, series, x="layer", log=log_here, share=kind == "dead_units"))
    lead = "Layers in the model's order, the one nearest the input at the left."
    return section("layers", "Layer by layer", f'<div class="grid2">{"".join(figures)}</div>', lead) if figures else ""


def _shared(variants: list[_Variant], notes: list[str]) -> list[tuple[str, str, str]]:
    """The variants' figures that are worth comparing, those of one title together: lines in one chart, others (where
    the block says "study": true) one below another."""
    titles: dict[str, list[tuple[_Variant, dict[str, Any]]]] = {}
    for v in variants:
        for block in v.blocks:
            if isinstance(block, dict) and (block.get("kind") == "lines" or block.get("study")):
                titles.setdefault(str(block.get("title", block.get("kind"))), []).append((v, block))
    out = []
    for i, (title, found) in enumerate(titles.items()):
        kinds = {block.get("kind") for _, block in found}
        merged: list[dict[str, Any]] = []
        if kinds == {"lines"}:
            merged = [_merge(title, found)]
        else:
            for v, block in found:
                few = {"items": block["items"][:8]} if isinstance(block.get("items"), list) else {}
                merged.append({**block, **few, "title": f"{title}: {v.label}"})
        sections = sections_of(merged, notes)
        body = "".join(body for _, _, body in sections)
        if body:
            body = body.replace('id="figure-', f'id="figure-{i}-')
            out.append((f"shared-{i}", title, f'<div id="shared-{i}">{body}</div>'))
    return out


def _merge(title: str, found: list[tuple[_Variant, dict[str, Any]]]) -> dict[str, Any]:
    """One chart of all variants' lines. A line that all have alike, such as the target, is drawn once."""
    series: dict[str, Any] = {}
    for name in dict.fromkeys(name for _, block in found for name in block.get("series", {})):
        lines = [(v.label, block["series"][name]) for v, block in found if name in block.get("series", {})]
        if len(lines) > 1 and all(points == lines[0][1] for _, points in lines):
            series[name] = lines[0][1]
        else:
            several = len({n for _, block in found for n in block.get("series", {})} - series.keys()) > 1
            series |= {f"{label} {name}" if several else label: points for label, points in lines}
    return {**found[0][1], "title": title, "series": series}


def _links(variants: list[_Variant]) -> str:
    """Each variant's own report, relative to this page."""
    rows = []
    for v in variants:
        there = (v.path / "report.html").is_file()
        name = f'<a href="{e(v.label)}/report.html">{e(v.label)}</a>' if there else e(v.label)
        best = v.outcome.get("test") or {}
        said = ", ".join(f"{title_of(n).lower()} {show(n, x)}" for n, x in best.items() if is_number(x))
        changes = tree(v.changes) if v.changes else "the base recipe"
        rows.append(f'<div class="card"><h3>{name}</h3><p class="lead">{e(said or v.state)}</p>{changes}</div>')
    lead = "Each is a run directory like any other: predict, eval and graph take it."
    return section("variants", "Variants", f'<div class="trees">{"".join(rows)}</div>', lead) if rows else ""
