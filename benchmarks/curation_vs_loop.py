"""Ranking, clustering and search beside a loop over images with scikit-learn's k-means.

Both sides compute the same archives. The loop takes one image at a time, as the method's release does. The
sides take turns, several rounds each; rates are medians. Run: ``python -m benchmarks.curation_vs_loop``.
"""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks import corpora, loop_oracle
from benchmarks.timing import bytes_per_second, products_per_second, seconds
from curation.cluster import Clusters, cluster
from curation.expand import Candidates, nearest, pool
from curation.ivf import build_inverted_file
from curation.probability import probability
from curation.rank import Scores, rank
from curation.search import Searcher, cells_of, faiss

ROWS, NEIGHBOURS, PROBES, ROUNDS = 200_000, 8, 8, 3


@dataclass(frozen=True, eq=False)
class Workload:
    """A corpus, its inverted file, and the images that are curated."""

    rows: int = ROWS
    images: int = 20_000
    exact: bool = False  # search: every row instead of cells

    @cached_property
    def corpus(self) -> corpora.Corpus:
        """What is curated."""
        return corpora.corpus(self.rows)

    @cached_property
    def searcher(self) -> Searcher:
        """Our inverted file."""
        cells = build_inverted_file(self.corpus.images_MD, cells_of(self.rows), 1e9, seed=0)
        return Searcher(cells, PROBES, 8)

    @cached_property
    def peer_index(self) -> Any:
        """FAISS' inverted file with the same centroids, hence the same cells."""
        centroids_KD = self.searcher.proposer.centroids_KD  # type: ignore[attr-defined]
        quantizer = faiss().IndexFlatIP(centroids_KD.shape[1])
        quantizer.add(centroids_KD)
        index = faiss().IndexIVFFlat(quantizer, *reversed(centroids_KD.shape), faiss().METRIC_INNER_PRODUCT)
        for start in range(0, self.rows, 1 << 16):
            index.add(self.corpus.images_MD[start : start + (1 << 16)].astype(np.float32))
        index.nprobe = PROBES
        return index

    @cached_property
    def neighbours(self) -> NDArray[np.int64]:
        """Rows [N, L] for the images that are curated."""
        return self.search()

    def search(self) -> NDArray[np.int64]:
        """The search itself."""
        images_MD = self.corpus.images_MD
        if self.exact:
            return nearest(images_MD[: self.images], images_MD, NEIGHBOURS)[0]
        return self.searcher.nearest(images_MD[: self.images], images_MD, NEIGHBOURS)[0]

    def search_one(self, image: int) -> list[int]:
        """The loop's search of one image."""
        if self.exact:
            similarities_M = self.floats @ self.floats[image]
            return list(np.argsort(-similarities_M, kind="stable")[:NEIGHBOURS].tolist())
        return list(self.peer_index.search(self.floats[image : image + 1], NEIGHBOURS)[1][0].tolist())

    def prepare(self) -> None:
        """Makes what both sides start from."""
        _ = self.neighbours, self.floats, self.mention_lists
        if not self.exact:
            _ = self.peer_index

    @cached_property
    def floats(self) -> NDArray[np.float32]:
        """The images, converted beforehand for the loop."""
        return self.corpus.images_MD.astype(np.float32)

    @cached_property
    def mention_lists(self) -> list[list[int]]:
        """The mentions as the loop wants them."""
        return self.corpus.mentions.values.reshape(self.rows, -1).tolist()


def measure(load: Workload, case: str, *, search: bool, clusters: bool, loop_images: int) -> dict[str, Any]:
    """Rates of both sides in images per second, their ratio, and how near the machine's limit ours is."""
    load.prepare()
    ours, peer, limit = [], [], []
    for _ in range(ROUNDS):
        ours.append(load.images / seconds(lambda: _ours(load, search, clusters)))
        peer.append(loop_images / seconds(lambda: _loop(load, loop_images, search, clusters)))
        limit.append(_limit(load, search))
    rate, loop, bound = (statistics.median(values) for values in (ours, peer, limit))
    agreement = _agreement(load, min(loop_images, 60)) if clusters else ""
    return {
        "case": case,
        "ours": rate,
        "peer": loop,
        "unit": "images/s",
        "ratio": rate / loop,
        "limit": bound,
        "limit_share": rate / bound,
        "note": f"{load.images} images (loop: {loop_images}) of {load.rows}x{corpora.WIDTH}, "
        f"{corpora.CONCEPTS} concepts, {corpora.MENTIONS} mentions, {NEIGHBOURS} neighbours; limit: both "
        f"vectors of every pair at the rate of a memory copy{_search_limit(search)}{agreement}",
    }


