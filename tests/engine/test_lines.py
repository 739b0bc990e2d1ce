"""File jobs: a kill at any byte costs nothing, no half line stays, other jobs' lines are never joined."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest

from etude.engine import lines
from etude.engine.run import Run
from etude.errors import EtudeError, MissingError, RefusedError, UsageError


@dataclasses.dataclass
class Upper:
    """A run that answers in capitals, and may die in a given call."""

    dies: int = -1
    calls: int = 0
    weights: str = "w"
    by_line: bool = True
    name: str = "toy"

    @property
    def recipe(self):
        return self

    task = data = recipe

    def lines(self, path: Path) -> list[str]:
        return path.read_text().removesuffix("\n").split("\n")

    def answers(self, group, *, device="auto", **ask):
        self.calls += 1
        if self.calls == self.dies:
            raise KeyboardInterrupt
        return [f"{line.upper()}{len(group)}{ask.get('end', '')}" for line in group]


def answer(run: Any, source: Path, out: Path, **options: Any) -> int:
    """`lines.answer` of a stand-in for a run."""
    return lines.answer(cast(Run, run), source, out, **options)


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_job", lambda run, ask: {"weights": run.weights, "ask": ask})
    path = tmp_path / "in.txt"
    path.write_text("".join(f"line {i}\n" for i in range(100)))
    return path


def test_whole_and_resumed_jobs_are_the_same_bytes(tmp_path, source):
    shown: list[tuple[int, int]] = []
    assert answer(Upper(), source, tmp_path / "whole", progress=lambda a, b: shown.append((a, b))) == 100
    whole = (tmp_path / "whole").read_bytes()
    assert whole.count(b"\n") == 100 and shown == [(0, 100), (32, 100), (64, 100), (96, 100), (100, 100)]
    with pytest.raises(KeyboardInterrupt):
        answer(Upper(dies=3), source, tmp_path / "out")
    part = tmp_path / "out.part"
    assert part.read_bytes().count(b"\n") == 64 and not (tmp_path / "out").exists()
    again = Upper()
    answer(again, source, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == whole and again.calls == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out", "whole"]


@pytest.mark.parametrize("cut", [0, 1, 7, 11, 200, 333, 500, 901])
def test_a_part_that_was_cut_at_any_byte(tmp_path, source, cut):
    answer(Upper(), source, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        answer(Upper(dies=1), source, tmp_path / "out")
    (tmp_path / "out.part").write_bytes(whole[:cut])
    answer(Upper(), source, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == whole


def test_lines_of_another_job_are_not_joined(tmp_path, source):
    with pytest.raises(KeyboardInterrupt):
        answer(Upper(dies=2), source, tmp_path / "out")
    with pytest.raises(RefusedError, match="differs in weights"):
        answer(Upper(weights="other"), source, tmp_path / "out")
    with pytest.raises(RefusedError, match="differs in ask"):
        answer(Upper(), source, tmp_path / "out", end="!")
    (tmp_path / "out.job").write_text("damaged")
    with pytest.raises(RefusedError, match="another job"):
        answer(Upper(), source, tmp_path / "out")


def test_lines_may_be_mended_until_they_are_answered(tmp_path, source):
    with pytest.raises(KeyboardInterrupt):
        answer(Upper(dies=3), source, tmp_path / "out")
    text = source.read_text()
    source.write_text(text.replace("line 63", "changed"))
    with pytest.raises(RefusedError, match="differs in lines 33 to 64"):
        answer(Upper(), source, tmp_path / "out")
    source.write_text(text.replace("line 64", "mended") + "one more\n")
    assert answer(Upper(), source, tmp_path / "out") == 101
    answered = (tmp_path / "out").read_text().splitlines()
    assert answered[63:65] == ["LINE 6332", "MENDED32"] and answered[100] == "ONE MORE5"


def test_one_process_at_a_time(tmp_path, source):
    class Second(Upper):
        def answers(self, group, **more):
            with pytest.raises(UsageError, match="another process"):
                answer(Upper(), source, tmp_path / "out")
            return super().answers(group, **more)

    assert answer(Second(), source, tmp_path / "out") == 100


def test_misuse(tmp_path, source):
    (tmp_path / "there").write_text("precious")
    with pytest.raises(UsageError, match="not written over"):
        answer(Upper(), source, tmp_path / "there")
    with pytest.raises(MissingError, match="no folder"):
        answer(Upper(), source, tmp_path / "no" / "out")
    with pytest.raises(UsageError, match="line by line"):
        answer(Upper(by_line=False), source, tmp_path / "out")


WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_lines import Upper
from etude.engine import lines
lines._job = lambda run, ask: {{}}
class Slow(Upper):
    def answers(self, group, **ask):
        time.sleep(0.05)
        return super().answers(group, **ask)
lines.answer(Slow(), Path({source!r}), Path({out!r}))
"""


def test_kill_9(tmp_path, monkeypatch):
    """Killed in the middle, the job ends with the bytes of one that was not."""
    source, out, part = tmp_path / "in.txt", tmp_path / "out", tmp_path / "out.part"
    source.write_text("".join(f"line {i}\n" for i in range(4000)))
    code = WORKER.format(tests=str(Path(__file__).parent), source=str(source), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while not (part.exists() and part.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not out.exists()
    assert 0 < part.read_bytes().count(b"\n") < 4000
    monkeypatch.setattr(lines, "_job", lambda run, ask: {})
    answer(Upper(), source, out)
    assert out.read_text().splitlines() == [f"LINE {i}32" for i in range(4000)]


def test_a_full_disk_is_told(tmp_path, source, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lines.os, "fsync", full)
    monkeypatch.setattr(lines.checkpoint, "write_atomic", lambda path, content: path.write_bytes(content))
    with pytest.raises(EtudeError, match="No space left"):
        answer(Upper(), source, tmp_path / "out")
    monkeypatch.undo()
    assert json.dumps((tmp_path / "out.part").read_text().count("\n")) in ("0", "32")
