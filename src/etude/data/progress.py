"""A bar for long readings, on stderr where that is a terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator


@contextlib.contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Within, call what is given with how much has been done since. The bar goes away when it is full."""
    if not sys.stderr.isatty():
        yield lambda amount: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total)
        yield lambda amount: shown.update(task, advance=amount)


def watched(texts: Iterable[str], moved: Callable[[int], None]) -> Iterator[str]:
    """The texts, each counted when it is taken."""
    for text in texts:
        moved(len(text))
        yield text
