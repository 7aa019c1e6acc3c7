import math

import pytest

from flows.forecast.laws import (
    Estimate,
    Point,
    about,
    cost,
    fit,
    named_concepts,
    of_repeats,
    pace,
    share,
    warm_up,
)
from flows.forecast.measure import Measured
from flows.forecast.predict import CELLS, LINEAR, Rows, Scale, Search, by_shard, by_step, duplicates, packed


def near(value: float) -> object:
    return pytest.approx(value, rel=1e-6)


def test_fit_of_an_exact_law_finds_it_and_is_certain():
    law = fit([(1, 10), (1, 20), (1, 40)], [0.5 + 0.1 * n for n in (10, 20, 40)])
    assert (law.a, law.b) == (near(0.5), near(0.1))
    assert law.at((6, 3000)) == Estimate(near(303.0), near(303.0), near(303.0))


def test_fit_with_a_negative_constant_has_none():
    law = fit([(1, 10), (1, 20), (1, 40)], [0.5, 2.0, 8.0])
    assert law.a == 0
    # the least squares of relative errors through the origin, by hand: b = Σ(n/t) / Σ(n/t)²
    ratios = [10 / 0.5, 20 / 2.0, 40 / 8.0]
    assert law.b == near(sum(ratios) / sum(r * r for r in ratios))


def test_fit_with_a_falling_second_term_is_constant():
    law = fit([(1, 10), (1, 20), (1, 40)], [4.0, 2.0, 1.0])
    assert law.b == 0
    assert law.a == near((1 / 4 + 1 / 2 + 1) / (1 / 16 + 1 / 4 + 1))


def test_fit_range_is_as_wide_as_the_worst_measurement():
    law = fit([(0, 1), (0, 1), (0, 1)], [1.0, 1.0, 2.0])
    by_hand = (1 + 1 + 0.5) / (1 + 1 + 0.25)
    assert law.at((0, 10)) == Estimate(near(10 * 1.0), near(10 * by_hand), near(10 * 2.0))


def test_fit_of_one_measurement_is_its_rate_within_a_third():
    law = fit([(1, 50)], [5.0])
    assert law.at((3, 1000)) == Estimate(near(100 / 1.3), near(100), near(130))


def test_first_shard_is_left_out_of_the_pace_and_counted_as_warm_up():
    points = [Point(10, 9.0), Point(10, 1.0), Point(40, 4.0)]
    law = pace(points)
    assert (law.a, law.b) == (pytest.approx(0, abs=1e-9), near(0.1))
    assert warm_up(points, law) == near(8.0)


def test_stage_by_shard_is_fixed_plus_shards_plus_images():
    # 2 s to load; the first shard warms up for 3 s; a shard takes 0.2 s and 1 kB, an image 0.01 s and 100 B
    sizes = [10, 10, 40, 160]
    points = tuple(
        Point(n, 0.2 + 0.01 * n + (3 if i == 0 else 0), 1000 + 100 * n) for i, n in enumerate(sizes)
    )
    found = Measured(
        seconds=2 + sum(p.seconds for p in points), points=points, loaded=500, peak=800, shrunk=4
    )
    told = by_shard(found, Scale(images=100_000, shards=10), held=50)
    assert told.seconds is not None
    assert told.seconds.mid == near(2 + 3 + 10 * 0.2 + 100_000 * 0.01)
    assert told.seconds.low == near(5 / 1.3 + 1002)
    assert told.disk == near(10 * 1000 + 100_000 * 100)
    assert told.memory == near(500 + (800 - 500) * 4 + 50)


def test_training_is_its_start_and_its_steps():
    found = Measured(seconds=1 + 3.0 + 4 * 0.5, steps=(3.0, 0.4, 0.4, 0.6, 0.6))
    told = by_step(found, steps=100, stretch=2)
    assert told.seconds is not None
    # 1 s outside and 2.5 s of warming up; a step of twice the batch takes 1 s, of the halves 0.8 and 1.2
    assert told.seconds == Estimate(near(3.5 / 1.3 + 80), near(3.5 + 100), near(3.5 * 1.3 + 120))
    assert told.disk is None  # broken off: nothing was written


