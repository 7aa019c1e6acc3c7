from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import loop_oracle
from curation.cluster import cluster
from curation.exact import fixed_point


def corpus(seed: int, sizes: Any, width: int = 32, concepts: Any = 200) -> Any:
    """Concepts around a few themes, and images that show some of them."""
    rng = np.random.default_rng(seed)
    themes = rng.standard_normal((30, width))
    vectors = themes[rng.integers(0, 30, concepts)] + 0.6 * rng.standard_normal((concepts, width)) + 0.5
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    concept = np.concatenate([np.sort(rng.choice(concepts, size, replace=False)) for size in sizes])
    seeds = rng.integers(0, 2**63, len(sizes)).astype(np.uint64)
    return offsets, concept.astype(np.int32), vectors.astype(np.float32), seeds


def rows(offsets: NDArray[Any], values: NDArray[Any]) -> Any:
    return [values[start:end] for start, end in pairwise(offsets)]


@pytest.mark.parametrize("width", [64, 512])
def test_inertia_is_on_average_no_worse_than_scikit_learns(width: int) -> None:
    rng = np.random.default_rng(width)
    offsets, concept, vectors, seeds = corpus(0, rng.integers(10, 41, 40), width)
    found = cluster(offsets, concept, vectors, seeds)
    theirs = [loop_oracle.clusters(vectors[ids], seed)[1] for seed, ids in enumerate(rows(offsets, concept))]
    assert np.mean(found.inertia / np.array(theirs)) <= 1.0


def test_inertia_is_that_of_the_labels() -> None:
    offsets, concept, vectors, seeds = corpus(1, [1, 2, 3, 12, 25])
    found = cluster(offsets, concept, vectors, seeds)
    for ids, labels, inertia in zip(
        rows(offsets, concept), rows(offsets, found.labels), found.inertia, strict=True
    ):
        groups = [vectors[ids[labels == label]].astype(np.float64) for label in np.unique(labels)]
        expected = sum(((group - group.mean(0)) ** 2).sum() for group in groups)
        assert inertia == pytest.approx(expected, abs=5e-4)


def test_images_with_up_to_two_candidates_have_one_cluster() -> None:
    offsets, concept, vectors, seeds = corpus(2, [0, 1, 2, 0])
    assert cluster(offsets, concept, vectors, seeds).labels.tolist() == [0, 0, 0]


@pytest.mark.parametrize("size", [3, 4, 9, 24])
def test_labels_use_half_as_many_clusters_and_count_by_appearance(size: int) -> None:
    offsets, concept, vectors, seeds = corpus(3, [size] * 10)
    for labels in rows(offsets, cluster(offsets, concept, vectors, seeds).labels):
        appearance = list(dict.fromkeys(labels.tolist()))
        assert appearance == list(range(-(-size // 2)))


def test_obvious_pairs_are_found() -> None:
    axes = np.repeat(np.eye(6, dtype=np.float32), 2, axis=0)[[0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]]
    found = cluster(np.array([0, 12]), np.arange(12, dtype=np.int32), axes, np.array([7], np.uint64))
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert found.inertia[0] == 0


def test_labels_of_an_image_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    offsets, concept, vectors, seeds = corpus(4, np.random.default_rng(4).integers(0, 20, 60))
    whole = cluster(offsets, concept, vectors, seeds)
    monkeypatch.setattr("curation.cluster.BLOCK", 1)
    for image in range(60):
        part = slice(offsets[image], offsets[image + 1])
        alone = cluster(np.array([0, part.stop - part.start]), concept[part], vectors, seeds[[image]])
        assert alone.labels.tolist() == whole.labels[part].tolist()
        assert alone.inertia[0] == whole.inertia[image]


def test_labels_depend_on_the_seed_alone() -> None:
    offsets, concept, vectors, seeds = corpus(5, [24] * 20)
    first, again = (cluster(offsets, concept, vectors, seeds) for _ in range(2))
    other = cluster(offsets, concept, vectors, seeds + np.uint64(1))
    np.testing.assert_array_equal(first.labels, again.labels)
    assert (first.labels != other.labels).any()


def test_identical_candidates_are_clustered_without_fault() -> None:
    vectors = np.repeat(np.array([[0.6, 0.8]], np.float32), 7, axis=0)
    found = cluster(np.array([0, 7]), np.arange(7, dtype=np.int32), vectors, np.array([1], np.uint64))
    assert found.inertia[0] == pytest.approx(0, abs=1e-6)
    assert found.labels.max() < 4


def test_clusters_of_no_images_are_empty() -> None:
    _, _, vectors, _ = corpus(6, [3])
    found = cluster(np.zeros(1, np.int64), np.empty(0, np.int32), vectors, np.empty(0, np.uint64))
    assert len(found.labels) == len(found.inertia) == 0


def test_seeds_that_do_not_match_the_images_are_refused() -> None:
    offsets, concept, vectors, seeds = corpus(7, [3, 4])
    with pytest.raises(ValueError, match="1 seeds for 2 images"):
        cluster(offsets, concept, vectors, seeds[:1])


def test_products_of_fixed_point_vectors_are_the_same_in_any_order() -> None:
    rng = np.random.default_rng(8)
    vectors = rng.standard_normal((2, 512))
    a, b = fixed_point(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), 24)
    orders = [rng.permutation(512) for _ in range(50)]
    assert len({float(np.cumsum(a[order] * b[order])[-1]) for order in orders}) == 1
