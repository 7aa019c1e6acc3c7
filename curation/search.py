"""Approximate search: which structure, how much effort, and what it finds.

Whatever proposes neighbours, their order is decided by the corpus' own vectors (``expand.best_of``), so that
a compressed index changes which neighbours are found but never how similar they are.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from curation.certificate import Certificate, Sample, draw_sample
from curation.exact import as_float32
from curation.expand import SPARE, best_of
from curation.ivf import SAMPLE, build_inverted_file

Kind = Literal["exact", "ivf", "ivfpq", "hnsw"]
FEW = 100_000  # rows up to which every image is compared with every other
RESCORED = 8  # times L: what a compressed index proposes
LINKS = 32  # of a node of the graph
BUILD_EFFORT = 80  # of the graph's construction
CODES_SAMPLE = 10_000  # vectors at least to learn codes from
BLOCK = 1 << 16  # vectors added at a time


def faiss() -> Any:
    """The library, imported late: exact search on a GPU does without."""
    import faiss  # noqa: PLC0415

    return faiss


class Proposer(Protocol):
    """Proposes neighbours. ``effort`` is the number of probed cells, or the breadth of a graph's search."""

    def search(
        self, queries_QD: NDArray[np.floating[Any]], vectors_MD: NDArray[Any], count: int, effort: int
    ) -> NDArray[np.int64]:
        """Rows ``[Q, count]`` in any order, -1 for none."""


@dataclass(frozen=True, eq=False)
class FaissProposer:
    """A compressed or a graph index of FAISS."""

    index: Any

    def search(
        self, queries_QD: NDArray[np.floating[Any]], vectors_MD: NDArray[Any], count: int, effort: int
    ) -> NDArray[np.int64]:
        """Rows ``[Q, count]`` in any order, -1 for none."""
        del vectors_MD  # the index holds codes of its own
        if isinstance(self.index, faiss().IndexHNSW):
            parameters = faiss().SearchParametersHNSW(efSearch=max(effort, count))
        else:
            parameters = faiss().SearchParametersIVF(nprobe=effort)
        found = self.index.search(as_float32(queries_QD), count, params=parameters)
        return cast("NDArray[np.int64]", found[1])


@dataclass(frozen=True, eq=False)
class Searcher:
    """A proposer at the effort that its certificate was measured with."""

    proposer: Proposer
    effort: int
    spare: int  # proposals beyond L

    def nearest(
        self, queries_QD: NDArray[np.floating[Any]], vectors_MD: NDArray[Any], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and similarities ``[Q, L]``, best first, equals by lower row; -1 and -inf for none."""
        proposed = self.proposer.search(queries_QD, vectors_MD, count + self.spare, self.effort)
        return best_of(queries_QD, vectors_MD, proposed, count)


def choose(rows: int, width: int, memory_bytes: float, recall: float) -> Kind:
    """What ``auto`` means: exact for a few, cells while the vectors fit the memory, else compressed codes.

    A graph is never chosen: it needs the vectors in memory, and one thread to be built the same way twice.
    """
    if rows <= FEW or recall >= 1:
        return "exact"
    return "ivf" if 2 * rows * width <= memory_bytes else "ivfpq"


def cells_of(rows: int) -> int:
    """A power of two near 2·√M: 512 for 62 thousand, 2,048 for a million.

    FAISS advises 4·√M and more, for queries that come alone. Here a row meets all centroids three times (to
    learn them, to be put into a cell, to be searched) and the rows of its cell once.
    """
    return int(min(rows, 2 ** round(np.log2(2 * max(rows, 1) ** 0.5))))


def build(
    kind: Kind, vectors_MD: NDArray[np.floating[Any]], cells: int, memory_bytes: float, seed: int
) -> Proposer:
    """Builds the structure of a kind within a memory, the same one every time."""
    rows, width = vectors_MD.shape
    if kind == "ivf":
        return build_inverted_file(vectors_MD, cells, memory_bytes, seed)
    index = _graph(width) if kind == "hnsw" else _codes(width, cells, seed)
    sample = min(rows, max(SAMPLE * cells, CODES_SAMPLE), int(memory_bytes // (8 * width)))
    chosen = np.sort(np.random.default_rng(seed).choice(rows, sample, replace=False))
    threads = faiss().omp_get_max_threads()
    try:
        if kind == "hnsw":
            faiss().omp_set_num_threads(1)  # several threads link nodes in whatever order they meet
        index.train(as_float32(vectors_MD[chosen]))
        for start in range(0, rows, BLOCK):
            index.add(as_float32(vectors_MD[start : start + BLOCK]))
    finally:
        faiss().omp_set_num_threads(threads)
    return FaissProposer(index)


def _codes(width: int, cells: int, seed: int) -> Any:
    index = faiss().index_factory(width, f"IVF{cells},PQ{width // 8}x8", faiss().METRIC_INNER_PRODUCT)
    index.cp.seed = index.pq.cp.seed = seed % 2**31
    return index


def _graph(width: int) -> Any:
    half = faiss().ScalarQuantizer.QT_fp16
    index = faiss().IndexHNSWSQ(width, half, LINKS, faiss().METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = BUILD_EFFORT
    return index


def tune(
    kind: Kind,
    proposer: Proposer,
    vectors_MD: NDArray[np.floating[Any]],
    floor: float,
    cells: int,
    *,
    count: int,
    queries: int,
    seed: int,
    device: str,
) -> tuple[Searcher, Certificate]:
    """The least effort that reaches the floor on one sample, and its certificate, from another.

    The effort doubles until even the lower end of the interval reaches the floor. Two samples, because a
    search tuned on the queries it is certified with would flatter itself.
    """
    rows = np.random.default_rng(seed).choice(
        len(vectors_MD), min(2 * queries, len(vectors_MD)), replace=False
    )
    halves = np.array_split(np.sort(rows[: len(rows) // 2 * 2]).reshape(-1, 2), 2, axis=1)
    learn, test = (draw_sample(vectors_MD, half.ravel(), count, device) for half in halves)
    most = cells if kind != "hnsw" else 1024
    spare = SPARE if kind == "ivf" else (RESCORED - 1) * count
    effort = 1 if kind != "hnsw" else 16
    while True:
        searcher = Searcher(proposer, effort, spare)
        if effort >= most or _certify(searcher, learn, vectors_MD).low >= floor:
            return searcher, _certify(searcher, test, vectors_MD)
        effort = min(2 * effort, most)


def _certify(searcher: Searcher, sample: Sample, vectors_MD: NDArray[Any]) -> Certificate:
    return sample.certify(lambda queries_QD, count: searcher.nearest(queries_QD, vectors_MD, count)[0])
