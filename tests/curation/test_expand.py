from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.loop_oracle import expand
from curation.expand import _keep_there, nearest, pool
from curation.largest import keep_largest, merge_slots, room
from curation.ragged import Ragged, ragged, reduced


@pytest.fixture(params=["processor", "accelerator"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Search as the processor does it, and as a GPU would."""
    if request.param == "accelerator":
        monkeypatch.setattr("curation.expand._keep_here", partial(_keep_there, device="cpu"))


def unit(rng: np.random.Generator, rows: Any, width: int, dtype: Any = np.float32) -> Any:
    vectors = rng.standard_normal((rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(dtype)


def by_sorting(queries: NDArray[Any], vectors: NDArray[Any], count: int) -> Any:
    similarity = queries.astype(np.float64) @ vectors.astype(np.float64).T
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count]


@st.composite
def corpora(draw: Any) -> Any:
    mentions = draw(st.lists(st.lists(st.integers(0, 6), max_size=5), min_size=1, max_size=8))
    some = st.lists(st.integers(0, len(mentions) - 1), max_size=3, unique=True)
    return mentions, [(rows + [-1] * 3)[:3] for rows in draw(st.lists(some, max_size=6))]


@given(corpora())
@settings(max_examples=200, deadline=None)
def test_pool_of_any_corpus_equals_the_loop(corpus: Any) -> None:
    mentions, neighbours = corpus
    found = pool(np.array(neighbours, np.int64).reshape(-1, 3), ragged(mentions, np.int32))
    for image, rows in enumerate(neighbours):
        expected = sorted(expand(rows, mentions).items())
        candidates = range(found.offsets[image], found.offsets[image + 1])
        assert [(int(found.concept_A[a]), found.donors[a].tolist()) for a in candidates] == expected


def test_pool_of_silent_neighbours_gives_no_candidates() -> None:
    found = pool(np.array([[0, 1], [-1, -1]]), ragged([[], []], np.int32))
    assert len(found) == 2
    assert len(found.concept_A) == len(found.donors) == 0


def test_pool_of_no_images_is_empty() -> None:
    assert len(pool(np.empty((0, 8), np.int64), ragged([[1]], np.int32))) == 0


def test_pool_with_a_row_outside_the_mentions_names_it() -> None:
    with pytest.raises(ValueError, match="neighbour 5 has no mentions: there are 2 rows"):
        pool(np.array([[0, 5]]), ragged([[1], [2]], np.int32))


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_nearest_equals_sorting_all_similarities(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    vectors, queries = unit(rng, 500, 32, dtype), unit(rng, 40, 32, dtype)
    rows, similarity = nearest(queries, vectors, 8)
    np.testing.assert_array_equal(rows, by_sorting(queries, vectors, 8))
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
    np.testing.assert_allclose(similarity, np.take_along_axis(exact, rows, 1), atol=1e-6)
    assert rows.dtype == np.int64
    assert similarity.dtype == np.float32


def test_nearest_over_several_blocks_equals_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    vectors, queries = unit(rng, 300, 16, np.float16), unit(rng, 50, 16, np.float16)
    whole = nearest(queries, vectors, 5)
    monkeypatch.setattr("curation.expand.ROWS", 7)
    for size in ("QUERIES", "ASKED", "MET"):
        monkeypatch.setattr(f"curation.expand.{size}", 3)
    blocks = nearest(queries, vectors, 5)
    np.testing.assert_array_equal(whole[0], blocks[0])
    np.testing.assert_array_equal(whole[1], blocks[1])


@pytest.mark.usefixtures("place")
def test_nearest_of_an_indexed_image_is_itself() -> None:
    vectors = unit(np.random.default_rng(2), 60, 16, np.float16)
    assert nearest(vectors, vectors, 3)[0][:, 0].tolist() == list(range(60))


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("copies", [3, 100])
def test_nearest_among_copies_takes_the_lowest_rows(copies: int) -> None:
    rng = np.random.default_rng(3)
    image, others = unit(rng, 1, 16), unit(rng, 50, 16)
    vectors = np.concatenate([others[:20], np.repeat(image, copies, 0), others[20:]])
    rows, _ = nearest(image, vectors, 8)
    assert rows[0, : min(copies, 8)].tolist() == list(range(20, 20 + min(copies, 8)))


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("size", [0, 1, 3])
def test_nearest_in_a_small_corpus_is_padded(size: int) -> None:
    rng = np.random.default_rng(4)
    rows, similarity = nearest(unit(rng, 2, 8), unit(rng, 3, 8)[:size], 4)
    assert np.sort(rows[0, :size]).tolist() == list(range(size))
    assert (rows[:, size:] == -1).all()
    assert np.isneginf(similarity[:, size:]).all()


@pytest.mark.usefixtures("place")
def test_nearest_for_no_query_is_empty() -> None:
    vectors = unit(np.random.default_rng(5), 30, 8)
    assert nearest(vectors[:0], vectors, 4)[0].shape == (0, 4)


def test_nearest_reads_a_memory_map(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(6), 30, 8, np.float16)
    np.save(tmp_path / "vectors.npy", vectors)
    stored = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    np.testing.assert_array_equal(nearest(stored, stored, 4)[0], nearest(vectors, vectors, 4)[0])


@pytest.mark.parametrize(("width", "count", "message"), [(9, 4, "8 dimensions"), (8, 0, "at least 1")])
def test_nearest_with_unusable_input_says_what_is_allowed(width: int, count: int, message: str) -> None:
    vectors = np.ones((3, width), np.float32)
    with pytest.raises(ValueError, match=message):
        nearest(np.ones((2, 8), np.float32), vectors, count)


def test_ragged_with_offsets_that_do_not_span_its_values_is_refused() -> None:
    with pytest.raises(ValueError, match="do not span 3 values"):
        Ragged(np.array([0, 2]), np.arange(3))


def test_ragged_taken_rows_keep_order_and_negative_rows_are_empty() -> None:
    rows = ragged([[1, 2], [], [3]], np.int32).take(np.array([2, -1, 0, 0, 1]))
    assert [rows[n].tolist() for n in range(5)] == [[3], [], [1, 2], [1, 2], []]


@given(st.lists(st.lists(st.integers(-9, 9), max_size=4), max_size=6))
def test_reduced_rows_equal_their_maxima_with_empty_rows_anywhere(rows: Any) -> None:
    values = ragged(rows, np.int64)
    expected = [max(row, default=-99) for row in rows]
    assert reduced(np.maximum, values.values, values.offsets, empty=-99).tolist() == expected


@pytest.mark.parametrize(("blocks", "count"), [(1, 16), (5, 1), (5, 16), (5, 70)])
def test_largest_kept_block_by_block_are_those_of_sorting(blocks: int, count: int) -> None:
    rng = np.random.default_rng(1)
    products_QR = rng.random((20, 60 * blocks)).astype(np.float32)
    best, rows = room(20, count)
    for part in np.split(np.arange(60 * blocks), blocks):
        keep_largest(products_QR[:, part], part + 7, np.arange(20), best, rows)
    order = np.argsort(-products_QR, axis=1)[:, :count]
    found = order.shape[1]
    np.testing.assert_array_equal(rows[:, :found], order + 7)
    np.testing.assert_array_equal(best[:, :found], np.take_along_axis(products_QR, order, 1))
    assert (rows[:, found:] == -1).all()


def test_slots_merged_hold_the_largest_of_all() -> None:
    rng = np.random.default_rng(2)
    best_QSC = -np.sort(-rng.random((9, 4, 5)).astype(np.float32), axis=2)
    best_QSC[:, 1, 2:] = -np.inf  # a slot that is not full
    rows_QSC = rng.permutation(9 * 4 * 5).reshape(9, 4, 5)
    order = np.argsort(-best_QSC.reshape(9, -1), axis=1)[:, :5]
    expected = np.take_along_axis(rows_QSC.reshape(9, -1), order, 1)
    merge_slots(best_QSC, rows_QSC)
    np.testing.assert_array_equal(rows_QSC[:, 0], expected)
