"""Work done side by side, its results in the order of the items."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_order(
    work: Callable[[T], R], items: Iterable[T], threads: int, begin: Callable[[], object] | None = None
) -> Iterator[R]:
    """Calls ``work`` on each item in one of some threads.

    Items are taken in the caller's thread, and only so many that each thread has one and one waits.

    Args:
        work: of one item; an exception is raised where its result is due.
        items: in the order of the results.
        threads: at least 1.
        begin: called in each thread before its first item.
    """
    source = iter(items)
    with ThreadPoolExecutor(threads, initializer=begin) as pool:
        pending = deque(pool.submit(work, item) for item in islice(source, threads + 1))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(work, item) for item in islice(source, 1))
            yield result
