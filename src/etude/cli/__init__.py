"""The command line: `etude VERB ...`. Results go to stdout, progress and messages to stderr.

Nothing here imports torch until a verb needs it, so that --help, list, info, report and --version answer at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from etude.cli.asking import eval_, export, predict, replay, report
from etude.cli.checking import bench, data, doctor, verify
from etude.cli.looking import gradcheck, graph, info, list_
from etude.cli.parts import complain
from etude.cli.training import resume, train
from etude.errors import EtudeError, Interrupted, UsageError, nearest

VERBS: dict[str, Callable[[list[str]], int]] = {
    "list": list_,
    "info": info,
    "train": train,
    "resume": resume,
    "eval": eval_,
    "predict": predict,
    "export": export,
    "report": report,
    "replay": replay,
    "graph": graph,
    "gradcheck": gradcheck,
    "verify": verify,
    "bench": bench,
    "data": data,
    "doctor": doctor,
}


def _help() -> str:
    rows = "\n".join(f"  {name:10}{(function.__doc__ or '').splitlines()[0]}" for name, function in VERBS.items())
    codes = (
        "0 ok, 1 failed, 2 usage or bad input, 3 data or weights missing, 4 checkpoint refused, 5 NaN, "
        "75 preempted and saved, 130 Ctrl-C"
    )
    return (
        "usage: etude VERB ...\n\nThe landmark systems of deep learning, each trained by one command.\n\n"
        f"{rows}\n\netude VERB --help tells more. Exit codes: {codes}.\nStart with: etude train resnet.digits"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = bool(os.environ.get("ETUDE_DEBUG"))
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(_help())
            return 0 if arguments else 2
        if arguments[0] in ("-V", "--version", "version"):
            from importlib.metadata import version

            print(f"etude {version('etude')}")
            return 0
        verb = arguments[0]
        if verb not in VERBS:
            raise UsageError(f"unknown verb {verb!r}", hint=nearest(verb, VERBS) or "etude --help")
        return VERBS[verb](arguments[1:])
    except Interrupted as stopped:
        complain(stopped)
        return stopped.code
    except EtudeError as error:
        complain(error)
        if debug:
            traceback.print_exc()
        return error.code
    except BrokenPipeError:  # etude list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except KeyboardInterrupt:
        print("etude: stopped", file=sys.stderr)
        return 130
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"etude: {error.strerror or error}{where}; check the path and its permissions", file=sys.stderr)
        if debug:
            traceback.print_exc()
        return 1
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"etude: unexpected {said[:400]} (try: ETUDE_DEBUG=1 for the traceback, and report it)", file=sys.stderr)
        if debug:
            traceback.print_exc()
        return 1
    finally:
        if "etude.engine.parallel" in sys.modules:
            sys.modules["etude.engine.parallel"].leave()
