"""Blocks of array work, side by side."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def side_by_side(work: Callable[[T], None], blocks: Iterable[T]) -> None:
    """Calls ``work`` on each block; blocks must write to different places.

    As many threads as torch may use: ``OMP_NUM_THREADS``, which Ray sets for its workers, bounds them too.
    """
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for _ in threads.map(work, blocks):
            pass
