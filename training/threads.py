"""Model work side by side, with bytes that do not depend on the number of threads."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

import torch

from storage.threads import in_order

T = TypeVar("T")
R = TypeVar("R")


def each_alone(work: Callable[[T], R], batches: Iterable[T], most: int | None = None) -> Iterator[R]:
    """Results of ``work`` in order, from as many threads as torch may use, each batch computed by one.

    Threads that share a product cut up its sums, and then the last bits tell how many they were.

    Args:
        work: of one batch.
        batches: in the order of the results.
        most: threads at most: 1 for work of many small steps, which only wait for each other's.
    """
    threads = torch.get_num_threads()
    try:
        yield from in_order(work, batches, min(threads, most or threads), partial(torch.set_num_threads, 1))
    finally:
        torch.set_num_threads(threads)
