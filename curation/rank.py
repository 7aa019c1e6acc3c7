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
import torch
from numpy.typing import NDArray

from curation.exact import as_float32
from curation.expand import Candidates
from curation.ragged import Ragged, offsets_of, reduced
from curation.threads import each_alone

EPSILON = 1e-3  # cosine; CLIP's lie at 0.1 to 0.3, far above
BLOCK = 64  # images whose vectors stay in the processor's cache


@dataclass(frozen=True, eq=False)
class Scores:
    """One number per candidate, float32 ``[A]`` each, and how many similarities were raised to ε."""

    anchor_similarity: NDArray[np.float32]
    local: NDArray[np.float32]
    global_: NDArray[np.float32]
    score: NDArray[np.float32]
    clamped: int  # of the A anchor similarities and the donor similarities


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
    clamped = int((raw_A < epsilon).sum() + (raw_P < epsilon).sum())
    return Scores(
        anchor_similarity=s_A.astype(np.float32),
        local=local_A.astype(np.float32),
        global_=global_A.astype(np.float32),
        score=(local_A + global_A + support * donors.lengths - novelty * own_A).astype(np.float32),
        clamped=clamped,
    )


def _similarities(
    candidates: Candidates,
    anchor_rows_N: NDArray[np.int64],
    image_vectors_MD: NDArray[np.floating[Any]],
    concept_vectors_CD: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """t_c · v_i of every candidate, ``[A]``, and t_c · v_j of all their donors, ``[P]``.

    One product an image: its candidates with the anchor and the donors. Images with about as many candidates
    are multiplied together, each batch by one thread.
    """
    donors, sizes_N = candidates.donors, np.diff(candidates.offsets)
    donors_A = donors.lengths
    image_A = np.repeat(np.arange(len(sizes_N)), sizes_N)
    image_P = np.repeat(image_A, donors_A)
    rows, place_P = _rows_of_images(image_P, donors.values, anchor_rows_N)
    inside_A = np.arange(len(image_A)) - candidates.offsets[image_A]
    raw_A, raw_P = np.empty(len(donors)), np.empty(len(donors.values))
    concepts, pair_starts = (
        torch.from_numpy(as_float32(concept_vectors_CD)),
        donors.offsets[candidates.offsets],
    )
    candidates_of = Ragged(candidates.offsets, np.arange(len(raw_A)))
    pairs_of, pairs_N = Ragged(pair_starts, np.arange(len(raw_P))), np.diff(pair_starts)

    def multiply(images_B: NDArray[np.int64]) -> None:
        concept_BC = torch.from_numpy(_padded(candidates.concept_A, candidates.offsets, images_B))
        concepts_BCD = concepts.index_select(0, concept_BC.flatten()).reshape(*concept_BC.shape, -1)
        row_BR = _padded(rows.values, rows.offsets, images_B)
        images_BRD = torch.from_numpy(as_float32(image_vectors_MD[row_BR]))
        products_BRC = torch.bmm(images_BRD, concepts_BCD.transpose(1, 2)).numpy()
        numbers_B = np.arange(len(images_B))
        own_A, own_P = candidates_of.take(images_B).values, pairs_of.take(images_B).values
        raw_A[own_A] = products_BRC[np.repeat(numbers_B, sizes_N[images_B]), 0, inside_A[own_A]]
        inside_P = np.repeat(inside_A[own_A], donors_A[own_A])
        raw_P[own_P] = products_BRC[np.repeat(numbers_B, pairs_N[images_B]), place_P[own_P], inside_P]

    order_N = np.argsort(sizes_N, kind="stable")
    order_N = order_N[sizes_N[order_N] > 0]
    for _ in each_alone(multiply, (order_N[i : i + BLOCK] for i in range(0, len(order_N), BLOCK))):
        pass
    return raw_A, raw_P


def _rows_of_images(
    image_P: NDArray[np.int64], row_P: NDArray[np.int64], anchor_rows_N: NDArray[np.int64]
) -> tuple[Ragged, NDArray[np.int64]]:
    """For each image its anchor and then its different donors; and the place of every donor among them."""
    span = int(row_P.max(initial=0)) + 1
    keys, place_P = np.unique(image_P * span + row_P, return_inverse=True)
    image_K, row_K = np.divmod(keys, span)
    counts_N = np.bincount(image_K, minlength=len(anchor_rows_N))
    offsets = offsets_of(counts_N + 1)
    values = np.empty(offsets[-1], np.int64)
    values[offsets[:-1]] = anchor_rows_N
    at_K = np.arange(len(keys)) + image_K + 1  # each image before it has added its anchor
    values[at_K] = row_K
    return Ragged(offsets, values), at_K[place_P] - offsets[image_P]


def _padded(
    values: NDArray[Any], offsets: NDArray[np.int64], images_B: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The values of some rows side by side; a row that has fewer repeats its first."""
    lengths_B = offsets[images_B + 1] - offsets[images_B]
    places = np.arange(lengths_B.max(initial=0))
    inside_BL = np.where(places < lengths_B[:, None], places, 0)
    return np.asarray(values[offsets[images_B][:, None] + inside_BL], np.int64)
