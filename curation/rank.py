"""Text-to-vision-guided ranking: how well a candidate fits its image, against where it came from.

    s(c, j)   = max(t_c · v_j, ε)
    local(c)  = s(c, i) / mean of s(c, j) over j in R_c ⊎ {i}
    global(c) = s(c, i) / max of s(c', j) over c' in A_i and j in R_c' ⊎ {i}
    score(c)  = local(c) + global(c) + support · |R_c| - novelty · [i in R_c]

after Xing et al., *Rewrite Caption Semantics*, NeurIPS 2023, who have only the first two terms. ⊎: the
anchor is counted once more, even if it is a donor. The floor ε keeps local(c) ≤ |R_c| + 1 and
global(c) ≤ 1 for encoders with cosines near zero. Where such an encoder tells concepts apart badly, how
many neighbours name one says more, and support lets it count. Where archives are used beside captions,
novelty puts what the image's own caption names behind what it leaves out.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from curation.exact import as_float32
from curation.expand import Candidates
from curation.ragged import reduced
from curation.threads import side_by_side

EPSILON = 1e-3  # cosine; CLIP's lie at 0.1 to 0.3, far above
BLOCK = 64  # images whose vectors stay in the processor's cache


@dataclass(frozen=True, eq=False)
class Scores:
    """One number per candidate, float32 ``[A]`` each."""

    anchor_similarity: NDArray[np.float32]
    local: NDArray[np.float32]
    global_: NDArray[np.float32]
    score: NDArray[np.float32]


def rank(
    candidates: Candidates,
    anchor_rows_N: NDArray[np.int64],
    image_vectors_MD: NDArray[np.floating[Any]],
    concept_vectors_CD: NDArray[np.float32],
    epsilon: float = EPSILON,
    support: float = 0.0,
    novelty: float = 0.0,
) -> Scores:
    """Scores every candidate of every image.

    Args:
        candidates: of ``N`` images.
        anchor_rows_N: the row of each image itself in ``image_vectors_MD``.
        image_vectors_MD: unit length, float16 or float32, may be a memory map: only rows in use are read.
        concept_vectors_CD: unit length, float32, a row per concept id.
        epsilon: floor of the similarities, above 0.
        support: added to the score for each neighbour that names the concept.
        novelty: taken from the score of a concept that the image itself names.

    Raises:
        ValueError: if epsilon is not above 0, or there is not one anchor per image.
    """
    if epsilon <= 0:
        raise ValueError(f"epsilon is {epsilon}; similarities need a floor above 0, such as {EPSILON}")
    if len(anchor_rows_N) != len(candidates):
        raise ValueError(f"{len(anchor_rows_N)} anchors for {len(candidates)} images; give one row per image")
    donors = candidates.donors
    sizes = np.diff(candidates.offsets)
    anchor_of_A = np.repeat(anchor_rows_N, sizes)
    raw_A, raw_P = _similarities(candidates, anchor_rows_N, image_vectors_MD, concept_vectors_CD)
    s_A, s_P = np.maximum(raw_A, epsilon), np.maximum(raw_P, epsilon)
    mean_A = (reduced(np.add, s_P, donors.offsets) + s_A) / (donors.lengths + 1)
    best_A = np.maximum(reduced(np.maximum, s_P, donors.offsets), s_A)
    best_N = reduced(np.maximum, best_A, candidates.offsets)
    local_A = s_A / mean_A
    global_A = s_A / np.repeat(best_N, sizes)
    own_A = reduced(np.add, (donors.values == np.repeat(anchor_of_A, donors.lengths)) * 1.0, donors.offsets)
    return Scores(
        anchor_similarity=s_A.astype(np.float32),
        local=local_A.astype(np.float32),
        global_=global_A.astype(np.float32),
        score=(local_A + global_A + support * donors.lengths - novelty * own_A).astype(np.float32),
    )


def _similarities(
    candidates: Candidates,
    anchor_rows_N: NDArray[np.int64],
    image_vectors_MD: NDArray[np.floating[Any]],
    concept_vectors_CD: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """t_c · v_i of every candidate, ``[A]``, and t_c · v_j of all their donors, ``[P]``."""
    concepts_CD, donors = as_float32(concept_vectors_CD), candidates.donors
    raw_A, raw_P = np.empty(len(donors)), np.empty(len(donors.values))

    def multiply(first: int) -> None:
        offsets, anchors_B = (
            candidates.offsets[first : first + BLOCK + 1],
            anchor_rows_N[first : first + BLOCK],
        )
        pairs = slice(donors.offsets[offsets[0]], donors.offsets[offsets[-1]])
        rows, place = np.unique(np.append(anchors_B, donors.values[pairs]), return_inverse=True)
        anchor_B, donor_P = place[: len(anchors_B)], place[len(anchors_B) :]
        images_RD = as_float32(image_vectors_MD[rows])
        concept_A = candidates.concept_A[offsets[0] : offsets[-1]]
        donor_offsets = donors.offsets[offsets[0] : offsets[-1] + 1] - pairs.start
        anchor_A = np.repeat(anchor_B, np.diff(offsets))
        found = raw_A[offsets[0] : offsets[-1]], raw_P[pairs]
        _multiply(concept_A, anchor_A, donor_offsets, donor_P, images_RD, concepts_CD, *found)

    side_by_side(multiply, range(0, len(candidates), BLOCK))
    return raw_A, raw_P


@njit(nogil=True, cache=True)
def _multiply(
    concept_A: NDArray[np.int32],
    anchor_A: NDArray[np.int64],
    donor_offsets: NDArray[np.int64],
    donor_P: NDArray[np.int64],
    images_RD: NDArray[np.float32],
    concepts_CD: NDArray[np.float32],
    raw_A: NDArray[np.float64],
    raw_P: NDArray[np.float64],
) -> None:
    """Fills in the products of each candidate with its anchor and its donors, rows of ``images_RD``."""
    for candidate, anchor in enumerate(anchor_A):
        concept_D = concepts_CD[concept_A[candidate]]
        raw_A[candidate] = _product(concept_D, images_RD[anchor])
        for pair in range(donor_offsets[candidate], donor_offsets[candidate + 1]):
            raw_P[pair] = _product(concept_D, images_RD[donor_P[pair]])


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _product(one_D: NDArray[np.float32], other_D: NDArray[np.float32]) -> float:
    """An inner product, summed in an order that depends on the number of dimensions alone."""
    product = np.float32(0)
    for place in range(len(one_D)):
        product += one_D[place] * other_D[place]
    return float(product)
