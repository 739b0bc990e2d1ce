"""Charts as inline SVG: lines, scatter, heat maps and confusion matrices, drawn from numbers by our own code.

Each chart is a `<figure>` that is complete without a script: direct labels, the last values in its caption, a
`<desc>` for those who listen. What the pointer reads out (`page.js`) lies beside it in a `data-read` attribute.
Colours, type and dark mode come from `page.css` through classes: `c0` ... `c9` the series, `h0` ... `h11` the ramp
of a heat map.

Lengths are user units of the viewBox, about one pixel each. Nothing here knows what a run is.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

COLOURS, LEVELS = 10, 12
_WIDTH, _HEIGHT = 540, 232
_BINS = 480
_MANY = 60
"""From so many points on, noisy lines are smoothed and points no longer marked."""
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


# --- numbers as people write them


def number(value: float, digits: int = 4) -> str:
    """Significant digits, thousands apart, powers of ten spelled out: 1,234 · 0.0432 · 1.2×10⁻⁵ · NaN · ∞."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e7:
        text = f"{int(value):,}"
    elif 1e-3 <= abs(value) < 1e7:
        text = f"{float(f'{value:.{digits}g}'):,}"
        text = text.removesuffix(".0")
    else:
        mantissa, exponent = f"{value:.{min(digits, 3) - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        text = f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    return text.replace("-", "−")


def percent(value: float) -> str:
    """A share of one: 0.98611 -> 98.61 %."""
    if not math.isfinite(value):
        return number(value)
    return f"{100 * value:.{0 if value in (0, 1) else 2}f}\u202f%"


def short(text: str, length: int) -> str:
    """At most `length` characters; the middle goes, because layer and class names differ at both ends."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


# --- axes


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` numbers inside [low, high], each a multiple of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / count
    exponent = math.floor(math.log10(raw))
    step = next(m * 10.0**exponent for m in (1, 2, 5, 10) if m * 10.0**exponent >= 0.8 * raw)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, max(-exponent, 0)) for i in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """About `count` of the powers of ten inside [low, high]; with their 2 and 5 where those do not crowd."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    fine = [
        float(f"{m}e{e}") for e in range(first - 1, last + 1) for m in (1, 2, 5) if low <= float(f"{m}e{e}") <= high
    ]
    if len(fine) <= count or last - first < 1:
        return fine
    every = math.ceil((last + 1 - first) / count)
    return [float(f"1e{e}") for e in range(first, last + 1) if e % every == 0]


@dataclass(frozen=True)
class Axis:
    """Numbers [low, high] -> lengths [0, size], in the other direction where `flip` (y grows upwards)."""

    low: float
    high: float
    size: float
    log: bool = False
    flip: bool = False
    share: bool = False
    """Values are shares of one, written as per cent."""

    def __call__(self, values: Any) -> Array:
        """Non-finite numbers, and on a log axis those not above 0, become NaN: a gap."""
        values = np.asarray(values, dtype=np.float64)
        values = np.where(np.isfinite(values) & ((values > 0) | (not self.log)), values, np.nan)
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        part = ((np.log10(values) if self.log else values) - low) / (high - low)
        return self.size * (1 - part if self.flip else part)

    def marks(self, count: int = 5) -> list[tuple[float, str]]:
        """(place, text) of the ticks, with as many decimals as their distance needs."""
        values = log_ticks(self.low, self.high, count + 1) if self.log else ticks(self.low, self.high, count)
        scaled = [100 * v for v in values] if self.share else values
        largest = max(map(abs, scaled), default=0.0)
        gap = min((abs(b - a) for a, b in pairwise(scaled)), default=1.0)
        decimals = max(0, math.ceil(-math.log10(gap) - 1e-9))
        exponent = math.floor(math.log10(largest)) if largest else 0

        def text(value: float) -> str:
            if self.log or value == 0 or largest == 0:
                return number(value)
            if not 1e-3 <= largest < 1e6:  # one power of ten for the whole axis
                return f"{number(value / 10.0**exponent, 8)}×10{str(exponent).translate(_SUPERSCRIPT)}"
            if largest >= 10_000 and gap >= 100:
                return f"{value / 1000:,g}k".replace("-", "−")
            return f"{value:,.{decimals}f}".replace("-", "−") + ("\u202f%" if self.share else "")

        return [(float(place), text(value)) for place, value in zip(self(values), scaled)]


