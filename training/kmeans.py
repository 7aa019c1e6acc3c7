"""k-means on one set of points: greedy seeds, several starts side by side, the best kept."""

import math

import torch
from torch import Tensor


def kmeans(points_PD: Tensor, clusters: int, seed: int, iterations: int, starts: int) -> tuple[Tensor, float]:
    """Lloyd's algorithm from greedy k-means++ seeds, the best of several starts.

    Args:
        points_PD: float32, on any device.
        clusters: at most this many; fewer when there are fewer distinct points.
        seed: of the random stream, which is drawn on the CPU: all devices draw the same.
        iterations: at most; it ends when no label changes.
        starts: run side by side.

    Returns:
        int64 labels [P] on the points' device, and the inertia: the sum of squared distances to the centres.
    """
    points_PD = points_PD - points_PD.mean(0)  # squares lose less when the origin is near
    norms_P = points_PD.square().sum(1)
    clusters = min(clusters, len(points_PD))
    uniforms_SKT = _uniforms(seed, starts, clusters).to(points_PD.device)
    centres_SKD = _plus_plus(points_PD, norms_P, uniforms_SKT)
    labels_SP, inertia_S = _assign(points_PD, norms_P, centres_SKD)
    for _ in range(iterations):
        centres_SKD = _means(points_PD, labels_SP, centres_SKD)
        previous_SP = labels_SP
        labels_SP, inertia_S = _assign(points_PD, norms_P, centres_SKD)
        if torch.equal(labels_SP, previous_SP):
            break
    best = int(inertia_S.argmin())
    return labels_SP[best], float(inertia_S[best])


def _uniforms(seed: int, starts: int, clusters: int) -> Tensor:
    """Draws [S, K, T]: T candidates for each of K seeds (T as in scikit-learn)."""
    stream = torch.Generator().manual_seed(seed)
    return torch.rand(starts, clusters, 2 + int(math.log(clusters)), generator=stream)


def _plus_plus(points_PD: Tensor, norms_P: Tensor, uniforms_SKT: Tensor) -> Tensor:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007): of T candidates, the one that helps most."""
    rows_S = torch.arange(len(uniforms_SKT), device=points_PD.device)
    chosen = [(uniforms_SKT[:, 0, 0] * len(points_PD)).long()]
    nearest_SP = _squares(points_PD, norms_P, points_PD[chosen[0]])
    for k in range(1, uniforms_SKT.shape[1]):
        mass_SP = nearest_SP.cumsum(1)
        picks_ST = torch.searchsorted(mass_SP, uniforms_SKT[:, k] * mass_SP[:, -1:])
        picks_ST = picks_ST.clamp_max(len(points_PD) - 1)
        squares_QP = _squares(points_PD, norms_P, points_PD[picks_ST.flatten()])
        left_STP = torch.minimum(nearest_SP[:, None], squares_QP.reshape(*picks_ST.shape, -1))
        best_S = left_STP.sum(2).argmin(1)
        nearest_SP = left_STP[rows_S, best_S]
        chosen.append(picks_ST[rows_S, best_S])
    return points_PD[torch.stack(chosen, 1)]


def _squares(points_PD: Tensor, norms_P: Tensor, centres_KD: Tensor) -> Tensor:
    """Squared distances [K, P]."""
    own_K1 = centres_KD.square().sum(1, keepdim=True)
    return torch.addmm(own_K1, centres_KD, points_PD.T, alpha=-2).add_(norms_P).clamp_min_(0)


def _assign(points_PD: Tensor, norms_P: Tensor, centres_SKD: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centre of each point [S, P], and each start's inertia [S]."""
    squares_QP = _squares(points_PD, norms_P, centres_SKD.flatten(0, 1))
    least_SP, labels_SP = squares_QP.reshape(*centres_SKD.shape[:2], -1).min(1)
    return labels_SP, least_SP.sum(1)


def _means(points_PD: Tensor, labels_SP: Tensor, centres_SKD: Tensor) -> Tensor:
    """Means of the clusters; an empty one keeps its centre."""
    numbers_K1 = torch.arange(centres_SKD.shape[1], device=labels_SP.device)[:, None]
    members_SKP = (labels_SP[:, None] == numbers_K1).to(points_PD.dtype)
    sums_SKD = (members_SKP.flatten(0, 1) @ points_PD).reshape(centres_SKD.shape)
    sizes_SK1 = members_SKP.sum(2, keepdim=True)
    return torch.where(sizes_SK1 > 0, sums_SKD / sizes_SK1.clamp_min(1), centres_SKD)
