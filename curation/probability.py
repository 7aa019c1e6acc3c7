"""How likely a single draw is to pick a candidate: first a cluster, then a concept in it.

P(cluster) is the softmax of the clusters' mean scores, P(c | cluster) the softmax of the scores inside it
(Xing et al., *Rewrite Caption Semantics*, 2023), both at a temperature; 1 is the paper's.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.ragged import offsets_of, reduced


def probability(
    offsets: NDArray[np.int64],
    score_A: NDArray[np.floating[Any]],
    labels_A: NDArray[np.integer[Any]],
    temperature: float = 1.0,
) -> NDArray[np.float32]:
    """Marginal of one draw, float32 ``[A]``; sums to 1 over each image that has candidates.

    Args:
        offsets: of the images in ``score_A``, ``[N + 1]``.
        score_A: of the candidates.
        labels_A: cluster of each candidate within its image, candidates in any order.
        temperature: in units of the score; lower ones prefer high scores more.

    Raises:
        ValueError: if the temperature is not above 0.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; a softmax needs one above 0 (1 is the paper's)")
    image_A = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((labels_A, image_A))
    image, label, logit = image_A[order], labels_A[order], score_A[order].astype(np.float64) / temperature
    first = np.flatnonzero((np.diff(image, prepend=-1) != 0) | (np.diff(label, prepend=-1) != 0))
    members = np.append(first, len(order))
    clusters = offsets_of(np.bincount(image[first], minlength=len(offsets) - 1))
    mean = reduced(np.add, logit, members) / np.diff(members)
    joint = _softmax(logit, members) * np.repeat(_softmax(mean, clusters), np.diff(members))
    result = np.empty(len(order), np.float32)
    result[order] = joint
    return result


def _softmax(logit_A: NDArray[np.float64], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Within each row of ``logit_A``."""
    lengths = np.diff(offsets)
    weight_A: NDArray[np.float64] = np.exp(
        logit_A - np.repeat(reduced(np.maximum, logit_A, offsets), lengths)
    )
    total_N = reduced(np.add, weight_A, offsets)
    return weight_A / np.repeat(total_N, lengths)
