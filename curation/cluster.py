"""Clusters of an image's candidates, so that draws can cover different things.

k-means over the text vectors of A_i with k = ⌈|A_i| / 2⌉ (Xing et al., *Rewrite Caption Semantics*, 2023):
k-means++ starts, Lloyd's steps, best of several starts, then single moves that still lower the
inertia.

A distance between a point and a mean of points needs their inner products only, so once the Gram matrix
is there nothing depends on the vectors' dimension. Images with equally many candidates are solved
together. All sums are exact (see ``fixed_point``): an image's labels do not depend on its company.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.exact import fixed_point
from curation.threads import side_by_side
from storage.randomness import uniforms

BITS = 20  # squares of 2⁻⁴⁰ leave 13 bits: sums over pairs of up to 90 candidates stay exact
BLOCK = 1 << 20  # distances between points and means held at a time
GATHERED = 1 << 17  # numbers of vectors gathered at a time
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
    vectors_UD = fixed_point(concept_vectors_CD[used], BITS)
    labels_A, inertia_N = np.zeros(len(concept_A), np.int32), np.zeros(len(sizes), np.float32)

    def solve(images: NDArray[np.int64]) -> None:
        columns = offsets[images, None] + np.arange(sizes[images[0]])
        gram_BPP = _gram(vectors_UD, row_A[columns])
        labels_A[columns], inertia_N[images] = _grouped(gram_BPP, seeds_N[images], starts)

    side_by_side(solve, _alike(sizes, starts))
    return Clusters(labels_A, inertia_N)


def _alike(sizes: NDArray[np.int64], starts: int) -> Iterator[NDArray[np.int64]]:
    """Blocks of images with equally many candidates, none without."""
    for size in np.unique(sizes[sizes > 0]).tolist():
        images, step = np.flatnonzero(sizes == size), max(BLOCK // (starts * size**2), 1)
        yield from (images[at : at + step] for at in range(0, len(images), step))


def _gram(vectors_UD: NDArray[np.float64], rows_BP: NDArray[np.int64]) -> NDArray[np.float64]:
    """Inner products ``[B, P, P]`` of each image's points, a few images at a time to stay in the cache."""
    points = rows_BP.shape[1]
    gram_BPP = np.empty((len(rows_BP), points, points))
    step = max(GATHERED // (points * vectors_UD.shape[1]), 1)
    for start in range(0, len(rows_BP), step):
        vectors_bPD = vectors_UD[rows_BP[start : start + step]]
        np.matmul(vectors_bPD, vectors_bPD.transpose(0, 2, 1), out=gram_BPP[start : start + step])
    return gram_BPP


def _grouped(
    gram_BPP: NDArray[np.float64], seeds_B: NDArray[np.uint64], starts: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels ``[B, P]`` and inertia ``[B]`` of images with ``P`` points each."""
    points = gram_BPP.shape[-1]
    groups = -(-points // 2) if points > 2 else 1
    labels_BPS = _settled(gram_BPP, _seeded(gram_BPP, groups, seeds_B, starts), groups)
    best_B = _Means.of(gram_BPP, labels_BPS, groups).inertia(gram_BPP).argmin(axis=1)
    labels_BP = labels_BPS[np.arange(len(best_B)), :, best_B]
    labels_BP = _refined(gram_BPP, labels_BP, groups)
    inertia_B1 = _Means.of(gram_BPP, labels_BP[..., None], groups).inertia(gram_BPP)
    return _numbered(labels_BP), inertia_B1[:, 0]


def _seeded(
    gram_BPP: NDArray[np.float64], groups: int, seeds_B: NDArray[np.uint64], starts: int
) -> NDArray[np.int64]:
    """k-means++: every next centre is a point drawn by its squared distance from those before.

    Returns the number of the nearest centre of every point, ``[B, P, S]``.
    """
    images, points = gram_BPP.shape[:2]
    square_BP = np.diagonal(gram_BPP, axis1=1, axis2=2)
    distance_BPP = square_BP[:, :, None] + square_BP[:, None, :] - 2 * gram_BPP
    chance_BSK = uniforms(seeds_B[:, None], np.arange(starts * groups)).reshape(images, starts, groups)
    image_B1 = np.arange(images)[:, None]
    closest_BSP = distance_BPP[image_B1, (chance_BSK[:, :, 0] * points).astype(np.int64)]
    labels_BSP = np.zeros(closest_BSP.shape, np.int64)
    for group in range(1, groups):
        reach_BSP = np.cumsum(closest_BSP, axis=2)
        aim_BS1 = chance_BSK[:, :, group, None] * reach_BSP[:, :, -1:]
        drawn_BS = (reach_BSP <= aim_BS1).sum(axis=2).clip(max=points - 1)
        offered_BSP = distance_BPP[image_B1, drawn_BS]
        np.copyto(labels_BSP, group, where=offered_BSP < closest_BSP)
        np.minimum(closest_BSP, offered_BSP, out=closest_BSP)
    return labels_BSP.transpose(0, 2, 1)


def _settled(gram_BPP: NDArray[np.float64], labels_BPS: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
    """Lloyd's iteration, until no point of an image changes its group."""
    labels_BPS = labels_BPS.copy()
    moving = np.arange(len(labels_BPS))
    for _ in range(STEPS):
        before = labels_BPS[moving]
        after = _Means.of(gram_BPP[moving], before, groups).nearest()
        labels_BPS[moving] = after
        moving = moving[(after != before).any(axis=(1, 2))]
        if not len(moving):
            break
    return labels_BPS


def _refined(gram_BPP: NDArray[np.float64], labels_BP: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
    """Moves single points while that lowers the inertia (Hartigan's rule), each image's best move first.

    It counts how a point pulls the mean along, which Lloyd's step ignores; groups of two or three points
    are where that matters. It also fills groups that Lloyd's steps left empty.
    """
    means = _Means.of(gram_BPP, labels_BP[..., None], groups)
    sums_BPK, size_BK, square_BK = means.sums_BPSK[:, :, 0], means.size_BSK[:, 0], means.square_BSK[:, 0]
    own_BP = np.diagonal(gram_BPP, axis1=1, axis2=2)
    distance_BPK = own_BP[..., None] + _from_means(sums_BPK, size_BK[:, None], square_BK[:, None])
    labels_BP, moving = labels_BP.copy(), np.arange(len(labels_BP))
    for _ in range(STEPS):
        point, group, gain = _best_move(distance_BPK[moving], size_BK[moving], labels_BP[moving])
        moving, point, group = moving[gain > GAIN], point[gain > GAIN], group[gain > GAIN]
        if not len(moving):
            break
        for changed, sign in ((labels_BP[moving, point], -1), (group, 1)):
            square_BK[moving, changed] += 2 * sign * sums_BPK[moving, point, changed] + own_BP[moving, point]
            sums_BPK[moving, :, changed] += sign * gram_BPP[moving, point]
            size_BK[moving, changed] += sign
            distance_BPK[moving, :, changed] = own_BP[moving] + _from_means(
                sums_BPK[moving, :, changed], size_BK[moving, changed, None], square_BK[moving, changed, None]
            )
        labels_BP[moving, point] = group
    return labels_BP


def _best_move(
    distance_BPK: NDArray[np.float64], size_BK: NDArray[np.float64], labels_BP: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The point, the group it should join, and how far the inertia falls, ``[B]`` each.

    Joining a group of n points costs n / (n + 1) of the squared distance from its mean, leaving one saves
    n / (n - 1) of it.
    """
    own_BP1, image_B = labels_BP[..., None], np.arange(len(labels_BP))
    leaving_BK = size_BK / np.maximum(size_BK - 1, 1)
    saved_BP = np.take_along_axis(distance_BPK, own_BP1, 2)[..., 0] * np.take_along_axis(
        leaving_BK, labels_BP, 1
    )
    cost_BPK = distance_BPK * (size_BK / (size_BK + 1))[:, None]
    np.put_along_axis(cost_BPK, own_BP1, np.inf, 2)
    group_BP = cost_BPK.argmin(axis=2)
    gain_BP = saved_BP - np.take_along_axis(cost_BPK, group_BP[..., None], 2)[..., 0]
    point_B = gain_BP.argmax(axis=1)
    return point_B, group_BP[image_B, point_B], gain_BP[image_B, point_B]


@dataclass(frozen=True, eq=False)
class _Means:
    """Groups' means, by their inner products.

    Attributes:
        size_BSK: points per group.
        sums_BPSK: inner product of a point and the sum of a group.
        square_BSK: squared length of the sum of a group.
    """

    size_BSK: NDArray[np.float64]
    sums_BPSK: NDArray[np.float64]
    square_BSK: NDArray[np.float64]

    @classmethod
    def of(cls, gram_BPP: NDArray[np.float64], labels_BPS: NDArray[np.int64], groups: int) -> "_Means":
        member = (labels_BPS[..., None] == np.arange(groups)).astype(np.float64)
        sums = (gram_BPP @ member.reshape(*gram_BPP.shape[:2], -1)).reshape(member.shape)
        return cls(member.sum(axis=1), sums, (member * sums).sum(axis=1))

    def inertia(self, gram_BPP: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum of squared distances to the own mean, ``[B, S]``."""
        trace_B1: NDArray[np.float64] = np.trace(gram_BPP, axis1=1, axis2=2)[:, None]
        between_BS: NDArray[np.float64] = (self.square_BSK / np.maximum(self.size_BSK, 1)).sum(axis=2)
        return trace_B1 - between_BS

    def nearest(self) -> NDArray[np.int64]:
        """The group of the nearest mean, ``[B, P, S]``, never an empty one."""
        square_BSK = np.where(self.size_BSK > 0, self.square_BSK, np.inf)
        distance_BPSK = _from_means(self.sums_BPSK, self.size_BSK[:, None], square_BSK[:, None])
        labels_BPS: NDArray[np.int64] = distance_BPSK.argmin(axis=3)
        return labels_BPS


def _from_means(
    sums: NDArray[np.float64], size: NDArray[np.float64], square: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Squared distances of points from means, less the points' own squares; all of shapes that broadcast."""
    filled = np.maximum(size, 1)
    distance: NDArray[np.float64] = sums * (-2 / filled)
    distance += square / filled**2
    return distance


def _numbered(labels_BP: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same groups, counted in order of appearance."""
    first_BP = (labels_BP[:, :, None] == labels_BP[:, None, :]).argmax(axis=2)
    number_BP = np.cumsum(first_BP == np.arange(labels_BP.shape[1]), axis=1) - 1
    return np.take_along_axis(number_BP, first_BP, axis=1)
