"""Images per second of expansion, ranking and clustering, beside a loop with scikit-learn's k-means.

Both sides compute the same archives: neighbours, candidates, scores, clusters, probabilities. The loop takes
one image at a time, as the method's release does. The sides take turns, several rounds each; rates are
medians. Run: ``python -m benchmarks.archive_vs_loop``.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks import loop_oracle
from curation.cluster import cluster
from curation.expand import nearest, pool
from curation.probability import probability
from curation.ragged import Ragged
from curation.rank import rank

NEIGHBOURS = 8


@dataclass(frozen=True, eq=False)
class Workload:
    """A synthetic corpus: unit vectors around a common direction, as an encoder's are."""

    images_MD: NDArray[np.float16]  # as stored, for us
    floats_MD: NDArray[np.float32]  # the same, converted beforehand for the loop
    concepts_CD: NDArray[np.float32]
    mentions: Ragged
    mention_lists: list[list[int]]
    seeds_N: NDArray[np.uint64]


def measure(
    *,
    clusters: bool = True,
    images: int = 8_192,
    corpus: int = 20_000,
    loop_images: int = 60,
    width: int = 512,
    concepts: int = 4000,
    rounds: int = 3,
) -> dict[str, Any]:
    """Rates of both sides in images per second, their ratio, and how near the machine's limit ours is."""
    load = _workload(images, corpus, width, concepts)
    ours, peer, limit = [], [], []
    for _ in range(rounds):
        ours.append(images / _seconds(lambda: _ours(load, clusters)))
        peer.append(loop_images / _seconds(lambda: _loop(load, loop_images, clusters)))
        limit.append(_limit(load, clusters))
    rate, loop, bound = (statistics.median(values) for values in (ours, peer, limit))
    return {
        "case": "archive_vs_loop" if clusters else "archive_without_clusters_vs_loop",
        "ours": rate,
        "peer": loop,
        "unit": "images/s",
        "ratio": rate / loop,
        "limit": bound,
        "limit_share": rate / bound,
        "note": _note(images, corpus, loop_images, width, concepts, clusters),
    }


def _note(images: int, corpus: int, loop_images: int, width: int, concepts: int, clusters: bool) -> str:
    gram = " and one Gram matrix at that of a float64 product" if clusters else ""
    return (
        f"{images} images (loop: {loop_images}) of a corpus of {corpus}×{width}, {concepts} concepts, "
        f"3 mentions and {NEIGHBOURS} neighbours each, exact search included; limit: the search's products "
        f"at the rate of a float32 product, both vectors of every pair at the rate of a memory copy{gram}"
    )


def _workload(images: int, corpus: int, width: int, concepts: int) -> Workload:
    rng = np.random.default_rng(0)
    mentions = Ragged(np.arange(corpus + 1) * 3, rng.integers(0, concepts, 3 * corpus).astype(np.int32))
    stored = _unit(rng, corpus, width).astype(np.float16)
    return Workload(
        images_MD=stored,
        floats_MD=stored.astype(np.float32),
        concepts_CD=_unit(rng, concepts, width),
        mentions=mentions,
        mention_lists=mentions.values.reshape(corpus, 3).tolist(),
        seeds_N=rng.integers(0, 2**63, images).astype(np.uint64),
    )


def _unit(rng: np.random.Generator, rows: int, width: int) -> NDArray[np.float32]:
    vectors = rng.standard_normal((rows, width), dtype=np.float32) + np.float32(0.5)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _ours(load: Workload, clusters: bool) -> None:
    images = len(load.seeds_N)
    neighbours_NL, _ = nearest(load.images_MD[:images], load.images_MD, NEIGHBOURS, "faiss")
    candidates = pool(neighbours_NL, load.mentions)
    scores = rank(candidates, np.arange(images), load.images_MD, load.concepts_CD)
    if clusters:
        found = cluster(candidates.offsets, candidates.concept_A, load.concepts_CD, load.seeds_N)
        probability(candidates.offsets, scores.score, found.labels)


def _loop(load: Workload, images: int, clusters: bool) -> None:
    with threadpool_limits(1):  # more only slow scikit-learn down on tens of points
        for image in range(images):
            _loop_once(load, image, clusters)


def _loop_once(load: Workload, image: int, clusters: bool) -> None:
    similarities_M = load.floats_MD @ load.floats_MD[image]
    rows = np.argsort(-similarities_M, kind="stable")[:NEIGHBOURS].tolist()
    entries = loop_oracle.archive(image, rows, load.mention_lists, load.floats_MD, load.concepts_CD)
    if clusters:
        ids = [entry.concept for entry in entries]
        labels, _ = loop_oracle.clusters(load.concepts_CD[ids], seed=image)
        loop_oracle.probabilities([entry.score for entry in entries], labels)


def _limit(load: Workload, clusters: bool) -> float:
    """Images per second if the unavoidable work ran at the rates this machine shows right now."""
    corpus, width = load.images_MD.shape
    neighbours_NL, _ = nearest(load.images_MD[:1000], load.images_MD, NEIGHBOURS)
    candidates = pool(neighbours_NL, load.mentions)
    pairs = len(candidates.concept_A) + len(candidates.donors.values)
    seconds: float = pairs / 1000 * width * (2 + 4) / _bytes_per_second()  # float16 and float32
    seconds += 2 * corpus * width / _products_per_second(np.float32)
    if clusters:
        products = float((np.diff(candidates.offsets) ** 2).mean()) * width * 2
        seconds += products / _products_per_second(np.float64)
    return 1 / seconds


def _bytes_per_second() -> float:
    source = np.ones(1 << 25, np.float32)
    target = np.zeros_like(source)
    return float(source.nbytes) / _seconds(lambda: np.copyto(target, source))


def _products_per_second(kind: type, size: int = 2048) -> float:
    matrix: NDArray[Any] = np.random.default_rng(0).random((size, size)).astype(kind)
    return 2.0 * size * size * size / _seconds(lambda: matrix @ matrix)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    for with_clusters, loop_size in ((False, 1000), (True, 60)):
        print(
            json.dumps(measure(clusters=with_clusters, loop_images=loop_size), indent=2, ensure_ascii=False)
        )
