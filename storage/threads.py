"""Work done side by side, its results in the order of the items."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
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


def ahead(items: Iterator[T], most: int) -> Generator[T, None, None]:
    """The items, made by a thread of its own, up to ``most`` of them before they are asked for.

    The thread begins on the first item when the first is asked for, and on one more whenever one is taken. It
    ends with the items, or when the generator is closed.

    Args:
        items: made in order; an exception is raised where the item is due.
        most: items that wait, the one in the making among them.
    """
    made: SimpleQueue[tuple[T] | BaseException | None] = SimpleQueue()
    places, stop = Semaphore(most), Event()
    thread = Thread(target=_make, args=(items, made, places, stop), daemon=True)
    thread.start()
    try:
        while (found := made.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            places.release()
            yield found[0]
    finally:
        stop.set()
        places.release()
        thread.join()


def _make(
    items: Iterator[T],
    made: "SimpleQueue[tuple[T] | BaseException | None]",
    places: Semaphore,
    stop: Event,
) -> None:
    try:
        while places.acquire() and not stop.is_set():
            made.put((next(items),))
    except StopIteration:
        made.put(None)
    except BaseException as error:  # it is raised in the thread that asked
        made.put(error)
    finally:
        if isinstance(items, Generator):
            items.close()
