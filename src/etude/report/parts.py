"""Small pieces of a page: numbers in words, tables, sections, and the shell around all."""

import base64
import hashlib
import math
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, TypeGuard

from etude.report.charts import number, percent

REFRESH = 5
"""Seconds between two reloads of the page of a training run."""
_SHARES = {"accuracy", "top1", "top5", "precision", "recall", "f1", "iou", "miou", "dice", "map", "auc"}
"""Measures that are shares of one, where more is better; also as a word of a longer name, as in accuracy_top5."""
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


def e(value: Any) -> str:
    return escape(str(value))


def duration(seconds: float) -> str:
    """12.3 s · 4 min 05 s · 2 h 07 min · 3 d 4 h"""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def bytes_of(count: float) -> str:
    unit, scale = next((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1)) if count >= s or s == 1)
    return f"{count / scale:.3g} {unit}"


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: Any) -> TypeGuard[float]:
    return is_number(value) and math.isfinite(value)


def is_share(name: str) -> bool:
    return not _SHARES.isdisjoint(name.split("_"))


def show(name: str, value: float) -> str:
    return percent(value) if is_share(name) and not abs(value) > 1 else number(value)


def phrase(name: str) -> str:
    return _NAMES.get(name) or name.replace("_", " ")


def title_of(name: str) -> str:
    said = phrase(name)
    return said.capitalize() if said.islower() else said


def cell(name: str, value: Any) -> Any:
    if not is_number(value):
        return "–"
    return percent(value) if is_share(name) else value


def table_of(columns: Sequence[Any], rows: Sequence[Sequence[Any]], caption: str = "") -> str:
    """Columns of numbers stand to the right, so that their digits align."""

    def counts(value: Any) -> bool:
        return is_number(value) or str(value) == "–" or str(value).endswith("\u202f%")

    kind = [' class="num"' if rows and all(counts(row[i]) for row in rows) else "" for i in range(len(columns))]
    head = "".join(f'<th scope="col"{k}>{e(c)}</th>' for k, c in zip(kind, columns))
    body = "".join(
        "<tr>" + "".join(f"<td{k}>{e(number(v) if is_number(v) else v)}</td>" for k, v in zip(kind, row)) + "</tr>"
        for row in rows
    )
    title = f"<caption>{e(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def tree(value: Any) -> str:
    """Nested settings as nested definition lists."""
    if isinstance(value, dict):
        rows = []
        for key, inner in value.items():
            if key == "type":
                continue
            if isinstance(inner, list) and any(isinstance(v, dict) for v in inner):
                rows.append(f'<div class="branch"><dt>{e(key)}</dt><dd>{tree(inner)}</dd></div>')
            elif isinstance(inner, dict) and inner:
                kind = f' <span class="type">{e(inner["type"])}</span>' if "type" in inner else ""
                rows.append(f'<div class="branch"><dt>{e(key)}{kind}</dt><dd>{tree(inner)}</dd></div>')
            else:
                rows.append(f"<div><dt>{e(key)}</dt><dd>{tree(inner)}</dd></div>")
        return f'<dl class="tree">{"".join(rows)}</dl>' if rows else '<span class="none">defaults</span>'
    if isinstance(value, list):
        if any(isinstance(v, dict) for v in value):
            return tree({str(i): v for i, v in enumerate(value)})
        shown = ", ".join(e(v) for v in value[:12])
        return f"{shown} … ({len(value)} in all)" if len(value) > 12 else shown or '<span class="none">none</span>'
    if value is None or value == "":
        return '<span class="none">none</span>'
    if isinstance(value, bool):
        return "yes" if value else "no"
    return e(value)


def trees(root: dict[str, Any], first: str, more: str = "") -> str:
    """One card for the plain settings, one for each nested group."""
    plain = {k: v for k, v in root.items() if not isinstance(v, dict)}
    cards = [f'<div class="card"><h3>{e(first)}</h3>{tree(plain)}</div>'] if plain.keys() - {"type"} else []
    for key, inner in root.items():
        if isinstance(inner, dict):
            kind = f'<span class="type">{e(inner["type"])}</span>' if "type" in inner else ""
            cards.append(f'<div class="card"><h3>{e(key)} {kind}</h3>{tree(inner)}</div>')
    return f'<div class="trees">{"".join(cards)}{more}</div>'


def section(identity: str, title: str, body: str, lead: str = "") -> str:
    text = f'<p class="lead">{lead}</p>' if lead else ""
    return f'<section id="{identity}"><h2>{e(title)}</h2>{text}\n{body}</section>\n'


_PATTERNS = """<svg width="0" height="0" aria-hidden="true" focusable="false"><defs>
<pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
<path d="M0 0v5"/></pattern>
<pattern id="dots" width="5" height="5" patternUnits="userSpaceOnUse"><circle cx="2.5" cy="2.5" r=".9"/></pattern>
</defs></svg>"""


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
<title>{e(title)} · etude</title>
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
