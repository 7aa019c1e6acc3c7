"""k-means of many images at once: the starts compete on a sample of the points, the best goes on with all.

Distances are one large matrix product for all starts, on a GPU for all images as well. On a CPU images take
turns, each in the cache by itself, and a compiled loop moves only the points that change their cluster.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

SETTLED = 1000  # points of which one may move in the last step: the tail of Lloyd's algorithm is long
SAMPLE = 512  # points: those of an image resemble each other, so starts need not see all to be compared


def kmeans(
    points_NDP: Tensor, clusters: int, seeds_N: Sequence[int], iterations: int, starts: int
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm on the points of each image, from the best of several greedy k-means++ starts.

    On a CPU, what one image gives does not depend on the others to the last bit.

    Args:
        points_NDP: float32, on any device; a point is a column, as in a feature map.
        clusters: at most this many; fewer when there are fewer distinct points.
        seeds_N: of each image's random stream, which is drawn on the CPU: all devices draw the same.
        iterations: at most, and counted anew off the sample; they end when no label changes, or no more than
            one of every `SETTLED`.
        starts: run side by side, on a sample of `SAMPLE` points where there are more.

    Returns:
        int64 labels [N, P] and float32 inertias [N], the sums of squared distances to the centres, on the
        points' device.
    """
    assert len(seeds_N) == len(points_NDP) > 0
    compiled = points_NDP.device.type == "cpu"
    size = 1 if compiled else len(points_NDP)
    parts = [(points_NDP[n : n + size], seeds_N[n : n + size]) for n in range(0, len(seeds_N), size)]
    found = [together(points, clusters, seeds, iterations, starts, compiled) for points, seeds in parts]
    labels, inertias = zip(*found, strict=True)
    return torch.cat(labels), torch.cat(inertias)


def together(
    points_NDP: Tensor, clusters: int, seeds_N: Sequence[int], iterations: int, starts: int, compiled: bool
) -> tuple[Tensor, Tensor]:
    """The same for images that are worked on together; one alone where the loop is a compiled one."""
    points_NDP = points_NDP - points_NDP.mean(2, keepdim=True)  # squares lose less when the origin is near
    count = points_NDP.shape[2]
    draws = [_draws(seed, starts, min(clusters, count), count) for seed in seeds_N]
    drawn = (torch.stack(each).to(points_NDP.device) for each in zip(*draws, strict=True))
    uniforms_NSKT, sample_NQ = drawn
    sample_NDQ = points_NDP if count <= SAMPLE else _columns(points_NDP, sample_NQ)
    centres_NSKD = _plus_plus(sample_NDQ, uniforms_NSKT)
    centres_NSKD, costs_NSKQ = _lloyd(sample_NDQ, centres_NSKD, iterations, compiled)
    best_N = costs_NSKQ.amin(2).sum(2).argmin(1)
    images_N = torch.arange(len(best_N), device=best_N.device)
    costs_NKP = costs_NSKQ[images_N, best_N]
    if count > SAMPLE:
        centres_N1KD = centres_NSKD[images_N, best_N][:, None]
        costs_NKP = _lloyd(points_NDP, centres_N1KD, iterations, compiled)[1][:, 0]
    least_NP, labels_NP = costs_NKP.min(1)
    return labels_NP, torch.linalg.vector_norm(points_NDP, dim=(1, 2)).square() + 2 * least_NP.sum(1)


def _draws(seed: int, starts: int, clusters: int, count: int) -> tuple[Tensor, Tensor]:
    """Uniform draws [S, K, T], T candidates for each of K seeds (as in scikit-learn), and the sample [Q]."""
    stream = torch.Generator().manual_seed(seed)
    uniforms_SKT = torch.rand(starts, clusters, 2 + int(math.log(clusters)), generator=stream)
    return uniforms_SKT, torch.randperm(count, generator=stream)[:SAMPLE].sort().values


def _columns(points_NDP: Tensor, picks_NQ: Tensor) -> Tensor:
    """Some points [N, D, Q] of each image."""
    return torch.stack(
        [points_DP[:, picks_Q] for points_DP, picks_Q in zip(points_NDP, picks_NQ, strict=True)]
    )


def _plus_plus(points_NDP: Tensor, uniforms_NSKT: Tensor) -> Tensor:
    """Centres [N, S, K, D] by greedy k-means++ (Arthur and Vassilvitskii 2007): of T candidates the best."""
    squares_NPP, count = _squares(points_NDP), points_NDP.shape[2]
    images_N1 = torch.arange(len(points_NDP), device=points_NDP.device)[:, None]
    picks_NS = (uniforms_NSKT[:, :, 0, 0] * count).long().clamp_max(count - 1)
    chosen, nearest_NSP = [picks_NS], squares_NPP[images_N1, picks_NS]
    for uniforms_NST in uniforms_NSKT.unbind(2)[1:]:
        mass_NSP = nearest_NSP.cumsum(2)
        picks_NST = torch.searchsorted(mass_NSP, uniforms_NST * mass_NSP[..., -1:]).clamp_max(count - 1)
        left_NSTP = torch.minimum(nearest_NSP[:, :, None], squares_NPP[images_N1[..., None], picks_NST])
        best_NS1 = left_NSTP.sum(3).argmin(2, keepdim=True)
        nearest_NSP = left_NSTP.take_along_dim(best_NS1[..., None], 2)[:, :, 0]
        chosen.append(picks_NST.take_along_dim(best_NS1, 2)[..., 0])
    chosen_NSK = torch.stack(chosen, 2)
    return _columns(points_NDP, chosen_NSK.flatten(1)).mT.reshape(*chosen_NSK.shape, -1)


