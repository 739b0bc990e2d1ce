"""A folded graph as SVG, and as a page whose modules unfold at a click. Neither needs anything from outside.

`sheet` says what there is to draw: texts, sizes, and which cell of a group stands where. `svg` places and draws it with
the modules of one's choice unfolded; page.js does the same from the same sheet, by the same rules, at each click.
Lengths are pixels. Colours come from page.css, which knows light and dark.
"""

import base64
import hashlib
import json
import math
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from etude.graph import layout
from etude.graph.fold import Group, Item
from etude.graph.layout import Arrangement, Cell, Placed, arrange, place
from etude.graph.trace import Trace, Value

LEVELS = 10
"""Colours of the gradient's logarithm."""
PAD, HEAD, FOOT = 14, 24, 12
"""Of a frame around an unfolded module: at the sides, above with its title, below."""
MARGIN = 28
_WEIGHTS = ("conv", "linear", "lstm", "gru", "rnn", "embedding", "attention", "addmm", "matmul", "mm", "bmm", "einsum")
_NORMS = ("norm",)
_BENDS = ("relu", "gelu", "silu", "swish", "sigmoid", "tanh", "softmax", "elu", "hardtanh", "hardswish")


# --- numbers and texts


def amount(number: float) -> str:
    """1,234,567 -> 1.23M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def shape(value: Value) -> str:
    """2×64×56×56, and the type where it is not float32."""
    size = "×".join(map(str, value.shape)) or "scalar"
    return size if value.dtype == "float32" else f"{size} {value.dtype}"


def norm(value: float) -> str:
    """Two digits: 0.0012, 3.1e-05."""
    return "0" if value == 0 else f"{value:.2g}" if math.isfinite(value) else str(value)


def width(text: str, size: float = 12.0) -> float:
    """An upper estimate in pixels, for the wider of the usual sans-serif fonts."""
    narrow, wide = "iljtfrI.,:;|!'()[] -·", "mwMWGOQ@%×—"
    return size * sum(0.38 if c in narrow else 0.92 if c in wide else 0.65 for c in text)


def _stats(parameters: int, flops: int) -> str:
    said = [f"{amount(parameters)} params"] if parameters else []
    return " · ".join(said + ([_flops(flops)] if flops else []))


def _flops(number: int) -> str:
    """236,027,904 -> 236 MFLOPs."""
    size = amount(number)
    return f"{size.rstrip('kMGT')} {size.lstrip('0123456789.e+')}FLOPs"


def _look(item: Item) -> str:
    if item.kind in ("input", "output", "port"):
        return item.kind
    word = (item.type if item.kind == "module" else item.name).lower()
    for look, words in (("norm", _NORMS), ("weights", _WEIGHTS), ("bend", _BENDS)):
        if any(w in word for w in words):
            return look
    return "plain"


# --- the sheet


def sheet(trace: Trace, root: Group, *, title: str, note: str) -> dict[str, Any]:
    """All that a drawing is made of, as plain values; the same for `svg` and for page.js."""
    norms = [e.gradient for group in root.groups() for e in group.edges if e.gradient]
    norms = [n for n in norms if math.isfinite(n)]
    scale = (min(norms), max(norms)) if norms else None
    total = sum(op.flops for op in trace.ops)
    return {
        "title": title,
        "facts": _stats(sum(trace.parameters.values()), total),
        "note": note,
        "scale": [norm(scale[0]), norm(math.sqrt(scale[0] * scale[1])), norm(scale[1])] if scale else None,
        "group": _group(root, max(total, 1), scale, trace.backward),
    }


def _group(group: Group, total: int, scale: tuple[float, float] | None, backward: bool) -> dict[str, Any]:
    ins = {i for i, item in enumerate(group.items) if item.kind == "port" and item.name == "in"}
    outs = {i for i, item in enumerate(group.items) if item.kind == "port" and item.name == "out"}
    ends = [(e.source, e.target) for e in group.edges]
    arranged = arrange(len(group.items), ends, top=ins, bottom=outs)
    fans = [sum(e.source == port for e in group.edges) for port in range(len(group.items))]
    edges = []
    for e in group.edges:
        label = [] if e.source in ins or e.target in outs else [shape(e.value)]
        if backward and e.target not in outs and (e.source not in ins or fans[e.source] > 1):
            label += [] if e.gradient is None else [norm(e.gradient)]
        said = "" if e.gradient is None else f", gradient norm {norm(e.gradient)}"
        edges.append(
            {
                "source": e.source,
                "target": e.target,
                "source_port": e.source_port,
                "target_port": e.target_port,
                "label": label,
                "w": max((width(line, 11) for line in label), default=-8.0) + 10,
                "h": 14 * len(label) + 1 if label else 0,
                "level": _level(e.gradient, scale) if backward else None,
                "dashed": backward and not e.gradient,
                "title": f"{shape(e.value)}{said}",
            }
        )
    return {
        "id": group.number,
        "path": group.path,
        "items": [_item(item, total, scale, backward) for item in group.items],
        "edges": edges,
        "cells": [cell.node if cell.node >= 0 else -1 - cell.edge for cell in arranged.cells],
        "layers": arranged.layers,
        "chains": arranged.chains,
    }


def _level(gradient: float | None, scale: tuple[float, float] | None) -> int | None:
    if gradient is None:
        return None
    if not gradient or scale is None:
        return 0
    if not math.isfinite(gradient):
        return LEVELS - 1
    low, high = math.log(scale[0]), math.log(scale[1])
    return round((LEVELS - 1) * (math.log(gradient) - low) / (high - low)) if high > low else LEVELS - 1


def _item(item: Item, total: int, scale: tuple[float, float] | None, backward: bool) -> dict[str, Any]:
    stats = _stats(item.parameters, item.flops)
    kind = "" if item.type == item.name else item.type
    head = [width(item.name, 13.5) + width(kind, 12.5) + 26, width(stats, 11.5) + 20]
    wide = max(width(item.name, 13.5) + (width(kind, 12) + 8 if kind else 0), width(stats, 11)) + 22
    title = [f"{item.path or item.name}: {item.type}({item.detail})" if item.type else item.detail or item.name]
    title += [f"{item.parameters:,} parameters"] if item.parameters else []
    title += [f"{item.flops:,} FLOPs, {item.flops / total:.1%} of the whole"] if item.flops else []
    title += [f"gradient norm of the parameters {norm(item.gradient)}"] if item.gradient is not None else []
    port = item.kind == "port"
    return {
        "kind": item.kind,
        "look": _look(item),
        "name": item.name,
        "type": kind,
        "stats": stats,
        "w": 10 if port else max(wide, 44),
        "head": head,
        "h": 0 if port else 44 if stats else 26,
        "share": item.flops / total if item.kind in ("module", "operator") else 0,
        "title": "\n".join(title),
        "path": item.path,
        "group": _group(item.inner, total, scale, backward) if item.inner else None,
    }


# --- drawing


class _Frame:
    """A group, placed, with the groups that are unfolded in it."""

    def __init__(self, group: dict[str, Any], opened: set[int]) -> None:
        self.group, self.items, self.edges = group, group["items"], group["edges"]
        self.inner = {
            i: _Frame(item["group"], opened)
            for i, item in enumerate(self.items)
            if item["group"] and item["group"]["id"] in opened
        }
        cells = [Cell(node=c) if c >= 0 else Cell(edge=-1 - c) for c in group["cells"]]
        self.arranged = Arrangement(cells, group["layers"], group["chains"])
        self.placed: Placed = place(self.arranged, self.size, self.port)

    def size(self, cell: int) -> tuple[float, float]:
        """Of a box, of a frame, of a label, or of the place where an edge passes."""
        at = self.arranged.cells[cell]
        if at.node < 0:
            edge = self.edges[at.edge]
            return (edge["w"], edge["h"]) if self.arranged.chains[at.edge][1] == cell else (2.0, 0.0)
        item = self.items[at.node]
        if at.node not in self.inner:
            return item["w"], item["h"]
        placed, (left, right) = self.inner[at.node].placed, item["head"]
        wide = [placed.width + 2 * PAD, left + right]
        for i, port in enumerate(item["group"]["items"]):  # the title leaves room for what comes in
            if port["kind"] == "port" and port["name"] == "in":
                off = placed.x[i] - placed.width / 2
                wide += [2 * (left - off), 2 * (right + off)]
        return max(wide), placed.height + HEAD + FOOT

    def port(self, edge: int, end: int) -> float:
        """How far right of the centre of an unfolded module the edge goes in or out; 0 at a box."""
        node = self.edges[edge]["target" if end else "source"]
        if node not in self.inner:
            return 0.0
        placed = self.inner[node].placed
        return placed.x[self.edges[edge]["target_port" if end else "source_port"]] - placed.width / 2

    def fans(self) -> dict[tuple[int, int], float]:
        """(edge, end) -> how far from its box's centre an edge ends, where several end at one box: side by side in the
        order in which they come, the only one to the next layer in the middle."""
        x, shifts = self.placed.x, {}
        for end in (0, 1):
            at: dict[int, list[int]] = {}
            for e, edge in enumerate(self.edges):
                at.setdefault(edge["target" if end else "source"], []).append(e)
            for node, edges in at.items():
                if node in self.inner or self.items[node]["kind"] == "port":
                    continue
                edges.sort(key=lambda e, end=end: x[self.arranged.chains[e][-2 if end else 1]])
                short = [k for k, e in enumerate(edges) if len(self.arranged.chains[e]) == 3]
                middle = short[0] if len(short) == 1 else (len(edges) - 1) / 2
                room = self.items[node]["w"] / 2 - 8
                step = min(16.0, room / max(middle, len(edges) - 1 - middle, 1))
                for k, e in enumerate(edges):
                    shifts[e, end] = (k - middle) * step
        return shifts

    def draw(self, dx: float, dy: float) -> Iterator[str]:
        """Edges first, then boxes, then labels; frames draw their own contents."""
        x, y = [dx + v for v in self.placed.x], [dy + v for v in self.placed.y]
        fans, labels = self.fans(), []
        for e, edge in enumerate(self.edges):
            yield from self._edge(e, edge, x, y, dy, fans)
            label = self.arranged.chains[e][1]
            if edge["label"]:
                left, top = x[label] - edge["w"] / 2 + 4, y[label] - edge["h"] / 2
                size = f'width="{edge["w"] - 8:.1f}" height="{edge["h"]:.1f}"'
                labels.append(f'<rect class="page" x="{left:.1f}" y="{top:.1f}" {size}/>')
            for k, text in enumerate(edge["label"]):
                line = y[label] - edge["h"] / 2 + 11 + 14 * k
                labels.append(f'<text class="label" x="{x[label]:.1f}" y="{line:.1f}">{escape(text)}</text>')
        for i, item in enumerate(self.items):
            if i in self.inner:
                yield from self._frame(i, item, x[i], y[i])
            elif item["kind"] == "port":
                if sum(i == edge["source"] for edge in self.edges) > 1:
                    yield f'<circle class="dot" cx="{x[i]:.1f}" cy="{y[i]:.1f}" r="3"/>'
            else:
                yield from _box(item, x[i], y[i])
        yield from labels

    def _frame(self, i: int, item: dict[str, Any], x: float, y: float) -> Iterator[str]:
        w, h = self.size(i)
        left, top, inner = x - w / 2, y - h / 2, self.inner[i]
        yield f'<g class="frame" data-id="{item["group"]["id"]}"><title>{escape(item["title"])}</title>'
        yield f'<rect x="{left:.1f}" y="{top:.1f}" width="{w:.1f}" height="{h:.1f}" rx="9"/>'
        begin = x - inner.placed.width / 2
        for port, edge in _border(inner.group):
            at = begin + inner.placed.x[port]
            low, high = (top, top + HEAD) if inner.items[port]["name"] == "in" else (top + h - FOOT, top + h)
            yield f'<path class="{_stroke(edge)}" d="M{at:.1f} {low:.1f}V{high:.1f}"/>'
        yield f'<text x="{left + 11:.1f}" y="{top + 17:.1f}">{_named(item)}</text>'
        yield f'<text class="stats right" x="{left + w - 11:.1f}" y="{top + 17:.1f}">{escape(item["stats"])}</text></g>'
        yield from inner.draw(begin, top + HEAD)

    def _edge(
        self,
        e: int,
        edge: dict[str, Any],
        x: list[float],
        y: list[float],
        dy: float,
        fans: dict[tuple[int, int], float],
    ) -> Iterator[str]:
        chain, rows = self.arranged.chains[e], self.group["layers"]
        first, last = chain[0], chain[-1]
        at, layer = (
            x[first] + (self.port(e, 0) or fans.get((e, 0), 0.0)),
            next(i for i, row in enumerate(rows) if first in row),
        )
        end = x[last] + (self.port(e, 1) or fans.get((e, 1), 0.0))
        path = [f"M{at:.1f} {y[first] + self.size(first)[1] / 2:.1f}"]
        here = y[first] + self.size(first)[1] / 2
        for k, cell in enumerate(chain[1:-1], 1):
            top, bottom = (dy + v for v in self.placed.spans[layer + k])
            path.append(_bend(at, here, x[cell], top))
            path.append(f"V{bottom:.1f}")
            at, here = x[cell], bottom
        tip = y[last] - self.size(last)[1] / 2
        port = self.items[edge["target"]]["kind"] == "port"
        path.append(_bend(at, here, end, tip if port else tip - 5))
        yield f'<path class="{_stroke(edge)}" d="{"".join(path)}"><title>{escape(edge["title"])}</title></path>'
        if not port:
            level = _stroke(edge).replace("edge", "tip")
            yield f'<path class="{level}" d="M{end - 4:.1f} {tip - 7:.1f}h8l-4 7z"/>'


def _border(group: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each port of a group, with an edge whose colour it has."""
    for i, item in enumerate(group["items"]):
        if item["kind"] == "port":
            yield i, next(e for e in group["edges"] if i in (e["source"], e["target"]))


