"""The blocks of `figures.json`, which tasks write, as sections of a page."""

import base64
from collections.abc import Callable
from typing import Any

import numpy as np

from etude.report import charts
from etude.report.charts import Series, number, percent
from etude.report.parts import e, section, table_of

_CLASSES = 120
"""Most classes of a confusion matrix that is drawn; of more there are the tables beside it."""


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
        side = table_of(["class", "wrong", "right"], hardest[:10], "Hardest classes")
        side += table_of([row, column, "times"], frequent, "Most frequent mistakes")
    return f'<p class="lead">{lead}</p><div class="beside">{figure}<div class="side">{side}</div></div>'


def _images(block: dict[str, Any]) -> str:
    note = f"<p>{e(block['note'])}</p>" if block.get("note") else ""
    before = [item | {"caption": one["label"]} for one in block.get("earlier", []) for item in one["items"]]
    return note + _pictures(block["items"]) + (_pictures(before, css="pictures before") if before else "")


def _pictures(blocks: list[dict[str, Any]], *, css: str = "pictures") -> str:
    items = []
    for item in blocks:
        png = base64.b64decode(item["png"], validate=True)
        if png[:8] != b"\x89PNG\r\n\x1a\n":
            raise ValueError("an item is no PNG")
        width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
        scale = max(1, round(112 / max(width, height, 1)))  # tiny pictures grow by whole pixels
        pixels = ' class="pixels"' if scale > 1 else ""
        caption = e(item.get("caption", ""))
        detail = f"<small>{e(item['detail'])}</small>" if item.get("detail") else ""
        large = ' class="large"' if width * scale > 160 else ""
        items.append(
            f'<li{large}><img{pixels} src="data:image/png;base64,{base64.b64encode(png).decode()}" '
            f'width="{width * scale}" height="{height * scale}" alt="{caption}"><p>{caption}{detail}</p></li>'
        )
    return f'<ul class="{css}">{"".join(items)}</ul>' if items else "<p>None.</p>"


def _rows(block: dict[str, Any]) -> str:
    rows = block["rows"]
    more = f'<p class="lead">The first 200 of {len(rows):,} rows.</p>' if len(rows) > 200 else ""
    return table_of(block["columns"], rows[:200]) + more


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
    earlier = "".join(
        f'<details><summary>{e(one["label"])}</summary><pre class="text">{e(one["text"])}</pre></details>'
        for one in reversed(block.get("earlier", []))
    )
    return f'<pre class="text">{e(block["text"])}</pre>{earlier}'


_BLOCKS: dict[str, Callable[[dict[str, Any]], str]] = {
    "matrix": _matrix,
    "images": _images,
    "table": _rows,
    "lines": _lines,
    "scatter": _scatter,
    "text": _text,
}


def sections_of(blocks: Any, notes: list[str]) -> list[tuple[str, str, str]]:
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
        out.append((f"figure-{i}", title, section(f"figure-{i}", title, body)))
    return out
