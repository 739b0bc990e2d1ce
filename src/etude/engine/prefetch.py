"""Batches ahead of time: made by threads, handed out in order, the same whatever the number of threads."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from etude.data.base import Batch


def prefetch(make: Callable[[int], Batch], first: int, last: int, *, workers: int) -> Iterator[Batch]:
    """make(first) ... make(last - 1), with up to `workers` + 1 made ahead; 0 workers makes each when it is asked for."""
    if workers == 0:
        yield from map(make, range(first, last))
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="etude-data")
    pending: deque[Future[Batch]] = deque()
    try:
        for step in range(first, last):
            while len(pending) <= workers and step + len(pending) < last:
                pending.append(pool.submit(make, step + len(pending)))
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
