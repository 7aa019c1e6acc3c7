"""Seconds, and the rates that no program on this machine exceeds."""

import time
from collections.abc import Callable

import numpy as np
import torch


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def products_per_second(size: int = 4096) -> float:
    """Floating-point operations of a float32 matrix product, all threads."""
    matrix = torch.rand(size, size)
    return 2.0 * size**3 / seconds(lambda: matrix @ matrix)


def bytes_per_second() -> float:
    """Bytes copied in memory."""
    source = np.ones(1 << 25, np.float32)
    target = np.zeros_like(source)
    return float(source.nbytes) / seconds(lambda: np.copyto(target, source))
