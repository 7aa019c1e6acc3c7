from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from benchmarks.loop_oracle import probabilities
from training.draws import draw


@st.composite
def batches(draw_from: Any) -> Any:
    """Scores and clusters of a few archives, some of them empty."""
    entry = st.tuples(st.floats(0.001, 9.0), st.integers(0, 4))
    return draw_from(st.lists(st.lists(entry, max_size=9), min_size=1, max_size=6))


def arrays(batch: Any) -> Any:
    offsets = np.concatenate([[0], np.cumsum([len(archive) for archive in batch])]).astype(np.int64)
    entries = [entry for archive in batch for entry in archive]
    scores = np.array([score for score, _ in entries], np.float32)
    return offsets, scores, np.array([cluster for _, cluster in entries], np.int32)


def names(count: int) -> Any:
    return [f"demo/000/{n}" for n in range(count)]


@given(batches(), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_draws_are_distinct_concepts_from_distinct_clusters_while_there_are_any(
    batch: Any, count: int, epoch: int
) -> None:
    offsets, scores, clusters = arrays(batch)
    drawn = draw(names(len(batch)), offsets, scores, clusters, seed=1, epoch=epoch, count=count)
    for image, positions in enumerate(drawn):
        size = offsets[image + 1] - offsets[image]
        taken = positions[positions >= 0]
        assert len(taken) == min(size, count)
        assert (positions[len(taken) :] == -1).all()
        assert len(set(taken)) == len(taken)
        assert all(offsets[image] <= position < offsets[image + 1] for position in taken)
        there = len(set(clusters[offsets[image] : offsets[image + 1]]))
        rounds = [clusters[taken[at : at + there]] for at in range(0, len(taken), max(there, 1))]
        assert all(len(set(part)) == len(part) for part in rounds[:1])


@given(batches(), st.randoms())
@settings(max_examples=100, deadline=None)
def test_draws_of_an_image_do_not_depend_on_batch_and_order(batch: Any, random: Any) -> None:
    offsets, scores, clusters = arrays(batch)
    ids = names(len(batch))
    together = draw(ids, offsets, scores, clusters, seed=3, epoch=2)
    shuffled = random.sample(range(len(batch)), len(batch))
    other = draw([ids[n] for n in shuffled], *arrays([batch[n] for n in shuffled]), seed=3, epoch=2)
    starts = arrays([batch[n] for n in shuffled])[0]
    for place, image in enumerate(shuffled):
        here = np.where(other[place] >= 0, other[place] - starts[place], -1)
        assert here.tolist() == np.where(together[image] >= 0, together[image] - offsets[image], -1).tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_first_draw_is_as_frequent_as_its_probability(temperature: float) -> None:
    scores, clusters = [2.1, 0.7, 1.4, 1.9, 0.6, 1.2], [0, 0, 1, 2, 2, 2]
    trials = 20_000
    offsets = np.arange(trials + 1) * 6
    drawn = draw(
        names(trials), offsets, np.tile(scores, trials), np.tile(clusters, trials),
        seed=5, epoch=0, count=1, temperature=temperature,
    )  # fmt: skip
    observed = np.bincount(drawn[:, 0] % 6, minlength=6)
    expected = np.array(probabilities(scores, clusters, temperature)) * trials
    assert chisquare(observed, expected).pvalue > 0.01


def test_second_draw_is_as_frequent_as_drawing_clusters_without_replacement() -> None:
    logits, trials = np.array([1.0, 0.2, -0.5]), 20_000
    drawn = draw(
        names(trials), np.arange(trials + 1) * 3, np.tile(logits, trials), np.tile([0, 1, 2], trials),
        seed=6, epoch=0, count=2,
    )  # fmt: skip
    weight = np.exp(logits) / np.exp(logits).sum()
    pairs = [(a, b) for a in range(3) for b in range(3) if a != b]
    expected = [weight[a] * weight[b] / (1 - weight[a]) * trials for a, b in pairs]
    observed = [((drawn % 3) == pair).all(axis=1).sum() for pair in pairs]
    assert chisquare(observed, expected).pvalue > 0.01


def test_equal_scores_in_clusters_of_their_own_are_drawn_uniformly() -> None:
    trials = 20_000
    offsets = np.arange(trials + 1) * 5
    drawn = draw(
        names(trials), offsets, np.zeros(5 * trials), np.tile(np.arange(5), trials), seed=7, epoch=0, count=2
    )
    assert chisquare(np.bincount(drawn[:, 0] % 5)).pvalue > 0.01
    assert chisquare(np.bincount(drawn[:, 1] % 5)).pvalue > 0.01


def test_draws_over_epochs_are_as_frequent_as_over_images() -> None:
    scores, clusters, epochs = np.array([1.5, 0.5, 1.0]), np.array([0, 0, 1]), 4000
    drawn = [
        draw(["a/b/c"], np.array([0, 3]), scores, clusters, seed=8, epoch=epoch, count=1)[0, 0]
        for epoch in range(epochs)
    ]
    expected = np.array(probabilities(scores.tolist(), clusters.tolist())) * epochs
    assert chisquare(np.bincount(drawn, minlength=3), expected).pvalue > 0.01


def test_draws_change_with_seed_epoch_and_image_only() -> None:
    offsets, scores, clusters = np.array([0, 40]), np.ones(40), np.arange(40)

    def drawn(name: str, seed: int, epoch: int) -> Any:
        return draw([name], offsets, scores, clusters, seed=seed, epoch=epoch, count=8).tolist()

    runs = [drawn("a", 0, 0), drawn("b", 0, 0), drawn("a", 1, 0), drawn("a", 0, 1)]
    assert drawn("a", 0, 0) == runs[0]
    assert all(runs[i] != runs[j] for i in range(4) for j in range(i))


def test_draws_from_known_archives_are_pinned() -> None:
    found = draw(
        ["cc/0001/17"], np.array([0, 6]), np.linspace(0.5, 3, 6), np.arange(6) // 2, seed=11, epoch=4
    )
    assert found.tolist() == [[5, 0, 3]]  # changes only if the stream does, and with it every past run


def test_draws_from_no_images_are_empty() -> None:
    empty = np.empty(0)
    assert draw([], np.zeros(1, np.int64), empty, empty.astype(int), seed=0, epoch=0).shape == (0, 3)


@pytest.mark.parametrize(
    ("ids", "temperature", "message"), [(["a"], 0.0, "above 0"), (["a", "b"], 1.0, "2 sample ids")]
)
def test_draw_with_unusable_input_says_what_is_allowed(
    ids: list[str], temperature: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        draw(ids, np.array([0, 1]), np.ones(1), np.zeros(1, int), seed=0, epoch=0, temperature=temperature)