def _apart(low: float, high: float) -> bool:
    """Whether an axis can tell the two apart, which it cannot where they differ by rounding alone."""
    return high - low > 1e-5 * max(abs(low), abs(high))


def _domain(series: Sequence["Series"], *, log: bool, share: bool) -> tuple[float, float]:
    """What the axis shows of all series: rare spikes of noisy ones and a share's first steps may leave the picture."""
    ends = []
    for s in series:
        usable = s.y[np.isfinite(s.y) & ((s.y > 0) | (not log))]
        if usable.size:  # of each series, so that a long one cannot push out a short one
            cut = [8 if share else 0.3, 99.7] if s.smoothed and usable.size >= 20 else [0, 100]
            ends += np.percentile(usable, cut).tolist()
    low, high = (min(ends), max(ends)) if ends else (0.1, 1.0)
    if log:
        return low / 1.2, high * 1.2
    if not _apart(low, high):
        return (0.0, 1.25 * high) if high > 0 else (low - 1.0, high + 1.0)
    if 0 <= low <= 0.5 * high:
        low = 0.0
    pad = 0.04 * (high - low)
    return low - pad * (low != 0), min(high + pad, 1.0) if share and high <= 1 else high + pad


# --- many points to few


def thin(x: Array, y: Array, bins: int = _BINS) -> tuple[Array, Array]:
    """At most 3 points a bin: its least, its greatest and one non-finite, in their order. Ends stay."""
    n = len(y)
    if n <= 2 * bins:
        return x, y
    good = np.isfinite(y)
    edges = np.linspace(0, n, bins + 1).astype(int)
    keep = [0, n - 1]
    low, high = np.where(good, y, np.inf), np.where(good, y, -np.inf)
    for a, b in pairwise(edges):
        keep += [a + int(low[a:b].argmin()), a + int(high[a:b].argmax())]
        if not good[a:b].all():
            keep.append(a + int(good[a:b].argmin()))
    kept = np.unique(keep)
    return x[kept], y[kept]


