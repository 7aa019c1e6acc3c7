from collections.abc import Iterator

import pytest

from flows.faults import first_fault, one_line, told
from storage.errors import CocuError, InputError, StoreError


def raised(*chain: Exception) -> Exception:
    """The last of the exceptions, each raised from the one before."""
    caught: Exception | None = None
    for error in chain:
        try:
            raise error from caught
        except Exception as now:
            caught = now
    assert caught is not None
    return caught


def test_fault_is_found_behind_what_was_raised_from_it():
    fault = InputError("no such tar")
    assert first_fault(raised(OSError("gone"), fault, RuntimeError("task failed"))) is fault


def test_outermost_fault_is_told_when_there_are_two():
    assert str(first_fault(raised(StoreError("inner"), InputError("outer")))) == "outer"


def test_fault_in_a_wrapper_that_pretends_to_be_one_is_the_one_inside():
    class Wrapper(RuntimeError, CocuError):
        cause = InputError("the worker's own words")

    assert str(first_fault(Wrapper("a traceback of fifty lines"))) == "the worker's own words"


def test_chain_that_bites_its_tail_ends():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert first_fault(first) is None


def test_fault_is_told_on_one_line_without_control_characters():
    assert told(InputError("key 'a\nb\x1b[31m' is broken")) == "key 'a b [31m' is broken"
    assert one_line("a\tb\u0000c") == "a b c"


def test_unexpected_error_is_told_by_its_name():
    assert told(KeyError("x")) == "unexpected KeyError: 'x'; give --debug too for the traceback"
    assert told(MemoryError()).startswith("unexpected MemoryError; ")


@pytest.fixture(scope="module")
def ray_stopped() -> Iterator[None]:
    yield
    import ray

    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_stopped")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("where", ["at_start", "at_work"])
def test_fault_in_a_ray_worker_arrives_in_its_own_words(where):
    from flows.engine import ray_engine

    def at_work():
        def task(shard: str) -> None:
            raise InputError(f"shard {shard} is broken")

        return task

    def at_start():
        raise InputError("shard a/0 is broken")

    make = {"at_work": at_work, "at_start": at_start}[where]
    with pytest.raises(CocuError, match=r"^shard a/0 is broken$"):
        list(ray_engine(1)(make, ["a/0"]))
