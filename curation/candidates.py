"""Candidates for the vocabulary: which images name each of them, and why one is left out."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curation.captions import captions_of, mentions_of
from curation.exact import fixed_point
from curation.nouns import surfaces
from curation.ragged import Ragged, offsets_of, ragged
from curation.visualness import (
    BITS,
    Pairs,
    Vectors,
    Visualness,
    VisualnessConfig,
    joined,
    pairs_of,
    visualness,
)
from storage.artifact import Artifact
from storage.fingerprint import stable_seed
from storage.randomness import uniforms
from storage.schemas import table_of
from storage.stage import Job

IN_VOCABULARY = ("kept", "added")  # reasons to be there; the others are too_rare, too_common, not_visual
Named = tuple[pa.ChunkedArray, Ragged]  # sample ids of a shard, and the candidates that each of them names


@dataclass(frozen=True, eq=False)
class Candidates:
    """Names, how many images name each, ``[C]``, and which ones do."""

    names: list[str]
    frequency_C: NDArray[np.int64]
    images: int
    shards: Sequence[str]
    named: Callable[[str], Named]  # of a shard


def of_gallery(job: Job[Any], names: list[str], forms: dict[str, int]) -> Candidates:
    """The names of a gallery, in its order, with the images whose captions hold one of their forms."""
    corpus = job.artifact("corpus")
    named = partial(_named_by_form, corpus, forms)
    frequency_C, images = np.zeros(len(names), np.int64), 0
    for shard in _progress(job, corpus.shards):
        ids, found = named(shard)
        frequency_C += np.bincount(found.values, minlength=len(names))
        images += len(ids)
    return Candidates(names, frequency_C, images, corpus.shards, named)


def _named_by_form(corpus: Artifact, forms: dict[str, int], shard: str) -> Named:
    ids, captions = captions_of(corpus, shard)
    return ids, ragged((mentions_of(several, forms) for several in captions), np.int64)


def of_nouns(job: Job[Any], added: Sequence[str]) -> Candidates:
    """The nouns of the corpus, most frequent first; at the end ``added`` names that are none of them."""
    nouns = job.artifact("nouns")
    counts, images = Counter(dict.fromkeys(added, 0)), 0
    for shard in _progress(job, nouns.shards):
        lists = nouns.read("nouns", shard, ["nouns"])["nouns"]
        values, numbers = pc.value_counts(pc.list_flatten(lists)).flatten()
        counts.update(dict(zip(values.to_pylist(), numbers.to_pylist(), strict=True)))
        images += len(lists)
    names = sorted(counts, key=lambda name: (-counts[name], name))
    frequency_C = np.array([counts[name] for name in names], np.int64)
    named = partial(_named_as_noun, nouns, pa.array(names, pa.string()))
    return Candidates(names, frequency_C, images, nouns.shards, named)


def _named_as_noun(nouns: Artifact, names: pa.Array, shard: str) -> Named:
    rows = nouns.read("nouns", shard)
    lengths = pc.list_value_length(rows["nouns"]).to_numpy().astype(np.int64)
    values = pc.index_in(pc.list_flatten(rows["nouns"]), names).to_numpy().astype(np.int64)
    return rows["sample_id"], Ragged(offsets_of(lengths), values)


def _progress(job: Job[Any], shards: Sequence[str], note: str = "") -> Iterator[str]:
    with job.runtime.progress(job.stage, len(shards)) as bar:
        for shard in shards:
            yield shard
            bar.advance(note=note)


def judge_by_frequency(
    candidates: Candidates, always: Sequence[str], least: int, most_share: float
) -> NDArray[np.object_]:
    """A reason for each candidate to be in the vocabulary or not, by the number of images that name it."""
    reason_C = np.full(len(candidates.names), "kept", object)
    reason_C[candidates.frequency_C > most_share * candidates.images] = "too_common"
    reason_C[candidates.frequency_C < least] = "too_rare"
    reason_C[np.isin(np.array(candidates.names, object), always)] = "added"
    return reason_C


def judge_by_visualness(
    reason_A: NDArray[np.object_], seen: Visualness, minimum: float
) -> NDArray[np.object_]:
    """The same, where what is surely below the minimum goes: with few images little is sure."""
    return np.where((reason_A == "kept") & (seen.high < minimum), "not_visual", reason_A)


def look(
    job: Job[Any],
    config: VisualnessConfig,
    candidates: Candidates,
    asked: NDArray[np.int64],
    vectors_AD: NDArray[np.float32],
) -> Visualness:
    """How visual some of the candidates are, over the embedded images of the corpus, shard by shard.

    Args:
        job: with the input ``embeddings``.
        config: sizes of the samples, and their seed.
        candidates: all of them.
        asked: which ones, ``[A]``.
        vectors_AD: their text vectors.
    """
    place_C = np.full(len(candidates.names), -1)
    place_C[asked] = np.arange(len(asked))
    texts_AD, embeddings = fixed_point(vectors_AD, BITS), job.artifact("embeddings")
    found = [
        _look_at(config, candidates, place_C, texts_AD, embeddings, shard)
        for shard in _progress(job, candidates.shards, "visualness")
    ]
    others_SD = np.concatenate([others for others, _, _ in found])
    named, among = joined([pairs for _, pairs, _ in found]), joined([pairs for _, _, pairs in found])
    return visualness(texts_AD, others_SD, named, among, config.confidence)


def _look_at(
    config: VisualnessConfig,
    candidates: Candidates,
    place_C: NDArray[np.int64],
    texts_AD: Vectors,
    embeddings: Artifact,
    shard: str,
) -> tuple[Vectors, Pairs, Pairs]:
    """Of a shard: images to set against concepts, the pairs that count, and the pairs of the former.

    A number drawn from its id decides about an image, so that samples depend on neither order nor shards.
    """
    ids, images_ND, named = _embedded(candidates, embeddings, shard, texts_AD.shape[1])
    draw_N = _draws(config.seed, ids)
    other_N = draw_N * candidates.images < config.others
    asked_P = place_C[named.values] >= 0
    candidate_P, image_P = named.values[asked_P], named.row_of[asked_P]
    counts_P = draw_N[image_P] * candidates.frequency_C[candidate_P] < config.named
    counted, among = (
        pairs_of(texts_AD, images_ND, place_C[candidate_P[chosen]], image_P[chosen])
        for chosen in (counts_P, other_N[image_P])
    )
    return images_ND[other_N], counted, among


def _embedded(
    candidates: Candidates, embeddings: Artifact, shard: str, dimension: int
) -> tuple[list[str], Vectors, Ragged]:
    """Ids and fixed-point vectors of a shard's images that have one, and the candidates they name."""
    named_ids, named = candidates.named(shard)
    rows = embeddings.read("embeddings", shard)
    flat = rows["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    places = pc.index_in(rows["sample_id"], named_ids.combine_chunks()).fill_null(-1)
    images_ND = fixed_point(flat.reshape(-1, dimension), BITS)
    return rows["sample_id"].to_pylist(), images_ND, named.take(places.to_numpy().astype(np.int64))


def _draws(seed: int, ids: Sequence[str]) -> NDArray[np.float64]:
    seeds = np.array([stable_seed("visualness", seed, sample_id) for sample_id in ids], np.uint64)
    return uniforms(seeds, np.zeros(len(ids), np.int64))


def candidates_table(
    candidates: Candidates,
    reason_C: NDArray[np.object_],
    asked: NDArray[np.int64],
    seen: Visualness | None,
) -> pa.Table:
    """The ``candidates`` table: all of them, in order; ``seen`` belongs to those that were ``asked``."""
    unknown = np.full(len(asked), np.nan)
    auc, low, high = (seen.auc, seen.low, seen.high) if seen else (unknown, unknown, unknown)
    place_C = np.full(len(candidates.names), len(asked))
    place_C[asked] = np.arange(len(asked))
    columns = {
        "name": candidates.names,
        "surfaces": [surfaces(name) for name in candidates.names],
        "frequency": candidates.frequency_C,
        "visualness": _where_known(auc, place_C),
        "visualness_low": _where_known(low, place_C),
        "visualness_high": _where_known(high, place_C),
        "reason": reason_C,
    }
    return table_of("candidates", columns)


def _where_known(value_A: NDArray[np.float64], place_C: NDArray[np.int64]) -> pa.Array:
    value_C = np.append(value_A, np.nan)[place_C]
    return pa.array(value_C, mask=np.isnan(value_C))
