"""Speed side by side with what people use: `etude bench`. One file a comparison.

Each contest runs in a fresh process, because the memory allocator's state, which can double a time, depends on what ran
before; and one that fails takes no other with it. In it the peer goes first, with torch and the allocator as it finds
them; then ours, with the allocator set as the engine sets it, which cannot be undone.

Nothing here imports torch until it measures, so that `etude bench --list` answers at once.
"""

import ast
import datetime
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from etude.errors import UsageError, nearest

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
PACKAGE = "etude.bench"
LIMIT = 1800.0
"""Seconds after which a contest has failed."""
KINDS = ("amx_bf16", "avx512_bf16", "avx512_vnni", "avx512f", "avx_vnni", "avx2", "bf16", "i8mm", "asimddp", "asimd")
"""Features that name a kind of CPU, best first: a result file is named after the first that the CPU has."""
Row = dict[str, Any]
"""{"comparison", "name", "what", "ours", "peer", "unit", "peer_name", "peer_version", "ratio", "target"}; "note" if no
peer ran; where operations are known, "share" (0 to 1) of the "peak" {"precision", "gflops"} that matrix products reach.
{"comparison", "name", "what", "skipped": why} of what this machine cannot do, with "error" of what failed."""


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
    operations: float | Callable[[], float] = 0.0
    """Floating-point operations of all the work, or what counts them: with them, the row says which share of the
    machine's matrix peak ours reaches. To be left out where memory sets the speed."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What ours computes in."""


@dataclass
class Skipped:
    """A contest that cannot be held on this machine."""

    name: str
    what: str
    why: str


def clock(work: Callable[[], Any]) -> Callable[[], float]:
    """`work`, returning the seconds that it takes."""

    def timed() -> float:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    return timed


def settle(contest: Contest) -> tuple[Row, dict[str, Any]]:
    """Medians over rounds: of the peer, then of ours. And, where operations are known, what ours reaches:
    {"precision", "gflops"}."""
    from etude.engine.precision import keep_large_blocks, pick_device, resolve

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
    row |= {"note": contest.note} if contest.note else {}
    operations = contest.operations() if callable(contest.operations) else contest.operations
    precision = resolve(contest.precision, pick_device())
    return row, {"precision": precision, "gflops": operations / seconds / 1e9} if operations else {}


def _median(contest: Contest, contestant: Callable[[], float]) -> float:
    taken = [contestant() for _ in range(contest.warmup + contest.rounds)]
    return statistics.median(taken[contest.warmup :])


def measure(module: str, number: int, *, threads: int, compiled: bool) -> Iterator[dict[str, Any]]:
    """Contest `number` of a comparison, in this process: first how many there are and which one this is, then its row
    and what ours reaches."""
    import torch

    torch.set_num_threads(threads)
    contests: list[Contest | Skipped] = import_module(module).contests(compiled=compiled)
    contest = contests[number]
    named = {"name": contest.name, "what": contest.what}
    if isinstance(contest, Skipped):
        yield {"contests": len(contests), "row": named | {"skipped": contest.why}}
    else:
        yield {"contests": len(contests), "row": named | {"peer_name": contest.peer_name}}
        row, reached = settle(contest)
        yield {"row": row, "reached": reached}


def measure_peak(precision: str, *, threads: int) -> Iterator[dict[str, Any]]:
    """What matrix products reach in this process, in GFLOP/s."""
    import torch

    from etude.bench.peak import gemm_peak
    from etude.engine.precision import DTYPES, pick_device

    torch.set_num_threads(threads)
    yield {"gflops": gemm_peak(DTYPES[precision], device=pick_device()) / 1e9}


def rows(names: list[str] | None = None, *, threads: int = 2, compiled: bool = False) -> Iterator[Row]:
    """Each row as soon as it is measured, in a process of its own; one that fails says so, and the next follows.

    `compiled` adds the variants that compile for minutes.
    """
    for name in names or ():
        if name not in NAMES:
            raise UsageError(f"unknown benchmark {name!r}; there are {', '.join(NAMES)}", hint=nearest(name, NAMES))
    return _rows(names or NAMES, f"threads={threads}", f"compiled={compiled}")


def _rows(names: Sequence[str], threads: str, compiled: str) -> Iterator[Row]:
    peaks: dict[str, float | None] = {}
    for name in names:
        number, count = 0, 1
        while number < count:
            of = f" of {count}" if number else ""
            print(f"measuring {name} {number + 1}{of} ...", file=sys.stderr)
            module = f"{PACKAGE}.{name}"
            found, error = _apart(f"measure({module!r}, {number}, {threads}, {compiled})")
            count = found.get("contests", count)
            what = f"{name}, contest {number + 1}" if number else name  # where it fails before it tells its own
            row = {"comparison": name, "name": name, "what": what, **found.get("row", {})}
            if not error and not {"ours", "skipped"} & row.keys():
                error = "its process ended without a row"
            if error:
                row["error"] = error
            elif reached := found.get("reached"):
                precision = reached["precision"]
                if precision not in peaks:
                    peaks[precision] = _apart(f"measure_peak({precision!r}, {threads})")[0].get("gflops")
                if peak := peaks[precision]:
                    row["share"] = round(reached["gflops"] / peak, 3)
                    row["peak"] = {"precision": precision, "gflops": round(peak, 1)}
            yield row
            number += 1