def _search_limit(search: bool) -> str:
    return ", and the search's products at the rate of sgemm" if search else ""


def _ours(load: Workload, search: bool, clusters: bool) -> tuple[Candidates, Scores, Clusters | None]:
    rows_NL = load.search() if search else load.neighbours
    candidates = pool(rows_NL, load.corpus.mentions)
    anchors_N = np.arange(load.images)
    scores = rank(candidates, anchors_N, load.corpus.images_MD, load.corpus.concepts_CD)
    if not clusters:
        return candidates, scores, None
    seeds_N = np.arange(load.images, dtype=np.uint64)
    found = cluster(candidates.offsets, candidates.concept_A, load.corpus.concepts_CD, seeds_N)
    probability(candidates.offsets, scores.score, found.labels)
    return candidates, scores, found


def _loop(load: Workload, images: int, search: bool, clusters: bool) -> float:
    """The mean inertia."""
    with threadpool_limits(1):  # more only slow scikit-learn down on tens of points
        return float(np.mean([_loop_once(load, image, search, clusters) for image in range(images)]))


def _loop_once(load: Workload, image: int, search: bool, clusters: bool) -> float:
    rows = load.search_one(image) if search else load.neighbours[image].tolist()
    entries = loop_oracle.archive(image, rows, load.mention_lists, load.floats, load.corpus.concepts_CD)
    if not clusters:
        return 0.0
    ids = [entry.concept for entry in entries]
    labels, inertia = loop_oracle.clusters(load.corpus.concepts_CD[ids], seed=image)
    loop_oracle.probabilities([entry.score for entry in entries], labels)
    return inertia


def _agreement(load: Workload, images: int) -> str:
    """How far the two sides' scores lie apart, and their mean inertias."""
    candidates, scores, found = _ours(load, search=False, clusters=True)
    assert found is not None
    apart = 0.0
    for image in range(images):
        rows = load.neighbours[image].tolist()
        entries = loop_oracle.archive(image, rows, load.mention_lists, load.floats, load.corpus.concepts_CD)
        part = scores.score[candidates.offsets[image] : candidates.offsets[image + 1]]
        apart = max(apart, float(np.abs(part - [entry.score for entry in entries]).max(initial=0)))
    ours, peer = float(found.inertia[:images].mean()), _loop(load, images, search=False, clusters=True)
    return f"; scores differ by {apart:.1e} at most, mean inertia {ours:.3f} (loop {peer:.3f})"


def _limit(load: Workload, search: bool) -> float:
    """Images per second if the unavoidable work ran at the rates this machine shows right now."""
    candidates = pool(load.neighbours[:1000], load.corpus.mentions)
    pairs = len(candidates.concept_A) + len(candidates.donors.values)
    per_image = pairs / 1000 * corpora.WIDTH * (2 + 4) / bytes_per_second()  # float16 and float32
    if search:
        cells = cells_of(load.rows)
        met = load.rows if load.exact else cells + PROBES * load.rows / cells
        per_image += 2 * met * corpora.WIDTH / products_per_second()
    return 1 / per_image


def cases() -> list[Callable[[], dict[str, Any]]]:
    """The cases: a small corpus searched exactly, and a larger one."""
    load, small = Workload(), Workload(rows=20_000, images=8192, exact=True)
    return [
        lambda: measure(small, "archive_vs_loop", search=True, clusters=True, loop_images=60),
        lambda: measure(load, "rank_vs_loop", search=False, clusters=False, loop_images=1000),
        lambda: measure(load, "rank_cluster_vs_loop", search=False, clusters=True, loop_images=60),
        lambda: measure(load, "curate_ivf_vs_loop", search=True, clusters=True, loop_images=60),
    ]


if __name__ == "__main__":
    for case in cases():
        print(json.dumps(case(), indent=1))
