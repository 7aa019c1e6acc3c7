"""Where the trainers' nouns come from, and that they are joined by id."""

import dataclasses
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation.archive import ARCHIVE
from curation.vocabulary import MENTIONS
from storage.artifact import Artifact, Store
from storage.runtime import Runtime
from storage.schemas import table_of
from storage.stage import Job, Output, materialize
from training.nouns import DrawConfig, Kind, NounLists, NounSource, concatenate, draw_nouns, union

SIDECARS: dict[Kind, str] = {"caption": "mentions", "archive": "archive", "truth": "corpus"}
TABLES = {"caption": ("mentions", MENTIONS), "archive": ("archives", ARCHIVE)}


def source(run: Any, kind: Kind) -> NounSource:
    return NounSource(kind, run["corpus"], run["vocabulary"], run[SIDECARS[kind]])


def ids_of(run: Any, shard: str) -> list[str]:
    found: list[str] = run["corpus"].read("samples", shard, ["sample_id"])["sample_id"].to_pylist()
    return found


def lists(nouns: NounLists) -> list[list[int]]:
    return [part.tolist() for part in np.split(nouns.concept, nouns.offsets[1:-1])]


def equal(one: NounLists, other: NounLists) -> bool:
    fields = [field.name for field in dataclasses.fields(NounLists)]
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in fields)


def test_nouns_of_captions_are_the_mentions(curated: Any) -> None:
    shard = curated["corpus"].shards[1]
    nouns = source(curated, "caption").shard(shard, ids_of(curated, shard))
    assert lists(nouns) == curated["mentions"].read("mentions", shard)["concept_ids"].to_pylist()
    assert not nouns.score.any()
    starts = np.repeat(nouns.offsets[:-1], np.diff(nouns.offsets))
    np.testing.assert_array_equal(nouns.cluster, np.arange(len(starts)) - starts)  # each its own


def test_nouns_of_archives_have_their_scores_and_clusters(curated: Any) -> None:
    shard = curated["corpus"].shards[0]
    nouns = source(curated, "archive").shard(shard, ids_of(curated, shard))
    records = [r for a in curated["archive"].read("archives", shard)["concepts"].to_pylist() for r in a]
    assert nouns.concept.tolist() == [record["concept_id"] for record in records]
    assert nouns.cluster.tolist() == [record["cluster"] for record in records]
    np.testing.assert_allclose(nouns.score, [record["score"] for record in records])


def test_nouns_of_the_truth_are_the_classes_the_vocabulary_knows(curated: Any) -> None:
    shard = curated["corpus"].shards[2]
    nouns = source(curated, "truth").shard(shard, ids_of(curated, shard))
    names = curated["vocabulary"].read("concepts")["name"].to_pylist()
    told = curated["corpus"].read("truth", shard)["classes"].to_pylist()
    assert [[names[c] for c in row] for row in lists(nouns)] == [
        [n for n in row if n in names] for row in told
    ]


@pytest.mark.parametrize("kind", ["caption", "archive"])
def test_nouns_are_joined_by_id_whatever_the_order_of_the_sidecar(
    kind: Kind, curated: Any, tmp_path: Path
) -> None:
    table, stage = TABLES[kind]
    original: Artifact = curated[SIDECARS[kind]]

    def shuffle(job: Job[Any]) -> None:
        for shard in original.shards:
            rows = original.read(table, shard)
            order = random.Random(shard).sample(range(len(rows)), len(rows))[:-1]  # noqa: S311 - one is lost
            job.write(
                Output({table: table_of(table, {n: rows[n].take(order) for n in rows.column_names})}), shard
            )

    stirred = materialize(dataclasses.replace(stage, run=shuffle), None, {}, Store(str(tmp_path)), Runtime())
    shard = original.shards[0]
    ids = ids_of(curated, shard)
    present = set(stirred.read(table, shard)["sample_id"].to_pylist())
    one = source(curated, kind).shard(shard, ids)
    other = dataclasses.replace(source(curated, kind), sidecar=stirred).shard(shard, ids)
    expected = [row if name in present else [] for name, row in zip(ids, lists(one), strict=True)]
    assert lists(other) == expected
    assert [] in expected


def test_nouns_come_in_the_order_asked_for_and_strangers_have_none(curated: Any) -> None:
    shard = curated["corpus"].shards[0]
    ids = ids_of(curated, shard)
    nouns = source(curated, "archive")
    forwards, backwards = nouns.shard(shard, ids), nouns.shard(shard, ids[::-1])
    assert lists(backwards) == lists(forwards)[::-1]
    assert lists(nouns.shard(shard, ["scenes/none", ids[4]])) == [[], lists(forwards)[4]]


