"""Captions: read from a sample's members, cut into words, searched for the names of concepts."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from curation.images import Fault

_KEYS = ("caption", "captions")  # where a json member may hold them
LONGEST = 4  # words in the form of a concept
_MAX_JSON_BYTES = 2**20  # longer metadata are not parsed
_BREAKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff\ufeff]+")  # \ud800…: half characters
_WORD = r"[^\W_]+(?:(?:-|'(?!s\b))[^\W_]+)*|'s\b"
_WORDS = re.compile(_WORD)
_TOKENS = re.compile(rf"{_WORD}|[^\w\s]")
_PLAIN_MARKS = str.maketrans("‘’ʼ\u2010\u2011", "'''--")  # typographic apostrophes and hyphens


@dataclass(frozen=True)
class CaptionLimits:
    """What a caption may measure."""

    max_bytes: int = 10_000  # in UTF-8; photographs' captions have about 60


def read_caption(members: Mapping[str, bytes], limits: CaptionLimits | None = None) -> str | Fault:
    """The caption of a sample: its ``txt``, or without one its ``json``.

    The json holds it as ``caption``, or as the first of the list ``captions``. Line breaks, control
    characters, NUL and halves of surrogate pairs become single blanks.

    Args:
        members: Extension to bytes, as ``storage.tars.Sample`` has them.
        limits: Lengths to accept; None: the default ``CaptionLimits``.

    Returns:
        The caption, never empty and always encodable, or a fault: ``caption_missing``,
        ``caption_empty``, ``caption_too_long``, ``caption_not_utf8``, ``caption_bad_json``.
    """
    most = (limits or CaptionLimits()).max_bytes
    if "txt" in members:
        raw = _decoded(members["txt"], most)
    elif "json" in members:
        raw = _from_json(members["json"])
    else:
        raw = Fault("caption_missing", f"no txt and no json among {sorted(members)}")
    return raw if isinstance(raw, Fault) else _cleaned(raw, most)


def words(caption: str) -> list[str]:
    """Lower-cased words, Unicode NFKC: letters and digits, with apostrophes and hyphens inside.

    A possessive is a word of its own, so that "the dog's ball" names the dog:
    "Dog's half-pipe, isn't it?" gives ``dog 's half-pipe isn't it``.
    """
    return _WORDS.findall(_normal(caption))


def tokens(caption: str) -> list[str]:
    """Words as ``words`` cuts them, and between them each punctuation mark."""
    return _TOKENS.findall(_normal(caption))


def gallery_mentions(words: Sequence[str], gallery: Mapping[str, int], longest: int = LONGEST) -> list[int]:
    """E_j: the concepts of which a surface form is an n-gram of the words, n up to ``longest``.

    Membership is exact ("cattle" does not name "cat"), and longer forms do not hide shorter ones
    ("hot dog" names the dog as well when both are in the gallery): the formula asks for all.

    Args:
        words: A caption's, from ``words``.
        gallery: Surface form, its words joined by single blanks, to concept id.
        longest: Words in the longest form to look for.

    Returns:
        Concept ids, ascending, each once.
    """
    grams = list(words)
    forms = list(words)
    for n in range(2, longest + 1):
        grams = [f"{gram} {word}" for gram, word in zip(grams, words[n - 1 :], strict=False)]
        forms += grams
    return sorted({gallery[form] for form in gallery.keys() & forms})


def _normal(caption: str) -> str:
    if caption.isascii():
        return caption.lower()
    folded = unicodedata.normalize("NFKC", caption).lower().translate(_PLAIN_MARKS)
    return unicodedata.normalize("NFKC", folded)


def _decoded(data: bytes, most: int) -> str | Fault:
    if len(data) > most:  # before decoding what may be the wrong file
        return _too_long(len(data), most)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        return Fault("caption_not_utf8", str(error))


def _from_json(data: bytes) -> str | Fault:
    text = _decoded(data, _MAX_JSON_BYTES)
    if isinstance(text, Fault):
        return text
    try:
        record = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        return Fault("caption_bad_json", f"{type(error).__name__}: {error}")
    if not isinstance(record, dict):
        return Fault("caption_bad_json", f"an object was expected, not {type(record).__name__}")
    return _caption_of(record)


def _caption_of(record: Mapping[str, object]) -> str | Fault:
    key = next((key for key in _KEYS if record.get(key) is not None), None)
    if key is None:
        return Fault("caption_missing", f"neither caption nor captions among {sorted(record)[:20]}")
    value = record[key]
    if isinstance(value, list) and not value:
        return Fault("caption_missing", f"{key} is an empty list")
    first = value[0] if isinstance(value, list) else value
    if isinstance(first, str):
        return first
    return Fault("caption_bad_json", f"{key} holds {type(first).__name__}; it must be text")


def _cleaned(caption: str, most: int) -> str | Fault:
    size = len(caption.encode("utf-8", "surrogatepass"))
    if size > most:
        return _too_long(size, most)
    clean = _BREAKS.sub(" ", caption).strip()
    return clean or Fault("caption_empty", f"{size} bytes without a visible character")


def _too_long(size: int, most: int) -> Fault:
    return Fault("caption_too_long", f"{size} bytes; {most} are the most")
