"""How many of the classes a picture shows are named by its caption, and by its archive."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from evaluation.benchmarks import prompt_names

IRREGULAR = {
    "calf": "calves", "child": "children", "foot": "feet", "goose": "geese", "knife": "knives",
    "leaf": "leaves", "loaf": "loaves", "mouse": "mice", "ox": "oxen", "person": "people",
    "scarf": "scarves", "shelf": "shelves", "tooth": "teeth", "wolf": "wolves",
    "potato": "potatoes", "tomato": "tomatoes",
}  # fmt: skip
UNCHANGED = frozenset(
    {
        "aircraft",
        "baggage",
        "broccoli",
        "cattle",
        "deer",
        "fish",
        "luggage",
        "people",
        "scissors",
        "sheep",
        "skis",
    }
)


def plural(name: str) -> str:
    """English plural of a noun; of a compound, that of its last word."""
    *front, word = name.split(" ")
    return " ".join([*front, _plural_word(word)])


def _plural_word(word: str) -> str:
    if word in UNCHANGED:
        return word
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith("man") and word not in ("human", "german"):
        return word[:-2] + "en"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search(r"(s|x|z|ch|sh)$", word) else "s")


def class_lookup(
    class_names: Sequence[str], synonyms: Mapping[str, Sequence[str]] | None = None
) -> dict[str, str]:
    """Class that each concept name stands for: the names, their synonyms, and the plurals of both.

    Args:
        class_names: of the truth.
        synonyms: further names per class, such as ``classes.COCO_SYNONYMS``; none by default.

    Raises:
        ValueError: if a name would stand for two classes, or a synonym's class is not there.
    """
    lookup: dict[str, str] = {}
    for class_name, names in zip(class_names, prompt_names(class_names, synonyms), strict=True):
        for name in names:
            for form in (name, plural(name)):
                other = lookup.setdefault(form, class_name)
                if other != class_name:
                    raise ValueError(
                        f"'{form}' would name both '{other}' and '{class_name}'; keep it with one"
                    )
    return lookup


@dataclass(frozen=True)
class ConceptMetrics:
    """Scores in [0, 1]; NaN where there is nothing to divide by.

    Recalls are means over the pictures that show any class; ``pooled_`` ones are over all pairs of a picture
    and a class it shows. Archives count with their ``m`` best concepts, or with all in
    ``whole_archive_recall`` and ``whole_union_recall`` (unions are with the caption).
    """

    m: int
    images: int  # pictures that show any class
    pairs: int  # of a picture and a class it shows
    caption_recall: float
    archive_recall: float
    union_recall: float
    whole_archive_recall: float
    whole_union_recall: float
    archive_precision: float  # over all concepts of all archives that name a class
    pooled_caption_recall: float
    pooled_archive_recall: float
    pooled_union_recall: float


def concept_metrics(
    truth: Sequence[Collection[str]],
    caption: Sequence[Collection[str]],
    ranked: Sequence[Sequence[str]],
    lookup: Mapping[str, str],
    m: int = 5,
) -> ConceptMetrics:
    """Recall and precision of captions and archives against the classes that pictures show.

    Precision is the share of true ones among the classes that the ``m`` best concepts name, a class
    counted once per picture. Concepts that name no class cannot be judged and are left out, though
    they take their places among the ``m``.

    Args:
        truth: classes each picture shows; pictures without any are skipped.
        caption: concepts each caption names.
        ranked: concepts of each archive, best first.
        lookup: class of a concept name; see ``class_lookup``.
        m: how many concepts of an archive count.

    Raises:
        ValueError: if the three sequences differ in length or ``m`` is below 1.
    """
    if not len(truth) == len(caption) == len(ranked) or m < 1:
        raise ValueError(
            f"{len(truth)} truths, {len(caption)} captions, {len(ranked)} archives, m={m}; give one of "
            "each per picture, and m of at least 1"
        )
    kept = [i for i, shown in enumerate(truth) if shown]
    shown = [set(truth[i]) for i in kept]
    said = [_classes(caption[i], lookup) for i in kept]
    top = [_classes(ranked[i][:m], lookup) for i in kept]
    whole = [_classes(ranked[i], lookup) for i in kept]
    union = [a | b for a, b in zip(said, top, strict=True)]
    return ConceptMetrics(
        m=m,
        images=len(kept),
        pairs=sum(map(len, shown)),
        caption_recall=_mean_share(shown, said),
        archive_recall=_mean_share(shown, top),
        union_recall=_mean_share(shown, union),
        whole_archive_recall=_mean_share(shown, whole),
        whole_union_recall=_mean_share(shown, [a | b for a, b in zip(said, whole, strict=True)]),
        archive_precision=_pooled_share(top, shown),
        pooled_caption_recall=_pooled_share(shown, said),
        pooled_archive_recall=_pooled_share(shown, top),
        pooled_union_recall=_pooled_share(shown, union),
    )


def _classes(concepts: Collection[str], lookup: Mapping[str, str]) -> set[str]:
    return {lookup[concept] for concept in concepts if concept in lookup}


def _pooled_share(wanted: Sequence[set[str]], named: Sequence[set[str]]) -> float:
    """Share of all wanted classes that are named (precision, when the arguments are swapped)."""
    hits = sum(len(w & n) for w, n in zip(wanted, named, strict=True))
    total = sum(map(len, wanted))
    return hits / total if total else float("nan")


def _mean_share(wanted: Sequence[set[str]], named: Sequence[set[str]]) -> float:
    shares = [len(w & n) / len(w) for w, n in zip(wanted, named, strict=True)]
    return sum(shares) / len(shares) if shares else float("nan")
