"""Vision-driven expansion: an image's candidates are what the captions of its nearest images name."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from curation.exact import as_float32, fixed_point
from curation.largest import keep_largest, room
from curation.ragged import Ragged, offsets_of
from curation.threads import each_alone, side_by_side

SPARE = 8  # rows fetched beyond the wanted ones, so that float64 has a choice among near ties
BITS = 24  # of the exact products that decide
ERROR = 4e-6  # cosine; float32 products of unit vectors err by less, up to some thousand dimensions
ORDERED = 32  # queries whose rows are in float64 at a time
UNSURE = 128  # queries that are compared with all rows in float64 at a time
QUERIES, ROWS = 1024, 32_768  # a block of float32 similarities takes 128 MiB of a GPU
ASKED, MET = 1024, 4096  # a thread's block takes 16 MiB; much smaller products run at half the rate


@dataclass(frozen=True, eq=False)
class Candidates:
    """``N`` images with ``A`` candidates in all.

    Attributes:
        offsets: int64 ``[N + 1]``; image ``n`` has candidates ``offsets[n]`` to ``offsets[n + 1]``.
        concept_A: int32 concept ids, ascending within an image.
        donors: for each candidate the neighbours whose captions name it, int64 rows, nearest first.
    """

    offsets: NDArray[np.int64]
    concept_A: NDArray[np.int32]
    donors: Ragged

    def __len__(self) -> int:
        return len(self.offsets) - 1


def pool(neighbour_rows_NL: NDArray[np.int64], mentions: Ragged) -> Candidates:
    """A_i: the union of E_j over the neighbours j of image i, with R_c: the neighbours that name c.

    Args:
        neighbour_rows_NL: rows of ``mentions``, nearest first, -1 for none.
        mentions: int32 concept ids of each of the ``M`` images; repeats within one image count once.

    Raises:
        ValueError: if a neighbour is not a row of the mentions.
    """
    images, neighbours = neighbour_rows_NL.shape
    if neighbour_rows_NL.size and neighbour_rows_NL.max() >= len(mentions):
        raise ValueError(
            f"neighbour {neighbour_rows_NL.max()} has no mentions: there are {len(mentions)} rows; "
            "search and mentions must be of the same corpus"
        )
    named = mentions.take(neighbour_rows_NL.ravel())
    image, neighbour = np.divmod(named.row_of, neighbours)
    concepts = int(named.values.max(initial=-1)) + 1
    # one sortable number per (image, concept, neighbour): sorting groups donors, nearest first
    keys = (image * concepts + named.values) * neighbours + neighbour
    _sort_rows(keys, named.offsets[:: max(neighbours, 1)])
    keys = keys[np.diff(keys, prepend=-1) != 0]
    candidate, neighbour = np.divmod(keys, neighbours)
    first = np.flatnonzero(np.diff(candidate, prepend=-1))
    image, concept = np.divmod(candidate[first], concepts)
    donors = neighbour_rows_NL[candidate // concepts, neighbour]
    return Candidates(
        offsets=offsets_of(np.bincount(image, minlength=images)),
        concept_A=concept.astype(np.int32),
        donors=Ragged(np.append(first, len(keys)), donors),
    )


@njit(nogil=True, cache=True)
def _sort_rows(values: NDArray[np.int64], offsets: NDArray[np.int64]) -> None:
    """Sorts each row, in place."""
    for row in range(len(offsets) - 1):
        values[offsets[row] : offsets[row + 1]].sort()


def nearest(
    queries_QD: NDArray[np.floating[Any]],
    vectors_MD: NDArray[np.floating[Any]],
    count: int,
    device: str = "cpu",
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The ``count`` rows of greatest inner product, best first, equals by lower row; exact.

    float32 products choose somewhat more rows than wanted; float64 orders them. So the answer depends
    neither on the device nor on the blocks, also where a corpus holds copies of an image. A query whose
    wanted and left-out rows float32 cannot tell apart is searched again in float64.

    Args:
        queries_QD: unit length, float16 or float32; an image in the index finds itself.
        vectors_MD: unit length, float16 or float32, may be a memory map.
        count: ``L``, at least 1.
        device: where torch multiplies.

    Returns:
        int64 rows and float32 similarities ``[Q, L]``, filled with -1 and -inf if ``M < L``.

    Raises:
        ValueError: for widths that differ, or a count below 1.
    """
    _check_search(queries_QD, vectors_MD, count)
    kept = min(count, len(vectors_MD))
    rows_QL, similarity_QL = np.empty((len(queries_QD), 0), np.int64), np.empty((len(queries_QD), 0))
    if kept:
        rows_QL, similarity_QL = _search(queries_QD, vectors_MD, kept, device)
    return _padded(rows_QL, similarity_QL, count)


