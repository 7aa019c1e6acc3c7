"""Model work with bytes that do not depend on threads: how many there are, or which is first."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch

from storage.threads import in_order

T = TypeVar("T")
R = TypeVar("R")


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Arithmetic that repeats to the last bit on one machine: one thread, and on a GPU torch's own promise.

    With several threads a sum depends on how many they are, on what the process ran before (the matrix
    library chooses a number of its own until somebody sets one), and with repeated indices even on which
    of them is first. An operation that has no deterministic form on a GPU warns.
    """
    threads, algorithms = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    if device.type != "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms)
        torch.set_num_threads(threads)
