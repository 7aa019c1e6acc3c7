"""Clusters of an image's candidates, so that draws can cover different things.

k-means over the text vectors of A_i with k = ⌈|A_i| / 2⌉ (Xing et al., *Rewrite Caption Semantics*, 2023):
k-means++ starts, Lloyd's steps, single moves that still lower the inertia; the best of several starts.

A distance between a point and a mean of points needs their inner products only, so once the Gram matrix
is there nothing depends on the vectors' dimension. Products are of whole numbers, which no order of summation
can change, and an image is solved alone: its labels depend neither on its company nor on the machine.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from curation.exact import as_float32
from curation.threads import side_by_side
from storage.randomness import uniforms

SCALE = 32_767  # of 16-bit vectors: products of two that are about unit length fit 31 bits
BLOCK = 256  # images that are one thread's work
MOST = 1 << 20  # groups of an image, far more than there will ever be: each start has its own random numbers
STEPS = 300  # of Lloyd's iteration; a few are enough for tens of points
GAIN = 1e-9  # a move must lower the inertia by more


@dataclass(frozen=True, eq=False)
class Clusters:
    """Labels int32 ``[A]``, counted from 0 in order of appearance, and inertia float32 ``[N]``."""

    labels: NDArray[np.int32]
    inertia: NDArray[np.float32]


def cluster(
    offsets: NDArray[np.int64],
    concept_A: NDArray[np.int32],
    concept_vectors_CD: NDArray[np.floating[Any]],
    seeds_N: NDArray[np.uint64],
    starts: int = 5,
) -> Clusters:
    """Groups the candidates of each image; images with fewer than three have one cluster.

    Args:
        offsets: of the images in ``concept_A``, ``[N + 1]``.
        concept_A: concept ids.
        concept_vectors_CD: unit length, a row per concept id.
        seeds_N: a hash of the run's seed and the image's id each.
        starts: runs of k-means per image, of which the best is kept.

    Raises:
        ValueError: if there is not one seed per image, or no start.
    """
    sizes = np.diff(offsets)
    if len(seeds_N) != len(sizes) or starts < 1:
        raise ValueError(
            f"{len(seeds_N)} seeds for {len(sizes)} images and {starts} starts; "
            "give one seed per image and at least 1 start"
        )
    used, row_A = np.unique(concept_A, return_inverse=True)
    vectors_UD = np.rint(as_float32(concept_vectors_CD[used]) * SCALE).astype(np.int16)
    labels_A, inertia_N = np.zeros(len(concept_A), np.int32), np.zeros(len(sizes), np.float32)

    def solve(first: int) -> None:
        part = slice(first, first + BLOCK)
        draws_SK = MOST * np.arange(starts)[:, None] + np.arange(_groups(int(sizes[part].max())))
        chance_BSK = uniforms(seeds_N[part, None, None], draws_SK)
        _solve(offsets[first : first + BLOCK + 1], row_A, vectors_UD, chance_BSK, labels_A, inertia_N[part])

    side_by_side(solve, range(0, len(sizes), BLOCK))
    return Clusters(labels_A, inertia_N)


@njit(nogil=True, cache=True)
def _groups(points: int) -> int:
    return (points + 1) // 2 if points > 2 else 1


@njit(nogil=True, cache=True)
def _solve(
    offsets: NDArray[np.int64],
    row_A: NDArray[np.int64],
    vectors_UD: NDArray[np.int16],
    chance_BSK: NDArray[np.float64],
    labels_A: NDArray[np.int32],
    inertia_B: NDArray[np.float32],
) -> None:
    """Writes the labels and the inertia of each image of a block."""
    for image in range(len(inertia_B)):
        first, end = offsets[image], offsets[image + 1]
        if end > first:
            gram_PP = _gram(vectors_UD, row_A[first:end])
            labels_P, inertia = _grouped(gram_PP, chance_BSK[image])
            labels_A[first:end] = _numbered(labels_P)
            inertia_B[image] = inertia / SCALE**2


@njit(nogil=True, cache=True)
def _gram(vectors_UD: NDArray[np.int16], rows_P: NDArray[np.int64]) -> NDArray[np.float64]:
    """Inner products ``[P, P]``, whole numbers."""
    points = len(rows_P)
    gram_PP = np.empty((points, points))
    for point in range(points):
        one_D = vectors_UD[rows_P[point]]
        for other in range(point + 1):
            other_D = vectors_UD[rows_P[other]]
            product = np.int32(0)
            for place in range(len(one_D)):
                product = np.int32(product + np.int32(one_D[place]) * np.int32(other_D[place]))
            gram_PP[point, other] = gram_PP[other, point] = product
    return gram_PP


@njit(nogil=True, cache=True)
def _grouped(gram_PP: NDArray[np.float64], chance_SK: NDArray[np.float64]) -> tuple[NDArray[np.int64], float]:
    """Labels ``[P]`` and inertia of one image."""
    groups = _groups(len(gram_PP))
    best_P, least = np.zeros(len(gram_PP), np.int64), np.inf
    for start in range(len(chance_SK)):
        labels_P = _seeded(gram_PP, groups, chance_SK[start])
        sums_PK, size_K, square_K = _settled(gram_PP, labels_P, groups)
        _refine(gram_PP, labels_P, sums_PK, size_K, square_K)
        inertia = _inertia(gram_PP, size_K, square_K)
        if inertia < least:
            best_P, least = labels_P, inertia
    return best_P, least


@njit(nogil=True, cache=True)
def _seeded(gram_PP: NDArray[np.float64], groups: int, chance_K: NDArray[np.float64]) -> NDArray[np.int64]:
    """k-means++: every next centre is a point drawn by its squared distance from those before.

    Returns the number of the nearest centre of every point, ``[P]``.
    """
    points = len(gram_PP)
    labels_P, closest_P = np.zeros(points, np.int64), np.full(points, np.inf)
    for group in range(groups):
        drawn = int(chance_K[0] * points) if group == 0 else _drawn(closest_P, chance_K[group])
        for point in range(points):
            offered = gram_PP[point, point] + gram_PP[drawn, drawn] - 2 * gram_PP[drawn, point]
            if offered < closest_P[point]:
                closest_P[point], labels_P[point] = offered, group
    return labels_P


@njit(nogil=True, cache=True)
def _drawn(weight_P: NDArray[np.float64], chance: float) -> int:
    """A point, drawn in proportion to its weight; the last one if all weigh nothing."""
    aim, reach = chance * weight_P.sum(), 0.0
    for point in range(len(weight_P)):
        reach += weight_P[point]
        if reach > aim:
            return point
    return len(weight_P) - 1


@njit(nogil=True, cache=True)
def _settled(
    gram_PP: NDArray[np.float64], labels_P: NDArray[np.int64], groups: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Lloyd's iteration on the labels, in place, until no point changes its group; returns the last sums."""
    sums_PK, size_K, square_K = _sums(gram_PP, labels_P, groups)
    for _ in range(STEPS):
        share_K = 1 / np.maximum(size_K, 1)
        moved = False
        for point in range(len(labels_P)):
            nearest, least = 0, np.inf
            for group in range(groups):
                distance = (square_K[group] * share_K[group] - 2 * sums_PK[point, group]) * share_K[group]
                if distance < least and size_K[group] > 0:
                    nearest, least = group, distance
            moved = moved or nearest != labels_P[point]
            labels_P[point] = nearest
        if not moved:
            break
        sums_PK, size_K, square_K = _sums(gram_PP, labels_P, groups)
    return sums_PK, size_K, square_K


