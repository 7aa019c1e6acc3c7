"""Stages ``index`` and ``expand``: the corpus as one searchable matrix, and each image's neighbours in it."""

import io
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from curation.certificate import Certificate
from curation.encoder import pick_device
from curation.expand import nearest
from curation.grow import Known, known, merged, new_rows
from curation.index_files import packed, unpacked
from curation.ragged import offsets_of
from curation.search import Kind, Searcher, build, cells_of, choose, tune
from storage.artifact import Artifact
from storage.errors import ConfigError, InputError
from storage.schemas import table_of
from storage.stage import BlockFunction, Job, Output, Stage

VECTORS = "vectors.npy"
MET_IN_A_CELL = 64  # queries that a cell should meet at once, so that reading it is little of the work
MOST_QUERIES = 1 << 17  # at once, for memory's sake
SEEDS = 8  # of hashes: one in a million corpora of millions needs a second
Neighbours = tuple[NDArray[np.int64], NDArray[np.float32]]  # rows and similarities [Q, L]


@dataclass(frozen=True)
class IndexConfig:
    """How neighbours are searched."""

    kind: Literal["auto", "exact", "ivf", "ivfpq", "hnsw"] = "auto"  # auto: by rows, memory and floor
    recall: float = 0.95  # floor of recall@L; below it the stage fails
    neighbours: int = 8  # L of that recall
    queries: int = 1000  # that recall is measured with
    cells: int = 0  # of ivf and ivfpq; 0 chooses by rows
    memory_gb: float = 4.0  # for the vectors that search touches, and for training
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.recall <= 1:
            raise ValueError(f"index.recall is {self.recall}; it is a share: above 0, 1 at most")
        if min(self.neighbours, self.queries) < 1 or self.cells < 0 or self.memory_gb <= 0:
            raise ValueError(
                f"index.neighbours={self.neighbours}, queries={self.queries}, cells={self.cells}, "
                f"memory_gb={self.memory_gb}: give positive numbers (cells may be 0: chosen by rows)"
            )


@dataclass(frozen=True)
class ExpandConfig:
    """Vision-driven expansion."""

    neighbours: int = 8  # L of the paper; the image itself counts


def build_index(job: Job[IndexConfig]) -> None:
    """Stage ``index``: all vectors in one memory-mappable float16 matrix, the ids of its rows, a searcher."""
    embeddings = job.artifact("embeddings")
    rows = sum(part.rows for part in embeddings.parts("embeddings"))
    if rows == 0:
        raise InputError(
            "no image could be embedded, so there is nothing to search; see the quarantine table"
        )
    ids = embeddings.read("embeddings", columns=["sample_id"])
    write = partial(pour_vectors, embeddings, rows)
    output = Output(tables={"ids": ids}, files={VECTORS: (write, rows)}, seen=rows, kept=rows)
    kind = _kind(job.config, embeddings, rows)
    if kind == "exact":
        output.facts = {"recall": 1.0, "recall_low": 1.0, "recall_high": 1.0, "recall_queries": 0.0}
        job.write(output)
        return
    with tempfile.TemporaryDirectory(prefix="cocu-index-") as scratch:
        copy = Path(scratch) / VECTORS
        with copy.open("wb") as stream:
            write(stream)
        searcher, output.facts = _certified(job, kind, np.load(copy, mmap_mode="r"))
        output.files |= {name: (content, rows) for name, content in packed(searcher, kind).items()}
        job.write(output)


def _kind(config: IndexConfig, embeddings: Artifact, rows: int) -> Kind:
    if config.kind != "auto":
        return config.kind
    width = shard_vectors(embeddings, embeddings.parts("embeddings")[0].shard).shape[1]
    return choose(rows, width, config.memory_gb * 1e9, config.recall)


def _certified(
    job: Job[IndexConfig], kind: Kind, vectors_MD: NDArray[np.float16]
) -> tuple[Searcher, dict[str, float]]:
    """A searcher whose recall reaches the floor, and the facts that say so.

    Raises:
        ConfigError: if no effort reaches it.
    """
    config, device = job.config, pick_device(job.runtime.device).type
    cells = min(config.cells or cells_of(len(vectors_MD)), len(vectors_MD))
    proposer = build(kind, vectors_MD, cells, config.memory_gb * 1e9, config.seed)
    searcher, found = tune(
        kind,
        proposer,
        vectors_MD,
        config.recall,
        cells,
        count=config.neighbours,
        queries=config.queries,
        seed=config.seed,
        device=device,
    )
    if found.recall < config.recall:
        raise ConfigError(_below(config, kind, found))
    facts = {"recall": found.recall, "recall_low": found.low, "recall_high": found.high}
    return searcher, {**facts, "recall_queries": found.queries, "cells": cells, "effort": searcher.effort}


