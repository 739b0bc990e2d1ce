"""Messages and the metric log."""

import errno
import io
import json
import os

import pytest

from etude.engine.log import Log, MetricLog, duration, read


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_metric_log_is_cut_back_and_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricLog(path, keep_bytes=0)
    log.write({"step": 1})
    log.flush()
    kept = log.bytes
    log.write({"step": 2})
    log.close()
    assert lines(path) == [{"step": 1}, {"step": 2}]
    log = MetricLog(path, keep_bytes=kept)
    log.write({"step": 3})
    log.close()
    assert lines(path) == [{"step": 1}, {"step": 3}]


def test_a_shorter_log_is_not_filled_with_zeros(tmp_path):
    log = MetricLog(tmp_path / "metrics.jsonl", keep_bytes=1000)
    log.write({"step": 1})
    log.close()
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 1}]


def test_only_objects_are_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n3\n[1]\nnull\nrubbish\n{"step": 2}\n{"step": 3}\n')
    assert list(read(path, path.stat().st_size - 3)) == [{"step": 1}, {"step": 2}]
    assert list(read(tmp_path / "none", 9)) == []


def test_a_failed_flush_keeps_its_lines(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    log = MetricLog(path, keep_bytes=0)
    log.write({"step": 1})
    log.flush()
    log.write({"step": 2})

    def fail(_):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        log.flush(sync=True)
    assert lines(path) == [{"step": 1}]
    monkeypatch.undo()
    log.flush(sync=True)
    log.close()
    assert lines(path) == [{"step": 1}, {"step": 2}]


def test_plain_lines_come_every_thirty_seconds(monkeypatch, tmp_path, capsys):
    now = [1000.0]
    monkeypatch.setattr("etude.engine.log.time.monotonic", lambda: now[0])
    log = Log()
    log.keep(tmp_path / "log.txt")
    assert not log.live  # stderr is no terminal here
    log("hello")
    for seconds in (10, 25, 31, 40, 62):
        now[0] = 1000.0 + seconds
        log.progress(seconds, 100, {"loss": 0.5}, 900.0, 90)
    log.close()
    said = capsys.readouterr().err.splitlines()
    assert said == ["hello", "step 31/100  loss 0.5  900 samples/s  1 min 30 s left",
                    "step 62/100  loss 0.5  900 samples/s  1 min 30 s left"]  # fmt: skip
    assert (tmp_path / "log.txt").read_text().endswith(" hello\n")


def test_a_terminal_gets_a_live_line(monkeypatch, tmp_path):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    log = Log()
    assert log.live
    log.begin(0, 10)
    log.progress(5, 10, {"loss": 0.25}, 1234.0, 3)
    log.end()
    log.close()
    assert "5/10" in screen.getvalue() and "loss 0.25" in screen.getvalue() and "1,234 samples/s" in screen.getvalue()
    log = Log(quiet=True)
    log.begin(0, 10)
    log.progress(5, 10, {}, 1.0, 3)
    log("unsaid")
    assert "unsaid" not in screen.getvalue()


def test_durations():
    assert [duration(s) for s in (0.4, 59, 65, 3725)] == ["0 s", "59 s", "1 min 5 s", "1 h 2 min"]