def _stroke(edge: dict[str, Any]) -> str:
    level = "" if edge["level"] is None else f" g{edge['level']}"
    return f"edge{level}{' dashed' if edge['dashed'] else ''}"


def _bend(x0: float, y0: float, x1: float, y1: float) -> str:
    if abs(x0 - x1) < 0.5:
        return f"V{y1:.1f}"
    middle = (y0 + y1) / 2
    return f"C{x0:.1f} {middle:.1f} {x1:.1f} {middle:.1f} {x1:.1f} {y1:.1f}"


def _named(item: dict[str, Any]) -> str:
    kind = f'<tspan class="type" dx="7">{escape(item["type"])}</tspan>' if item["type"] else ""
    return f'<tspan class="name">{escape(item["name"])}</tspan>{kind}'


def _box(item: dict[str, Any], x: float, y: float) -> Iterator[str]:
    w, h = item["w"], item["h"]
    left, top, more = x - w / 2, y - h / 2, item["group"]
    yield f'<g class="box {item["look"]}{" more" if more else ""}"' + (f' data-id="{more["id"]}">' if more else ">")
    yield f"<title>{escape(item['title'])}</title>"
    round_ = 13 if item["kind"] != "module" else 7
    if more:
        yield f'<rect class="behind" x="{left + 4:.1f}" y="{top + 4:.1f}" width="{w:.1f}" height="{h:.1f}" rx="7"/>'
    yield f'<rect x="{left:.1f}" y="{top:.1f}" width="{w:.1f}" height="{h:.1f}" rx="{round_}"/>'
    if item["share"] >= 0.002:
        yield (
            f'<rect class="share" x="{left + 6:.1f}" y="{top + h - 5:.1f}" '
            f'width="{max(1.0, (w - 12) * item["share"]):.1f}" height="3"/>'
        )
    yield f'<text class="middle" x="{x:.1f}" y="{top + (18 if item["stats"] else 17):.1f}">{_named(item)}</text>'
    if item["stats"]:
        yield f'<text class="middle stats" x="{x:.1f}" y="{top + 34:.1f}">{escape(item["stats"])}</text>'
    yield "</g>"


