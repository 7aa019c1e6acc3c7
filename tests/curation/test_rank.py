from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import loop_oracle
from curation.expand import nearest, pool
from curation.probability import probability
from curation.ragged import ragged
from curation.rank import rank


def unit(rng: np.random.Generator, rows: Any, width: int) -> Any:
    vectors = rng.standard_normal((rows, width)) + 0.4
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def archives(
    images: NDArray[Any],
    concepts: Any,
    mentions: Any,
    neighbours: NDArray[Any],
    anchors: Any = None,
    dtype: Any = np.float16,
) -> Any:
    images = images.astype(dtype)
    anchors = np.arange(len(neighbours)) if anchors is None else anchors
    candidates = pool(neighbours, ragged(mentions, np.int32))
    return candidates, rank(candidates, anchors, images, concepts)


def assert_equals_loop(images: NDArray[Any], concepts: Any, mentions: Any, neighbours: NDArray[Any]) -> None:
    candidates, scores = archives(images, concepts, mentions, neighbours)
    stored = images.astype(np.float16).astype(np.float32)
    entries = [
        entry
        for anchor, rows in enumerate(neighbours)
        for entry in loop_oracle.archive(anchor, rows.tolist(), mentions, stored, concepts)
    ]
    assert candidates.concept_A.tolist() == [entry.concept for entry in entries]
    for ours, theirs in [("anchor_similarity",) * 2, ("local",) * 2, ("global_",) * 2, ("score",) * 2]:
        np.testing.assert_allclose(getattr(scores, ours), [getattr(e, theirs) for e in entries], atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_scores_of_random_images_equal_the_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, concepts = unit(rng, 60, 32), unit(rng, 25, 32)
    mentions = [rng.integers(0, 25, rng.integers(0, 5)).tolist() for _ in range(60)]
    assert_equals_loop(images, concepts, mentions, nearest(images, images, 8)[0])


def test_support_adds_to_the_score_for_each_donor_and_changes_nothing_else() -> None:
    rng = np.random.default_rng(4)
    images, concepts = unit(rng, 40, 16), unit(rng, 12, 16)
    candidates = pool(nearest(images, images, 8)[0], ragged([[n % 12, n % 5] for n in range(40)], np.int32))
    plain, supported = (rank(candidates, np.arange(40), images, concepts, support=s) for s in (0.0, 0.5))
    np.testing.assert_allclose(supported.score, plain.score + 0.5 * candidates.donors.lengths, rtol=1e-6)
    assert candidates.donors.lengths.max() > 1
    for name in ("anchor_similarity", "local", "global_"):
        np.testing.assert_array_equal(getattr(supported, name), getattr(plain, name))


def test_novelty_takes_from_what_the_image_itself_names_and_from_nothing_else() -> None:
    rng = np.random.default_rng(7)
    images, concepts = unit(rng, 40, 32), unit(rng, 12, 32)
    mentions = [rng.integers(0, 12, 3).tolist() for _ in range(40)]
    candidates = pool(nearest(images, images, 6)[0], ragged([sorted(set(m)) for m in mentions], np.int32))
    plain, novel = (rank(candidates, np.arange(40), images, concepts, novelty=n) for n in (0.0, 2.0))
    image_A = np.repeat(np.arange(40), np.diff(candidates.offsets))
    own_A = [c in mentions[i] for i, c in zip(image_A, candidates.concept_A.tolist(), strict=True)]
    assert 0 < sum(own_A) < len(own_A)
    np.testing.assert_allclose(novel.score, plain.score - 2.0 * np.array(own_A), rtol=1e-5, atol=1e-6)


def test_scores_of_identical_images_equal_the_loop() -> None:
    rng = np.random.default_rng(9)
    images, concepts = np.repeat(unit(rng, 3, 16), 6, axis=0), unit(rng, 9, 16)
    mentions = [[n % 9, (n * 2) % 9] for n in range(18)]
    assert_equals_loop(images, concepts, mentions, nearest(images, images, 8)[0])


def test_scores_in_a_corpus_smaller_than_the_neighbour_count_equal_the_loop() -> None:
    rng = np.random.default_rng(10)
    images, concepts = unit(rng, 3, 16), unit(rng, 4, 16)
    assert_equals_loop(images, concepts, [[0, 1], [2], []], nearest(images, images, 8)[0])


def test_scores_without_any_candidate_are_empty() -> None:
    rng = np.random.default_rng(11)
    _, scores = archives(unit(rng, 2, 8), unit(rng, 3, 8), [[], []], np.array([[0, 1], [1, 0]]))
    assert len(scores.score) == 0


def test_scores_of_the_only_concept_of_the_only_image_are_one() -> None:
    rng = np.random.default_rng(12)
    image = unit(rng, 1, 8)
    _, scores = archives(image, image, [[0]], np.array([[0]]))
    assert (scores.local[0], scores.global_[0], scores.score[0]) == (1, 1, 2)


def test_anchor_among_its_donors_counts_twice_in_the_mean() -> None:
    images = np.array([[0.6, 0.8], [0.3, np.sqrt(0.91)]], np.float32)
    _, scores = archives(
        images, np.array([[1, 0]], np.float32), [[0], [0]], np.array([[0, 1]]), dtype=np.float32
    )
    assert scores.local[0] == pytest.approx(0.6 / ((0.6 + 0.3 + 0.6) / 3))


def test_similarities_below_the_floor_are_raised() -> None:
    images = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    concepts = np.array([[0, 1]], np.float32)
    _, scores = archives(images, concepts, [[0], [0], [0]], np.array([[0, 1, 2]]))
    assert scores.anchor_similarity[0] == np.float32(1e-3)
    assert scores.local[0] == pytest.approx(1e-3 / ((1e-3 + 1 + 1e-3 + 1e-3) / 4))
    assert scores.global_[0] == pytest.approx(1e-3)


def test_scores_stay_within_their_bounds_for_an_encoder_with_cosines_near_zero() -> None:
    rng = np.random.default_rng(13)
    images, concepts = unit(rng, 40, 64), unit(rng, 20, 64)
    concepts[::2] *= -1
    mentions = [rng.integers(0, 20, 3).tolist() for _ in range(40)]
    candidates, scores = archives(images, concepts, mentions, nearest(images, images, 6)[0])
    assert (scores.local <= candidates.donors.lengths + 1 + 1e-5).all()
    assert (scores.global_ <= 1 + 1e-6).all()


def test_scores_do_not_depend_on_how_images_are_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(14)
    images, concepts = unit(rng, 50, 32), unit(rng, 20, 32)
    mentions = [rng.integers(0, 20, 3).tolist() for _ in range(50)]
    neighbours = nearest(images, images, 8)[0]
    _, whole = archives(images, concepts, mentions, neighbours)
    monkeypatch.setattr("curation.rank.BLOCK", 7)
    parts = [
        archives(images, concepts, mentions, neighbours[part], anchors=np.arange(50)[part])[1].score
        for part in (slice(0, 1), slice(1, 30), slice(30, 50))
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole.score)


def test_rank_reads_a_memory_map(tmp_path: Path) -> None:
    rng = np.random.default_rng(15)
    images, concepts = unit(rng, 10, 16).astype(np.float16), unit(rng, 4, 16)
    np.save(tmp_path / "images.npy", images)
    stored = np.load(tmp_path / "images.npy", mmap_mode="r")
    candidates = pool(np.array([[3, 5], [5, 1]]), ragged([[n % 4] for n in range(10)], np.int32))
    anchors = np.array([3, 5])
    expected = rank(candidates, anchors, images, concepts).score
    np.testing.assert_array_equal(rank(candidates, anchors, stored, concepts).score, expected)


@pytest.mark.parametrize(
    ("epsilon", "anchors", "message"), [(0.0, 1, "floor above 0"), (1e-3, 2, "2 anchors for 1")]
)
def test_rank_with_unusable_input_says_what_is_allowed(epsilon: float, anchors: Any, message: str) -> None:
    candidates = pool(np.array([[0]]), ragged([[0]], np.int32))
    with pytest.raises(ValueError, match=message):
        rank(candidates, np.zeros(anchors, np.int64), np.eye(2), np.eye(2), epsilon)


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_probabilities_equal_the_loop_and_sum_to_one(temperature: float) -> None:
    rng = np.random.default_rng(16)
    sizes = [0, 1, 7, 0, 24, 2, 0]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    scores = rng.uniform(0.5, 3, offsets[-1]).astype(np.float32)
    labels = np.concatenate([rng.integers(0, max(size // 2, 1), size) for size in sizes])
    found = probability(offsets, scores, labels, temperature)
    rows = [slice(*bounds) for bounds in pairwise(offsets)]
    expected = [loop_oracle.probabilities(scores[r].tolist(), labels[r].tolist(), temperature) for r in rows]
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-5)
    assert [float(found[r].sum()) for r in rows] == pytest.approx([float(size > 0) for size in sizes])


def test_probabilities_at_a_tiny_temperature_stay_finite() -> None:
    found = probability(np.array([0, 3]), np.array([0.5, 3.0, 1.0]), np.array([0, 1, 0]), 1e-4)
    assert found.tolist() == [0, 1, 0]


def test_probability_at_temperature_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature is 0"):
        probability(np.array([0, 1]), np.ones(1), np.zeros(1, int), 0)