def test_rows_and_concatenation_keep_lists_whole(curated: Any) -> None:
    shard = curated["corpus"].shards[0]
    nouns = source(curated, "archive").shard(shard, ids_of(curated, shard))
    order = [5, 0, 5, 29]
    assert lists(nouns.rows(order)) == [lists(nouns)[row] for row in order]
    assert equal(concatenate([nouns.rows([row]) for row in order]), nouns.rows(order))
    assert lists(concatenate([NounLists.empty(2), nouns.rows([3])])) == [[], [], lists(nouns)[3]]
    assert len(nouns.rows([]).concept) == 0


def test_drawn_nouns_are_concept_ids_or_minus_one(curated: Any) -> None:
    shard = curated["corpus"].shards[0]
    ids = ids_of(curated, shard)
    nouns = source(curated, "caption").shard(shard, ids)
    drawn_NM = draw_nouns(nouns, ids, DrawConfig(count=4), seed=0, epoch=0)
    for row, listed in zip(drawn_NM.tolist(), lists(nouns), strict=True):
        taken = [concept for concept in row if concept >= 0]
        assert sorted(taken) == sorted(listed)[: len(taken)] or len(listed) > 4
        assert len(taken) == min(4, len(listed))
    none = draw_nouns(NounLists.empty(2), ["a", "b"], DrawConfig(), seed=0, epoch=0)
    assert none.tolist() == [[-1, -1, -1], [-1, -1, -1]]


def test_best_nouns_are_the_highest_scores_in_every_epoch(curated: Any) -> None:
    shard = curated["corpus"].shards[0]
    ids = ids_of(curated, shard)
    nouns = source(curated, "archive").shard(shard, ids)
    config = DrawConfig(count=4, pick="best")
    best_NM = draw_nouns(nouns, ids, config, seed=0, epoch=0)
    assert best_NM.tolist() == draw_nouns(nouns, ids, config, seed=1, epoch=7).tolist()
    for row, (start, end) in enumerate(pairwise(nouns.offsets)):
        order = sorted(range(start, end), key=lambda place: -nouns.score[place])[:4]
        expected = [int(nouns.concept[place]) for place in order]
        assert best_NM[row].tolist() == expected + [-1] * (4 - len(expected))


def test_archive_concepts_too_far_from_their_image_are_left_out(curated: Any) -> None:
    shard = curated["corpus"].shards[0]
    ids = ids_of(curated, shard)
    rows = {r["sample_id"]: r["concepts"] for r in curated["archive"].read("archives", shard).to_pylist()}
    similarities = sorted(c["anchor_similarity"] for concepts in rows.values() for c in concepts)
    least = similarities[len(similarities) // 2]
    found = dataclasses.replace(source(curated, "archive"), least=least).shard(shard, ids)
    expected = [[c["concept_id"] for c in rows[name] if c["anchor_similarity"] >= least] for name in ids]
    assert lists(found) == expected


@pytest.mark.parametrize("setting", [{"pick": "first"}, {"count": 0}])
def test_impossible_draws_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="pick 'draw' or 'best'"):
        DrawConfig(**setting)


def random_lists(rows: int, seed: int) -> NounLists:
    rng = np.random.default_rng(seed)
    own = [rng.choice(9, rng.integers(0, 5), replace=False) for _ in range(rows)]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in own])]).astype(np.int64)
    concept = np.concatenate([np.zeros(0, np.int64), *own]).astype(np.int64)
    return NounLists(offsets, concept, rng.random(len(concept), np.float32), concept // 2)


@pytest.mark.parametrize("rows", [1, 2, 7, 30])
def test_union_of_lists_is_that_of_each_row(rows: int) -> None:
    for seed in range(20):
        one, other = random_lists(rows, seed), random_lists(rows, seed + 100)
        expected = [np.union1d(a, b).tolist() for a, b in zip(lists(one), lists(other), strict=True)]
        assert [row.tolist() for row in union(one, other)] == expected
    nothing = NounLists.empty(rows)
    assert [row.tolist() for row in union(nothing, nothing)] == [[]] * rows


def test_rows_may_be_taken_in_any_order_and_twice() -> None:
    whole = random_lists(6, seed=1)
    taken = whole.rows([5, 0, 5, 3])
    assert lists(taken) == [lists(whole)[row] for row in (5, 0, 5, 3)]
    assert [row.tolist() for row in taken.lists] == lists(taken)
    assert lists(whole.rows(np.zeros(0, np.int64))) == [[]]