def smooth(x: Array, y: Array, bins: int = _BINS) -> tuple[Array, Array]:
    """Means of equal bins, then a triangular window of 5 % of them, at the middle `x` of each bin.

    Non-finite numbers are left out; a bin of nothing else is a gap.
    """
    n = min(bins, len(y))
    edges = np.linspace(0, len(y), n + 1).astype(int)
    starts = edges[:-1]
    good = np.isfinite(y)
    count = np.add.reduceat(good.astype(np.float64), starts)
    total = np.add.reduceat(np.where(good, y, 0.0), starts)
    width = max(1, n // 40)
    window = np.concatenate([np.arange(1, width + 2), np.arange(width, 0, -1)]).astype(np.float64)
    seen = count > 0
    mean = np.divide(total, count, out=np.zeros(n), where=seen)
    with np.errstate(invalid="ignore"):
        level = np.convolve(mean, window)[width:-width] / np.convolve(seen.astype(np.float64), window)[width:-width]
    return x[(starts + edges[1:]) // 2], np.where(seen, level, np.nan)


def _path(x: Array, y: Array) -> str:
    """Lines through the finite points; a lone point becomes a dot (round caps)."""
    parts, pen, length = [], False, 0
    for a, b in zip(x.tolist(), y.tolist()):
        if math.isnan(b):
            if length == 1:
                parts.append("h0")
            pen, length = False, 0
        else:
            parts.append(f"{'L' if pen else 'M'}{a:.1f} {b:.1f}")
            pen, length = True, length + 1
    return "".join(parts) + ("h0" if length == 1 else "")


# --- pieces of a figure


def _figure(
    kind: str, title: str, read: str, svg: str, notes: Sequence[str] = (), data: dict[str, Any] | None = None
) -> str:
    # in single quotes, as JSON is full of double ones
    read_out = escape(json.dumps(data, separators=(",", ":"), ensure_ascii=False), quote=False).replace("'", "&#39;")
    attribute = f" data-read='{read_out}'" if data else ""
    below = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    caption = f'<figcaption>{heading}<p class="read">{read}</p></figcaption>' if title or data else ""
    return f'<figure class="{kind}"{attribute}>{caption}{svg}{below}</figure>\n'


def _svg(width: float, height: float, title: str, desc: str, body: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img">'
        f"<title>{escape(title)}</title><desc>{escape(desc)}</desc>{body}</svg>"
    )


def _scrolled(svg: str, title: str, kind: str = "wide") -> str:
    """What cannot shrink to a phone's width scrolls, by keyboard too."""
    return f'<div class="{kind}" tabindex="0" role="region" aria-label="{escape(title)}">{svg}</div>'


def _text(x: float, y: float, text: str, kind: str = "tick", anchor: str = "start", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'


def _read(pairs: Sequence[tuple[int, str, str]]) -> str:
    return " ".join(
        f'<span><b class="c{c % COLOURS}">{escape(name)}</b> {escape(value)}</span>' for c, name, value in pairs
    )


def _spread(places: list[float], gap: float, low: float, high: float) -> list[float]:
    """The places, moved as little as one sweep each way can, so that neighbours are `gap` apart within [low, high]."""
    rank = sorted(range(len(places)), key=places.__getitem__)
    out = [min(max(p, low), high) for p in places]
    for a, b in pairwise(rank):
        out[b] = max(out[b], out[a] + gap)
    if rank and out[rank[-1]] > high:
        out[rank[-1]] = high
        for a, b in zip(rank[-2::-1], rank[:0:-1]):
            out[a] = min(out[a], out[b] - gap)
    return out


def _margin(y: Axis) -> float:
    """Room on the left for the texts of the y axis."""
    return max(56.0, 10 + 7 * max((len(text) for _, text in y.marks()), default=0))


def _frame(x: Axis, y: Axis, left: float, top: float, x_name: str, y_name: str) -> str:
    """Hairlines at round values, a base line, names of the axes at their ends."""
    out, base = [], top + y.size
    for place, text in y.marks():
        out.append(f'<path class="grid" d="M{left:g} {top + place:.1f}h{x.size:g}"/>')
        out.append(_text(left - 8, top + place + 4, text, anchor="end"))
    for place, text in x.marks(6):
        out.append(f'<path class="axis" d="M{left + place:.1f} {base:g}v4"/>')
        out.append(_text(left + place, base + 18, text, anchor="middle"))
    out.append(f'<path class="axis" d="M{left:g} {base:g}h{x.size:g}"/>')
    out.append(_text(_WIDTH, base + 18, x_name, "tick name", "end"))
    if y_name:
        out.append(_text(0, 11, y_name, "tick name"))
    return "".join(out)


# --- charts


@dataclass(frozen=True)
class Series:
    """`x`, `y` of equal length."""

    name: str
    x: Array
    y: Array
    smoothed: bool = False
    """Draw the trend boldly over the raw values, where there are enough of them."""
    dots: bool = False
    """Mark each point, as befits a few measurements."""


def _trend(s: Series, log: bool) -> tuple[Array, Array]:
    """The smoothed line; on a log scale the mean is the geometric one, which lies in the middle of what is seen."""
    if not log:
        return smooth(s.x, s.y)
    x, y = smooth(s.x, np.where(s.y > 0, np.log10(np.where(s.y > 0, s.y, 1.0)), np.nan))
    return x, 10**y


def _trace(s: Series, colour: int, x: Axis, y: Axis) -> tuple[str, Array, Array]:
    """The drawing of one series, and the points of its line for reading out."""
    px, py = x(s.x), y(s.y)
    svg, line_x, line_y = "", s.x, s.y
    if s.smoothed and len(s.y) >= _MANY:
        svg = f'<path class="line raw s{colour}" d="{_path(*thin(px, py))}"/>'
        line_x, line_y = _trend(s, y.log)
    line_x, line_y = thin(line_x, line_y)
    dashed = "" if colour < 2 or s.dots else " dashed"
    svg += f'<path class="line s{colour}{dashed}" d="{_path(x(line_x), y(line_y))}"/>'
    if s.dots and len(s.x) <= _MANY:
        dots = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.6"/>' for a, b in zip(px, py) if not math.isnan(b))
        svg += f'<g class="f{colour}">{dots}</g>'
    if (bad := np.isnan(py)).any():
        crosses = np.unique(np.round(px[bad] / 8) * 8).tolist()
        svg += f'<path class="cross" d="{"".join(f"M{a - 3:.0f} {y.size - 9:.0f}l6 6m0 -6l-6 6" for a in crosses)}"/>'
    return svg, line_x, line_y


def _gaps(s: Series, x: str, log: bool) -> list[str]:
    """What the crosses stand for."""
    bad = ~(np.isfinite(s.y) & ((s.y > 0) | (not log)))
    if not bad.any():
        return []
    what = "not above 0" if np.isfinite(s.y[bad]).any() else "not finite"
    count = "1 value is" if bad.sum() == 1 else f"{bad.sum():,} values are"
    return [f"× {s.name}: {count} {what}, first at {x} {number(float(s.x[bad][0]))}.".replace("  ", " ")]


def lines(
    title: str,
    series: Sequence[Series],
    *,
    x: str = "step",
    y: str = "",
    log: bool = False,
    share: bool = False,
    log_x: bool = False,
    kept: float | None = None,
    kept_name: str = "kept",
    group: str = "",
) -> str:
    """A line chart. `kept` is marked, as the step whose weights were kept; charts of one `group` share the pointer.

    Values that are not finite (on a log axis: not above 0) are gaps, marked with a cross on the base line.
    """
    show: Callable[[float], str] = percent if share else number
    names = [short(s.name, 16) for s in series]
    top = 20 if y else 8
    y_axis = Axis(*_domain(series, log=log, share=share), _HEIGHT - top - 26, log, flip=True, share=share)
    direct = max(14 + 8.2 * len(name) for name in names) if len(names) > 1 else 0  # a single line needs no name
    left, right = _margin(y_axis), max(direct, 24 + 6.6 * len(x))
    start, end = min(float(s.x.min()) for s in series), max(float(s.x.max()) for s in series)
    start = min(start, 0.0) if start <= 0.2 * end and not log_x else start
    x_axis = Axis(start, end if _apart(start, end) else start + 1, _WIDTH - left - right, log=log_x)

    body, ends, reads, last, notes = "", [], [], [], []
    for i, (s, name) in enumerate(zip(series, names)):
        svg, line_x, line_y = _trace(s, i % COLOURS, x_axis, y_axis)
        body += svg
        notes += _gaps(s, x, log)
        places_x, places_y = x_axis(line_x), y_axis(line_y)
        drawn = np.flatnonzero(~np.isnan(places_y))
        ends.append(float(places_y[drawn[-1]]) if drawn.size else y_axis.size)
        name = name if len(series) > 1 else ""
        last.append((i, name, show(float(line_y[drawn[-1]])) if drawn.size else "NaN"))
        pick = np.linspace(0, len(line_x) - 1, min(len(line_x), 240)).astype(int)
        reads.append(
            {
                "name": name,
                "colour": i % COLOURS,
                "x": [round(v, 1) for v in places_x[pick].tolist()],
                "y": [None if math.isnan(v) else round(v, 1) for v in places_y[pick].tolist()],
                "at": [number(v, 6) for v in line_x[pick].tolist()],
                "text": [show(v) for v in line_y[pick].tolist()],
            }
        )

    pad = 4  # the inner svg clips; this leaves room for half a dot at its edges
    width, height = x_axis.size + 2 * pad, y_axis.size + pad
    plot = (
        f'<svg x="{left - pad:g}" y="{top - pad}" width="{width:g}" height="{height:g}" '
        f'viewBox="{-pad} {-pad} {width:g} {height:g}">{body}</svg>'
    )
    if len(series) > 1:
        for i, (place, name) in enumerate(zip(_spread(ends, 15, 4, y_axis.size - 4), names)):
            plot += _text(left + x_axis.size + 9, top + place + 4, name, f"label c{i % COLOURS}")
    mark = ""
    if kept is not None and x_axis.low <= kept < x_axis.high:
        at, height = left + float(x_axis(kept)), y_axis.size - 7 if share else 10
        beside = (-5, "end") if at > left + x_axis.size / 2 else (5, "start")
        mark = f'<path class="kept" d="M{at:.1f} {top}v{y_axis.size:g}"/>'
        mark += _text(at + beside[0], top + height, kept_name, "tick name halo", beside[1])
    desc = f"{title or y} over {x} {number(x_axis.low)} to {number(x_axis.high)}{', logarithmic' if log else ''}; "
    desc += "at the end " + ", ".join(f"{name} {value}".strip() for _, name, value in last)
    svg = _svg(_WIDTH, _HEIGHT, title or y, desc, _frame(x_axis, y_axis, left, top, x, y) + mark + plot)
    data = {
        "kind": "lines", "left": left, "top": top, "width": x_axis.size, "height": y_axis.size,
        "x": x, "group": group, "series": reads,
    }  # fmt: skip
    return _figure("chart", title, _read(last), svg, notes, data)


_SHAPES = (
    "M-3.2 0a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0-6.4 0z",
    "M-3-3h6v6h-6z",
    "M0-4l4 7h-8z",
    "M0-4.2l4.2 4.2l-4.2 4.2l-4.2-4.2z",
)


def scatter(title: str, series: Sequence[Series], *, x: str = "", y: str = "", most: int = 3000) -> str:
    """Points; each series has its colour, its shape, and its name at its median. Of more than `most`, every k-th."""
    drawn = [s for s in series if (np.isfinite(s.x) & np.isfinite(s.y)).any()]
    top, height, right = 20 if y else 10, 400, 24
    total = sum(len(s.x) for s in drawn)
    every = max(1, math.ceil(total / most))

    def axis(values: list[Array], size: float, flip: bool) -> Axis:
        finite = np.concatenate([v[np.isfinite(v)] for v in values])
        low, high = float(finite.min()), float(finite.max())
        pad = 0.04 * (high - low) if _apart(low, high) else 1.0
        return Axis(low - pad, high + pad, size, flip=flip)

    y_axis = axis([s.y for s in drawn], height - top - 26, flip=True)
    left = _margin(y_axis)
    x_axis = axis([s.x for s in drawn], _WIDTH - left - right, flip=False)
    body, labels = [], []
    for i, s in enumerate(drawn):
        shape = _SHAPES[(i // COLOURS if len(drawn) > COLOURS else i) % len(_SHAPES)]
        px, py = x_axis(s.x) + left, y_axis(s.y) + top
        good = ~(np.isnan(px) | np.isnan(py))
        spots = "".join(
            f'<path transform="translate({a:.1f} {b:.1f})" d="{shape}"/>'
            for a, b in zip(px[good][::every].tolist(), py[good][::every].tolist())
        )
        body.append(f'<g class="spot f{i % COLOURS}">{spots}</g>')
        if len(drawn) > 1:
            place = (float(np.median(px[good])), float(np.median(py[good])) + 4)
            labels.append(_text(*place, short(s.name, 16), f"label halo c{i % COLOURS}", "middle"))
    notes = [f"Every {every}th of {total:,} points is drawn."] if every > 1 else []
    lost = total - sum(int((np.isfinite(s.x) & np.isfinite(s.y)).sum()) for s in drawn)
    if lost:
        notes.append(f"{lost:,} points are not finite and not drawn.")
    desc = f"{total:,} points in {len(drawn)} groups: {', '.join(s.name for s in drawn)}"
    frame = _frame(x_axis, y_axis, left, top, "", y) + _text(left + x_axis.size, height + 12, x, "tick name", "end")
    svg = _svg(_WIDTH, height + 18 * bool(x), title, desc, frame + "".join(body) + "".join(labels))
    return _figure("chart", title, "", svg, notes)


def _cells(
    levels: NDArray[np.int64], left: float, top: float, width: float, height: float, classes: Sequence[str]
) -> str:
    """One path a level, one box a run of equal cells: thousands stay a few kilobytes. Level -1 is not drawn."""
    paths: list[list[str]] = [[] for _ in classes]
    for r, row in enumerate(levels):
        ends = np.flatnonzero(np.diff(row)) + 1
        for a, b in zip([0, *ends.tolist()], [*ends.tolist(), len(row)]):
            if row[a] >= 0:
                w = (b - a) * width + 0.4  # neighbours overlap by a hair, so that rounding to pixels leaves no seam
                paths[row[a]].append(f"M{left + a * width:.6g} {top + r * height:.6g}h{w:.6g}v{height:.6g}h{-w:.6g}z")
    return "".join(f'<path class="cell {c}" d="{"".join(p)}"/>' for c, p in zip(classes, paths) if p)


def _key(left: float, name: str, ramp: Axis, also: Sequence[str]) -> str:
    """What the colours mean: the ramp with round numbers, then the kinds of cells that are no number on it."""
    at = left + 14 + 6.6 * len(name)
    step = ramp.size / LEVELS
    out = [_text(left, 12, name, "tick name")]
    out += [
        f'<rect class="h{i}" x="{at + i * step:.1f}" y="3" width="{step + 0.5}" height="9"/>' for i in range(LEVELS)
    ]
    for place, text in ramp.marks(2 if ramp.log else 4):
        out.append(f'<path class="axis" d="M{at + place:.1f} 12v3"/>{_text(at + place, 26, text, anchor="middle")}')
    at += ramp.size + 34
    for kind in also:
        text = {"hatched": "not finite", "dotted": "zero"}[kind]
        out.append(f'<rect class="{kind} edge" x="{at:.1f}" y="2.5" width="16" height="10"/>{_text(at + 22, 12, text)}')
        at += 40 + 7 * len(text)
    return "".join(out)


def heat(
    title: str,
    values: Array,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    row: str,
    column: str,
    log: bool = False,
    marks: Sequence[tuple[float, str]] | None = None,
    lead: str = "value",
    share: bool = False,
    narrow: bool = False,
) -> str:
    """A heat map of (rows, columns), as wide as the page or, `narrow`, as a line chart, with its title.

    `marks` are (column, text) along the bottom, the columns' names if left out. `lead` names the value. NaN is blank;
    infinite numbers are hatched; on a log scale, which spans at most 8 decades, 0 is dotted. A `share`'s scale is that
    from 0 to 1.
    """
    count_r, count_c = values.shape
    few = 18.0 if narrow else 24.0
    cell_h = few if count_r <= 16 else 13.0 if count_r <= 80 else max(2.0, 900 / count_r)
    size = min(11.5, 0.8 * max(cell_h, 12))
    every, longest = max(1, math.ceil(11 / cell_h)), 20 if narrow else 30
    left = max(12 + 0.62 * size * max(len(short(r, longest)) for r in rows), 14 + 6.6 * max(len(row), len(column)))
    total = float(_WIDTH) if narrow else 1096.0
    width, height, top = total - left - 8, count_r * cell_h, 52 if narrow else 34
    cell_w = min(width / count_c, 72.0)
    width = cell_w * count_c

    usable = np.isfinite(values) & ((values > 0) | (not log))
    finite = values[usable]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (1.0, 1.0)
    if log:
        low = max(low, high / 1e8)
    if share:
        low, high = 0.0, 1.0
    if not _apart(low, high):
        low, high = (low / 2, high * 2) if log else (low - 0.5, high + 0.5)
    show: Callable[[float], str] = percent if share else lambda value: number(value, 3)
    scale = Axis(low, high, LEVELS, log)
    part = scale(np.where(usable, np.clip(values, low, high), np.nan))
    levels = np.where(np.isnan(part), -1, np.clip(np.nan_to_num(part), 0, LEVELS - 1)).astype(np.int64)
    levels[np.isinf(values)] = LEVELS
    if log:
        levels[values <= 0] = LEVELS + 1
    classes = [*(f"h{i}" for i in range(LEVELS)), "hatched", "dotted"]

    body = [f'<rect class="bed" x="{left:g}" y="{top}" width="{width:g}" height="{height:g}"/>']
    body.append(_cells(levels, left, top, cell_w, cell_h, classes))
    for i, name in enumerate(rows):
        if i % every == 0:
            place = top + (i + 0.5) * cell_h + 0.36 * size
            body.append(_text(left - 8, place, short(name, longest), "tick mono", "end", f' font-size="{size:g}"'))
    if marks is None:
        skip = math.ceil(max(7.0 * max(len(short(c, 12)) for c in columns) + 6, 1) / cell_w)
        marks = [(i, short(c, 12)) for i, c in enumerate(columns) if i % skip == 0]
    for place, text in marks:
        at = left + (place + 0.5) * cell_w
        body.append(f'<path class="axis" d="M{at:.1f} {top + height:g}v4"/>')
        body.append(_text(at, top + height + 18, text, anchor="middle"))
    body.append(_text(left - 8, top + height + 18, column, "tick name", "end"))

    body.append(_text(left - 8, top - 7, row, "tick name", "end"))
    also = [kind for level, kind in ((LEVELS, "hatched"), (LEVELS + 1, "dotted")) if (levels == level).any()]
    body.append(_key(0 if narrow else left, lead, Axis(low, high, 16 * LEVELS, log, share=share), also))
    data = {
        "kind": "grid", "left": left, "top": top, "width": cell_w, "height": cell_h, "row": row, "column": column,
        "rows": list(rows), "columns": list(columns),
        "values": [[show(v) if not math.isnan(v) else "" for v in line] for line in values.tolist()],
    }  # fmt: skip
    desc = f"{count_r} rows ({row}) by {count_c} columns ({column}), from {number(low)} to {number(high)}."
    desc += f" {bad} cells are not finite." if (bad := int(np.isinf(values).sum())) else ""
    svg = _svg(total, top + height + 26, title, desc, "".join(body))
    if narrow:
        return _figure("chart", title, "", svg, (), data)
    return _figure("heat", "", "", _scrolled(svg, title), (), data)


def confusion(title: str, values: NDArray[np.int64], labels: Sequence[str], *, row: str, column: str) -> str:
    """Counts (n, n): blue on the diagonal, orange beside it, strength by the share of the row; numbers up to 30."""
    n = len(labels)
    cell = min(64.0, 480 / n) if n <= 16 else max(620 / n, 6.0)
    gap = 1.0 if n <= 30 else 0.0
    size = min(12.0, max(0.8 * cell, 9.0))
    every = max(1, math.ceil(11 / cell))
    names = [short(label, 14) for label in labels]
    longest = 0.62 * size * max(len(name) for name in names)
    upright = longest < every * cell - 3
    left, top = 34 + longest, 30 + (size if upright else longest)
    extent = n * cell

    sums = values.sum(1)
    share = values / np.maximum(sums, 1)[:, None]
    hit = np.eye(n, dtype=bool)
    strength = np.where(hit, 0.1 + 0.9 * share, 0.2 + 0.8 * np.sqrt(share))
    tenths = np.where(values > 0, np.clip(np.round(10 * strength), 1, 10), 0).astype(np.int64)

    body = [f'<rect class="bed" x="{left:.1f}" y="{top:.1f}" width="{extent:g}" height="{extent:g}"/>']
    cells: dict[tuple[str, int], list[str]] = {}
    numbers = []
    font = min(14.0, 0.42 * cell, 1.5 * cell / max(len(f"{values.max():,}"), 1))
    for r, c in np.argwhere(values > 0).tolist():
        kind, tenth, side = "hit" if r == c else "miss", int(tenths[r, c]), cell - gap
        x, y = left + c * cell + gap / 2, top + r * cell + gap / 2
        cells.setdefault((kind, tenth), []).append(f"M{x:.6g} {y:.6g}h{side:.5g}v{side:.5g}h{-side:.5g}z")
        if n <= 30:
            over = " over" if tenth > 5 else ""
            extra = f' font-size="{font:.3g}"'
            numbers.append(
                _text(x + side / 2, y + side / 2 + 0.36 * font, f"{values[r, c]:,}", f"count{over}", "middle", extra)
            )
    for (kind, tenth), d in sorted(cells.items()):
        body.append(f'<path class="cell {kind}" fill-opacity="{tenth / 10:g}" d="{"".join(d)}"/>')
    font_size = f' font-size="{size:.3g}"'
    for i in range(0, n, every):
        middle = (i + 0.5) * cell
        body.append(_text(left - 7, top + middle + 0.36 * size, names[i], "tick", "end", font_size))
        if upright:
            body.append(_text(left + middle, top - 7, names[i], "tick", "middle", font_size))
        else:
            turn = f' transform="rotate(-90 {left + middle:.1f} {top - 7:.1f})"{font_size}'
            body.append(_text(left + middle, top - 7 + 0.36 * size, names[i], "tick", "start", turn))
    body.append(_text(left + extent / 2, 12, column, "tick name", "middle"))
    turn = f' transform="rotate(-90 12 {top + extent / 2:.1f})"'
    body.append(_text(12, top + extent / 2, row, "tick name", "middle", turn))

    right, total = int(np.trace(values)), int(values.sum())
    desc = f"{n} classes, rows {row}, columns {column}: {right:,} of {total:,} on the diagonal."
    data = {
        "kind": "grid", "left": left, "top": top, "width": cell, "height": cell, "row": row, "column": column,
        "rows": list(labels), "columns": list(labels), "values": values.tolist(),
    }  # fmt: skip
    svg = _svg(left + extent + 2, top + extent + 2, title, desc, "".join(body) + "".join(numbers))
    return _figure("matrix", "", "", _scrolled(svg, title, "wide big" if n > 16 else "wide"), (), data)
