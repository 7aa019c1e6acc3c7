"""Array and model work, side by side."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

from storage.threads import in_order

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(work: Callable[[T], None], blocks: Iterable[T]) -> None:
    """Calls ``work`` on each block; blocks must write to different places.

    As many threads as torch may use: ``OMP_NUM_THREADS``, which Ray sets for its workers, bounds them too.
    """
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for _ in threads.map(work, blocks):
            pass


def each_alone(work: Callable[[T], R], batches: Iterable[T], least: int = 1) -> Iterator[R]:
    """Results of ``work`` in order, from as many threads as torch may use, each batch computed by one.

    Threads that share a matrix product cut up its sums, so the last bits of a vector depend on how many
    share it: one on a Ray worker, all of a laptop's. A batch that is alone in its thread has the same
    bytes everywhere, and batches side by side keep all threads busy.

    Args:
        work: of one batch.
        batches: in the order of the results.
        least: threads at least: 2 for work of which a part waits for another device.
    """
    threads = torch.get_num_threads()
    try:
        yield from in_order(work, batches, max(threads, least), partial(torch.set_num_threads, 1))
    finally:
        torch.set_num_threads(threads)  # of the libraries that count threads for the whole process