def _below(config: IndexConfig, kind: Kind, found: Certificate) -> str:
    return (
        f"{kind} finds {found.recall:.3f} of the exact neighbours (95 % of such samples: {found.low:.3f} to "
        f"{found.high:.3f}), the floor index.recall is {config.recall}; "
        "take index.kind 'ivf' or 'exact', or lower index.recall"
    )


def pour_vectors(embeddings: Artifact, rows: int, stream: Any) -> None:
    """Writes a numpy file shard by shard: the matrix is never in memory whole."""
    header_written = False
    for part in embeddings.parts("embeddings"):
        vectors_ND = shard_vectors(embeddings, part.shard)
        if not header_written:
            _numpy_header(stream, (rows, vectors_ND.shape[1]))
            header_written = True
        stream.write(np.ascontiguousarray(vectors_ND).tobytes())


def _numpy_header(stream: Any, shape: tuple[int, int]) -> None:
    header = io.BytesIO()
    layout = {"descr": "<f2", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, layout)
    stream.write(header.getvalue())


def shard_vectors(embeddings: Artifact, shard: str) -> NDArray[np.float16]:
    """Unit vectors [N, D] of a shard."""
    column = embeddings.read("embeddings", shard, ["vector"])["vector"].combine_chunks()
    width = column.type.list_size
    return cast("NDArray[np.float16]", column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width))


@dataclass(frozen=True)
class Index:
    """The matrix and who its rows are."""

    ids: pl.DataFrame  # sample_id, row
    names: NDArray[np.object_]  # sample_id by row
    vectors_MD: NDArray[np.float16]
    searcher: Searcher | None = None  # none: every row is compared

    def rows_of(self, sample_ids: Sequence[str] | pl.Series) -> NDArray[np.int64]:
        """Rows of samples, -1 for those that are not in the index.

        A join would go through all ids for every shard: these are hashed and sorted once.
        """
        seed, hash_M, row_M = self._hashed
        wanted = pl.Series(sample_ids, dtype=pl.String)
        if not len(hash_M):
            return np.full(len(wanted), -1)
        place = np.searchsorted(hash_M, wanted.hash(seed).to_numpy()).clip(max=len(hash_M) - 1)
        rows = row_M[place]
        return np.where((self.ids["sample_id"].gather(rows) == wanted).to_numpy(), rows, -1)

    @cached_property
    def _hashed(self) -> tuple[int, NDArray[np.uint64], NDArray[np.int64]]:
        """A seed under which all ids have hashes of their own, these in order, and their rows.

        Raises:
            InputError: if two ids are equal.
        """
        for seed in range(SEEDS):
            hash_M = self.ids["sample_id"].hash(seed).to_numpy()
            row_M = np.argsort(hash_M)
            hash_M = hash_M[row_M]
            if (hash_M[1:] != hash_M[:-1]).all():
                return seed, hash_M, row_M
        raise InputError("two images of the index have the same sample_id; make the embeddings anew")


def load_index(artifact: Artifact) -> Index:
    """Opens an index; vectors stay on disk."""
    ids = cast("pl.DataFrame", pl.from_arrow(artifact.read("ids"))).with_row_index("row")
    vectors_MD = np.load(artifact.file(VECTORS), mmap_mode="r")
    return Index(ids, ids["sample_id"].to_numpy(), vectors_MD, unpacked(artifact))


def expand(job: Job[ExpandConfig]) -> None:
    """Stage ``expand``: the L nearest images of every image, shard by shard."""
    embeddings, index = job.artifact("embeddings"), job.artifact("index")
    exact = [earlier for earlier in job.earlier if not unpacked(earlier.inputs["index"])]
    before = None if unpacked(index) else known(exact, embeddings)
    make = partial(_make_block_function, job.config, embeddings, index, before, job.runtime.device)
    job.map_blocks(make, embeddings.shards, _together(embeddings, index))


