"""Texts and numbers as the report prints them."""

import json
import unicodedata
from collections.abc import Callable
from typing import Any

from markupsafe import Markup

_JOINERS = "\u200c\u200d"  # some scripts and emoji need them, and they reorder nothing
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def visible(value: Any) -> Any:
    """A text with its control, format and unassigned characters written out: ``⟨U+202E⟩``.

    A right-to-left override in a caption would otherwise turn around what stands after it on the page.
    Anything but plain text is returned as it is.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(_written_out(character) for character in value)


def _written_out(character: str) -> str:
    if character.isprintable() or character in _JOINERS or character == "\n":
        return character
    hidden = unicodedata.category(character) in _HIDDEN
    return f"⟨U+{ord(character):04X}⟩" if hidden else character


def percent(share: float | None, digits: int = 1) -> str:
    """``0.2961`` is "29.6 %", None a dash."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def count(number: float) -> str:
    """Whole numbers with narrow blanks between thousands."""
    return f"{round(number):,}".replace(",", "\u202f")


def short(number: float) -> str:
    """A count in at most four characters: 950, 1.2k, 118k, 3.4M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            scaled = number / size
            return f"{round(scaled, 1):g}{unit}" if scaled < 9.95 else f"{scaled:.0f}{unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """``0.05 s``, ``12.3 s``, ``4 min 20 s``, ``3 h 5 min``."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def brief(seconds: float) -> str:
    """A duration in at most six characters."""
    if seconds < 0.1:
        return "<0.1 s"
    if seconds < 1000:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 36_000 else f"{seconds / 3600:.0f} h"


def size(number: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 10 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def clipped(text: str, length: int) -> str:
    """The beginning of a long text."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def readable_json(value: Any) -> str:
    """A config as people read it."""
    return json.dumps(value, indent=1, ensure_ascii=False)


FILTERS: dict[str, Callable[..., str]] = {
    "percent": percent,
    "count": count,
    "short": short,
    "duration": duration,
    "brief": brief,
    "size": size,
    "clipped": clipped,
    "json": readable_json,
}