def best_of(
    queries_QD: NDArray[np.floating[Any]],
    vectors_MD: NDArray[np.floating[Any]],
    proposed_QF: NDArray[np.int64],
    count: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The best ``count`` of the rows proposed for each query, by the same exact order as `nearest`.

    Args:
        queries_QD: unit length, float16 or float32.
        vectors_MD: unit length, float16 or float32, may be a memory map: only proposed rows are read.
        proposed_QF: different rows in any order, -1 for none.
        count: ``L``, at least 1.

    Returns:
        int64 rows and float32 similarities ``[Q, L]``, filled with -1 and -inf.
    """
    rows_QF, similarity_QF = _ordered(queries_QD, vectors_MD, proposed_QF)
    return _padded(rows_QF[:, :count], similarity_QF[:, :count], count)


def _padded(
    rows_QL: NDArray[np.int64], similarity_QL: NDArray[np.float64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    padding = ((0, 0), (0, count - rows_QL.shape[1]))
    return (
        np.pad(rows_QL, padding, constant_values=-1),
        np.pad(similarity_QL.astype(np.float32), padding, constant_values=-np.inf),
    )


def _check_search(
    queries_QD: NDArray[np.floating[Any]], vectors_MD: NDArray[np.floating[Any]], count: int
) -> None:
    if queries_QD.shape[1] != vectors_MD.shape[1]:
        raise ValueError(
            f"queries have {queries_QD.shape[1]} dimensions, the index {vectors_MD.shape[1]}; "
            "embed both with the same encoder"
        )
    if count < 1:
        raise ValueError(f"cannot search for {count} neighbours; ask for at least 1")


def _search(
    queries_QD: NDArray[np.floating[Any]],
    vectors_MD: NDArray[np.floating[Any]],
    count: int,
    device: str,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows and exact similarities ``[Q, count]``, best first; ``count`` is at most ``M``."""
    fetched = min(count + SPARE, len(vectors_MD))
    rows_QF, least_Q = _found(queries_QD, vectors_MD, fetched, device)
    rows_QF, similarity_QF = _ordered(queries_QD, vectors_MD, rows_QF)
    rows_QL, similarity_QL = rows_QF[:, :count], similarity_QF[:, :count]
    left_out = fetched < len(vectors_MD)
    unsure = np.flatnonzero(left_out & (similarity_QL[:, -1] <= least_Q + ERROR))
    for start in range(0, len(unsure), UNSURE):
        part = unsure[start : start + UNSURE]
        found = _search_float64(queries_QD[part], vectors_MD, similarity_QL[part, -1], count)
        rows_QL[part], similarity_QL[part] = found
    return rows_QL, similarity_QL


def _found(
    queries_QD: NDArray[np.floating[Any]], vectors_MD: NDArray[np.floating[Any]], count: int, device: str
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows ``[Q, count]`` in any order, and the least of their float32 similarities ``[Q]``."""
    keep = _keep_here if device == "cpu" else partial(_keep_there, device=device)
    best_QC, row_QC = room(len(queries_QD), count)
    for first in range(0, len(vectors_MD), ROWS):
        block_RD = as_float32(vectors_MD[first : first + ROWS])
        keep(queries_QD, block_RD, first, best_QC, row_QC)
    return row_QC, best_QC[:, -1]


def _keep_here(
    queries_QD: NDArray[np.floating[Any]],
    block_RD: NDArray[np.float32],
    first: int,
    best_QC: NDArray[np.float32],
    row_QC: NDArray[np.int64],
) -> None:
    """Each thread multiplies queries of its own, with some thousand rows at a time."""
    block, row_R = torch.from_numpy(block_RD), np.arange(first, first + len(block_RD))
    step = max(1, min(ASKED, -(-len(queries_QD) // torch.get_num_threads())))

    def multiply(start: int) -> None:
        asked = slice(start, start + step)
        queries, kept = torch.from_numpy(as_float32(queries_QD[asked])), (best_QC[asked], row_QC[asked])
        slots, products = np.arange(len(queries)), torch.empty(len(queries) * MET)  # new memory is slow
        for at in range(0, len(block), MET):
            met = block[at : at + MET]
            found = products[: len(queries) * len(met)].view(len(queries), len(met))
            keep_largest(torch.mm(queries, met.T, out=found).numpy(), row_R[at : at + MET], slots, *kept)

    for _ in each_alone(multiply, range(0, len(queries_QD), step)):
        pass


def _keep_there(
    queries_QD: NDArray[np.floating[Any]],
    block_RD: NDArray[np.float32],
    first: int,
    best_QC: NDArray[np.float32],
    row_QC: NDArray[np.int64],
    device: str,
) -> None:
    """The same on a GPU, which has memory and bandwidth for more."""
    block = torch.from_numpy(block_RD).to(device)
    for start in range(0, len(queries_QD), QUERIES):
        part = slice(start, start + QUERIES)
        queries = torch.from_numpy(as_float32(queries_QD[part])).to(device)
        found = torch.topk(queries @ block.T, min(best_QC.shape[1], len(block)))
        best = np.concatenate([best_QC[part], found.values.cpu().numpy()], axis=1)
        rows = np.concatenate([row_QC[part], found.indices.cpu().numpy() + first], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, : best_QC.shape[1]]
        best_QC[part], row_QC[part] = np.take_along_axis(best, order, 1), np.take_along_axis(rows, order, 1)


def _ordered(
    queries_QD: NDArray[np.floating[Any]], vectors_MD: NDArray[np.floating[Any]], rows_QF: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The same rows, best first by exact inner product, equals by lower row."""
    similarity_QF = np.empty(rows_QF.shape)

    def multiply(start: int) -> None:
        part = slice(start, start + ORDERED)
        proposed, place = np.unique(rows_QF[part], return_inverse=True)
        vectors, queries = vectors_MD[proposed], queries_QD[part]
        wide = as_float32 if {vectors.dtype, queries.dtype} == {np.dtype(np.float16)} else _rounded
        _multiply(wide(queries), wide(vectors), place.reshape(rows_QF[part].shape), similarity_QF[part])

    side_by_side(multiply, range(0, len(rows_QF), ORDERED))
    similarity_QF[rows_QF < 0] = -np.inf
    order = np.lexsort((rows_QF, -similarity_QF))
    return np.take_along_axis(rows_QF, order, 1), np.take_along_axis(similarity_QF, order, 1)


_rounded = partial(fixed_point, bits=BITS)


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _multiply(
    queries_QD: NDArray[Any],
    vectors_RD: NDArray[Any],
    place_QF: NDArray[np.int64],
    similarity_QF: NDArray[Any],
) -> None:
    """Inner products of queries and rows that are multiples of 2⁻²⁴: no order of summation rounds them."""
    for query in range(len(queries_QD)):
        for column in range(place_QF.shape[1]):
            vector_D = vectors_RD[place_QF[query, column]]
            product = 0.0
            for place in range(len(vector_D)):
                product += np.float64(queries_QD[query, place]) * np.float64(vector_D[place])
            similarity_QF[query, column] = product


def _search_float64(
    queries_QD: NDArray[np.floating[Any]],
    vectors_MD: NDArray[np.floating[Any]],
    least_Q: NDArray[np.float64],
    count: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Every row, exactly, of which at least ``count`` are known to reach ``least_Q``."""
    queries_DQ = fixed_point(queries_QD, BITS).T
    found = []
    for first in range(0, len(vectors_MD), ROWS):
        similarity_RQ = fixed_point(vectors_MD[first : first + ROWS], BITS) @ queries_DQ
        row, query = np.nonzero(similarity_RQ >= least_Q)
        found.append((query, row + first, similarity_RQ[row, query]))
    query, row, similarity = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((row, -similarity, query))
    start_Q = np.searchsorted(query[order], np.arange(len(queries_QD)))
    best_QL = order[start_Q[:, None] + np.arange(count)]
    return row[best_QL], similarity[best_QL]