def _together(embeddings: Artifact, index: Artifact) -> int:
    """Shards that are searched at once: every block of queries reads the corpus, cell by cell."""
    cells, shards = int(index.manifest.facts.get("cells", 0)), embeddings.parts("embeddings")
    queries = min(MET_IN_A_CELL * cells, MOST_QUERIES)
    return max(1, queries * len(shards) // max(sum(part.rows for part in shards), 1))


def _make_block_function(
    config: ExpandConfig, embeddings: Artifact, index_artifact: Artifact, before: Known | None, device: str
) -> BlockFunction:
    index, where = load_index(index_artifact), pick_device(device).type
    new_R = new_rows(embeddings, before.shards) if before else np.zeros(0, np.int64)

    def nearest_of(shard: str, queries_QD: NDArray[np.float16]) -> Neighbours:
        if before and shard in before.shards:
            old = _still_there(index, before.neighbours, shard, new_R)
            return merged(queries_QD, index.vectors_MD, *old, new_R, config.neighbours, where)
        return nearest(queries_QD, index.vectors_MD, config.neighbours, where)

    def expand_block(shards: Sequence[str]) -> Iterator[tuple[str, Output]]:
        vectors = [shard_vectors(embeddings, shard) for shard in shards]
        if index.searcher:
            found = index.searcher.nearest(np.concatenate(vectors), index.vectors_MD, config.neighbours)
            ends = np.cumsum([len(part) for part in vectors])[:-1]
            pairs: Iterable[Neighbours] = zip(*(np.split(each, ends) for each in found), strict=True)
        else:
            pairs = map(nearest_of, shards, vectors)
        for shard, neighbours in zip(shards, pairs, strict=True):
            yield shard, _neighbours_of(index, embeddings, shard, neighbours)

    return expand_block


def neighbour_rows(index: Index, neighbours: pa.Table) -> NDArray[np.int64]:
    """Rows [N, L] of the index, best first, -1 where an image has fewer neighbours."""
    lists = neighbours["neighbour_ids"].combine_chunks()
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    rows = index.rows_of(cast("pl.Series", pl.from_arrow(lists.flatten())))
    result_NL = np.full((len(lengths), int(lengths.max(initial=0))), -1, np.int64)
    result_NL[np.arange(result_NL.shape[1]) < lengths[:, None]] = rows
    return result_NL


def _still_there(
    index: Index, neighbours: Artifact, shard: str, new_R: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Rows [Q, L] of a shard's neighbours of before, and for each image whether none has gone."""
    table = neighbours.read("neighbours", shard, ["neighbour_ids"])
    rows_QL = neighbour_rows(index, table)
    rows_QL = np.where(np.isin(rows_QL, new_R), -1, rows_QL)  # of the same name, but another image now
    lengths_Q = table["neighbour_ids"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
    return rows_QL, (rows_QL >= 0).sum(axis=1) == lengths_Q


def _neighbours_of(index: Index, embeddings: Artifact, shard: str, neighbours: Neighbours) -> Output:
    ids = embeddings.read("embeddings", shard, ["sample_id"])["sample_id"]
    table = neighbours_table(ids, index.names, *neighbours)
    return Output(tables={"neighbours": table}, seen=len(ids), kept=len(ids))


def neighbours_table(
    ids: pa.ChunkedArray,
    names: NDArray[np.object_],
    rows_QL: NDArray[np.int64],
    similarities_QL: NDArray[np.float32],
) -> pa.Table:
    """The ``neighbours`` table; places without a neighbour (corpora smaller than L) are left out."""
    found_QL = rows_QL >= 0
    offsets = offsets_of(found_QL.sum(axis=1).astype(np.int64)).astype(np.int32)
    neighbour_ids = pa.array(names[rows_QL[found_QL]], pa.string())
    similarities = pa.array(similarities_QL[found_QL], pa.float32())
    columns = {
        "sample_id": ids,
        "neighbour_ids": pa.ListArray.from_arrays(offsets, neighbour_ids),
        "similarities": pa.ListArray.from_arrays(offsets, similarities),
    }
    return table_of("neighbours", columns)


INDEX = Stage("index", 3, build_index)
EXPAND = Stage("expand", 1, expand, looks_back=True)