def _style() -> str:
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def svg(document: dict[str, Any], opened: set[int], *, style: bool = True) -> str:
    """The drawing with the groups of these ids unfolded."""
    frame = _Frame(document["group"], opened)
    head, wide = _head(document)
    w = max(frame.placed.width, wide) + 2 * MARGIN
    top = 78 + (34 if document["scale"] else 0)
    h = frame.placed.height + top + MARGIN
    body = "\n".join(frame.draw((w - frame.placed.width) / 2, top))
    css = f"<style>{_style()}</style>" if style else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w:.0f} {h:.0f}" width="{w:.0f}" height="{h:.0f}" '
        f'data-head="{wide:.0f}" '
        f'role="img" aria-label="computation graph of {escape(document["title"], quote=True)}">{css}\n'
        f'<rect class="page" width="100%" height="100%"/>\n{head}\n{body}\n</svg>\n'
    )


def _head(document: dict[str, Any]) -> tuple[str, float]:
    """The lines above the drawing, and how wide they are."""
    lines = [
        f'<text class="title" x="{MARGIN}" y="34">{escape(document["title"])}</text>',
        f'<text class="facts" x="{MARGIN}" y="54">{escape(document["facts"])} · {escape(document["note"])}</text>',
    ]
    wide = max(width(document["title"], 18), width(document["facts"] + document["note"], 12) + 10)
    if document["scale"]:
        low, middle, high = document["scale"]
        lines.append(f'<text class="facts" x="{MARGIN}" y="80">gradient norm</text>')
        for k in range(LEVELS):
            lines.append(f'<rect class="swatch g{k}" x="{MARGIN + 100 + 24 * k}" y="70" width="24" height="6"/>')
        for k, text in ((0, low), (LEVELS / 2, middle), (LEVELS, high)):
            lines.append(f'<text class="mark" x="{MARGIN + 100 + 24 * k:.0f}" y="90">{text}</text>')
        wide = max(wide, 380)
    return "\n".join(lines), wide


