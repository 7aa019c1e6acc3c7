"""Stage ``archive``: candidates from neighbours, ranked, clustered, with the probability of a draw.

Everything between reading and writing a shard is one pass of pure array functions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from curation.cluster import cluster
from curation.expand import Candidates, pool
from curation.index import Index, load_index
from curation.probability import probability
from curation.ragged import Ragged, offsets_of
from curation.rank import EPSILON, Scores, rank
from storage.artifact import Artifact
from storage.fingerprint import stable_seed
from storage.schemas import CONCEPT_RECORD, table_of
from storage.stage import Job, Output, ShardFunction, Stage


@dataclass(frozen=True)
class ArchiveConfig:
    """Text-to-vision-guided ranking and cluster-guided sampling."""

    epsilon: float = EPSILON  # floor of the similarities
    support: float = 0.0  # added to a concept's score for each neighbour that names it; 0 is the paper's
    novelty: float = 0.0  # taken from the score of a concept that the caption names; 0 is the paper's
    starts: int = 5  # of k-means; the best is kept
    temperature: float = 1.0  # of the softmax over clusters and inside them; 1 is the paper's
    seed: int = 0


@dataclass(frozen=True)
class Inputs:
    """What every shard is ranked against."""

    index: Index
    mentions: Ragged  # concept ids by row of the index
    names: NDArray[np.object_]  # of the concepts
    vectors_CD: NDArray[np.float32]


def build_archive(job: Job[ArchiveConfig]) -> None:
    """Stage ``archive``: the concept archive of every image, shard by shard."""
    neighbours = job.artifact("neighbours")
    sources = (job.artifact("index"), job.artifact("mentions"), job.artifact("vocabulary"))
    job.map_shards(partial(_make_shard_function, job.config, neighbours, sources), neighbours.shards)


def _make_shard_function(
    config: ArchiveConfig, neighbours: Artifact, sources: tuple[Artifact, Artifact, Artifact]
) -> ShardFunction:
    inputs = load_inputs(*sources)
    return lambda shard: archive_shard(config, inputs, neighbours, shard)


def load_inputs(index_artifact: Artifact, mentions: Artifact, vocabulary: Artifact) -> Inputs:
    """Opens the index and joins the mentions to its rows."""
    index = load_index(index_artifact)
    concepts = vocabulary.read("concepts", columns=["name", "vector"])
    vectors = concepts["vector"].combine_chunks()
    vectors_CD = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, vectors.type.list_size)
    names = np.array(concepts["name"].to_pylist(), object)
    return Inputs(index, _mentions_by_row(index, mentions), names, vectors_CD)


def _mentions_by_row(index: Index, mentions: Artifact) -> Ragged:
    rows = cast("pl.DataFrame", pl.from_arrow(mentions.read("mentions")))
    joined = index.ids.join(rows, on="sample_id", how="left", maintain_order="left")
    lengths = joined["concept_ids"].list.len().fill_null(0).to_numpy().astype(np.int64)
    values = joined["concept_ids"].explode(empty_as_null=False, keep_nulls=False).to_numpy()
    return Ragged(offsets_of(lengths), values.astype(np.int32))


def archive_shard(config: ArchiveConfig, inputs: Inputs, neighbours: Artifact, shard: str) -> Output:
    """Expansion, ranking, clusters and probabilities of one shard."""
    table = neighbours.read("neighbours", shard)
    ids = table["sample_id"].to_pylist()
    candidates = pool(neighbour_rows(inputs.index, table), inputs.mentions)
    anchors_N, vectors = inputs.index.rows_of(ids), (inputs.index.vectors_MD, inputs.vectors_CD)
    scores = rank(candidates, anchors_N, *vectors, config.epsilon, config.support, config.novelty)
    seeds_N = np.array([stable_seed("cluster", config.seed, name) for name in ids], np.uint64)
    clusters = cluster(candidates.offsets, candidates.concept_A, inputs.vectors_CD, seeds_N, config.starts)
    probability_A = probability(candidates.offsets, scores.score, clusters.labels, config.temperature)
    archives = archives_table(ids, inputs, candidates, scores, clusters.labels, probability_A)
    facts = {
        "concepts": float(len(candidates.concept_A)),
        "clamped": float(scores.clamped),
        "empty_archives": float((np.diff(candidates.offsets) == 0).sum()),
        "inertia": float(clusters.inertia.sum(dtype=np.float64)),
    }
    return Output(tables={"archives": archives}, seen=len(ids), kept=len(ids), facts=facts)


def neighbour_rows(index: Index, neighbours: pa.Table) -> NDArray[np.int64]:
    """Rows [N, L] of the index, best first, -1 where an image has fewer neighbours."""
    lists = neighbours["neighbour_ids"].combine_chunks()
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    rows = index.rows_of(cast("pl.Series", pl.from_arrow(lists.flatten())))
    result_NL = np.full((len(lengths), int(lengths.max(initial=0))), -1, np.int64)
    result_NL[np.arange(result_NL.shape[1]) < lengths[:, None]] = rows
    return result_NL


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


ARCHIVE = Stage("archive", 3, build_archive)
