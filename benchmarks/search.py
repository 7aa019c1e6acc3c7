"""Exact search beside the bare matrix product, and the inverted file beside FAISS' own at equal recall.

Run: ``python -m benchmarks.search``.
"""

import json
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import corpora
from benchmarks.timing import products_per_second, seconds
from curation.certificate import draw_sample
from curation.expand import nearest
from curation.ivf import build_inverted_file
from curation.search import Searcher, cells_of, faiss

COUNT, ROUNDS, FLOOR = 8, 3, 0.95


def exact(rows: int = 65_536, queries: int = 8192) -> dict[str, Any]:
    """Rate of exact search, all of it, as a share of the machine's matrix product."""
    images_MD = corpora.corpus(rows).images_MD
    work = 2.0 * rows * queries * images_MD.shape[1]
    ours, peer = [], []
    for _ in range(ROUNDS):
        ours.append(work / seconds(lambda: nearest(images_MD[:queries], images_MD, COUNT)) / 1e9)
        peer.append(products_per_second() / 1e9)
    rate, limit = statistics.median(ours), statistics.median(peer)
    return {
        "case": "exact_search_vs_sgemm",
        "ours": rate,
        "peer": limit,
        "unit": "GFLOP/s",
        "ratio": rate / limit,
        "limit": limit,
        "limit_share": rate / limit,
        "note": f"{queries} queries in {rows}x{images_MD.shape[1]} stored as float16, L = {COUNT}; "
        "selection, float64 re-ordering and conversion included; peer and limit: a float32 product of torch",
    }


def inverted_file(rows: int = 200_000, queries: int = 10_000) -> dict[str, Any]:
    """Queries per second at recall of at least 0.95: our cells beside FAISS' IVFFlat, each tuned."""
    images_MD = corpora.corpus(rows).images_MD
    cells = cells_of(rows)
    ours = build_inverted_file(images_MD, cells, 1e9, seed=0)
    peer = _peer(images_MD, cells)
    sample = draw_sample(images_MD, np.arange(rows - 1000, rows), COUNT, "cpu")

    def ours_of(probes: int) -> Callable[[NDArray[Any], int], NDArray[np.int64]]:
        return lambda queries_QD, count: Searcher(ours, probes, COUNT).nearest(queries_QD, images_MD, count)[
            0
        ]

    def peer_of(probes: int) -> Callable[[NDArray[Any], int], NDArray[np.int64]]:
        parameters = faiss().SearchParametersIVF(nprobe=probes)
        return lambda queries_QD, count: peer.search(queries_QD.astype(np.float32), count, params=parameters)[
            1
        ]

    chosen = []
    for side in (ours_of, peer_of):
        probes = next(p for p in (2**n for n in range(20)) if sample.certify(side(p)).recall >= FLOOR)
        chosen.append((side(probes), probes, sample.certify(side(probes)).recall))
    asked = images_MD[:queries]
    sides = [partial(search, asked, COUNT) for search, _, _ in chosen]
    times = [[seconds(side) for side in sides] for _ in range(ROUNDS)]
    fast, slow = (queries / statistics.median(column) for column in zip(*times, strict=True))
    met = cells + chosen[0][1] * rows / cells
    limit = products_per_second() / (2 * met * images_MD.shape[1])
    (_, our_probes, our_recall), (_, peer_probes, peer_recall) = chosen
    return {
        "case": "ivf_vs_faiss_ivfflat",
        "ours": fast,
        "peer": slow,
        "unit": "queries/s",
        "ratio": statistics.median(theirs / mine for mine, theirs in times),
        "limit": limit,
        "limit_share": fast / limit,
        "note": f"{queries} queries in {rows}x{images_MD.shape[1]}, {cells} cells, L = {COUNT}; ours: "
        f"{our_probes} probes, recall {our_recall:.3f}, exact order; peer: {peer_probes} probes, recall "
        f"{peer_recall:.3f}, float32 copy of the corpus in memory; limit: products of centroids and probed "
        "cells at the rate of sgemm",
    }


def _peer(images_MD: NDArray[np.float16], cells: int) -> Any:
    index = faiss().index_factory(images_MD.shape[1], f"IVF{cells},Flat", faiss().METRIC_INNER_PRODUCT)
    index.train(images_MD[:: max(1, len(images_MD) // (40 * cells))].astype(np.float32))
    for start in range(0, len(images_MD), 1 << 16):
        index.add(images_MD[start : start + (1 << 16)].astype(np.float32))
    return index


if __name__ == "__main__":
    for case in (exact, inverted_file):
        print(json.dumps(case(), indent=1))
