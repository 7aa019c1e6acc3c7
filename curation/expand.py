"""Vision-driven expansion: an image's candidates are what the captions of its nearest images name."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from curation.exact import as_float32, fixed_point
from curation.ragged import Ragged, offsets_of
from curation.threads import side_by_side

SPARE = 8  # rows fetched beyond the wanted ones, so that float64 has a choice among near ties
BITS = 24  # of the exact products that decide
ERROR = 4e-6  # cosine; float32 products of unit vectors err by less, up to some thousand dimensions
GROUP = 64  # products of which only the greatest is looked at first
ORDERED = 32  # queries whose rows are in float64 at a time
QUERIES, ROWS = 1024, 32_768  # a block of float32 similarities takes 128 MiB

Backend = Literal["torch", "faiss"]


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
    keys = np.unique((image * concepts + named.values) * neighbours + neighbour)
    candidate, neighbour = np.divmod(keys, neighbours)
    first = np.flatnonzero(np.diff(candidate, prepend=-1))
    image, concept = np.divmod(candidate[first], concepts)
    donors = neighbour_rows_NL[candidate // concepts, neighbour]
    return Candidates(
        offsets=offsets_of(np.bincount(image, minlength=images)),
        concept_A=concept.astype(np.int32),
        donors=Ragged(np.append(first, len(keys)), donors),
    )


def nearest(
    queries_QD: NDArray[np.floating[Any]],
    vectors_MD: NDArray[np.floating[Any]],
    count: int,
    backend: Backend = "torch",
    device: str = "cpu",
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The ``count`` rows of greatest inner product, best first, equals by lower row; exact.

    float32 products choose somewhat more rows than wanted; float64 orders them. So the answer depends
    neither on the backend nor on the blocks, also where a corpus holds copies of an image. A query whose
    wanted and left-out rows float32 cannot tell apart is searched again in float64.

    Args:
        queries_QD: unit length, float16 or float32; an image in the index finds itself.
        vectors_MD: unit length, float16 or float32, may be a memory map.
        count: ``L``, at least 1.
        backend: "torch" (any device) or "faiss" (processor only).
        device: where "torch" multiplies.

    Returns:
        int64 rows and float32 similarities ``[Q, L]``, filled with -1 and -inf if ``M < L``.

    Raises:
        ValueError: for widths that differ, a count below 1 or an unknown backend.
    """
    _check_search(queries_QD, vectors_MD, count, backend)
    kept = min(count, len(vectors_MD))
    rows_QL, similarity_QL = np.empty((len(queries_QD), 0), np.int64), np.empty((len(queries_QD), 0))
    if kept:
        rows_QL, similarity_QL = _search(queries_QD, vectors_MD, kept, backend, device)
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
    queries_QD: NDArray[np.floating[Any]], vectors_MD: NDArray[np.floating[Any]], count: int, backend: str
) -> None:
    if queries_QD.shape[1] != vectors_MD.shape[1]:
        raise ValueError(
            f"queries have {queries_QD.shape[1]} dimensions, the index {vectors_MD.shape[1]}; "
            "embed both with the same encoder"
        )
    if count < 1:
        raise ValueError(f"cannot search for {count} neighbours; ask for at least 1")
    if backend not in get_args(Backend):
        raise ValueError(f"unknown backend '{backend}'; choose one of {', '.join(get_args(Backend))}")


