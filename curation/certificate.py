"""How much of the exact answer an approximate search finds: measured, with its uncertainty."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.expand import nearest

Search = Callable[
    [NDArray[np.floating[Any]], int], NDArray[np.int64]
]  # queries [Q, D], count -> rows [Q, count]
CONFIDENCE = 1.96  # standard errors on either side: 95 %


@dataclass(frozen=True)
class Certificate:
    """Recall@L on a sample of the corpus' own vectors, with the ends of its 95 % confidence interval."""

    recall: float
    low: float
    high: float
    queries: int


@dataclass(frozen=True, eq=False)
class Sample:
    """Queries with their exact neighbours, int64 rows ``[Q, L]`` (-1: none)."""

    queries_QD: NDArray[np.floating[Any]]
    rows_QL: NDArray[np.int64]

    def certify(self, search: Search) -> Certificate:
        """Recall of a search: the mean over queries of the share of exact neighbours that it found.

        The interval is the normal approximation over queries (not over neighbours, which come in
        company), with half a neighbour's doubt added so that a sample without a miss is not certain.
        """
        count = self.rows_QL.shape[1]
        found_QL = search(self.queries_QD, count)
        wanted_QL = self.rows_QL >= 0
        hits_QL = wanted_QL & (self.rows_QL[:, :, None] == found_QL[:, None, :]).any(axis=2)
        recall_Q = hits_QL.sum(axis=1) / np.maximum(wanted_QL.sum(axis=1), 1)
        queries = len(recall_Q)
        mean = float(recall_Q.mean())
        reach = CONFIDENCE * float(recall_Q.std()) / queries**0.5 + 0.5 / (queries * count)
        return Certificate(mean, max(0.0, mean - reach), min(1.0, mean + reach), queries)


def draw_sample(
    vectors_MD: NDArray[np.floating[Any]],
    rows: NDArray[np.int64],
    count: int,
    device: str,
) -> Sample:
    """The exact answer for some of the corpus' own rows."""
    queries_QD = np.ascontiguousarray(vectors_MD[rows])
    return Sample(queries_QD, nearest(queries_QD, vectors_MD, count, device)[0])
