"""Seconds of a device and of an iterable, against clocks of the test's own."""

import time
from typing import Any

import pytest
import torch

from curation.stopwatch import Stopwatch, Timed


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Mark:
    """A mark in the queue of a GPU whose clock is ``clock``, in milliseconds."""

    clock = Clock()

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.reached, self.waited = -1.0, False

    def record(self, stream: str) -> None:
        assert stream == "queue of cuda:1"
        self.reached = self.clock.now

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, later: Any) -> float:
        assert later.waited, "a GPU has not reached the mark yet"
        return float(later.reached - self.reached)


def test_seconds_of_a_cpu_are_the_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    watch = Stopwatch(torch.device("cpu"))
    clock.now = 2.5
    watch.stop()
    clock.now = 9.0
    assert watch.seconds() == 2.5


def test_seconds_of_a_gpu_are_those_between_marks_in_its_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Mark)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"queue of {device}")
    watch = Stopwatch(torch.device("cuda:1"))
    Mark.clock.now += 750.0
    watch.stop()
    Mark.clock.now += 9000.0
    assert watch.seconds() == 0.75


def test_items_are_timed_while_they_are_made_and_not_while_they_are_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)

    def items() -> Any:
        for item in range(3):
            clock.now += 1.0
            yield item
        clock.now += 0.5

    timed, seen = Timed(items()), []
    for item in timed:
        clock.now += 100.0
        seen.append(item)
    assert seen == [0, 1, 2]
    assert timed.seconds == 3.5
