"""Stages ``vocabulary`` and ``mentions``: which concepts there are, and which captions name them.

A caption names a concept when one of its n-grams *is* one of the concept's surface forms (its name or its
plural): exact membership, never a substring. ``E_j`` in the formulas is the set of concepts caption j names.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curation.candidates import (
    IN_VOCABULARY,
    Candidates,
    candidates_table,
    judge_by_frequency,
    judge_by_visualness,
    look,
    of_gallery,
    of_nouns,
)
from curation.captions import captions_of, mentions_of, words
from curation.encoder import load_encoder
from curation.nouns import surfaces
from curation.scenes import CONCEPTS
from curation.visualness import VisualnessConfig
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
    min_frequency: int = 1  # images whose captions must name a concept for it to be kept
    max_share: float = 1.0  # of the images; a concept that more of them name is left out
    visualness: VisualnessConfig | None = None  # also by how well the encoder sees a concept; off without
    always: tuple[str, ...] = ()  # names that are kept whatever their frequency and visualness
    # the class names of the run's benchmarks join ``always``, and are identified by it
    classes: bool = field(default=False, metadata={"identity": False})
    templates: tuple[str, ...] = ("a photo of a {}.",)  # prompts of the text vectors

    def __post_init__(self) -> None:
        if self.min_frequency < 0 or not 0 < self.max_share <= 1:
            raise ConfigError(
                f"vocabulary: min_frequency={self.min_frequency} is 0 or more, "
                f"max_share={self.max_share} lies above 0 and is at most 1"
            )
        if self.source == "captions" and (self.names or self.gallery != BUILT_IN):
            raise ConfigError(
                "vocabulary.source 'captions' takes the nouns of the corpus and no gallery; "
                "give names that must be among them as vocabulary.always, or source = 'gallery'"
            )
        if not all(words(name) for name in self.always):
            raise ConfigError(f"vocabulary.always holds a name without a word: {list(self.always)}")


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
    names = dict.fromkeys(_plain(line.split("\t")[0]) for line in lines)
    names.pop("", None)
    if not names:
        raise ConfigError(f"the gallery '{config.gallery}' names no concept; give one name per line")
    return list(names)


def _plain(name: str) -> str:
    return " ".join(words(name))


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
    """Stage ``vocabulary``: concepts with frequencies and text vectors, and why others are left out."""
    config, always = job.config, list(dict.fromkeys(map(_plain, job.config.always)))
    candidates = _candidates(job, always)
    reason_C = judge_by_frequency(candidates, always, config.min_frequency, config.max_share)
    asked = _some(np.flatnonzero(np.isin(reason_C, IN_VOCABULARY)), reason_C)
    encoder = load_encoder(job.artifact("encoder").local_folder(), job.runtime.device)
    vectors_AD = encoder.encode_texts([candidates.names[c] for c in asked], config.templates)
    seen = look(job, config.visualness, candidates, asked, vectors_AD) if config.visualness else None
    if config.visualness and seen:
        reason_C[asked] = judge_by_visualness(reason_C[asked], seen, config.visualness.minimum)
    stays_A = np.isin(reason_C[asked], IN_VOCABULARY)
    kept = _some(asked[stays_A], reason_C)
    concepts = _concepts_table(config, candidates, kept, vectors_AD[stays_A])
    tables = {"concepts": concepts, "candidates": candidates_table(candidates, reason_C, asked, seen)}
    facts = {f"candidates_{reason}": float(count) for reason, count in Counter(reason_C).items()}
    job.write(Output(tables=tables, facts={"concepts": float(len(kept)), **facts}))


def _candidates(job: Job[VocabularyConfig], always: Sequence[str]) -> Candidates:
    if job.config.source == "captions":
        return of_nouns(job, always)
    names = list(dict.fromkeys([*gallery_names(job.config), *always]))
    return of_gallery(job, names, surface_index(names))


def _some(left: NDArray[np.int64], reason_C: NDArray[np.object_]) -> NDArray[np.int64]:
    if len(left):
        return left
    found = ", ".join(f"{count} {reason}" for reason, count in sorted(Counter(reason_C).items()))
    raise InputError(
        "no caption of the corpus names a concept of the vocabulary that pruning leaves "
        f"({found or 'no candidates'}); check gallery and captions, and what the config prunes"
    )


def _concepts_table(
    config: VocabularyConfig, candidates: Candidates, kept: NDArray[np.int64], vectors_KD: NDArray[np.float32]
) -> pa.Table:
    columns = {
        "concept_id": np.arange(len(kept), dtype=np.int32),
        "name": [candidates.names[c] for c in kept],
        "source": [config.source] * len(kept),
        "frequency": candidates.frequency_C[kept],
        "vector": vector_column(vectors_KD, pa.float32()),
    }
    return table_of("concepts", columns)


def find_mentions(job: Job[MentionsConfig]) -> None:
    """Stage ``mentions``: the concepts each caption names, shard by shard."""
    corpus, nouns = job.artifact("corpus"), job.optional("nouns")
    names = job.artifact("vocabulary").read("concepts", columns=["name"])["name"].to_pylist()
    job.map_shards(partial(_make_shard_function, corpus, nouns, names), corpus.shards)


def _make_shard_function(corpus: Artifact, nouns: Artifact | None, names: list[str]) -> ShardFunction:
    index = surface_index(names)
    return lambda shard: _mentions_shard(corpus, nouns, index, shard)


def _mentions_shard(corpus: Artifact, nouns: Artifact | None, index: dict[str, int], shard: str) -> Output:
    if nouns:
        rows = nouns.read("nouns", shard)
        ids, found = rows["sample_id"], rows["nouns"].to_pylist()
        concepts = [sorted({index[noun] for noun in said if noun in index}) for said in found]
    else:
        ids, captions = captions_of(corpus, shard)
        concepts = [mentions_of(several, index) for several in captions]
    table = table_of("mentions", {"sample_id": ids, "concept_ids": concepts})
    facts = {"mentions": float(sum(map(len, concepts))), "captions_naming_none": float(concepts.count([]))}
    return Output(tables={"mentions": table}, seen=len(ids), kept=len(ids), facts=facts)


VOCABULARY = Stage("vocabulary", 3, build_vocabulary, vocabulary_identity)
MENTIONS = Stage("mentions", 1, find_mentions, by_shard=("corpus",))
