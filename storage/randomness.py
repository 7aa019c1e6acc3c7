"""Random numbers as a hash of (stream, counter): no state, so no order, worker or batch can change them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def uniforms(streams: NDArray[np.uint64], counters: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Numbers in (0, 1), of the two arrays' broadcast shape: splitmix64 (Steele et al., OOPSLA 2014).

    Args:
        streams: seeds, such as hashes of a run's seed and a sample's id.
        counters: place of each number in its stream, from 0.
    """
    z = streams + np.uint64(0x9E3779B97F4A7C15) * (counters.astype(np.uint64) + np.uint64(1))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    numbers: NDArray[np.float64] = ((z ^ (z >> np.uint64(31))) >> np.uint64(12)) * 2.0**-52 + 2.0**-53
    return numbers