@njit(nogil=True, cache=True)
def _sums(
    gram_PP: NDArray[np.float64], labels_P: NDArray[np.int64], groups: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Groups' sums, by their inner products.

    Returns:
        Inner products of each point with the sum of each group, ``[P, K]``; points per group, ``[K]``; the
        squared length of each group's sum, ``[K]``.
    """
    points = len(labels_P)
    sums_PK, size_K, square_K = np.zeros((points, groups)), np.zeros(groups), np.zeros(groups)
    for point in range(points):
        for other in range(points):
            sums_PK[point, labels_P[other]] += gram_PP[point, other]
        size_K[labels_P[point]] += 1
        square_K[labels_P[point]] += sums_PK[point, labels_P[point]]
    return sums_PK, size_K, square_K


@njit(nogil=True, cache=True)
def _inertia(
    gram_PP: NDArray[np.float64], size_K: NDArray[np.float64], square_K: NDArray[np.float64]
) -> float:
    """Sum of squared distances to the own mean."""
    inertia = 0.0
    for point in range(len(gram_PP)):
        inertia += gram_PP[point, point]
    for group in range(len(size_K)):
        inertia -= square_K[group] / max(size_K[group], 1)
    return inertia


@njit(nogil=True, cache=True)
def _refine(
    gram_PP: NDArray[np.float64],
    labels_P: NDArray[np.int64],
    sums_PK: NDArray[np.float64],
    size_K: NDArray[np.float64],
    square_K: NDArray[np.float64],
) -> None:
    """Moves single points while that lowers the inertia (Hartigan's rule), in place.

    It counts how a point pulls the mean along, which Lloyd's step ignores; groups of two or three points
    are where that matters. It also fills groups that Lloyd's steps left empty.
    """
    points, resting = len(labels_P), 0
    for step in range(STEPS * points):
        point = step % points
        own = labels_P[point]
        joined, gain = _best_move(gram_PP[point, point], own, sums_PK[point], size_K, square_K)
        resting += 1
        if gain > GAIN * SCALE**2:
            for group, sign in ((own, -1), (joined, 1)):
                square_K[group] += 2 * sign * sums_PK[point, group] + gram_PP[point, point]
                size_K[group] += sign
                for other in range(points):
                    sums_PK[other, group] += sign * gram_PP[point, other]
            labels_P[point] = joined
            resting = 0
        if resting == points:
            break


@njit(nogil=True, cache=True)
def _best_move(
    square: float,
    own: int,
    sums_K: NDArray[np.float64],
    size_K: NDArray[np.float64],
    square_K: NDArray[np.float64],
) -> tuple[int, float]:
    """The group a point should join, and how far the inertia falls.

    Joining a group of n points costs n / (n + 1) of the squared distance from its mean, leaving one saves
    n / (n - 1) of it.
    """
    if size_K[own] < 2:
        return own, 0.0
    joined, least = own, np.inf
    for group in range(len(size_K)):
        size = size_K[group]  # times n² the distance is n² · square - 2n · sum + square of the sum
        cost = (square * size - 2 * sums_K[group] + square_K[group] / max(size, 1)) / (size + 1)
        if cost < least and group != own:
            joined, least = group, cost
    size = size_K[own]
    saved = (square * size - 2 * sums_K[own] + square_K[own] / size) / (size - 1)
    return joined, saved - least


@njit(nogil=True, cache=True)
def _numbered(labels_P: NDArray[np.int64]) -> NDArray[np.int32]:
    """The same groups, counted in order of appearance."""
    numbered_P, number_K = np.empty(len(labels_P), np.int32), np.full(len(labels_P), -1)
    count = 0
    for point in range(len(labels_P)):
        if number_K[labels_P[point]] < 0:
            number_K[labels_P[point]] = count
            count += 1
        numbered_P[point] = number_K[labels_P[point]]
    return numbered_P
