"""The method's formulas, one image at a time, in plain Python: what tests and benchmarks compare with."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

Vectors = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Entry:
    """One concept of one image's archive."""

    concept: int
    donors: list[int]
    anchor_similarity: float
    local: float
    global_: float

    @property
    def score(self) -> float:
        """Local and global fit together."""
        return self.local + self.global_


def archive(
    anchor: int,
    neighbours: Sequence[int],
    mentions: Sequence[Sequence[int]],
    images: Vectors,
    concepts: Vectors,
    epsilon: float = 1e-3,
) -> list[Entry]:
    """Candidates of one image, ranked by the formulas, in order of concept id."""
    donors_of = expand(neighbours, mentions)
    if not donors_of:
        return []

    def similarity(concept: int, image: int) -> float:
        return max(float(np.dot(concepts[concept], images[image])), epsilon)

    best = max(similarity(c, j) for c, donors in donors_of.items() for j in [*donors, anchor])
    entries = []
    for concept, donors in sorted(donors_of.items()):
        here = similarity(concept, anchor)
        references = [similarity(concept, j) for j in [*donors, anchor]]
        local = here / (sum(references) / len(references))
        entries.append(Entry(concept, donors, here, local, here / best))
    return entries


def expand(neighbours: Sequence[int], mentions: Sequence[Sequence[int]]) -> dict[int, list[int]]:
    """The donors of each concept that a neighbour's caption names, nearest first."""
    donors_of: dict[int, list[int]] = {}
    for neighbour in neighbours:
        if neighbour >= 0:
            for concept in set(mentions[neighbour]):
                donors_of.setdefault(concept, []).append(neighbour)
    return donors_of


def clusters(vectors: Vectors, seed: int) -> tuple[list[int], float]:
    """Labels and inertia of scikit-learn's k-means with half as many clusters as vectors."""
    if len(vectors) <= 2:
        return [0] * len(vectors), float(((vectors - vectors.mean(axis=0)) ** 2).sum())
    model = KMeans(math.ceil(len(vectors) / 2), n_init=5, random_state=seed).fit(vectors)
    return [int(label) for label in model.labels_], float(model.inertia_)


def probabilities(scores: Sequence[float], labels: Sequence[int], temperature: float = 1.0) -> list[float]:
    """Of a single draw: the cluster by the mean of its scores, then the concept in it by its score."""
    members = {label: [s for s, at in zip(scores, labels, strict=True) if at == label] for label in labels}
    mean_weight = {label: math.exp(sum(s) / len(s) / temperature) for label, s in members.items()}
    return [
        mean_weight[label]
        / sum(mean_weight.values())
        * math.exp(score / temperature)
        / sum(math.exp(s / temperature) for s in members[label])
        for score, label in zip(scores, labels, strict=True)
    ]
