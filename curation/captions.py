"""Captions: read from a sample's members, cut into words, searched for the names of concepts."""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from curation.images import Fault
from storage.artifact import Artifact
from storage.errors import ConfigError

TEXTS = ("txt", *(f"{number}.txt" for number in range(16)))  # members with captions, in order
_KEYS = ("caption", "captions")  # where a json member may hold them
LONGEST = 4  # words in the form of a concept
_MAX_JSON_BYTES = 2**20  # longer metadata are not parsed
_LINES = re.compile(r"\r\n|\r|\n")
_BREAKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff\ufeff]+")  # \ud800…: half characters
_WORD = r"[^\W_]+(?:(?:-|'(?!s\b))[^\W_]+)*|'s\b"
_WORDS = re.compile(_WORD)
_TOKENS = re.compile(rf"{_WORD}|[^\w\s]")
_PLAIN_MARKS = str.maketrans("‘’ʼ\u2010\u2011", "'''--")  # typographic apostrophes and hyphens


@dataclass(frozen=True)
class CaptionLimits:
    """What a caption may measure, and which of several are used."""

    max_bytes: int = 10_000  # in UTF-8; photographs' captions have about 60
    use: Literal["first", "all"] = "first"  # of a sample's captions; training learns from the first
    lines: bool = False  # each line of a txt is a caption of its own
    most: int = 16  # captions of a sample

    def __post_init__(self) -> None:
        if min(self.max_bytes, self.most) < 1:
            raise ConfigError(
                f"corpus.captions: max_bytes={self.max_bytes} and most={self.most} are at least 1"
            )


@dataclass(frozen=True)
class Captions:
    """The captions of a sample, each clean and different, its own first."""

    texts: list[str]
    left_out: int = 0  # further ones that cannot be used, or are too many


def read_captions(members: Mapping[str, bytes], limits: CaptionLimits | None = None) -> Captions | Fault:
    """The captions of a sample: of its ``txt``, then ``0.txt``, ``1.txt`` and so on, then its ``json``.

    The json holds them as ``caption`` or ``captions``, one or a list. Line breaks, control characters, NUL
    and halves of surrogate pairs become single blanks.

    Args:
        members: Extension to bytes, as ``storage.tars.Sample`` has them.
        limits: What to accept; None: the default ``CaptionLimits``, with which the first is all.

    Returns:
        At least one caption, never empty and always encodable; or what is wrong with the first:
        ``caption_missing``, ``caption_empty``, ``caption_too_long``, ``caption_not_utf8``,
        ``caption_bad_json``.
    """
    limits = limits or CaptionLimits()
    found = (_checked(raw, limits.max_bytes) for raw in _raw_captions(members, limits))
    first = next(found, Fault("caption_missing", f"no txt and no json among {sorted(members)}"))
    if isinstance(first, Fault) or limits.use == "first":
        return first if isinstance(first, Fault) else Captions([first])
    others = list(found)
    usable = dict.fromkeys([first, *(text for text in others if isinstance(text, str))])
    texts = list(usable)[: limits.most]
    faults = sum(isinstance(text, Fault) for text in others)
    return Captions(texts, faults + len(usable) - len(texts))


def _raw_captions(members: Mapping[str, bytes], limits: CaptionLimits) -> Iterator[str | Fault]:
    for name in TEXTS:
        if name in members:
            yield from _texts(members[name], limits)
    if "json" in members:
        listed = _from_json(members["json"])
        missing = isinstance(listed, Fault) and listed.reason == "caption_missing"
        if not (missing and any(name in members for name in TEXTS)):  # metadata beside a txt
            yield from [listed] if isinstance(listed, Fault) else listed


def _texts(data: bytes, limits: CaptionLimits) -> Iterator[str | Fault]:
    text = _decoded(data, _MAX_JSON_BYTES if limits.lines else limits.max_bytes)
    lines = _LINES.split(text) if limits.lines and isinstance(text, str) else []
    yield from [line for line in lines if _BREAKS.sub("", line)] or [text]


def _checked(raw: str | Fault, most: int) -> str | Fault:
    return raw if isinstance(raw, Fault) else _cleaned(raw, most)


def captions_of(corpus: Artifact, shard: str) -> tuple[pa.ChunkedArray, list[list[str]]]:
    """Sample ids of a shard, and the captions of each that are to be used."""
    if corpus.parts("captions", shard):
        rows = corpus.read("captions", shard)
        return rows["sample_id"], rows["captions"].to_pylist()
    rows = corpus.read("samples", shard, ["sample_id", "caption"])
    return rows["sample_id"], [[caption] for caption in rows["caption"].to_pylist()]


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


def mentions_of(captions: Sequence[str], gallery: Mapping[str, int]) -> list[int]:
    """The concepts that any of a sample's captions names, ascending, each once."""
    if len(captions) == 1:
        return gallery_mentions(words(captions[0]), gallery)
    return sorted({concept for caption in captions for concept in gallery_mentions(words(caption), gallery)})


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


def _from_json(data: bytes) -> list[str | Fault] | Fault:
    text = _decoded(data, _MAX_JSON_BYTES)
    if isinstance(text, Fault):
        return text
    try:
        record = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        return Fault("caption_bad_json", f"{type(error).__name__}: {error}")
    if not isinstance(record, dict):
        return Fault("caption_bad_json", f"an object was expected, not {type(record).__name__}")
    return _captions_of_record(record)


def _captions_of_record(record: Mapping[str, object]) -> list[str | Fault] | Fault:
    key = next((key for key in _KEYS if record.get(key) is not None), None)
    if key is None:
        return Fault("caption_missing", f"neither caption nor captions among {sorted(record)[:20]}")
    value = record[key]
    if isinstance(value, list) and not value:
        return Fault("caption_missing", f"{key} is an empty list")
    return [_text(item, key) for item in (value if isinstance(value, list) else [value])]


def _text(value: object, key: str) -> str | Fault:
    if isinstance(value, str):
        return value
    return Fault("caption_bad_json", f"{key} holds {type(value).__name__}; it must be text")


def _cleaned(caption: str, most: int) -> str | Fault:
    size = len(caption.encode("utf-8", "surrogatepass"))
    if size > most:
        return _too_long(size, most)
    clean = _BREAKS.sub(" ", caption).strip()
    return clean or Fault("caption_empty", f"{size} bytes without a visible character")


def _too_long(size: int, most: int) -> Fault:
    return Fault("caption_too_long", f"{size} bytes; {most} are the most")
