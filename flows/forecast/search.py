"""Index and search, really built and asked at two numbers of rows that lie around a sample's own vectors."""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from curation.embed import embeddings_table
from curation.exact import as_float32
from curation.index import EXPAND, INDEX, ExpandConfig, IndexConfig, shard_vectors
from curation.ivf import SAMPLE
from curation.search import cells_of, choose
from flows.forecast.measure import Bench
from flows.forecast.predict import GROWTH, LINEAR, Rows, Scale, Search
from storage.artifact import Artifact
from storage.stage import Job, Output, ShardFunction, Stage, materialize

MOST, LEAST = 65_536, 4096  # rows that are measured
FULL = 12.0  # seconds that so many take
SPREAD = 0.5  # of the difference of two vectors, added to a third
PRODUCTS = (1024, 16_384)  # queries and rows of the product whose rate is measured
REPEATS = 3


def measure_search(
    bench: Bench,
    embeddings: Artifact,
    config: IndexConfig,
    search: ExpandConfig,
    scale: Scale,
    seconds: float,
) -> Search:
    """Index and search of the kind that a corpus of this size has.

    Args:
        bench: where stages are run.
        embeddings: the sample's.
        config: of the index.
        search: of the search.
        scale: of the corpus.
        seconds: that this may take.

    Raises:
        ConfigError: if no effort reaches the recall that the config asks for.
    """
    vectors_ND = np.concatenate([shard_vectors(embeddings, shard) for shard in embeddings.shards])
    width = vectors_ND.shape[1]
    kind = (
        choose(scale.images, width, config.memory_gb * 1e9, config.recall)
        if config.kind == "auto"
        else config.kind
    )
    largest = int(min(scale.images, max(LEAST, MOST * min(1.0, seconds / FULL))))
    sizes = [largest] if largest <= LEAST else [largest // 4, largest]
    concrete = replace(config, kind=kind)
    measured = [_at(bench, vectors_ND, rows, concrete, search, scale, seconds / 3) for rows in sizes]
    built = measured[-1].index.artifact
    facts = built.manifest.facts if built else {}
    told = " of recall {recall:.3f} at effort {effort:.0f}".format(**facts) if "effort" in facts else ""
    growth = LINEAR if kind == "ivf" and config.cells else GROWTH[kind]
    return Search(
        kind=kind,
        growth=growth,
        measured=measured,
        vector=2 * width if kind in ("exact", "ivf") else width // 8 + 2 * width,
        trained=_trained(config, scale.images, width) - _trained(config, sizes[-1], width)
        if kind != "exact"
        else 0.0,
        told=told,
    )


def _trained(config: IndexConfig, rows: int, width: int) -> float:
    """Bytes of the rows that centroids are learnt from, and of the copy that sorts them."""
    return min(8.0 * width * min(rows, SAMPLE * (config.cells or cells_of(rows))), config.memory_gb * 1e9)


def _at(
    bench: Bench,
    vectors_ND: NDArray[np.float16],
    rows: int,
    index: IndexConfig,
    search: ExpandConfig,
    scale: Scale,
    seconds: float,
) -> Rows:
    sizes = _shards(rows, max(1, round(scale.shard)))
    wide = replace(bench, sizes=sizes)
    config = (rows, *sizes.values())
    embeddings = materialize(
        Stage("spread", 1, partial(_spread, vectors_ND, sizes)), config, {}, bench.store, bench.runtime
    )
    built = wide.measure(INDEX, index, {"embeddings": embeddings}, seconds)
    assert built.artifact is not None, "an index has no steps to break off"
    found = wide.measure(EXPAND, search, {"embeddings": embeddings, "index": built.artifact}, seconds)
    return Rows(rows, built, found)


def _shards(rows: int, size: int) -> dict[str, int]:
    starts = range(0, rows, size)
    return {f"spread/{number:05d}": min(size, rows - start) for number, start in enumerate(starts)}


def _spread(vectors_ND: NDArray[np.float16], sizes: dict[str, int], job: Job[tuple[int, ...]]) -> None:
    job.map_shards(partial(_spread_function, vectors_ND, sizes), list(sizes))


def _spread_function(vectors_ND: NDArray[np.float16], sizes: dict[str, int]) -> ShardFunction:
    blocks = spread(vectors_ND, list(sizes.values()))

    def shard_of(shard: str) -> Output:
        rows_ND = next(blocks)
        ids = [f"{shard}/{number:09d}" for number in range(len(rows_ND))]
        return Output(tables={"embeddings": embeddings_table(ids, rows_ND)}, seen=len(ids), kept=len(ids))

    return shard_of


def spread(vectors_ND: NDArray[np.float16], sizes: list[int], seed: int = 0) -> Iterator[NDArray[np.float32]]:
    """Blocks of unit vectors [B, D] that spread as some given ones do.

    Each is a given vector, moved by half the difference of two others: no new direction comes in, and
    neighbours lie about as near as they would in a larger corpus of the same kind.
    """
    rng, wide_ND = np.random.default_rng(seed), as_float32(vectors_ND)
    for size in sizes:
        at, one, other = rng.integers(0, len(wide_ND), (3, size))
        moved_BD = wide_ND[at] + np.float32(SPREAD) * (wide_ND[one] - wide_ND[other])
        length_B1 = np.linalg.norm(moved_BD, axis=1, keepdims=True)
        yield moved_BD / np.maximum(length_B1, np.float32(1e-12))


def seconds_of_a_product(width: int) -> float:
    """Of two rows, as one of many in a float32 matrix product; the best of some."""
    queries, rows = PRODUCTS
    left, right = torch.rand(queries, width), torch.rand(width, rows)
    spent = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        torch.mm(left, right)
        spent.append(time.perf_counter() - started)
    return min(spent) / (queries * rows)
