"""Our inverted file beside the index that autofaiss chooses by itself, both at a recall of at least 0.95.

Run: ``python -m benchmarks.ivf_vs_autofaiss``. autofaiss is none of our requirements: it asks for numpy < 2,
and runs with newer ones after ``pip install --no-deps autofaiss==2.18.0 embedding-reader fire termcolor``.
"""

import importlib.util
import json
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import corpora
from benchmarks.timing import products_per_second, seconds
from curation.certificate import Sample, Search, draw_sample
from curation.ivf import build_inverted_file
from curation.search import Searcher, cells_of, faiss

CASE, COUNT, ROUNDS, FLOOR = "ivf_vs_autofaiss", 8, 3, 0.95
MEMORY = {"max_index_memory_usage": "2G", "current_memory_available": "4G"}  # told to autofaiss


@dataclass(frozen=True)
class Side:
    """One of the two: a search at the least effort that reaches the floor."""

    search: Search
    effort: int
    recall: float
    build_seconds: float
    megabytes: float


def measure(rows: int = 200_000, queries: int = 10_000) -> dict[str, Any]:
    """Queries per second of both in batches, and what building them takes."""
    if importlib.util.find_spec("autofaiss") is None:
        return not_run("autofaiss is not installed; benchmarks/ivf_vs_autofaiss.py says how it can be")
    images_MD = corpora.corpus(rows).images_MD
    sample = draw_sample(images_MD, np.arange(rows - 1000, rows), COUNT, "cpu")
    ours, (peer, index_told) = our_side(images_MD, sample), peer_side(images_MD, sample)
    asked = images_MD[:queries]
    times = [[seconds(partial(side.search, asked, COUNT)) for side in (ours, peer)] for _ in range(ROUNDS)]
    fast, slow = (queries / statistics.median(column) for column in zip(*times, strict=True))
    cells = cells_of(rows)
    met = cells + ours.effort * rows / cells
    limit = products_per_second() / (2 * met * images_MD.shape[1])
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("autofaiss", "faiss-cpu", "numpy"))
    return {
        "case": CASE,
        "ours": fast,
        "peer": slow,
        "unit": "queries/s",
        "ratio": statistics.median(theirs / mine for mine, theirs in times),
        "limit": limit,
        "limit_share": fast / limit,
        "note": f"{queries} queries in {rows}x{images_MD.shape[1]}, L = {COUNT}; ours: {cells} cells, effort "
        f"{_told(ours)} beside float16 vectors on disk, exact order; peer: {index_told}, effort "
        f"{_told(peer)}, vectors included; {versions}; limit: products of centroids and probed cells at the "
        "rate of sgemm",
    }


def _told(side: Side) -> str:
    built = f"built in {side.build_seconds:.0f} s, {side.megabytes:.0f} MB"
    return f"{side.effort}, recall {side.recall:.3f}, {built}"


def not_run(reason: str) -> dict[str, Any]:
    """The case without figures, and why."""
    figures = dict.fromkeys(("ours", "peer", "ratio", "limit", "limit_share"))
    return {"case": CASE, "unit": "queries/s", **figures, "note": f"not run: {reason}"}


def our_side(images_MD: NDArray[Any], sample: Sample) -> Side:
    """The cells that ``index.kind = "auto"`` takes."""
    started = time.perf_counter()
    cells = build_inverted_file(images_MD, cells_of(len(images_MD)), 1e9, seed=0)
    built = time.perf_counter() - started
    size = cells.centroids_KD.nbytes + cells.cells.values.nbytes + cells.cells.offsets.nbytes

    def search_at(probes: int) -> Search:
        return lambda queries_QD, count: Searcher(cells, probes, COUNT).nearest(queries_QD, images_MD, count)[
            0
        ]

    return Side(*least_effort(search_at, sample), built, size / 1e6)


def peer_side(images_MD: NDArray[Any], sample: Sample) -> tuple[Side, str]:
    """What autofaiss builds when it is told the memory alone, and what it says of it."""
    from autofaiss import build_index  # noqa: PLC0415  (none of our requirements)

    started = time.perf_counter()
    vectors_MD = images_MD.astype(np.float32)
    index, told = build_index(vectors_MD, save_on_disk=False, verbose=logging.ERROR, **MEMORY)
    built = time.perf_counter() - started
    name = told["index_param"].split("=")[0]  # efSearch of a graph, nprobe of an inverted file

    def search_at(effort: int) -> Search:
        def search(queries_QD: NDArray[Any], count: int) -> NDArray[np.int64]:
            faiss().ParameterSpace().set_index_parameter(index, name, effort)
            return np.asarray(index.search(queries_QD.astype(np.float32), count)[1])

        return search

    side = Side(*least_effort(search_at, sample), built, told["size in bytes"] / 1e6)
    return side, f"{told['index_key']} (it set {told['index_param']} itself)"


def least_effort(search_at: Callable[[int], Search], sample: Sample) -> tuple[Search, int, float]:
    """The search at the least power of two that reaches the floor, that power, and its recall."""
    for effort in (2**n for n in range(14)):
        search = search_at(effort)
        recall = sample.certify(search).recall
        if recall >= FLOOR:
            return search, effort, recall
    raise RuntimeError(f"no effort up to {effort} reaches a recall of {FLOOR}, only {recall:.3f}")


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
