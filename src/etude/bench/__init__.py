"""Speed side by side with what people use: `etude bench`. One file a comparison.

Each contest runs in a fresh process, because the memory allocator's state, which can double a time, depends on what ran
before. In it the peer goes first, with torch and the allocator as it finds them; then ours, with the allocator set as
the engine sets it, which cannot be undone.
"""

import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from etude import cpu
from etude.bench.peak import gemm_peak
from etude.engine.precision import computes_bf16, keep_large_blocks, pick_device
from etude.errors import EtudeError, UsageError, nearest

NAMES = (
    "mlp",
    "resnet",
    "mobilenet",
    "unet",
    "esrgan",
    "yolo",
    "nms",
    "augment",
    "graph",
    "recurrent",
    "deformable",
    "bert",
    "transformer",
    "gpt",
    "gan",
)
Row = dict[str, Any]
"""{"name", "what", "ours", "peer", "unit", "peer_name", "peer_version", "ratio", "target"}; "note" if no peer ran."""


@dataclass
class Contest:
    """Two ways to the same end. Each of `ours` and `peer` does `amount` units of work and returns its seconds."""

    name: str
    what: str
    amount: float
    unit: str
    ours: Callable[[], float]
    peer: Callable[[], float] | None
    peer_name: str
    peer_version: str | None
    target: float | None
    note: str = ""
    rounds: int = 9
    warmup: int = 2
    operations: float = 0.0
    """Of all the work: with it, the note says which share of the machine's matrix peak ours reaches."""


def clock(work: Callable[[], Any]) -> Callable[[], float]:
    """`work`, returning the seconds that it takes."""

    def timed() -> float:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    return timed


def settle(contest: Contest) -> Row:
    """Medians over rounds: of the peer, then of ours."""
    peer_seconds = _median(contest, contest.peer) if contest.peer else None
    keep_large_blocks()
    seconds = _median(contest, contest.ours)
    row = {
        "name": contest.name,
        "what": contest.what,
        "ours": round(contest.amount / seconds, 2),
        "peer": round(contest.amount / peer_seconds, 2) if peer_seconds else None,
        "unit": contest.unit,
        "peer_name": contest.peer_name,
        "peer_version": contest.peer_version,
        "ratio": round(peer_seconds / seconds, 3) if peer_seconds else None,
        "target": contest.target,
    }
    notes = [contest.note] if contest.note else []
    if contest.operations:
        kind = pick_device()
        dtype = torch.bfloat16 if computes_bf16(kind) else torch.float32
        peak = gemm_peak(dtype, device=kind)
        share, name = contest.operations / seconds / peak, str(dtype).removeprefix("torch.")
        notes.append(f"{share:.0%} of the {peak / 1e12:.2f} TFLOP/s that {name} matrix products reach")
    return row | ({"note": "; ".join(notes)} if notes else {})


def _median(contest: Contest, contestant: Callable[[], float]) -> float:
    taken = [contestant() for _ in range(contest.warmup + contest.rounds)]
    return statistics.median(taken[contest.warmup :])


def measure(name: str, number: int, *, threads: int, compiled: bool) -> tuple[Row, int]:
    """Contest `number` of a comparison, in this process, and how many there are."""
    torch.set_num_threads(threads)
    contests = import_module(f"etude.bench.{name}").contests(compiled=compiled)
    return settle(contests[number]), len(contests)


def run(names: list[str] | None = None, *, threads: int = 2, compiled: bool = False) -> dict[str, Any]:
    """Measure, each comparison in a process of its own: {"machine": {...}, "rows": [...]}.

    `compiled` adds the variants that compile for minutes.
    """
    for name in names or ():
        if name not in NAMES:
            raise UsageError(f"unknown benchmark {name!r}; there are {', '.join(NAMES)}", hint=nearest(name, NAMES))
    rows: list[Row] = []
    for name in names or NAMES:
        number, count = 0, 1
        while number < count:
            print(f"measuring {name} {number + 1} ...", file=sys.stderr)
            row, count = _apart(name, number, threads=threads, compiled=compiled)
            rows.append(row)
            number += 1
    return {"machine": machine(threads), "rows": rows}


def kept(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """`run`'s answer with the rows that a file holds of other comparisons. UsageError where these come from another
    machine, as rows of one file are to be compared."""
    if not path.exists():
        return document
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        theirs, rows = before["machine"], {_which(row): row for row in before["rows"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} does not hold rows of etude bench: {error}", hint="--out another file") from None
    for field in ("cpu", "threads", "device", "torch"):
        if theirs.get(field) != document["machine"][field]:
            raise UsageError(
                f"{path} holds rows of {field} {theirs.get(field)}, these are of {document['machine'][field]}",
                hint="--out another file",
            )
    return document | {"rows": list((rows | {_which(row): row for row in document["rows"]}).values())}


def _which(row: Row) -> tuple[str, ...]:
    return tuple(row[key] for key in ("name", "what", "peer_name"))


def _apart(name: str, number: int, *, threads: int, compiled: bool) -> tuple[Row, int]:
    """`measure` in a fresh process."""
    call = f"measure({name!r}, {number}, threads={threads}, compiled={compiled})"
    script = f"import json; from etude.bench import measure; result = {call}; print(json.dumps(result))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if done.returncode:
        raise EtudeError(f"the benchmark {name} failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    row, count = json.loads(done.stdout.splitlines()[-1])
    return row, count


def machine(threads: int) -> dict[str, Any]:
    """Where and when the figures were taken."""
    from etude.engine.run import version

    return {
        "etude": version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu.name(),
        "features": cpu.features(),
        "threads": threads,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "date": datetime.date.today().isoformat(),
    }
