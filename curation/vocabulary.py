"""Stages ``vocabulary`` and ``mentions``: which concepts there are, and which captions name them.

A caption names a concept when one of its n-grams *is* one of the concept's surface forms (its name or its
plural): exact membership, never a substring. ``E_j`` in the formulas is the set of concepts caption j names.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from curation.captions import gallery_mentions, words
from curation.encoder import Encoder, load_encoder
from curation.nouns import noun_candidates, surfaces
from curation.scenes import CONCEPTS
from storage.artifact import Artifact
from storage.digest import combined
from storage.errors import ConfigError, InputError
from storage.files import Folder
from storage.schemas import table_of, vector_column
from storage.stage import Job, Output, ShardFunction, Stage

BUILT_IN = "nouns"  # the gallery that comes with the package
SCENES = "scenes"  # the concepts of the rendered scenes


@dataclass(frozen=True)
class VocabularyConfig:
    """Where the concepts come from."""

    source: Literal["gallery", "captions"] = "gallery"  # a given list, or the nouns of the captions
    gallery: str = field(default=BUILT_IN, metadata={"identity": False})  # built-in name or a file
    names: tuple[str, ...] = ()  # a gallery given in the config itself; goes before ``gallery``
    min_frequency: int = 1  # captions that must name a concept for it to be kept
    templates: tuple[str, ...] = ("a photo of a {}.",)  # prompts of the text vectors


@dataclass(frozen=True)
class MentionsConfig:
    """How concepts are found in captions."""

    extractor: Literal["ngrams", "nouns"] = "ngrams"  # any n-gram, or only what the tagger calls a noun


def gallery_names(config: VocabularyConfig) -> list[str]:
    """The gallery's concept names, in order, without repetition.

    Raises:
        ConfigError: if the gallery file cannot be read or is empty.
    """
    lines = config.names or _gallery_lines(config.gallery)
    names = dict.fromkeys(" ".join(words(line.split("\t")[0])) for line in lines)
    names.pop("", None)
    if not names:
        raise ConfigError(f"the gallery '{config.gallery}' names no concept; give one name per line")
    return list(names)


def _gallery_lines(gallery: str) -> Sequence[str]:
    if gallery == SCENES:
        return CONCEPTS
    if gallery == BUILT_IN:
        return files("curation").joinpath("gallery.txt").read_text("utf-8").splitlines()
    try:
        return Path(gallery).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"vocabulary.gallery '{gallery}' cannot be read ({error}); give '{BUILT_IN}' or a UTF-8 text file"
        ) from error


def vocabulary_identity(config: VocabularyConfig, _store: Folder) -> dict[str, str]:
    """Digest of the gallery's names, as a stage input."""
    return {"gallery": combined(gallery_names(config))} if config.source == "gallery" else {}


def surface_index(names: Iterable[str]) -> dict[str, int]:
    """Surface form -> concept id (its place in ``names``); an earlier concept keeps a shared form."""
    index: dict[str, int] = {}
    listed = list(names)
    for number, name in enumerate(listed):
        index.setdefault(name, number)
    for number, name in enumerate(listed):
        for surface in surfaces(name):
            index.setdefault(surface, number)
    return index


def build_vocabulary(job: Job[VocabularyConfig]) -> None:
    """Stage ``vocabulary``: concept names with caption frequencies and text vectors."""
    corpus = job.artifact("corpus")
    counted = _count_gallery(job, corpus) if job.config.source == "gallery" else _count_nouns(job, corpus)
    kept = [(name, count) for name, count in counted if count >= job.config.min_frequency]
    if not kept:
        raise InputError(
            "no caption of the corpus names a concept of the vocabulary; check gallery and captions"
        )
    encoder = load_encoder(job.artifact("encoder").local_folder(), job.runtime.device)
    job.write(
        Output(tables={"concepts": _concepts_table(job.config, encoder, kept)}, facts={"concepts": len(kept)})
    )


def _count_gallery(job: Job[VocabularyConfig], corpus: Artifact) -> list[tuple[str, int]]:
    names = gallery_names(job.config)
    index, counts = surface_index(names), Counter[int]()
    for captions in _captions(job, corpus):
        for caption in captions:
            counts.update(gallery_mentions(words(caption), index))
    return [(name, counts[number]) for number, name in enumerate(names)]


def _count_nouns(job: Job[VocabularyConfig], corpus: Artifact) -> list[tuple[str, int]]:
    counts: Counter[str] = Counter()
    for captions in _captions(job, corpus):
        for nouns in noun_candidates(captions):
            counts.update(set(nouns))
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _captions(job: Job[VocabularyConfig], corpus: Artifact) -> Iterator[list[str]]:
    with job.runtime.progress(job.stage, len(corpus.shards)) as bar:
        for shard in corpus.shards:
            yield corpus.read("samples", shard, ["caption"])["caption"].to_pylist()
            bar.advance()


def _concepts_table(config: VocabularyConfig, encoder: Encoder, kept: list[tuple[str, int]]) -> pa.Table:
    names = [name for name, _ in kept]
    vectors_CD = encoder.encode_texts(names, config.templates)
    columns = {
        "concept_id": np.arange(len(kept), dtype=np.int32),
        "name": names,
        "source": [config.source] * len(kept),
        "frequency": [count for _, count in kept],
        "vector": vector_column(vectors_CD, pa.float32()),
    }
    return table_of("concepts", columns)


def find_mentions(job: Job[MentionsConfig]) -> None:
    """Stage ``mentions``: the concepts each caption names, shard by shard."""
    corpus = job.artifact("corpus")
    names = job.artifact("vocabulary").read("concepts", columns=["name"])["name"].to_pylist()
    job.map_shards(partial(_make_shard_function, job.config, corpus, names), corpus.shards)


def _make_shard_function(config: MentionsConfig, corpus: Artifact, names: list[str]) -> ShardFunction:
    index = surface_index(names)
    return lambda shard: _mentions_shard(config, corpus, index, shard)


def _mentions_shard(config: MentionsConfig, corpus: Artifact, index: dict[str, int], shard: str) -> Output:
    samples = corpus.read("samples", shard, ["sample_id", "caption"])
    captions = samples["caption"].to_pylist()
    concepts = mention_ids(captions, index, config.extractor)
    table = table_of("mentions", {"sample_id": samples["sample_id"], "concept_ids": concepts})
    facts = {"mentions": float(sum(map(len, concepts))), "captions_naming_none": float(concepts.count([]))}
    return Output(tables={"mentions": table}, seen=len(captions), kept=len(captions), facts=facts)


def mention_ids(captions: Sequence[str], index: dict[str, int], extractor: str) -> list[list[int]]:
    """Concept ids that each caption names, ascending, each once."""
    if extractor == "ngrams":
        return [gallery_mentions(words(caption), index) for caption in captions]
    return [sorted({index[noun] for noun in nouns if noun in index}) for nouns in noun_candidates(captions)]


VOCABULARY = Stage("vocabulary", 2, build_vocabulary, vocabulary_identity)
MENTIONS = Stage("mentions", 1, find_mentions, by_shard=("corpus",))
