"""How long a device works on something."""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


class Timed(Generic[T]):
    """Items of an iterable, and the seconds it took to give them."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items, self.seconds = items, 0.0

    def __iter__(self) -> Iterator[T]:
        source = iter(self._items)
        while True:
            started = time.perf_counter()
            try:
                item = next(source)
            except StopIteration:
                return
            finally:
                self.seconds += time.perf_counter() - started
            yield item


class Stopwatch:
    """Runs from its making to ``stop``: by the clock on a CPU, by marks in the queue of a GPU."""

    def __init__(self, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._mark: Callable[[], Any] = partial(_queue_mark, device) if on_gpu else time.perf_counter
        self._begun: Any = self._mark()
        self._ended: Any = None

    def stop(self) -> None:
        """Notes the end; a GPU may not have reached it yet."""
        self._ended = self._mark()

    def seconds(self) -> float:
        """Between the two; waits until a GPU has reached the end."""
        if isinstance(self._ended, float):
            return float(self._ended - self._begun)
        self._ended.synchronize()
        return float(self._begun.elapsed_time(self._ended)) / 1000  # milliseconds


def _queue_mark(device: torch.device) -> Any:
    mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    mark.record(torch.cuda.current_stream(device))
    return mark
