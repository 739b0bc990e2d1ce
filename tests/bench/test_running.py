"""`etude bench` with comparisons made up: what fails, crashes, is impossible here or is interrupted costs no other."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from etude import bench
from etude.cli import main

HEAD = '''"""A comparison made up. It measures nothing."""
import os, signal, sys, time
from etude.bench import Contest, Skipped

def contest(name, ours=lambda: 0.01, **more):
    more = {"amount": 1, "unit": "runs/s", "peer": lambda: 0.02, "peer_name": "usual", "peer_version": "1"} | more
    return Contest(name=name, what=f"What of {name}", ours=ours, target=None, rounds=1, warmup=0, **more)

def fails():
    raise ValueError("of no use\\n  at all")

def crashes():
    os.kill(os.getpid(), signal.SIGKILL)

def leaves():
    print("a peer's [words", flush=True)
    os._exit(0)

def sends(number):
    os.kill(os.getppid(), number)
    time.sleep(60 if number == signal.SIGINT else 0)

def contests(*, compiled):
'''
COMPARISONS = {
    "uncountable": "    fails()",
    "mixed": "    return [contest('fails', fails), contest('crashes', crashes), contest('leaves', leaves),\n"
    "        Skipped('impossible', 'What cannot be', 'not on this CPU: it is too small'), contest('fine')]",
    "counted": "    return [contest('whole', operations=5e8, precision='fp32'),\n"
    "        contest('half', operations=lambda: 25e7, precision='fp32'), contest('none')]",
    "interrupted": "    return [contest('first'), contest('second', lambda: sends(signal.SIGINT)), contest('third')]",
    "killed": "    return [contest('first'), contest('second', lambda: sends(signal.SIGKILL)), contest('third')]",
}


@pytest.fixture
def made_up(tmp_path, monkeypatch) -> Path:
    """Comparisons of these names, in the place of etude's."""
    folder = tmp_path / "made_up"
    folder.mkdir()
    for name, body in COMPARISONS.items():
        (folder / f"{name}.py").write_text(f"{HEAD}{body}\n", encoding="utf-8")
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setattr(bench, "PACKAGE", "made_up")
    monkeypatch.setattr(bench, "NAMES", tuple(COMPARISONS))
    return tmp_path


def test_what_fails_says_so_and_the_rest_is_measured(made_up, capsys):
    path = made_up / "new" / "rows.json"
    assert main(["bench", "uncountable", "mixed", "--out", str(path)]) == 1
    out, err = capsys.readouterr()
    rows = json.loads(path.read_text())["rows"]
    assert [(row["comparison"], row["name"], row.get("error"), row.get("skipped")) for row in rows] == [
        ("uncountable", "uncountable", "ValueError: of no use at all", None),
        ("mixed", "fails", "ValueError: of no use at all", None),
        ("mixed", "crashes", "killed by SIGKILL", None),
        ("mixed", "leaves", "its process ended without a row", None),
        ("mixed", "impossible", None, "not on this CPU: it is too small"),
        ("mixed", "fine", None, None),
    ]
    assert rows[-1]["ours"] == 100 and rows[-1]["peer"] == 50 and rows[-1]["ratio"] == 2
    table = {line.split("  ")[0]: line for line in out.splitlines()}
    assert table["What of crashes"].endswith("  failed: killed by SIGKILL")
    assert table["What cannot be"].endswith("  not on this CPU: it is too small")
    assert "2.00x" in table["What of fine"] and "failed" not in table["What of fine"]
    assert err.splitlines()[-1].startswith(
        "etude: 4 of 6 comparisons failed: uncountable, fails, crashes, leaves (try: ETUDE_DEBUG=1"
    )


def test_a_contest_has_its_time(made_up, monkeypatch):
    monkeypatch.setattr(bench, "LIMIT", 0.1)
    (row,) = bench.rows(["counted"])
    assert row == {"comparison": "counted", "name": "counted", "what": "counted", "error": "not done after 0 s"}


def test_the_share_of_the_peak(made_up, capsys):
    assert main(["bench", "counted", "--threads", "1", "--json"]) == 0
    whole, half, none = json.loads(capsys.readouterr().out)["rows"]
    assert whole["peak"] == half["peak"]  # measured once
    assert whole["peak"]["precision"] == "fp32" and whole["peak"]["gflops"] > 1
    assert whole["share"] == pytest.approx(50 / whole["peak"]["gflops"], abs=0.002)  # 5e8 operations in 0.01 s
    assert half["share"] == pytest.approx(whole["share"] / 2, abs=0.002)
    assert "share" not in none and "peak" not in none


@pytest.mark.parametrize("kept", [True, False])
def test_ctrl_c_shows_and_keeps_what_was_measured(made_up, capsys, kept):
    path = made_up / "rows.json"
    assert main(["bench", "interrupted", *(["--out", str(path)] if kept else [])]) == 130
    out, err = capsys.readouterr()
    assert "What of first" in out and "What of second" not in out
    said = err.splitlines()[-1]
    assert said.startswith("etude: stopped; rows measured until then: 1, ")
    if kept:
        assert str(path) in said
        assert [row["name"] for row in json.loads(path.read_text())["rows"]] == ["first"]


def test_a_kill_loses_the_row_that_is_being_measured(made_up):
    path = made_up / "rows.json"
    script = (
        "from etude import bench; from etude.cli import main; bench.PACKAGE = 'made_up'; bench.NAMES = ('killed',); "
        f"main(['bench', '--out', {str(path)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [row["name"] for row in json.loads(path.read_text())["rows"]] == ["first"]
    assert main(["bench", "counted", "--out", str(path)]) == 0  # the file takes more
    assert [row["name"] for row in json.loads(path.read_text())["rows"]] == ["first", "whole", "half", "none"]


def test_every_comparison_says_what_it_is():
    said = bench.descriptions()
    assert list(said) == list(bench.NAMES) and all(said.values())
