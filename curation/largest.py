"""The greatest of many products, kept as the products come."""

import numpy as np
from numba import njit
from numpy.typing import NDArray


def room(slots: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """For each slot ``count`` products, all -inf, and the rows they are of, all -1: ``[S, count]`` each."""
    return np.full((slots, count), -np.inf, np.float32), np.full((slots, count), -1, np.int64)


@njit(nogil=True, cache=True)
def keep_largest(
    products_NR: NDArray[np.float32],
    row_R: NDArray[np.int64],
    slot_N: NDArray[np.int64],
    best_SC: NDArray[np.float32],
    row_SC: NDArray[np.int64],
) -> None:
    """Puts products that are greater than the least of their slot in its place; slots stay sorted, falling.

    Args:
        products_NR: of N queries and R rows.
        row_R: what is kept of a row: its number.
        slot_N: the slot of each query, all different.
        best_SC: the greatest products so far, changed in place.
        row_SC: their rows, changed in place.
    """
    for query, slot in enumerate(slot_N):
        best_C, kept_C = best_SC[slot], row_SC[slot]
        least = best_C[-1]
        for column in range(len(row_R)):
            if products_NR[query, column] > least:
                _insert(best_C, kept_C, products_NR[query, column], row_R[column])
                least = best_C[-1]


@njit(nogil=True, cache=True)
def merge_slots(best_QSC: NDArray[np.float32], row_QSC: NDArray[np.int64]) -> None:
    """Gathers the greatest of all slots of a query in its first one, in place."""
    for query in range(len(best_QSC)):
        best_C, kept_C = best_QSC[query, 0], row_QSC[query, 0]
        for slot in range(1, best_QSC.shape[1]):
            for place in range(len(best_C)):
                if best_QSC[query, slot, place] <= best_C[-1]:
                    break  # the others of the slot are less
                _insert(best_C, kept_C, best_QSC[query, slot, place], row_QSC[query, slot, place])


@njit(nogil=True, cache=True)
def _insert(best_C: NDArray[np.float32], kept_C: NDArray[np.int64], product: float, row: int) -> None:
    """Puts a product in its place among falling ones; the last one falls out."""
    place = len(best_C) - 1
    while place > 0 and best_C[place - 1] < product:
        best_C[place], kept_C[place] = best_C[place - 1], kept_C[place - 1]
        place -= 1
    best_C[place], kept_C[place] = product, row
