"""Progress of long work, on stderr where that is a terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

SHOWN: ContextVar[Any] = ContextVar("shown", default=None)
"""The display that is on the screen."""
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is in all."""


@contextlib.contextmanager
def bars(*, bytes: bool = False, transient: bool = False) -> Iterator[Progress]:
    """Within, what is given shows a bar for each thing that is being done. `bytes`: so the amounts are told; a
    `transient` display goes away at the end. Bars within bars share the outer display, and go away when they end."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Display

    outer, tasks = SHOWN.get(), {}
    amount = DownloadColumn() if bytes else MofNCompleteColumn()
    columns = TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn()
    display = outer or Display(*columns, console=Console(stderr=True), transient=transient)

    def show(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = display.add_task(what, total=total or None)
        display.update(tasks[what], completed=done, total=total or None)

    if outer is not None:
        yield show
        for task in tasks.values():
            outer.remove_task(task)
        return
    token = SHOWN.set(display)
    try:
        with display:
            yield show
    finally:
        SHOWN.reset(token)


@contextlib.contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """One bar of bytes. Within, call what is given with how much has been done since. It goes away when it is full."""
    with bars(bytes=True, transient=True) as show:
        done = 0

        def advance(amount: int) -> None:
            nonlocal done
            done += amount
            show(what, done, total)

        yield advance


def watched(texts: Iterable[str], moved: Callable[[int], None]) -> Iterator[str]:
    """The texts, each counted when it is taken."""
    for text in texts:
        moved(len(text))
        yield text
