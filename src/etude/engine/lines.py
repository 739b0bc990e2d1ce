"""A file's lines answered into another file, durably: whatever ends the process, what was answered stays answered.

Answers go to OUT.part, forced to the disk a few lines at a time; OUT appears when it is whole. Beside them OUT.job says
what is being done, so that lines of another file, run or search are never joined with these; lines that are not yet
answered may still be mended. Lines are always answered in the same groups, so that a job that was stopped ends with the
same bytes as one that was not. One process at a time writes.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any

from etude.engine import checkpoint
from etude.engine.run import Run
from etude.errors import EtudeError, MissingError, RefusedError, UsageError

GROUP = 32
"""Lines that are answered together."""
Progress = Callable[[int, int], None]
"""Called with lines done and lines in all."""


def answer(
    run: Run, source: Path, out: Path, *, device: str = "auto", progress: Progress | None = None, **ask: Any
) -> int:
    """Answer each line of `source` by a line of `out`, and return how many. Goes on where an earlier call stopped.

    UsageError where the task answers no lines, or `out` is there already; RefusedError where OUT.part is of another
    job.
    """
    if not run.recipe.task.by_line:
        raise UsageError(f"{run.recipe.name} does not answer a file line by line", hint="--save DIR")
    if out.exists():
        raise UsageError(f"{out} exists already and is not written over", hint=f"rm {out}, or another --save")
    if not out.parent.is_dir():
        raise MissingError(f"there is no folder {out.parent}", hint=f"mkdir -p {out.parent}")
    lines = run.recipe.data.lines(source)
    part, note = (out.with_name(out.name + ending) for ending in (".part", ".job"))
    groups = [lines[first : first + GROUP] for first in range(0, len(lines), GROUP)]
    try:
        with open(part, "ab") as file:
            _alone(file, part)
            _claim(note, part, {"groups": [_digest(group) for group in groups], **_job(run, ask)})
            done = _finished(part)
            if progress:
                progress(done, len(lines))
            for i, group in list(enumerate(groups))[done // GROUP :]:
                try:
                    answers = run.answers(group, device=device, **ask)
                except UsageError as error:
                    raise _named(error, run, group, i * GROUP, source, {"device": device, **ask}) from None
                file.write("".join(f"{line}\n" for line in answers[max(0, done - i * GROUP) :]).encode())
                file.flush()
                os.fsync(file.fileno())
                if progress:
                    progress(i * GROUP + len(group), len(lines))
    except OSError as error:
        raise EtudeError(
            f"{part} cannot be written: {error.strerror or error}", hint="free some space, then the same command"
        ) from error
    os.replace(part, out)
    note.unlink(missing_ok=True)
    return len(lines)


def _named(error: UsageError, run: Run, group: list[str], before: int, source: Path, ask: dict[str, Any]) -> UsageError:
    """The error, with the line that it is about."""
    for i, line in enumerate(group):
        try:
            run.answers([line], **ask)
        except UsageError as own:
            return UsageError(f"{source}, line {before + i + 1:,}: {own}", hint="mend the line, then the same command")
    return error


def _job(run: Run, ask: dict[str, Any]) -> dict[str, Any]:
    """What decides the answers, apart from the lines."""
    return {
        "weights_sha256": checkpoint.digest(run.model("cpu").state_dict()),
        "files": run.env.get("files", {}),
        "ask": {name: ask[name] for name in sorted(ask)},
    }


def _digest(group: list[str]) -> str:
    return hashlib.sha256("\n".join(group).encode("utf-8", "surrogateescape")).hexdigest()


def _claim(note: Path, part: Path, job: dict[str, Any]) -> None:
    """Write down what is being done, after a comparison with what was, as far as that was done."""
    done = part.read_bytes().count(b"\n")
    if done:
        try:
            before = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = {}
        amiss = [name for name in job if name != "groups" and before.get(name) != job[name]]
        begun = -(-done // GROUP)
        pairs = zip_longest(before.get("groups", [])[:begun], job["groups"][:begun])
        amiss += [f"lines {i * GROUP + 1} to {(i + 1) * GROUP}" for i, (old, new) in enumerate(pairs) if old != new][:1]
        if amiss:
            raise RefusedError(
                f"{part} belongs to another job: it differs in {', '.join(amiss)}", hint=f"rm {part} {note}"
            )
    checkpoint.write_atomic(note, json.dumps(job, indent=1).encode())


def _alone(file: IO[bytes], part: Path) -> None:
    """Keep other processes from writing; the system forgets it of one that is killed."""
    with contextlib.suppress(ImportError):  # Windows has no such lock
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{part} is being written by another process", hint="wait, or another --save") from None


def _finished(part: Path) -> int:
    """How many whole lines are there; a half one, which a kill left, is cut off."""
    content = part.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(part, whole)
    return content.count(b"\n")
