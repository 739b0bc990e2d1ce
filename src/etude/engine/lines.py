"""A file's lines answered into another file, durably: whatever ends the process, what was answered stays answered.

Answers go to OUT.part, forced to the disk a few lines at a time; OUT appears when it is whole. Beside them OUT.job says
what is being done, so that lines of another file, run or search are never joined with these. Lines are always answered
in the same groups, so that a job that was stopped ends with the same bytes as one that was not.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    _claim(note, part, _job(run, source, ask))
    done = _finished(part)
    if progress:
        progress(done, len(lines))
    try:
        with open(part, "ab") as file:
            for first in range(done // GROUP * GROUP, len(lines), GROUP):
                group = lines[first : first + GROUP]
                answers = run.answers(group, device=device, **ask)
                file.write("".join(f"{line}\n" for line in answers[max(0, done - first) :]).encode())
                file.flush()
                os.fsync(file.fileno())
                if progress:
                    progress(first + len(group), len(lines))
    except OSError as error:
        raise EtudeError(
            f"{part} cannot be written: {error.strerror or error}", hint="free some space, then the same command"
        ) from error
    os.replace(part, out)
    note.unlink(missing_ok=True)
    return len(lines)


def _job(run: Run, source: Path, ask: dict[str, Any]) -> dict[str, Any]:
    """What decides the answers."""
    return {
        "lines_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "weights_sha256": checkpoint.digest(run.model("cpu").state_dict()),
        "ask": {name: ask[name] for name in sorted(ask)},
    }


def _claim(note: Path, part: Path, job: dict[str, Any]) -> None:
    """Write down what is being done, or compare it with what was."""
    if part.exists():
        try:
            before = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = {}
        if before != job:
            amiss = [name for name in job if before.get(name) != job[name]]
            raise RefusedError(
                f"{part} belongs to another job: it differs in {', '.join(amiss)}", hint=f"rm {part} {note}"
            )
        return
    checkpoint.write_atomic(note, json.dumps(job, indent=1).encode())


def _finished(part: Path) -> int:
    """How many whole lines are there; a half one, which a kill left, is cut off."""
    if not part.exists():
        return 0
    content = part.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with open(part, "r+b") as file:
            file.truncate(whole)
    return content.count(b"\n")
