"""Regions of feature maps by our k-means, against scikit-learn's KMeans image by image.

Same maps, clusters, starts, limit of iterations and threads. On both sides each thread has images of its own:
scikit-learn's own threads wait for each other in every iteration, the longer the busier the machine is. The
sides take turns.
Run: ``python -m benchmarks.kmeans_groups_vs_sklearn``.
"""

import json
import statistics
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional

from benchmarks.timing import products_per_second, seconds
from training.features import unit_maps
from training.grouping import GroupingConfig
from training.kmeans import kmeans
from training.threads import each_alone

ROUNDS, PIECES = 3, 12


def measure(*, side: int = 56, width: int = 384, images: int = 16, rounds: int = ROUNDS) -> dict[str, Any]:
    """Images per second of both sides, their ratio, and the machine's limit."""
    config = GroupingConfig()
    maps = [feature_map(side, width, image, config.position_weight) for image in range(images)]
    rows = [np.ascontiguousarray(map_DP.T.numpy()) for map_DP in maps]
    ours, peer = partial(_ours, config, maps), partial(_peer, config, rows)
    ours(), peer()
    times = [(seconds(ours), seconds(peer)) for _ in range(rounds)]
    fast, slow = (images / statistics.median(column) for column in zip(*times, strict=True))
    inertia, steps = zip(*peer(), strict=True)
    one_step = 2 * 2.0 * side * side * maps[0].shape[0] * config.regions  # distances and means
    limit = products_per_second() / (one_step * config.starts * float(np.mean(steps)))
    return {
        "case": "kmeans_groups_vs_sklearn",
        "ours": fast,
        "peer": slow,
        "unit": "images/s",
        "ratio": statistics.median(theirs / mine for mine, theirs in times),
        "limit": limit,
        "limit_share": fast / limit,
        "note": f"{images} maps of {side}x{side} cells, {maps[0].shape[0]} dimensions, {config.regions} "
        f"clusters, {config.starts} starts, at most {config.iterations} steps, {torch.get_num_threads()} "
        f"threads; mean inertia {np.mean(ours()):.2f} (scikit-learn {np.mean(inertia):.2f}); limit: "
        f"the products of {np.mean(steps):.0f} iterations of every start on all points at the rate of sgemm, "
        "which starts on a sample need not do",
    }


def feature_map(side: int, width: int, seed: int, position_weight: float) -> Tensor:
    """Features [D, P] as a network gives them: pieces of unlike kinds that drift and blend, and noise."""
    stream = torch.Generator().manual_seed(seed)
    line = (torch.arange(side) + 0.5) / side
    cells_P2 = torch.cartesian_prod(line, line)
    places_K2 = torch.rand(PIECES, 2, generator=stream)
    blend_PK = torch.softmax(-torch.cdist(cells_P2, places_K2).square() / 0.004, 1)
    kinds_KD = torch.randn(PIECES, width, generator=stream) + 0.7 * torch.randn(width, generator=stream)
    drift = functional.interpolate(
        torch.randn(1, width, 4, 4, generator=stream), (side, side), mode="bicubic"
    )
    noise = 1.5 * torch.randn(width, side, side, generator=stream)
    map_1Dhw = (blend_PK @ kinds_KD).T.reshape(1, width, side, side) + 0.5 * drift + noise
    return unit_maps(map_1Dhw, position_weight)[0].flatten(1)


def _ours(config: GroupingConfig, maps: list[Tensor]) -> list[float]:
    """Inertias."""

    def one(numbered: tuple[int, Tensor]) -> float:
        seed, map_DP = numbered
        return float(kmeans(map_DP[None], config.regions, [seed], config.iterations, config.starts)[1])

    return list(each_alone(one, enumerate(maps)))


def _peer(config: GroupingConfig, rows: list[Any]) -> list[tuple[float, int]]:
    """Inertias, and iterations of the best starts."""

    def one(numbered: tuple[int, Any]) -> tuple[float, int]:
        seed, row_PD = numbered
        method = KMeans(config.regions, n_init=config.starts, max_iter=config.iterations, random_state=seed)
        found = method.fit(row_PD)
        return float(found.inertia_), int(found.n_iter_)

    with threadpool_limits(1):
        return list(each_alone(one, enumerate(rows)))


if __name__ == "__main__":
    for size in ({}, {"side": 14, "width": 1280, "images": 64}):
        print(json.dumps(measure(**size), indent=1))
