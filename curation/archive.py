"""Stage ``archive``: candidates from neighbours, ranked, clustered, with the probability of a draw.

Everything between reading and writing a shard is one pass of pure array functions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curation.archive_inputs import Inputs, load_inputs
from curation.cluster import cluster
from curation.expand import Candidates, pool
from curation.index import Index, neighbour_rows
from curation.kept import Before, archives_before, kept, taken_over
from curation.probability import probability
from curation.ragged import Ragged
from curation.rank import EPSILON, Scores, rank
from storage.artifact import Artifact
from storage.fingerprint import stable_seed
from storage.schemas import CONCEPT_RECORD, table_of
from storage.stage import Earlier, Job, Output, ShardFunction, Stage


@dataclass(frozen=True)
class ArchiveConfig:
    """Text-to-vision-guided ranking and cluster-guided sampling."""

    epsilon: float = EPSILON  # floor of the similarities
    support: float = 0.0  # added to a concept's score for each neighbour that names it; 0 is the paper's
    novelty: float = 0.0  # taken from the score of a concept that the caption names; 0 is the paper's
    starts: int = 5  # of k-means; the best is kept
    temperature: float = 1.0  # of the softmax over clusters and inside them; 1 is the paper's
    seed: int = 0


def build_archive(job: Job[ArchiveConfig]) -> None:
    """Stage ``archive``: the concept archive of every image, shard by shard."""
    neighbours = job.artifact("neighbours")
    sources = (job.artifact("index"), job.artifact("mentions"), job.artifact("vocabulary"))
    make = partial(_make_shard_function, job.config, neighbours, sources, job.earlier)
    job.map_shards(make, neighbours.shards)


def _make_shard_function(
    config: ArchiveConfig,
    neighbours: Artifact,
    sources: tuple[Artifact, Artifact, Artifact],
    earlier: Sequence[Earlier],
) -> ShardFunction:
    inputs = load_inputs(*sources)
    before = archives_before(earlier, inputs)
    return lambda shard: archive_shard(config, inputs, before, neighbours, shard)


def archive_shard(
    config: ArchiveConfig, inputs: Inputs, before: Before | None, neighbours: Artifact, shard: str
) -> Output:
    """Archives of one shard: those that are as they were, and the others, made anew."""
    table = neighbours.read("neighbours", shard)
    place_N = kept(before, inputs, table, shard) if before else np.full(len(table), -1)
    stay, change = np.flatnonzero(place_N >= 0), np.flatnonzero(place_N < 0)
    parts = [made(config, inputs, table.take(change))]
    if before and len(stay):
        parts.append(taken_over(before, shard, place_N[stay]))
    archives = pa.concat_tables(parts).take(np.argsort(np.append(change, stay)))
    facts = {**_facts(config, archives), "ranked": float(len(change))}
    return Output(tables={"archives": archives}, seen=len(table), kept=len(table), facts=facts)


def made(config: ArchiveConfig, inputs: Inputs, neighbours: pa.Table) -> pa.Table:
    """Expansion, ranking, clusters and probabilities of some images: an ``archives`` table."""
    ids = neighbours["sample_id"].to_pylist()
    candidates = pool(neighbour_rows(inputs.index, neighbours), inputs.mentions)
    anchors_N, vectors = inputs.index.rows_of(ids), (inputs.index.vectors_MD, inputs.vectors_CD)
    scores = rank(candidates, anchors_N, *vectors, config.epsilon, config.support, config.novelty)
    seeds_N = np.array([stable_seed("cluster", config.seed, name) for name in ids], np.uint64)
    clusters = cluster(candidates.offsets, candidates.concept_A, inputs.vectors_CD, seeds_N, config.starts)
    probability_A = probability(candidates.offsets, scores.score, clusters.labels, config.temperature)
    return archives_table(ids, inputs, candidates, scores, clusters.labels, probability_A)


def _facts(config: ArchiveConfig, archives: pa.Table) -> dict[str, float]:
    lists = archives["concepts"].combine_chunks()
    similarity_A = lists.flatten().field("anchor_similarity").to_numpy()
    return {
        "concepts": float(len(similarity_A)),
        "clamped": float((similarity_A <= np.float32(config.epsilon)).sum()),
        "empty_archives": float((lists.value_lengths().to_numpy() == 0).sum()),
    }


def archives_table(
    ids: Sequence[str],
    inputs: Inputs,
    candidates: Candidates,
    scores: Scores,
    cluster_A: NDArray[np.int32],
    probability_A: NDArray[np.float32],
) -> pa.Table:
    """The ``archives`` table: candidates of each image by falling score, equals by concept id."""
    image_A = np.repeat(np.arange(len(candidates)), np.diff(candidates.offsets))
    order_A = np.lexsort((candidates.concept_A, -scores.score, image_A))
    concept_A = candidates.concept_A[order_A]
    columns = {
        "concept_id": concept_A,
        "name": inputs.names[concept_A],
        "score": scores.score[order_A],
        "global_score": scores.global_[order_A],
        "local_score": scores.local[order_A],
        "anchor_similarity": scores.anchor_similarity[order_A],
        "cluster": cluster_A[order_A],
        "probability": probability_A[order_A],
        "donors": _donor_ids(inputs.index, candidates.donors.take(order_A)),
    }
    fields = list(CONCEPT_RECORD)
    arrays = [_column(columns[field.name], field.type) for field in fields]
    records = pa.StructArray.from_arrays(arrays, fields=fields)
    lists = pa.ListArray.from_arrays(candidates.offsets.astype(np.int32), records)
    return table_of("archives", {"sample_id": ids, "concepts": lists})


def _column(values: NDArray[np.generic] | pa.Array, kind: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, kind)


def _donor_ids(index: Index, donors: Ragged) -> pa.ListArray:
    return pa.ListArray.from_arrays(
        donors.offsets.astype(np.int32), pa.array(index.names[donors.values], pa.string())
    )


ARCHIVE = Stage("archive", 3, build_archive, looks_back=True)