def _squares(points_NDP: Tensor) -> Tensor:
    """Squared distances [N, P, P] between the points."""
    products_NPP = points_NDP.mT @ points_NDP
    norms_NP = products_NPP.diagonal(dim1=1, dim2=2).clone()
    return products_NPP.mul_(-2).add_(norms_NP[:, :, None]).add_(norms_NP[:, None]).clamp_min_(0)


def _lloyd(
    points_NDP: Tensor, centres_NSKD: Tensor, iterations: int, compiled: bool
) -> tuple[Tensor, Tensor]:
    """The last centres, and the costs [N, S, K, P] of points there: half the squares less the points' own.

    An empty cluster keeps its centre.
    """
    reassign = _reassign_compiled if compiled else _reassign
    costs_NSKP = _costs(points_NDP, centres_NSKD)
    labels_NSP = torch.full_like(costs_NSKP[:, :, 0], -1, dtype=torch.int64)
    sums_NSKD, sizes_NSK1 = torch.zeros_like(centres_NSKD), torch.zeros_like(centres_NSKD[..., :1])
    _reassign(points_NDP, costs_NSKP, labels_NSP, sums_NSKD, sizes_NSK1)  # all points move
    for _ in range(iterations):
        centres_NSKD = torch.where(sizes_NSK1 > 0, sums_NSKD / sizes_NSK1.clamp_min(1), centres_NSKD)
        costs_NSKP = _costs(points_NDP, centres_NSKD)
        moved = reassign(points_NDP, costs_NSKP, labels_NSP, sums_NSKD, sizes_NSK1)
        if moved <= len(labels_NSP) * (labels_NSP.shape[2] // SETTLED):
            break
    return centres_NSKD, costs_NSKP


def _costs(points_NDP: Tensor, centres_NSKD: Tensor) -> Tensor:
    centres_NQD = centres_NSKD.flatten(1, 2)
    halves_NQ1 = centres_NQD.square().sum(2, keepdim=True) / 2
    costs_NQP = torch.baddbmm(halves_NQ1, centres_NQD, points_NDP, alpha=-1)
    return costs_NQP.reshape(*centres_NSKD.shape[:3], -1)


def _reassign(
    points_NDP: Tensor, costs_NSKP: Tensor, labels_NSP: Tensor, sums_NSKD: Tensor, sizes_NSK1: Tensor
) -> int:
    """Puts points to their nearest centres; labels, sums and sizes in place. How many points moved."""
    nearest_NSP = costs_NSKP.argmin(2)
    moved = int((nearest_NSP != labels_NSP).sum())
    labels_NSP.copy_(nearest_NSP)
    members_NSKP = torch.zeros_like(costs_NSKP).scatter_(2, nearest_NSP[:, :, None], 1.0)
    sums_NSKD.copy_((members_NSKP.flatten(1, 2) @ points_NDP.mT).view_as(sums_NSKD))
    sizes_NSK1.copy_(members_NSKP.sum(3, keepdim=True))
    return moved


def _reassign_compiled(
    points_NDP: Tensor, costs_NSKP: Tensor, labels_NSP: Tensor, sums_NSKD: Tensor, sizes_NSK1: Tensor
) -> int:
    """The same of one image on a CPU."""
    arrays = (array[0].numpy() for array in (points_NDP, costs_NSKP, labels_NSP, sums_NSKD, sizes_NSK1))
    return int(_move(*arrays))


@njit(nogil=True, cache=True)
def _move(
    points_DP: NDArray[np.float32],
    costs_SKP: NDArray[np.float32],
    labels_SP: NDArray[np.int64],
    sums_SKD: NDArray[np.float32],
    sizes_SK1: NDArray[np.float32],
) -> int:
    """Of each start, takes points that move from the sum of their old cluster to that of their new one.

    Returns:
        How many points moved.
    """
    moved = 0
    for start in range(len(costs_SKP)):
        nearest_P, sums_KD = _nearest(costs_SKP[start]), sums_SKD[start]
        moved_M = np.flatnonzero(nearest_P != labels_SP[start])
        old_M, new_M = labels_SP[start][moved_M], nearest_P[moved_M]
        for dimension in range(len(points_DP) if len(moved_M) else 0):
            points_P = points_DP[dimension]
            for m in range(len(moved_M)):
                sums_KD[new_M[m], dimension] += points_P[moved_M[m]]
                sums_KD[old_M[m], dimension] -= points_P[moved_M[m]]
        for m in range(len(moved_M)):
            labels_SP[start, moved_M[m]] = new_M[m]
            sizes_SK1[start, new_M[m], 0] += 1
            sizes_SK1[start, old_M[m], 0] -= 1
        moved += len(moved_M)
    return moved


@njit(nogil=True, cache=True)
def _nearest(costs_KP: NDArray[np.float32]) -> NDArray[np.int32]:
    """The centre of least cost of each point; the lower of two equal ones."""
    least_P, nearest_P = costs_KP[0].copy(), np.zeros(costs_KP.shape[1], np.int32)
    for cluster in range(1, len(costs_KP)):
        for point in range(len(least_P)):
            nearer = costs_KP[cluster, point] < least_P[point]
            least_P[point] = costs_KP[cluster, point] if nearer else least_P[point]
            nearest_P[point] = cluster if nearer else nearest_P[point]
    return nearest_P
