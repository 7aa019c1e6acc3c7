"""An inverted file: the corpus in cells around centroids, and only the nearest cells are searched.

Queries come by the thousand, so the work goes cell by cell: all queries that probe a cell meet its rows in
one matrix product. Vectors stay where they are, on disk, in the order of the corpus.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from curation.exact import as_float32
from curation.largest import keep_largest, merge_slots, room
from curation.ragged import Ragged, offsets_of
from curation.threads import each_alone

QUERIES = 1 << 17  # searched at a time: the more, the larger the products
KEPT = 1 << 23  # neighbours that are kept at a time, so many of each probed cell
CHUNK = 2048  # rows that meet all centroids at once
PAIRS = 4096  # of queries and probed cells that are one thread's work
SAMPLE = 40  # rows per cell to learn centroids from
STEPS = 6  # of k-means: cells need to be even, not optimal
Cell = tuple[int, NDArray[np.int64]]  # with the probes of it, numbered through all queries


@dataclass(frozen=True, eq=False)
class InvertedFile:
    """Centroids float32 ``[K, D]`` of unit length, and the rows nearest to each, ascending."""

    centroids_KD: NDArray[np.float32]
    cells: Ragged

    def search(
        self, queries_QD: NDArray[np.floating[Any]], vectors_MD: NDArray[Any], count: int, probes: int
    ) -> NDArray[np.int64]:
        """Rows ``[Q, count]`` of great inner product, in any order; -1 where the cells held fewer."""
        found = [np.empty((0, count), np.int64)]
        step = min(QUERIES, max(KEPT // (probes * count), 1))
        for start in range(0, len(queries_QD), step):
            queries = as_float32(queries_QD[start : start + step])
            probed_QP = np.concatenate(list(each_alone(self._nearest(probes), _chunks(queries, CHUNK // 4))))
            found.append(self._scan(queries, probed_QP, vectors_MD, count))
        return np.concatenate(found)

    def _scan(
        self,
        queries_QD: NDArray[np.float32],
        probed_QP: NDArray[np.int64],
        vectors_MD: NDArray[Any],
        count: int,
    ) -> NDArray[np.int64]:
        """The rows with the greatest products of each query with all rows of its cells."""
        best_SC, row_SC = room(probed_QP.size, count)
        queries = torch.from_numpy(queries_QD)

        def scan(batch: list[Cell]) -> None:
            for cell, slot_N in batch:
                row_R = self.cells[cell]
                rows = torch.from_numpy(as_float32(vectors_MD[row_R]))
                asked = queries.index_select(0, torch.from_numpy(slot_N // probed_QP.shape[1]))
                keep_largest((asked @ rows.T).numpy(), row_R, slot_N, best_SC, row_SC)

        for _ in each_alone(scan, _work(probed_QP, self.cells.lengths)):
            pass
        row_QPC = row_SC.reshape(*probed_QP.shape, count)
        merge_slots(best_SC.reshape(row_QPC.shape), row_QPC)
        return row_QPC[:, 0]

    def _nearest(self, probes: int) -> Any:
        centroids, cells = torch.from_numpy(self.centroids_KD), np.arange(len(self.centroids_KD))

        def nearest(part_QD: NDArray[np.float32]) -> NDArray[np.int64]:
            best_QP, cell_QP = room(len(part_QD), probes)
            products = (torch.from_numpy(part_QD) @ centroids.T).numpy()
            keep_largest(products, cells, np.arange(len(part_QD)), best_QP, cell_QP)
            return cell_QP

        return nearest


def _chunks(vectors_ND: NDArray[Any], rows: int) -> Iterator[NDArray[np.float32]]:
    return (as_float32(vectors_ND[start : start + rows]) for start in range(0, len(vectors_ND), rows))


def _work(probed_QP: NDArray[np.int64], sizes_K: NDArray[np.int64]) -> Iterator[list[Cell]]:
    """Cells that are probed, each with the numbers of the probes, in batches."""
    flat = probed_QP.ravel()
    order = np.argsort(flat, kind="stable")
    cells, starts = np.unique(flat[order], return_index=True)
    batch: list[Cell] = []
    pairs = 0
    for cell, probes_N in zip(cells.tolist(), np.split(order, starts[1:]), strict=True):
        if sizes_K[cell]:
            batch.append((cell, probes_N))
            pairs += len(probes_N)
        if pairs >= PAIRS:
            yield batch
            batch, pairs = [], 0
    if batch:
        yield batch


def build_inverted_file(
    vectors_MD: NDArray[np.floating[Any]], cells: int, memory_bytes: float, seed: int
) -> InvertedFile:
    """Learns centroids by spherical k-means on a sample, then puts every row into its cell.

    Each chunk of rows is one thread's, and sums are added up in the order of the chunks: the result does
    not depend on the number of threads.

    Args:
        vectors_MD: unit length, may be a memory map.
        cells: K, at most M.
        memory_bytes: of the sample at most.
        seed: of the sample and of the first centroids.
    """
    rng = np.random.default_rng(seed)
    rows, width = vectors_MD.shape
    sample = max(cells, min(rows, SAMPLE * cells, int(memory_bytes // (8 * width))))  # 4 bytes, and a copy
    sample_SD = as_float32(vectors_MD[np.sort(rng.choice(rows, sample, replace=False))])
    centroids_KD = sample_SD[np.sort(rng.choice(sample, cells, replace=False))]
    for _ in range(STEPS):
        centroids_KD = _moved(sample_SD, centroids_KD)
    cell_M = np.concatenate(list(each_alone(_assigner(centroids_KD), _chunks(vectors_MD, CHUNK))))
    order = np.argsort(cell_M, kind="stable")
    return InvertedFile(centroids_KD, Ragged(offsets_of(np.bincount(cell_M, minlength=cells)), order))


def _moved(sample_SD: NDArray[np.float32], centroids_KD: NDArray[np.float32]) -> NDArray[np.float32]:
    """The unit means of the rows nearest to each centroid; one that has no row stays where it is."""
    cell_S = np.concatenate(list(each_alone(_assigner(centroids_KD), _chunks(sample_SD, CHUNK))))
    order = np.argsort(cell_S, kind="stable")
    filled, starts = np.unique(cell_S[order], return_index=True)
    ends = [*starts[1:], len(order)]
    moved_KD = centroids_KD.copy()
    for cell, start, end in zip(filled, starts, ends, strict=True):
        mean_D = sample_SD[order[start:end]].mean(axis=0)
        moved_KD[cell] = mean_D / max(float(np.linalg.norm(mean_D)), 1e-12)
    return moved_KD


def _assigner(centroids_KD: NDArray[np.float32]) -> Any:
    centroids = torch.from_numpy(centroids_KD)
    return lambda part: (torch.from_numpy(part) @ centroids.T).argmax(dim=1).numpy()
