"""Neighbours in a corpus that gained or lost images: old images need only be compared with the new ones.

The L nearest of an old image are among its L nearest of before and its L nearest new images, unless one of
the former has gone; then it is searched anew. The exact order decides between them, so the result is that of
a full search.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.expand import best_of, nearest
from storage.artifact import Artifact
from storage.stage import Earlier


@dataclass(frozen=True)
class Known:
    """Neighbours of before, and which shards are as they were then."""

    neighbours: Artifact
    shards: frozenset[str]


def known(earlier: Sequence[Earlier], embeddings: Artifact) -> Known | None:
    """The earlier neighbours that share most shards with the embeddings at hand."""
    now = _parts(embeddings)
    found = [Known(e.artifact, _same(_parts(e.inputs["embeddings"]), now)) for e in earlier]
    best = max(found, key=lambda candidate: len(candidate.shards), default=None)
    return best if best and best.shards else None


def _parts(embeddings: Artifact) -> dict[str, str]:
    return {part.shard: part.sha256 for part in embeddings.parts("embeddings")}


def _same(before: Mapping[str, str], now: Mapping[str, str]) -> frozenset[str]:
    return frozenset(shard for shard, digest in before.items() if now.get(shard) == digest)


def new_rows(embeddings: Artifact, unchanged: frozenset[str]) -> NDArray[np.int64]:
    """Rows of the index, ascending, of images that were not there before (or were others)."""
    sizes = [part.rows for part in embeddings.parts("embeddings")]
    is_new = [part.shard not in unchanged for part in embeddings.parts("embeddings")]
    return np.flatnonzero(np.repeat(is_new, sizes))


def merged(
    queries_QD: NDArray[np.floating[Any]],
    vectors_MD: NDArray[np.floating[Any]],
    before_QL: NDArray[np.int64],
    complete_Q: NDArray[np.bool_],
    new_R: NDArray[np.int64],
    count: int,
    device: str,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What `nearest` gives, from what is known.

    Args:
        queries_QD: old images.
        vectors_MD: the whole corpus, may be a memory map.
        before_QL: rows that were nearest to each among the old images, -1 for none.
        complete_Q: whether all of them are still there; what is told of the others is ignored.
        new_R: rows of the new images.
        count: L.
        device: of exact search.
    """
    rows_QL = np.full((len(queries_QD), count), -1, np.int64)
    similarity_QL = np.full(rows_QL.shape, -np.inf, np.float32)
    old, lost = np.flatnonzero(complete_Q), np.flatnonzero(~complete_Q)
    if len(old):
        found_QL, _ = nearest(queries_QD[old], vectors_MD[new_R], count, device)
        fresh_QL = np.where(found_QL < 0, -1, np.append(new_R, -1)[found_QL])
        proposed_QF = np.concatenate([before_QL[old], fresh_QL], axis=1)
        rows_QL[old], similarity_QL[old] = best_of(queries_QD[old], vectors_MD, proposed_QF, count)
    if len(lost):
        rows_QL[lost], similarity_QL[lost] = nearest(queries_QD[lost], vectors_MD, count, device)
    return rows_QL, similarity_QL
