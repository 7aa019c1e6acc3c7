"""Fragments of regions go to the neighbour they resemble most."""

import heapq

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def merge_small(
    labels_HW: NDArray[np.integer], features_CHW: NDArray[np.float32], min_area: float
) -> NDArray[np.int64]:
    """Merges every connected component below an area into a neighbour, the smallest first.

    The neighbour (over an edge, not a corner) is the one whose mean feature is nearest; it keeps its label
    and counts the merged pixels from then on. Components of one label that are large enough stay apart
    but keep sharing their label.

    Args:
        labels_HW: any non-negative labels.
        features_CHW: on the same grid.
        min_area: fraction of the image's area; 0 merges nothing.

    Returns:
        int64 labels [H, W], numbered from 0 without gaps, in the order of the given ones.
    """
    edges_E2 = _edges(*labels_HW.shape)
    components_P = _components(labels_HW.ravel(), edges_E2)
    parts = _Parts(components_P, edges_E2, features_CHW.reshape(len(features_CHW), -1).T)
    owners_M = parts.absorb(min_area * labels_HW.size)
    _, first_M = np.unique(components_P, return_index=True)
    merged_P = labels_HW.ravel()[first_M][owners_M][components_P]
    _, compact_P = np.unique(merged_P, return_inverse=True)
    return np.asarray(compact_P.reshape(labels_HW.shape), np.int64)


def _edges(height: int, width: int) -> NDArray[np.int64]:
    """Pairs of pixels side by side or one above the other."""
    pixels_HW = np.arange(height * width).reshape(height, width)
    across = np.stack([pixels_HW[:, :-1].ravel(), pixels_HW[:, 1:].ravel()], 1)
    down = np.stack([pixels_HW[:-1].ravel(), pixels_HW[1:].ravel()], 1)
    return np.concatenate([across, down])


def _components(labels_P: NDArray[np.integer], edges_E2: NDArray[np.int64]) -> NDArray[np.int64]:
    inside = edges_E2[labels_P[edges_E2[:, 0]] == labels_P[edges_E2[:, 1]]]
    graph = coo_array((np.ones(len(inside), bool), (inside[:, 0], inside[:, 1])), shape=(labels_P.size,) * 2)
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


class _Parts:
    """The components of an image, their neighbours and their mean features, as they absorb each other."""

    def __init__(
        self, components_P: NDArray[np.int64], edges_E2: NDArray[np.int64], features_PC: NDArray[np.float32]
    ) -> None:
        self.area_M = np.bincount(components_P)
        order_P = np.argsort(components_P, kind="stable")
        starts_M = np.concatenate([[0], self.area_M.cumsum()[:-1]])
        self.sums_MC = np.add.reduceat(features_PC[order_P].astype(np.float64), starts_M)
        self.neighbours: list[set[int]] = [set() for _ in self.area_M]
        for one, other in np.unique(np.sort(components_P[edges_E2]), axis=0).tolist():
            if one != other:
                self.neighbours[one].add(other)
                self.neighbours[other].add(one)

    def absorb(self, least: float) -> NDArray[np.int64]:
        """Merges components below an area in pixels; returns the component that each ended up in."""
        owner_M = np.arange(len(self.area_M))
        queue = [(int(area), part) for part, area in enumerate(self.area_M) if area < least]
        heapq.heapify(queue)
        while queue:
            area, part = heapq.heappop(queue)
            if area != self.area_M[part] or not self.neighbours[part]:
                continue  # it has grown, or is gone, or is the whole image
            host = self._nearest(part)
            self._merge(part, host)
            owner_M[owner_M == part] = host
            if self.area_M[host] < least:
                heapq.heappush(queue, (int(self.area_M[host]), host))
        return owner_M

    def _nearest(self, part: int) -> int:
        others = sorted(self.neighbours[part])
        means_OC = self.sums_MC[others] / self.area_M[others, None]
        squares_O = np.square(means_OC - self.sums_MC[part] / self.area_M[part]).sum(1)
        return others[int(squares_O.argmin())]

    def _merge(self, part: int, host: int) -> None:
        self.area_M[host] += self.area_M[part]
        self.sums_MC[host] += self.sums_MC[part]
        self.area_M[part] = 0
        for other in self.neighbours[part]:
            self.neighbours[other].discard(part)
            if other != host:
                self.neighbours[other].add(host)
                self.neighbours[host].add(other)
        self.neighbours[part] = set()
