"""From an exception to the one line a person reads."""

from storage.errors import CocuError


def first_fault(error: BaseException) -> CocuError | None:
    """The mendable fault behind an exception, also through the wrappers of Ray and Prefect.

    Ray raises a copy whose text is the worker's traceback; the fault itself is its ``cause``.
    """
    seen: set[int] = set()
    pending: list[object] = [error]
    while pending:
        found = pending.pop(0)
        if not isinstance(found, BaseException) or id(found) in seen:
            continue
        seen.add(id(found))
        inner = getattr(found, "cause", None)
        if isinstance(found, CocuError) and not isinstance(inner, BaseException):
            return found
        pending += [inner, found.__cause__, found.__context__]
    return None


def told(error: BaseException) -> str:
    """The line for an exception; of one that is nobody's fault but ours, how to learn more."""
    fault = first_fault(error)
    if fault is not None:
        return one_line(str(fault))
    what = one_line(str(error))[:300]
    name = type(error).__name__
    return f"unexpected {name}{': ' if what else ''}{what}; give --debug too for the traceback"


def one_line(text: str) -> str:
    """Text on one line, without control characters (names and captions are not ours)."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
