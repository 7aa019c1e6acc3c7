"""Rows of unequal length in two flat arrays (compressed sparse rows)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Ragged:
    """``N`` rows: row ``n`` is ``values[offsets[n]:offsets[n + 1]]``.

    Attributes:
        offsets: int64 ``[N + 1]``, from 0 to ``len(values)``, never falling.
        values: ``[A]``.
    """

    offsets: NDArray[np.int64]
    values: NDArray[Any]

    def __post_init__(self) -> None:
        if len(self.offsets) == 0 or self.offsets[0] != 0 or self.offsets[-1] != len(self.values):
            raise ValueError(
                f"offsets {self.offsets[:1]}…{self.offsets[-1:]} do not span {len(self.values)} values; "
                "they start at 0 and end at the number of values"
            )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[Any]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Values per row, ``[N]``."""
        return np.diff(self.offsets)

    @property
    def row_of(self) -> NDArray[np.int64]:
        """The row each value belongs to, ``[A]``."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, rows: NDArray[np.int64]) -> "Ragged":
        """The given rows, in the given order; a negative row is an empty one."""
        rows = np.asarray(rows)
        lengths = np.where(rows < 0, 0, self.offsets[rows + 1] - self.offsets[rows])
        offsets = offsets_of(lengths)
        shift = np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Ragged(offsets, self.values[np.arange(offsets[-1]) + shift])


def ragged(rows: Iterable[Sequence[Any]], dtype: DTypeLike) -> Ragged:
    """Ragged of Python sequences."""
    arrays = [np.asarray(row, dtype) for row in rows]
    values = np.concatenate(arrays) if arrays else np.empty(0, dtype)
    return Ragged(offsets_of(np.array([len(array) for array in arrays], np.int64)), values)


def offsets_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where rows of these lengths begin, and where the last one ends: ``[N + 1]``."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def reduced(
    operation: np.ufunc, values_A: NDArray[T], offsets: NDArray[np.int64], empty: float = 0
) -> NDArray[T]:
    """One number per row, ``[N]``: the operation over its values, ``empty`` where it has none.

    ``ufunc.reduceat`` alone returns a neighbouring row's value for an empty row.
    """
    result = np.full(len(offsets) - 1, empty, values_A.dtype)
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):
        result[filled] = operation.reduceat(values_A, offsets[filled])
    return result
