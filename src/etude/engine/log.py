"""What a run says while it runs: messages and progress on stderr, the same messages in log.txt."""

import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

PLAIN_EVERY = 30.0
"""Seconds between progress lines where there is no terminal."""


class _Measures(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields.get("measures", ""), style="cyan")


class _Console(Console):
    """A console that falls silent when nobody reads it any more (`etude train ... | head`), and trains on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Log:
    """Messages, and one live line: step, losses, samples a second, time left. Plain lines without a terminal."""

    def __init__(self, *, quiet: bool = False):
        self.quiet = quiet
        self.console = _Console(stderr=True, highlight=False, soft_wrap=True, no_color="NO_COLOR" in os.environ or None)
        self.live = not quiet and self.console.is_terminal and os.environ.get("TERM") != "dumb"
        self._file: IO[str] | None = None
        self._bar: Progress | None = None
        self._said = time.monotonic()

    def keep(self, path: Path) -> None:
        """From now on, keep what is said in this file too."""
        if self._file is None:
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open until close()

    def __call__(self, message: str) -> None:
        """Say a line, and keep it in log.txt with the time."""
        if not self.quiet:
            self.console.print(message, markup=False)
        self.write(message)

    def write(self, message: str) -> None:
        """Keep a line in log.txt only."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):  # a full disk must not end a training that could go on
            self._file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {message}\n")
            self._file.flush()

    def begin(self, step: int, steps: int) -> None:
        """Show the live line."""
        if self.live:
            columns = (TextColumn("step {task.completed}/{task.total}"), BarColumn(24), _Measures(), TextColumn("left"))
            self._bar = Progress(
                *columns, TimeRemainingColumn(compact=True), console=self.console, refresh_per_second=4
            )
            self._task = self._bar.add_task("train", total=steps, completed=step)
            self._bar.start()

    def progress(self, step: int, steps: int, measures: dict[str, float], speed: float, left: float) -> None:
        """Bring the live line up to date, or print a plain line when 30 s have passed since the last."""
        if self.quiet:
            return
        said = "  ".join(f"{name} {value:.4g}" for name, value in measures.items())
        said = f"{said}  {speed:,.0f} samples/s"
        if self._bar:
            self._bar.update(self._task, completed=step, measures=said)
        elif time.monotonic() - self._said >= PLAIN_EVERY:
            self._said = time.monotonic()
            with contextlib.suppress(BrokenPipeError):
                print(f"step {step}/{steps}  {said}  {duration(left)} left", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Take the live line away."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def close(self) -> None:
        """End, and close log.txt."""
        self.end()
        if self._file:
            with contextlib.suppress(OSError):
                self._file.close()


class MetricLog:
    """metrics.jsonl: one JSON object a line. Lines are held until `flush`, and again if that fails, so the file is
    always a prefix of what was logged."""

    def __init__(self, path: Path, *, keep_bytes: int):
        """Open, and cut off what was logged after the checkpoint that is resumed from."""
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (stays open for the run)
        self.bytes = min(keep_bytes, path.stat().st_size)  # never lengthened: that would fill it with zeros
        self._file.truncate(self.bytes)
        self._held: list[bytes] = []

    def write(self, line: dict[str, Any]) -> None:
        """Hold a line."""
        self._held.append((json.dumps(line) + "\n").encode())

    def flush(self, *, sync: bool = False) -> None:
        """Write what is held; OSError leaves file and held lines as they were."""
        content = b"".join(self._held)
        try:
            written = self._file.write(content) if content else 0
            if written != len(content):
                raise OSError(errno.ENOSPC, "the disk is full")
            if sync:
                os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(self.bytes)
            raise
        self.bytes += len(content)
        self._held.clear()

    def close(self) -> None:
        """Flush as far as that goes, and close."""
        with contextlib.suppress(OSError):
            self.flush()
        self._file.close()


def read(path: Path, size: int) -> Iterator[dict[str, Any]]:
    """The objects in a metric log's first `size` bytes; a line that holds none, whole, is left out."""
    content = path.read_bytes()[:size] if path.is_file() else b""
    for line in content.splitlines():
        with contextlib.suppress(ValueError):
            document = json.loads(line)
            if isinstance(document, dict):
                yield document


def duration(seconds: float) -> str:
    """65 -> "1 min 5 s"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
