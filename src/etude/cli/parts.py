"""What all verbs share: their parsers, and how they print."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from etude.errors import EtudeError, UsageError, nearest


class Parser(argparse.ArgumentParser):
    """argparse that raises one-line errors naming the nearest flag, instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        unknown = next((word for word in message.split() if word.startswith("-")), "")
        hint = nearest(unknown, flags) if "unrecognized" in message and unknown else ""
        raise UsageError(f"{self.prog}: {message}", hint=hint or f"{self.prog} --help")


def parser_of(verb: Callable[[list[str]], int]) -> Parser:
    """The parser of a verb, which is described by its docstring."""
    name = verb.__name__.rstrip("_")  # list_ and eval_ are Python's own without
    parser = Parser(prog=f"etude {name}", description=verb.__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return parser


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Left-aligned columns on stdout; the last is not padded."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        print("  ".join([*cells[:-1], row[-1]]).rstrip())


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(document, indent=1, ensure_ascii=False))


def complain(error: EtudeError) -> None:
    """One line: what, where, why, and what to try."""
    message = " ".join(str(error).split())
    hint = error.hint if error.hint.startswith("did you mean") else f"try: {error.hint}"
    print(f"etude: {message}" + (f" ({hint})" if error.hint else ""), file=sys.stderr)