def run(names: list[str] | None = None, *, threads: int = 2, compiled: bool = False) -> dict[str, Any]:
    """All `rows`: {"machine": {...}, "rows": [...]}."""
    return {"machine": machine(threads), "rows": list(rows(names, threads=threads, compiled=compiled))}


def descriptions() -> dict[str, str]:
    """The first sentence that each comparison says of itself, by name."""
    found = {}
    for name in NAMES:
        tree = ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
        said = " ".join((ast.get_docstring(tree) or "").split())
        found[name] = re.split(r"(?<=\.)\s", said)[0]
    return found


def out_file(place: str) -> Path:
    """Where the rows of this machine are kept: the file of this name or, in a folder, that of this kind of CPU."""
    path = Path(place)
    if not path.is_dir() and not place.endswith(("/", os.sep)):
        return path
    from etude import cpu

    model = re.sub(r"[^a-z0-9]+", "-", cpu.name().lower()).strip("-")
    kind = next((f"-{kind}" for kind in KINDS if kind in cpu.used()), "")
    return path / f"{model}{kind}.json"


def keep(document: dict[str, Any], path: Path) -> None:
    """Put `run`'s answer into a file beside the rows that it has; at any moment the file is whole."""
    from etude.engine.checkpoint import write_atomic

    whole = json.dumps(kept(document, path), indent=1, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, f"{whole}\n".encode())


def kept(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """`run`'s answer with the rows that a file holds of other contests, and with measured ones in place of those that
    have no figures now. UsageError where these come from another machine, as rows of one file are to be compared."""
    if not path.exists():
        return document
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        theirs, older = before["machine"], {_which(row): row for row in before["rows"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} does not hold rows of etude bench: {error}", hint="--out another file") from None
    ours = document["machine"]
    for field in ("cpu", "features", "limits", "threads", "device", "torch"):
        a, b = ((there.get(field, {}) if field == "limits" else there.get(field)) for there in (theirs, ours))
        if a != b and not (field == "features" and None in (a, b)):  # files of earlier versions do not say which
            raise UsageError(f"{path} holds rows of {field} {a}, these are of {b}", hint="--out another file")
    newer = {_which(row): row for row in document["rows"]}
    again = {row.get("comparison") for row in newer.values()}
    for which in [which for which, row in older.items() if "error" in row and row.get("comparison") in again]:
        if which not in newer:  # a failure of an earlier time
            del older[which]
    newer = {which: row for which, row in newer.items() if "ours" in row or "ours" not in older.get(which, {})}
    return document | {"rows": list((older | newer).values())}


def _which(row: Row) -> tuple[str | None, ...]:
    return row["name"], row["what"], row.get("peer_name")


def tell(said: Iterator[dict[str, Any]]) -> None:
    """Write on stdout what there is to say, one JSON object a line; an error, too."""
    try:
        for document in said:
            print(json.dumps(document), flush=True)
    except Exception as error:
        print(json.dumps({"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}), flush=True)
        raise


def _apart(call: str) -> tuple[dict[str, Any], str]:
    """What `call` tells in a fresh process, put together, and what went wrong there, if anything did."""
    script = f"from etude.bench import measure, measure_peak, tell; tell({call})"
    late = False
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            output, complaint = process.communicate(timeout=LIMIT)
        except BaseException as error:  # not done in time, or Ctrl-C
            process.kill()
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            output, complaint, late = error.stdout or b"", error.stderr or b"", True
    found: dict[str, Any] = {}
    for line in output.decode(errors="replace").splitlines():
        with suppress(ValueError, TypeError):  # peers may write there, too
            found |= json.loads(line)
    code, said = process.returncode, complaint.decode(errors="replace").strip()
    if code and os.environ.get("ETUDE_DEBUG"):
        print(said, file=sys.stderr)
    if late:
        return found, f"not done after {LIMIT:.0f} s"
    if code < 0:
        return found, f"killed by {signal.Signals(-code).name}"
    if not code:
        return found, ""
    return found, found.get("error") or (said.splitlines()[-1][:300] if said else f"exit code {code}")


def machine(threads: int) -> dict[str, Any]:
    """Where and when the figures were taken."""
    import torch

    from etude import cpu
    from etude.engine.run import version

    limits = cpu.limits()
    return {
        "etude": version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu.name(),
        "features": cpu.used(),
        **({"limits": limits} if limits else {}),
        "threads": threads,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "date": datetime.date.today().isoformat(),
    }
