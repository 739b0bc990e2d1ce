"""report.html: made from files alone, whole when they are not, safe to open, and quick."""

import base64
import hashlib
import json
import math
import random
import re
import shutil
import struct
import subprocess
import sys
import time
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from etude.errors import MissingError
from etude.report import charts, files, parts, write
from etude.report import page as report

VOID = {"meta", "link", "img", "br"}
EVIL = "<script>alert(1)</script>"
BREAKOUT = """'"><img src=x onerror=alert(1)>"""


class Page(HTMLParser):
    """A page's tags, with the balance of its elements checked on the way."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        return [a for t, a in self.tags if t == tag and all(a.get(k.rstrip("_")) == v for k, v in wanted.items())]

    def classes(self, tag: str) -> set[str]:
        return {name for attributes in self.all(tag) for name in attributes.get("class", "").split()}

    def text(self, *tags: str) -> list[str]:
        return [text for tag, text in self.texts if tag in tags]


def png(width: int = 8, height: int = 8) -> str:
    """A grey picture, base64."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(range(width)) for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()


def make(directory: Path, metrics: list[dict[str, Any]] | str = "", **documents: Any) -> Path:
    """A run directory of these documents; recipe.json is there in any case."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {"type": "Recipe", "model": {"type": "vision.resnet.ResNet", "depth": 18}, "steps": 500, "seed": 1}
    documents = {"recipe": {"recipe": "resnet.digits", "etude": "0.1.0", "config": config}, **documents}
    for name, document in documents.items():
        (directory / f"{name}.json").write_text(json.dumps(document))
    text = metrics if isinstance(metrics, str) else "".join(json.dumps(line) + "\n" for line in metrics)
    (directory / "metrics.jsonl").write_text(text)
    return directory


def training(steps: int = 500, every: int = 5, layers: int = 5) -> list[dict[str, Any]]:
    """A plausible log."""
    noise = random.Random(0)
    lines: list[dict[str, Any]] = []
    for step in range(every, steps + 1, every):
        t = step / steps
        loss, accuracy = 2.3 * math.exp(-6 * t) + 0.02 * noise.random(), 1 - 0.9 * math.exp(-8 * t)
        norm = 1 + noise.random()
        lines.append({"step": step, "epoch": step / 11, "loss": loss, "accuracy": accuracy, "lr": 0.05 * (1 - t)})
        lines[-1]["grad_norm"] = norm
        lines.append({"step": step, "grad_norms": {f"layer{i}.conv": norm * 0.5**i for i in range(layers)}})
        if step % 50 == 0:
            lines.append({"step": step, "eval": {"accuracy": accuracy - 0.01, "loss": loss + 0.03}, "split": "test"})
    return lines


RESULT = {
    "recipe": "resnet.digits", "seed": 1, "steps": 500, "train": {"loss": 0.01, "accuracy": 1.0},
    "eval": {"loss": 0.0432, "accuracy": 0.98888}, "best": {"step": 450, "accuracy": 0.985, "split": "validation"},
    "seconds": 31.2, "params": 701466, "weights_sha256": "5f2b" * 16,
}  # fmt: skip
ENV = {
    "etude": "0.1.0", "python": "3.11.7", "torch": "2.13.0+cpu", "device": "cpu", "precision": "bf16", "threads": 2,
    "command": "etude train resnet.digits", "started": "2026-03-02T14:03:05+00:00", "params": 701466,
    "data": {"source": "digits", "classes": ["0", "1"], "sizes": {"train": 1437, "test": 360}},
}  # fmt: skip
BLOCKS: dict[str, dict[str, Any]] = {
    "matrix": {"labels": ["cat", "dog"], "values": [[8, 2], [1, 9]], "row": "true class", "column": "predicted"},
    "images": {"items": [{"png": png(), "caption": "9, not 4 (97 %)", "detail": "test sample 3"}]},
    "table": {"columns": ["name", "value"], "rows": [["first", 0.5], ["second", 12345]]},
    "lines": {"x": "rank", "y": "singular value", "log": True, "series": {"critic": [[0, 10], [1, 1], [2, 0.1]]}},
    "scatter": {"x": "first", "y": "second", "series": {"zeros": [[0, 1], [2, 3]], "ones": [[1, 1], [5, 2]]}},
    "text": {"text": "a note\nof two lines"},
}
SHOWN = {
    "matrix": "Hardest classes",
    "images": "9, not 4 (97 %)",
    "table": "12,345",
    "lines": "singular value",
    "scatter": "4 points in 2 groups: zeros, ones",
    "text": "a note\nof two lines",
}


def status(state: str, step: int = 120) -> dict[str, Any]:
    return {"state": state, "step": step, "steps": 500, "seconds": 12.3, "samples_per_second": 907.4, "eta": 30}


def test_a_finished_run_shows_its_figures_and_how_to_get_them_again(tmp_path):
    run = make(tmp_path / "1", training(), env=ENV, result=RESULT, status=status("done", 500))
    html = report.render(run)
    page = Page(html)
    tiles = dict(zip(page.text("dt"), page.text("dd")))
    assert tiles["Test accuracy"] == "98.89\u202f%"
    assert "weights of step 450, best on validation" in page.text("dd")
    assert {"0.0432", "500", "701\u202fk", "907"} <= set(page.text("dd"))
    assert [t for t in page.text("h3") if "log scale" not in t][:2] == ["Accuracy", "Learning rate"]
    commands = page.text("code")
    assert "pip install etude==0.1.0 torch==2.13.0" in commands
    assert "etude train resnet.digits --seed 1" in commands
    assert f"etude eval {run}" in commands
    assert RESULT["weights_sha256"] in commands
    assert not any("resume" in command for command in commands)
    assert "digits (1,437 train, 360 test)" in page.text("span")
    assert "vision.resnet.ResNet" in page.text("span")


@pytest.mark.parametrize("state", ["training", "done", "stopped", "failed", None])
def test_only_a_training_run_reloads_itself(tmp_path, state):
    documents = {"status": status(state)} if state else {}
    page = Page(report.render(make(tmp_path, training(), **documents)))
    refreshes = page.all("meta", http_equiv_="refresh") or [
        a for a in page.all("meta") if a.get("http-equiv") == "refresh"
    ]
    assert bool(refreshes) == (state == "training")
    assert ("data-refresh" in page.all("body")[0]) == (state == "training")
    assert (state or "new") in page.text("span")
    assert any("24\u202f% · " in title for title in page.text("title")) == (state == "training")


def test_a_result_ends_training_even_if_the_status_was_never_written(tmp_path):
    assert "data-refresh" not in report.render(make(tmp_path, status=status("training"), result=RESULT))


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_kind_of_block_is_drawn(tmp_path, kind):
    block = {"kind": kind, "title": f"About {kind}", **BLOCKS[kind]}
    html = report.render(make(tmp_path, figures=[block, {"kind": "hologram", "title": "Unknown"}]))
    page = Page(html)
    assert f"About {kind}" in page.text("h2")
    assert any(SHOWN[kind] in text for _, text in page.texts)
    assert "Unknown" not in html
    assert "could not be drawn" not in html


@pytest.mark.parametrize(
    "block",
    [
        {"kind": "matrix", "labels": ["a"], "values": [[1, 2]]},
        {"kind": "matrix", "values": [[1]]},
        {"kind": "images", "items": [{"png": "bm8gcG5n", "caption": "no png"}]},
        {"kind": "images", "items": [{"png": '" onload="x', "caption": "no base64"}]},
        {"kind": "lines", "series": {}},
        {"kind": "lines", "series": {"a": [[1, 2, 3]]}},
        {"kind": "lines", "series": {"a": [[math.nan, 2]]}},
        {"kind": "scatter", "series": {"a": [[math.nan, 2]]}},
        {"kind": "table", "columns": ["a", "b"], "rows": [[1]]},
        {"kind": "text"},
    ],
)
def test_a_malformed_block_is_named_and_the_others_stand(tmp_path, block):
    figures = [{"title": "Odd one", **block}, {"kind": "text", "title": "Fine", "text": "still here"}]
    page = Page(report.render(make(tmp_path, training(), figures=figures)))
    assert any("“Odd one” could not be drawn" in text for _, text in page.texts)
    assert "still here" in page.text("pre")
    assert "Odd one" not in page.text("h2")


@pytest.mark.parametrize("evil", [EVIL, BREAKOUT])
def test_nothing_from_the_files_becomes_markup(tmp_path, evil):
    names = [evil, "b"]
    figures = [
        {"kind": "matrix", "title": evil, "labels": names, "values": [[5, 1], [2, 4]], "row": evil, "column": evil},
        {"kind": "matrix", "title": evil, "labels": names, "values": [[0.5, 1], [2, 4]], "row": evil, "column": evil},
        {"kind": "images", "title": evil, "items": [{"png": png(), "caption": evil, "detail": evil}]},
        {"kind": "table", "title": evil, "columns": [evil], "rows": [[evil]]},
        {
            "kind": "lines",
            "title": evil,
            "x": evil,
            "y": evil,
            "series": {evil: [[0, 1], [1, math.nan]], "b": [[0, 2]]},
        },
        {"kind": "scatter", "title": evil, "x": evil, "y": evil, "series": {evil: [[0, 1]], "b": [[1, 1]]}},
        {"kind": "text", "title": evil, "text": evil},
    ]
    lines = [
        {"step": 1, f"{evil}/loss": 1.0, evil: 2.0},
        {"step": 1, "eval": {evil: 1.0}, "split": evil},
        {"step": 1, "grad_norms": {evil: 1.0}},
    ]
    run = make(
        tmp_path / "run", lines, figures=figures, status={**status("failed"), "state": evil},
        recipe={"recipe": evil, "etude": evil, "config": {evil: {"type": evil, evil: [evil]}, "seed": evil}},
        env={"etude": evil, "torch": evil, "command": f"train {evil}", evil: evil, "data": {"source": evil}},
        result={"best": {evil: 1.0}, "eval": {evil: 0.5}, "weights_sha256": evil},
    )  # fmt: skip
    (run / "error.txt").write_text(evil)
    for state in (evil, "failed"):
        (run / "status.json").write_text(json.dumps({**status("failed"), "state": state}))
        page = Page(report.render(run))
        assert len(page.all("script")) == 1
        assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
        assert all(a["src"].startswith("data:image/png;base64,") for a in page.all("img"))
        assert sum(evil in text for _, text in page.texts) > 20


def test_a_cut_off_last_line_is_ignored_and_a_damaged_one_is_counted(tmp_path):
    whole = "".join(json.dumps(line) + "\n" for line in training())
    reference = files.read_metrics(make(tmp_path, whole) / "metrics.jsonl")
    assert len(reference.train["loss"]["train"][0]) == 100
    cut = files.read_metrics(make(tmp_path, whole + '{"step": 505, "lo') / "metrics.jsonl")
    assert cut == reference
    run = make(tmp_path, '{"step": \n\n[1]\n' + whole)
    assert files.read_metrics(run / "metrics.jsonl").train == reference.train
    assert "metrics.jsonl: 2 unreadable lines are left out." in report.render(run)
    unfinished = files.read_metrics(make(tmp_path, whole.rstrip("\n")) / "metrics.jsonl")
    assert unfinished == reference, "a last line that is whole counts, also without its newline"


@pytest.mark.parametrize("name", ["env", "status", "result", "figures"])
@pytest.mark.parametrize("text", ["", '{"a": [1, 2', "[1, 2]", "\x00\xff"])
def test_missing_and_damaged_files_cost_only_their_part(tmp_path, name, text):
    documents = {"env": ENV, "status": status("done"), "result": RESULT, "figures": []}
    run = make(tmp_path, training(), **documents)
    (run / f"{name}.json").write_bytes(text.encode("latin-1"))
    page = Page(report.render(run))
    assert "Accuracy" in page.text("h3")
    if name != "figures" or not text.startswith("["):
        assert any(f"{name}.json" in text for text in page.text("div"))
    (run / f"{name}.json").unlink()
    (run / "metrics.jsonl").unlink()
    Page(report.render(run))


def test_a_new_run_and_a_directory_that_is_none(tmp_path):
    page = Page(report.render(make(tmp_path / "new")))
    assert any("Nothing is logged yet" in text for text in page.text("div"))
    with pytest.raises(MissingError, match=r"no recipe\.json"):
        report.render(tmp_path)


def test_values_that_are_not_finite_are_gaps_with_a_mark_and_break_nothing(tmp_path):
    lines = training()
    for i, line in enumerate(line for line in lines if "loss" in line):
        if 20 <= i < 23:
            line["loss"] = [math.nan, math.inf, -math.inf][i - 20]
    lines.append({"step": 501, "loss": math.nan, "accuracy": math.nan, "lr": math.nan})
    lines.append({"step": 501, "grad_norms": {"layer0.conv": math.nan, "layer1.conv": 0.0}})
    html = report.render(make(tmp_path, lines))
    page = Page(html)
    assert "× train: 4 values are not finite, first at step 105." in page.text("p")
    assert {"cross"} <= page.classes("path")
    coordinates = [
        v for _, a in page.tags for k, v in a.items() if k in ("d", "x", "y", "cx", "cy", "width", "viewbox")
    ]
    assert len(coordinates) > 50
    assert not [c for c in coordinates if "nan" in c.lower() or "inf" in c.lower()]
    assert {"hatched", "dotted"} <= page.classes("path"), "a norm that is not finite and a zero one"
    for value in re.findall(r"data-read='([^']*)'", html):
        json.loads(value.replace("&#39;", "'").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@pytest.mark.parametrize("values", [[math.nan] * 3, [0.0], [5.0, 5.0], [0.1, 0.1 + 1e-17, 0.1 + 2e-17], [-1e30, 1e30]])
def test_flat_lone_absent_and_huge_values_still_make_a_chart(tmp_path, values):
    lines = [{"step": i, "loss": v, "grad_norm": v} for i, v in enumerate(values)]
    lines += [{"step": i, "grad_norms": {"fc": v}} for i, v in enumerate(values)]
    assert Page(report.render(make(tmp_path, lines))).text("h3")[:1] == ["Loss"]


def test_two_hundred_thousand_lines_are_quick_and_small(tmp_path):
    noise = random.Random(0)
    with open(make(tmp_path) / "metrics.jsonl", "w") as file:
        for step in range(1, 200_001):
            line = {"step": step, "epoch": step / 100, "loss": noise.random(), "accuracy": noise.random(), "lr": 0.1}
            file.write(json.dumps(line | {"grad_norm": noise.random()}) + "\n")
            if step % 1000 == 0:
                file.write(json.dumps({"step": step, "eval": {"loss": noise.random()}, "split": "test"}) + "\n")
                file.write(json.dumps({"step": step, "grad_norms": {f"layer{i}": 1.0 + i for i in range(60)}}) + "\n")
    seconds: dict[str, list[float]] = {"read": [], "rendered": []}
    html = ""
    for _ in range(2):
        begun = time.process_time()
        lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        read = time.process_time()
        html = report.render(tmp_path)
        seconds["read"].append(read - begun)
        seconds["rendered"].append(time.process_time() - read)
        assert len(lines) == 200_400
    # 1.0 to 1.1 on an EPYC: to read the lines is nearly all it takes
    assert min(seconds["rendered"]) < 3 * min(seconds["read"])
    assert len(html.encode()) < 1_500_000


def test_thinning_keeps_every_extreme_and_every_gap():
    x = np.arange(100_000.0)
    y = np.sin(x / 3000)
    y[777], y[50_001], y[70_000] = 40.0, -40.0, np.nan
    thin_x, thin_y = charts.thin(x, y)
    assert len(thin_x) < 1500
    assert thin_x[0] == 0 and thin_x[-1] == 99_999
    assert (np.diff(thin_x) > 0).all()
    assert {777.0, 50_001.0, 70_000.0} <= set(thin_x.tolist())
    assert np.nanmax(thin_y) == 40 and np.nanmin(thin_y) == -40 and np.isnan(thin_y).sum() == 1


def test_smoothing_is_a_triangular_window_that_leaves_gaps_out():
    x = np.arange(40.0)
    y = np.zeros(40)
    y[20] = 1.0
    smooth_x, level = charts.smooth(x, y)
    assert smooth_x.tolist() == x.tolist()
    assert level[18:23].tolist() == [0, 0.25, 0.5, 0.25, 0], "window 1, 2, 1 of a 40th on each side"
    y[10] = np.nan
    _, level = charts.smooth(x, np.where(np.isnan(y), y, 3.0))
    assert np.isnan(level[10]) and np.allclose(np.delete(level, 10), 3.0)
    _, level = charts.smooth(np.arange(96_000.0), np.full(96_000, 7.0))
    assert len(level) == 480 and np.allclose(level, 7.0)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_and_inside(low, span):
    assume(span > 1e-5 * abs(low))
    high = low + span
    found = charts.ticks(low, high)
    assert 2 <= len(found) <= 12
    assert all(low - 1e-6 * span <= tick <= high + 1e-6 * span for tick in found)
    step = found[1] - found[0]
    assert np.allclose(np.diff(found), step, rtol=1e-4)
    mantissa = step / 10.0 ** math.floor(math.log10(step) + 1e-6)
    assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-3
    assert all(abs(tick / step - round(tick / step)) < 1e-3 for tick in found)


@given(st.floats(-12, 8), st.floats(0.5, 10))
def test_ticks_of_a_log_axis_are_one_two_five_times_a_power_of_ten(exponent, decades):
    low, high = 10**exponent, 10 ** (exponent + decades)
    found = charts.log_ticks(low, high)
    assert 1 <= len(found) <= 8
    assert all(low * 0.999 <= tick <= high * 1.001 for tick in found)
    assert {f"{tick:.6e}"[:8] for tick in found} <= {"1.000000", "2.000000", "5.000000"}


def test_the_axes_of_the_page_stand_at_round_numbers(tmp_path):
    page = Page(report.render(make(tmp_path, training())))
    ticks = page.text("text")
    assert [t for t in ticks if t in ("0", "100", "200", "300", "400", "500")][:6] == [
        "0",
        "100",
        "200",
        "300",
        "400",
        "500",
    ]
    assert {"100\u202f%", "0.05", "0.1"} <= set(ticks)
    numbers = [t.replace(",", "").replace("\u202f%", "") for t in ticks if re.fullmatch(r"[\d,.]+(\u202f%)?", t)]
    assert numbers
    assert all(re.fullmatch(r"0|0?\.?0*[1-9]\d?0*(\.\d)?", number) for number in numbers), numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (1234, "1,234"), (1234.5678, "1,235"), (0.043219, "0.04322"), (-2.5, "−2.5"), (1.2e-5, "1.2×10⁻⁵"),
        (3e20, "3×10²⁰"), (math.nan, "NaN"), (math.inf, "∞"), (-math.inf, "−∞"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_people_write_them(value, text):
    assert charts.number(value) == text


def test_a_share_is_all_only_if_nothing_is_missing():
    assert charts.percent(1.0) == "100\u202f%"
    assert charts.percent(0.99999) == "100.00\u202f%"
    assert charts.percent(0.98888) == "98.89\u202f%"


def test_the_page_asks_for_nothing_from_outside(tmp_path):
    figures = [{"kind": kind, "title": kind, **block} for kind, block in BLOCKS.items()]
    html = report.render(make(tmp_path, training(), env=ENV, status=status("training"), figures=figures))
    page = Page(html)
    addresses = [
        v for _, a in page.tags for k, v in a.items() if k in ("src", "href", "xlink:href", "action", "srcset", "data")
    ]
    assert addresses and all(v.startswith(("#", "data:")) for v in addresses)
    assert html.replace("http-equiv", "").count("http") == 0
    assert "@import" not in html
    assert set(re.findall(r"url\((.*?)\)", html)) <= {"#hatch", "#dots"}
    assert not [a for _, a in page.tags if "style" in a], "inline styles would need a wider policy"
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    anchors = {a["id"] for _, a in page.tags if "id" in a}
    assert {a["href"][1:] for a in page.all("a")} <= anchors


def test_several_players_share_a_chart(tmp_path):
    lines = [
        {"step": s, "critic/loss": -3.0 + s / 50, "generator/loss": s / 60, "critic/lr": 1e-4, "generator/lr": 5e-5}
        for s in range(1, 100)
    ]
    html = report.render(make(tmp_path, lines))
    assert Page(html).text("h3")[:2] == ["Loss", "Learning rate"]
    names = [b for b in Page(html).text("b") if b]
    assert names[:4] == ["critic", "generator", "critic", "generator"]


def classes(count: int) -> dict[str, Any]:
    """A confusion of 150 samples a class, whose class i is right 50 + i % 100 times and else taken for the next."""
    right = 50 + np.arange(count) % 100
    values = np.diag(right)
    values[np.arange(count), (np.arange(count) + 1) % count] = 150 - right
    labels = [f"class {i}" for i in range(count)]
    return {"title": "Confusion", "labels": labels, "values": values.tolist(), "row": "true", "column": "said"}


@pytest.mark.parametrize("count", [2, 10, 30, 31, 100, 500])
def test_a_confusion_matrix_of_any_size_can_be_read(tmp_path, count):
    html = report.render(make(tmp_path, figures=[{"kind": "matrix", **classes(count)}]))
    page = Page(html)
    right = sum(50 + i % 100 for i in range(count))
    assert any(f"{right:,} of {150 * count:,} right" in text for text in page.text("p"))
    cells = [a for a in page.all("text") if a.get("class", "").startswith("count")]
    assert len(cells) == (2 * count if count <= 30 else 0)
    assert len(page.all("figure", class_="matrix")) == (count <= 120)
    rows = page.text("td")
    assert rows[:3] == ["class 0", "100", "33.33\u202f%"], "the hardest first"
    assert rows[min(count, 10) * 3 :][:3] == ["class 0", "class 1", "100"], "the most frequent mistake first"
    assert len(html) < 400_000


@pytest.mark.parametrize(
    ("layers", "steps", "last"),
    [(1, 1, "1"), (5, 20, "20"), (64, 3000, "2,976 to 3,000"), (300, 300, "298 to 300")],
)
def test_gradient_norms_of_few_and_many_layers(tmp_path, layers, steps, last):
    lines = [
        {"step": s, "grad_norms": {f"stage.{i}.conv": 0.7**i + 0.01 for i in range(layers)}}
        for s in range(1, steps + 1)
    ]
    page = Page(report.render(make(tmp_path, lines)))
    labels = [t for t in page.text("text") if t.startswith("stage.")]
    assert len(labels) == layers if layers <= 80 else 20 < len(labels) < layers
    assert labels[0] == "stage.0.conv"
    (figure,) = page.all("figure", class_="heat")
    read = json.loads(figure["data-read"])
    assert len(read["rows"]) == layers and len(read["columns"]) == min(steps, 120)
    assert read["values"][0][-1] == "1.01"
    assert read["columns"][-1] == last


def test_health_is_four_maps_side_by_side(tmp_path):
    """Outputs of the layers with weights alone, shares on a scale to 1, and no map where no unit ever died."""

    def line(step: int, dead: float) -> dict:
        return {
            "step": step, "grad_norms": {"a": 1.0, "b": 2.0}, "act_norms": {"a": 1.0, "bend": 2.0, "b": 3.0},
            "update_ratios": {"a": 1e-3, "b": 1e-4}, "dead_units": {"bend": dead},
        }  # fmt: skip

    page = Page(report.render(make(tmp_path / "some", [line(step, 0.25) for step in range(1, 100)])))
    assert "Gradient health" in page.text("h2") and not page.all("figure", class_="heat")
    reads = [json.loads(f["data-read"]) for f in page.all("figure", class_="chart") if "grid" in f.get("data-read", "")]
    assert [read["rows"] for read in reads] == [["a", "b"], ["a", "b"], ["a", "b"], ["bend"]]
    assert reads[3]["values"][0][0] == "25.00\u202f%" and reads[1]["values"][1][0] == "1×10⁻⁴"
    titles = ["Gradient norms", "Updates beside weights", "Outputs", "Dead units"]
    assert [title for title in page.text("h3") if title in titles] == titles
    page = Page(report.render(make(tmp_path / "none", [line(step, 0.0) for step in range(1, 9)])))
    assert "Dead units" not in page.text("h3")
    assert any(text.endswith("None was.") for text in page.text("p"))


def test_each_column_of_the_heat_map_is_the_largest_of_its_steps(tmp_path):
    lines = [
        {"step": s, "grad_norms": {"fc": 9.0 if s == 500 else 1.0, "late": 1.0} if s > 300 else {"fc": 1.0}}
        for s in range(1200)
    ]
    (figure,) = Page(report.render(make(tmp_path, lines))).all("figure", class_="heat")
    fc, late = json.loads(figure["data-read"])["values"]
    assert [i for i, value in enumerate(fc) if value == "9"] == [50]
    assert late[:30] == [""] * 30 and late[31:] == ["1"] * 89, "a layer is blank before its first norm"


def test_tiny_pictures_grow_by_whole_pixels_and_large_ones_do_not(tmp_path):
    sizes = {8: 112, 28: 112, 32: 128, 64: 128, 224: 224}
    items = [{"png": png(size, size), "caption": f"{size}"} for size in sizes]
    page = Page(report.render(make(tmp_path, figures=[{"kind": "images", "title": "Pictures", "items": items}])))
    assert {int(a["alt"]): int(a["width"]) for a in page.all("img")} == sizes
    assert [a["alt"] for a in page.all("img") if a.get("class") == "pixels"] == ["8", "28", "32", "64"]


def test_a_test_split_chooses_nothing_and_a_validation_split_does(tmp_path):
    accuracies = {50: 0.7, 100: 0.9, 150: 0.8}
    for split, label, value in (
        ("test", "Test accuracy", "80.00\u202f%"),
        ("validation", "Best validation accuracy", "90.00\u202f%"),
    ):
        lines = [{"step": s, "eval": {"accuracy": a}, "split": split} for s, a in accuracies.items()]
        page = Page(report.render(make(tmp_path, lines, status=status("training"))))
        assert (page.text("dt")[0], page.text("dd")[0]) == (label, value)
        assert ("kept" in page.text("text")) == (split == "validation")


def test_a_failed_run_says_why_until_it_is_resumed(tmp_path):
    run = make(tmp_path, training(), status=status("failed"))
    (run / "error.txt").write_text("Traceback\n  line\nNumericError: loss is NaN at step 60\n")
    assert " NumericError: loss is NaN at step 60" in Page(report.render(run)).text("div")
    (run / "status.json").write_text(json.dumps(status("training")))
    assert "NumericError" not in report.render(run)


def test_a_run_begun_from_python_gets_a_command(tmp_path):
    run = make(tmp_path, env=ENV | {"command": "Python"})
    assert "etude train resnet.digits --steps 500 --seed 1" in Page(report.render(run)).text("code")


def test_pictures_and_charts_have_words(tmp_path):
    figures = [{"kind": kind, "title": kind, **block} for kind, block in BLOCKS.items()]
    html = report.render(make(tmp_path, training(), figures=figures))
    page = Page(html)
    drawings = page.all("svg", role="img")
    assert len(drawings) == 8
    assert len(page.text("desc")) == len(drawings)
    assert html.count("<desc>") == len(drawings) and html.count('role="img"><title>') == len(drawings)
    assert any(
        "Accuracy over step 0 to 500; at the end train 99.97\u202f%, test 98.97\u202f%" in d for d in page.text("desc")
    )
    assert all(a["alt"] for a in page.all("img"))


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * d for d in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_every_colour_of_text_contrasts_in_both_themes(theme):
    css = Path(report.__file__).with_name("page.css").read_text()
    colours = dict(re.findall(r"--([\w]+): (#\w+);", re.findall(r":root \{(.*?)\}", css, re.DOTALL)[theme]))
    for ground in ("page", "card", "bed"):
        for ink in ("text", "soft", "bad", *(f"c{i}" for i in range(charts.COLOURS))):
            dark, light = sorted((luminance(colours[ground]), luminance(colours[ink])))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{ink} on {ground}"
    ramp = [luminance(colours[f"h{i}"]) for i in range(charts.LEVELS)]
    assert ramp == sorted(ramp, reverse=theme == 0), "a ramp that is monotonic in lightness is read without hue"


def test_the_page_is_a_function_of_the_files_wherever_they_are(tmp_path):
    run = make(tmp_path / "here", training(), env=ENV, result=RESULT)
    html = report.render(run)
    assert html == report.render(run)
    moved = Path(shutil.copytree(run, tmp_path / "far" / "away"))
    assert report.render(moved).replace(str(moved), str(run)) == html


def test_writing_replaces_the_page_in_one_step(tmp_path, monkeypatch):
    run = make(tmp_path, training())
    assert write(run) == run / "report.html"
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    before = sorted(run.iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parts.os, "replace", full)
    (run / "report.html").write_text("the old page")
    with pytest.raises(OSError, match="No space"):
        write(run)
    assert (run / "report.html").read_text() == "the old page"
    assert sorted(run.iterdir()) == before, "no temporary file is left"


def test_it_needs_no_torch():
    code = "import sys, etude.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