def page(document: dict[str, Any], opened: set[int]) -> str:
    """A page with the drawing, whose modules unfold at a click; whole without a script, and nothing from outside."""
    here = Path(__file__)
    script = here.with_name("page.js").read_text(encoding="utf-8")
    style = _style() + here.with_name("toolbar.css").read_text(encoding="utf-8")
    rules = {"PAD": PAD, "HEAD": HEAD, "FOOT": FOOT, "MARGIN": MARGIN, "LEVELS": LEVELS}
    rules |= {name: getattr(layout, name) for name in ("GAP", "BETWEEN", "STRAIGHT", "SHORT", "LONG", "SWEEPS")}
    rules |= {"FIRM": layout.FIRM, "STIFF": layout.STIFF}
    data = json.dumps({"sheet": document, "opened": sorted(opened), "rules": rules}, separators=(",", ":"))
    data = data.replace("<", "\\u003c")  # so that no name ends the element that holds it
    policy = f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:"
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(document["title"])} · computation graph</title>
<link rel="icon" href="data:,">
<style>{style}</style>
<nav><button data-do="more">Unfold one level</button> <button data-do="less">Fold one level</button>
<span>A click on a stacked box unfolds it; on the title of a frame, folds it.</span></nav>
<main>{svg(document, opened, style=False)}</main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</html>
"""


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