def test_packing_is_added_to_the_corpus():
    plain = by_shard(Measured(seconds=1.0, points=(Point(100, 1.0, 0),)), Scale(1000, 1))
    told = packed(plain, seconds=20, size=5e6, tar=5e6)
    assert told.seconds is not None
    assert told.seconds.mid == near(10 + 20)
    assert told.disk == near(5e6)


def rows_at(count: int, build: float, query: float) -> Rows:
    """Measured at one number of rows: seconds to build, and of a query."""
    expand = Measured(seconds=query * count, points=(Point(count, query * count, 30 * count),), peak=1000)
    return Rows(count, Measured(seconds=build, bytes=20 * count, peak=1000), expand)


def test_exact_search_grows_with_the_square_of_the_images():
    # index: 1 s + 1 µs a row; a query: 10 µs + 1 ns a row
    measured = [rows_at(n, 1 + 1e-6 * n, 1e-5 + 1e-9 * n) for n in (16_000, 64_000)]
    search, million = Search("exact", LINEAR, measured, vector=1024), Scale(1_000_000, 100)
    built, found = search.index(million).seconds, search.expand(million)
    assert built is not None
    assert built.mid == near(2.0)
    assert found.seconds is not None
    assert found.seconds.mid == pytest.approx(1e6 * (1e-5 + 1e-3), rel=1e-5)
    assert found.disk == near(30e6)
    assert found.memory == near(1000 + (1_000_000 - 64_000) * (200 + 1024))


def test_cells_grow_with_the_root_of_the_images():
    measured = [rows_at(n, 1e-6 * n + 1e-8 * n**1.5, 1e-5 + 1e-7 * n**0.5) for n in (16_384, 65_536)]
    search, million = Search("ivf", CELLS, measured, vector=1024), Scale(1_000_000, 100)
    built, found = search.index(million).seconds, search.expand(million).seconds
    assert built is not None
    assert found is not None
    assert built.mid == pytest.approx(1 + 10, rel=1e-5)
    assert found.mid == pytest.approx(1e6 * (1e-5 + 1e-4), rel=1e-4)


def test_near_copies_cost_the_products_of_their_cells():
    found = Measured(seconds=0.1, bytes=1000)
    told = duplicates(found, 1000, Scale(100_000, 10), cell=1000, cosine=True, pair=1e-9)
    products = 100_000 * (100 + 500) + 6 * 40 * 100 * 100
    assert told.seconds is not None
    assert told.seconds.mid == near(10 + products * 1e-9)


def test_concepts_of_a_corpus_follow_heaps_law():
    frequencies = [1] * 60 + [2] * 20 + [1000] * 20  # of 1000 captions
    quarter = 60 * 0.25 + 20 * (1 - 0.75**2) + 20
    beta = math.log(100 / quarter) / math.log(4)
    found = named_concepts(frequencies, captions=1000, images=4000, most=2000)
    assert found.low == 100
    assert found.mid == near(100 * 4**beta)
    assert found.low <= found.mid <= found.high <= 2000


def test_concepts_of_a_corpus_are_no_more_than_the_gallery():
    assert named_concepts([1] * 90, captions=100, images=10**9, most=120) == Estimate(90, 120, 120)


def test_repeats_tell_their_own_range():
    assert of_repeats([1.0, 2.0, 3.0]) == Estimate(1.0, 2.0, 3.0)
    assert of_repeats([2.0]) == about(2.0)


def test_cost_is_hours_times_price():
    assert cost(Estimate(1800, 3600, 7200), price=2.5) == Estimate(1.25, 2.5, 5.0)


def test_budget_is_dealt_by_weight_and_never_negative():
    left, spent = 60.0, []
    weights = [2.0, 1.0, 3.0]
    for number in range(3):
        part = share(weights[number:], left)
        spent.append(part)
        left -= part
    assert spent == [near(20), near(10), near(30)]
    assert share(weights, -1.0) == 0


def test_budget_that_a_stage_does_not_need_is_left_to_the_others():
    assert share([1.0, 3.0], 40.0) == near(10)
    assert share([3.0], 40.0 - 2.0) == near(38)
