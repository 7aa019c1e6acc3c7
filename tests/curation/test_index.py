"""Stages ``index`` and ``expand`` over the tables of the scene corpus."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from curation.index import EXPAND, INDEX, VECTORS, ExpandConfig, Index, IndexConfig, load_index
from storage.artifact import Artifact
from storage.errors import InputError
from storage.runtime import Runtime
from storage.stage import materialize


def vectors(embeddings: Artifact) -> tuple[list[str], NDArray[np.float16]]:
    found = pl.from_arrow(embeddings.read("embeddings"))
    assert isinstance(found, pl.DataFrame)
    return found["sample_id"].to_list(), np.array(found["vector"].to_list(), np.float16)


def expanded(run: Any, neighbours: int) -> Artifact:
    inputs = {"embeddings": run["embed"], "index": run["index"]}
    return materialize(EXPAND, ExpandConfig(neighbours), inputs, run.plan.store, Runtime(device="cpu"))


def test_index_holds_every_vector_under_its_id_in_the_corpus_order(curated: Any) -> None:
    ids, vectors_MD = vectors(curated["embed"])
    index = load_index(curated["index"])
    assert index.names.tolist() == ids
    assert index.vectors_MD.dtype == np.float16
    np.testing.assert_array_equal(index.vectors_MD, vectors_MD)
    np.testing.assert_array_equal(np.load(curated["index"].file(VECTORS)), vectors_MD)


def test_index_finds_rows_by_id_and_none_for_strangers(curated: Any) -> None:
    index = load_index(curated["index"])
    wanted = [str(index.names[7]), "scenes/none", str(index.names[0]), str(index.names[7])]
    assert index.rows_of(wanted).tolist() == [7, -1, 0, 7]
    assert index.rows_of([]).tolist() == []


@pytest.mark.parametrize("count", [1, 8, 200])
def test_neighbours_are_those_of_a_full_sort_of_all_cosines(count: int, curated: Any) -> None:
    ids, vectors_MD = vectors(curated["embed"])
    similarity_MM = vectors_MD.astype(np.float64) @ vectors_MD.astype(np.float64).T
    table = expanded(curated, count).read("neighbours").to_pydict()
    assert table["sample_id"] == ids
    for row, (found, similarities) in enumerate(
        zip(table["neighbour_ids"], table["similarities"], strict=True)
    ):
        order = sorted(range(len(ids)), key=lambda other: (-similarity_MM[row, other], other))[:count]
        assert found == [ids[other] for other in order]
        np.testing.assert_allclose(similarities, similarity_MM[row, order], atol=1e-6)


def test_neighbours_keep_the_sharding_of_the_corpus(curated: Any) -> None:
    neighbours = curated["expand"]
    assert neighbours.shards == curated["corpus"].shards
    for shard in neighbours.shards:
        ids = neighbours.read("neighbours", shard, ["sample_id"])["sample_id"].to_pylist()
        assert ids == curated["corpus"].read("samples", shard, ["sample_id"])["sample_id"].to_pylist()


def test_index_of_a_corpus_without_an_image_says_where_to_look(
    curate: Any, write_pairs: Any, tiny_encoder: Path, tmp_path: Path
) -> None:
    corpus = write_pairs(tmp_path / "tars", [(b"no image", "a dog")] * 2)
    run = curate(tmp_path / "store", corpus, tiny_encoder, until="embed")
    with pytest.raises(InputError, match=r"no image could be embedded.*see the quarantine table"):
        materialize(INDEX, IndexConfig(), {"embeddings": run["embed"]}, run.plan.store, Runtime(device="cpu"))


def test_rows_of_samples_are_theirs_and_none_of_those_that_are_not_there() -> None:
    every = [f"web/{n * 7919 % 1000:05d}" for n in range(1000)]
    ids = pl.DataFrame({"sample_id": every}).with_row_index("row")
    index = Index(ids, ids["sample_id"].to_numpy(), np.zeros((1000, 2), np.float16))
    asked = np.random.default_rng(0).permutation(1000)[:50]
    names = [every[row] for row in asked]
    assert index.rows_of([*names, "web/elsewhere", ""]).tolist() == [*asked.tolist(), -1, -1]
    assert index.rows_of([]).tolist() == []
    empty = Index(ids[:0], ids["sample_id"][:0].to_numpy(), np.zeros((0, 2), np.float16))
    assert empty.rows_of(["web/00001"]).tolist() == [-1]


def test_rows_of_an_index_with_an_id_twice_are_refused() -> None:
    ids = pl.DataFrame({"sample_id": ["web/1", "web/1"]}).with_row_index("row")
    with pytest.raises(InputError, match="same sample_id"):
        Index(ids, ids["sample_id"].to_numpy(), np.zeros((2, 2), np.float16)).rows_of(["web/1"])
