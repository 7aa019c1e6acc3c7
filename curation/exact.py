"""Inner products that come out the same on every machine, in every block and in every order."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

HALF_BITS = 24  # every float16 is a multiple of 2⁻²⁴, the least of them above zero


def fixed_point(vectors: NDArray[np.floating[Any]], bits: int) -> NDArray[np.float64]:
    """Vectors rounded to multiples of 2⁻ᵇⁱᵗˢ, as float64.

    An inner product of two such vectors sums multiples of 2⁻²ᵇⁱᵗˢ, and no partial sum of unit vectors
    exceeds 1. With bits ≤ 26 each of them fits the 53 bits of a float64, so nothing is ever rounded and
    the order of summation, which is the library's to choose, cannot show. Example: 24 bits keep float16
    vectors as they are and move a float32 cosine by about 1e-8.
    """
    wide = as_float32(vectors).astype(np.float64)
    if vectors.dtype == np.float16 and bits >= HALF_BITS:
        return wide
    return np.rint(wide * 2.0**bits) * 2.0**-bits


def as_float32(vectors: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """The same numbers; torch widens half precision some ten times faster than numpy does."""
    plain = np.require(vectors, requirements=["C", "W", "E"])  # torch warns of memory it must not write
    widened: NDArray[np.float32] = torch.from_numpy(plain).float().numpy()
    return widened
