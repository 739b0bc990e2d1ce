"""The errors a user can meet, each with the exit code that the command line gives it.

An error says what is wrong, where, why, and the command or change to try; `hint` is that last part.
"""

import difflib
from collections.abc import Iterable


class EtudeError(Exception):
    """Base of every error that is the user's to mend. `code` is the process's exit status."""

    code = 1

    def __init__(self, message: str, *, hint: str = ""):
        super().__init__(message)
        self.hint = hint


class UsageError(EtudeError, ValueError):
    """Bad input: an unknown name, flag or value, an unreadable file (exit 2)."""

    code = 2


class MissingError(EtudeError, FileNotFoundError):
    """Data or weights that are not on this machine (exit 3)."""

    code = 3


class RefusedError(EtudeError, ValueError):
    """A checkpoint or weight file that is damaged, unsafe or does not fit (exit 4)."""

    code = 4


class NumericError(EtudeError, ArithmeticError):
    """NaN or Inf in a loss or a gradient (exit 5)."""

    code = 5


class Interrupted(EtudeError):
    """Training stopped by a signal after saving: exit 130 for Ctrl-C, 75 for SIGTERM."""

    def __init__(self, message: str, *, hint: str = "", code: int = 130):
        super().__init__(message, hint=hint)
        self.code = code


def nearest(name: str, known: Iterable[str]) -> str:
    """ "did you mean X?" for the nearest known name, or nothing if none is near. A flag's dashes count for nothing, or
    any two short flags would be near."""
    names = {one.lstrip("-"): one for one in known}
    found = difflib.get_close_matches(name.lstrip("-"), names, 1, cutoff=0.55 if name[:1] == "-" else 0.5)
    return f"did you mean {names[found[0]]}?" if found else ""
