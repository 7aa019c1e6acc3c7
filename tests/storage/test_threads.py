"""Items made ahead by a thread: all of them, in order, few at a time, faults where they are due."""

import threading
from collections.abc import Iterator

import pytest

from storage.threads import ahead


def numbers(made: list[int], until: int = 20) -> Iterator[int]:
    for n in range(until):
        made.append(n)
        yield n


@pytest.mark.parametrize("most", [1, 3, 50])
def test_items_made_ahead_come_all_and_in_order(most: int) -> None:
    assert list(ahead(numbers([]), most)) == list(range(20))


def test_items_are_made_before_they_are_asked_for_but_only_so_many() -> None:
    made: list[int] = []
    fifth, source = threading.Event(), ahead(numbers(made), 4)
    assert next(source) == 0
    for _ in range(200):  # at most two seconds, until the thread has made the next four
        fifth.wait(0.01)
        if len(made) == 5:
            break
    assert made == [0, 1, 2, 3, 4]
    source.close()


def test_fault_is_raised_where_its_item_is_due() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("the second")

    source = ahead(failing(), 5)
    assert next(source) == 1
    with pytest.raises(ValueError, match="the second"):
        next(source)


def test_thread_ends_when_nobody_wants_more() -> None:
    ended: list[bool] = []

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            ended.append(True)

    before = threading.active_count()
    source = ahead(endless(), 2)
    next(source)
    source.close()
    assert ended == [True]
    assert threading.active_count() == before