def _search(
    queries_QD: NDArray[np.floating[Any]],
    vectors_MD: NDArray[np.floating[Any]],
    count: int,
    backend: str,
    device: str,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows and exact similarities ``[Q, count]``, best first; ``count`` is at most ``M``."""
    fetched = min(count + SPARE, len(vectors_MD))
    if backend == "faiss":
        rows_QF, least_Q = _search_faiss(queries_QD, vectors_MD, fetched)
    else:
        rows_QF, least_Q = _search_torch(queries_QD, vectors_MD, fetched, device)
    rows_QF, similarity_QF = _ordered(queries_QD, vectors_MD, rows_QF)
    rows_QL, similarity_QL = rows_QF[:, :count], similarity_QF[:, :count]
    left_out = fetched < len(vectors_MD)
    unsure = np.flatnonzero(left_out & (similarity_QL[:, -1] <= least_Q + ERROR))
    for start in range(0, len(unsure), QUERIES // 8):
        part = unsure[start : start + QUERIES // 8]
        found = _search_float64(queries_QD[part], vectors_MD, similarity_QL[part, -1], count)
        rows_QL[part], similarity_QL[part] = found
    return rows_QL, similarity_QL


def _search_torch(
    queries_QD: NDArray[np.floating[Any]], vectors_MD: NDArray[np.floating[Any]], count: int, device: str
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows ``[Q, count]`` in any order, and the least of their float32 similarities ``[Q]``."""
    best = torch.full((len(queries_QD), count), -torch.inf)
    rows = torch.zeros(best.shape, dtype=torch.int64)
    room = torch.empty(min(QUERIES, len(queries_QD)) * min(ROWS, len(vectors_MD)), device=device)
    for first in range(0, len(vectors_MD), ROWS):
        block = torch.from_numpy(as_float32(vectors_MD[first : first + ROWS])).to(device)
        for start in range(0, len(queries_QD), QUERIES):
            part = slice(start, start + QUERIES)
            queries = torch.from_numpy(as_float32(queries_QD[part])).to(device)
            products = room[: len(queries) * len(block)].view(len(queries), len(block))  # new memory is slow
            found, column = _largest(torch.mm(queries, block.T, out=products), min(count, len(block)))
            both = torch.cat([best[part], found.cpu()], dim=1)
            best[part], place = torch.topk(both, count)
            rows[part] = torch.cat([rows[part], column.cpu() + first], dim=1).gather(1, place)
    return rows.numpy(), best.amin(dim=1).numpy()


def _largest(products_QR: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`torch.topk`, faster for long rows: the greatest lie in the groups whose maxima are the greatest."""
    queries, rows = products_QR.shape
    groups = rows // GROUP
    if groups < 2 * count or rows % GROUP:
        best = torch.topk(products_QR, count)
        return best.values, best.indices
    grouped_QGW = products_QR.view(queries, groups, GROUP)
    group_QC = torch.topk(grouped_QGW.amax(dim=2), count).indices
    wide_QCW = grouped_QGW.gather(1, group_QC[:, :, None].expand(-1, -1, GROUP))
    best = torch.topk(wide_QCW.flatten(1), count)
    group = group_QC.gather(1, best.indices // GROUP)
    return best.values, group * GROUP + best.indices % GROUP


def _search_faiss(
    queries_QD: NDArray[np.floating[Any]], vectors_MD: NDArray[np.floating[Any]], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows ``[Q, count]`` in any order, and the least of their float32 similarities ``[Q]``."""
    import faiss  # noqa: PLC0415 - absent on machines that search with torch

    queries_QD = as_float32(queries_QD)
    best_QC = np.full((len(queries_QD), count), -np.inf, np.float32)
    rows_QC = np.zeros(best_QC.shape, np.int64)
    for first in range(0, len(vectors_MD), ROWS):
        block = as_float32(vectors_MD[first : first + ROWS])
        found, column = faiss.knn(queries_QD, block, min(count, len(block)), faiss.METRIC_INNER_PRODUCT)
        both = np.concatenate([best_QC, found], axis=1)
        place = np.argpartition(-both, count - 1, axis=1)[:, :count]
        best_QC = np.take_along_axis(both, place, 1)
        rows_QC = np.take_along_axis(np.concatenate([rows_QC, column + first], axis=1), place, 1)
    return rows_QC, best_QC.min(axis=1)


def _ordered(
    queries_QD: NDArray[np.floating[Any]], vectors_MD: NDArray[np.floating[Any]], rows_QF: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The same rows, best first by exact inner product, equals by lower row."""
    similarity_QF = np.empty(rows_QF.shape)

    def multiply(start: int) -> None:
        part = slice(start, start + ORDERED)
        queries = fixed_point(queries_QD[part], BITS)
        similarity_QF[part] = np.vecdot(fixed_point(vectors_MD[rows_QF[part]], BITS), queries[:, None])

    side_by_side(multiply, range(0, len(rows_QF), ORDERED))
    similarity_QF[rows_QF < 0] = -np.inf
    order = np.lexsort((rows_QF, -similarity_QF))
    return np.take_along_axis(rows_QF, order, 1), np.take_along_axis(similarity_QF, order, 1)


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
