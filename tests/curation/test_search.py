"""Approximate search: recall with a certificate, the same structure every time, and a floor that holds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from curation.certificate import Certificate, Sample, draw_sample
from curation.expand import best_of, nearest
from curation.index import EXPAND, INDEX, ExpandConfig, IndexConfig, load_index
from curation.ivf import build_inverted_file
from curation.search import Kind, build, cells_of, choose, tune
from storage.artifact import Store
from storage.errors import ConfigError
from storage.runtime import Runtime
from storage.schemas import table_of
from storage.stage import Job, Output, Stage, materialize

WIDTH, ROWS, CELLS = 32, 3000, 64


@pytest.fixture(scope="module", name="vectors_MD")
def clouds() -> NDArray[np.float16]:
    """Unit vectors in 200 clouds."""
    rng = np.random.default_rng(4)
    centres = rng.standard_normal((200, WIDTH))
    points = centres[rng.integers(0, 200, ROWS)] + 0.5 * rng.standard_normal((ROWS, WIDTH))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_row_is_in_the_cell_of_its_nearest_centroid(vectors_MD: NDArray[np.float16]) -> None:
    found = build_inverted_file(vectors_MD, CELLS, 1e9, seed=1)
    assert sorted(found.cells.values.tolist()) == list(range(ROWS))
    np.testing.assert_allclose(np.linalg.norm(found.centroids_KD, axis=1), 1, atol=1e-5)
    products_MK = vectors_MD.astype(np.float32) @ found.centroids_KD.T
    own_M = products_MK[found.cells.values, found.cells.row_of]
    assert (own_M >= products_MK.max(axis=1)[found.cells.values] - 1e-6).all()
    assert all((np.diff(found.cells[cell]) > 0).all() for cell in range(CELLS))


def test_inverted_file_does_not_depend_on_threads(vectors_MD: NDArray[np.float16], threads: int) -> None:
    found = build_inverted_file(vectors_MD, CELLS, 1e9, seed=1)
    torch.set_num_threads(4 - threads)
    again = build_inverted_file(vectors_MD, CELLS, 1e9, seed=1)
    assert found.centroids_KD.tobytes() == again.centroids_KD.tobytes()
    assert found.cells.values.tobytes() == again.cells.values.tobytes()
    searched = found.search(vectors_MD, vectors_MD, 12, 5)
    torch.set_num_threads(threads)
    assert np.array_equal(np.sort(searched), np.sort(again.search(vectors_MD, vectors_MD, 12, 5)))


def test_search_of_all_cells_is_exact(vectors_MD: NDArray[np.float16]) -> None:
    found = build_inverted_file(vectors_MD, CELLS, 1e9, seed=1)
    proposed = found.search(vectors_MD[:500], vectors_MD, 16, CELLS)
    rows, similarities = best_of(vectors_MD[:500], vectors_MD, proposed, 8)
    exact_rows, exact_similarities = nearest(vectors_MD[:500], vectors_MD, 8)
    assert np.array_equal(rows, exact_rows)
    assert np.array_equal(similarities, exact_similarities)


def test_cells_that_hold_too_few_rows_leave_places_empty() -> None:
    vectors_MD = np.eye(6, 8, dtype=np.float16)
    found = build_inverted_file(vectors_MD, 6, 1e9, seed=0)
    rows, similarities = best_of(vectors_MD, vectors_MD, found.search(vectors_MD, vectors_MD, 4, 1), 3)
    assert rows[:, 0].tolist() == list(range(6))
    assert (rows[:, 1:] == -1).all()
    assert np.isneginf(similarities[:, 1:]).all()


@pytest.mark.parametrize("kind", ["ivf", "ivfpq", "hnsw"])
def test_tuned_search_reaches_the_floor_and_keeps_exact_similarities(
    kind: Kind, vectors_MD: NDArray[np.float16]
) -> None:
    proposer = build(kind, vectors_MD, CELLS, 1e9, seed=2)
    searcher, found = tune(kind, proposer, vectors_MD, 0.9, CELLS, count=8, queries=300, seed=5, device="cpu")
    assert 0.9 <= found.recall <= 1
    assert found.low < found.recall <= found.high
    rows, similarities = searcher.nearest(vectors_MD[:100], vectors_MD, 8)
    exact = nearest(vectors_MD[:100], vectors_MD, 8)[0]
    shared = np.mean([len(set(a) & set(b)) / 8 for a, b in zip(rows.tolist(), exact.tolist(), strict=True)])
    assert abs(shared - found.recall) < 0.1
    products = np.vecdot(vectors_MD[rows].astype(np.float64), vectors_MD[:100, None].astype(np.float64))
    np.testing.assert_allclose(similarities, products, atol=1e-6)
    assert (np.diff(similarities, axis=1) <= 0).all()


def test_recall_of_a_search_that_finds_every_other_neighbour_is_a_half() -> None:
    rows_QL = np.arange(80).reshape(20, 4)
    sample = Sample(np.zeros((20, 2)), rows_QL)
    found = sample.certify(lambda _, count: np.where(np.arange(count) % 2 == 0, rows_QL, -1))
    assert found.recall == 0.5
    assert found.low == pytest.approx(0.5 - 0.5 / 80)  # no spread: half a neighbour's doubt only


def test_recall_counts_only_neighbours_that_there_are() -> None:
    rows_QL = np.array([[3, -1], [5, 6]])
    found = Sample(np.zeros((2, 2)), rows_QL).certify(lambda *_: np.array([[3, -1], [5, 7]]))
    assert found == Certificate(0.75, found.low, 1.0, 2)


def test_certificate_covers_the_recall_of_the_whole_corpus(vectors_MD: NDArray[np.float16]) -> None:
    proposer = build_inverted_file(vectors_MD, CELLS, 1e9, seed=2)
    search = lambda queries, count: best_of(  # noqa: E731
        queries, vectors_MD, proposer.search(queries, vectors_MD, count, 1), count
    )[0]
    whole = draw_sample(vectors_MD, np.arange(ROWS), 8, "cpu").certify(search).recall
    inside = 0
    for seed in range(20):
        rows = np.random.default_rng(seed).choice(ROWS, 200, replace=False)
        found = draw_sample(vectors_MD, rows, 8, "cpu").certify(search)
        inside += found.low <= whole <= found.high
    assert inside >= 17  # of 20 intervals at 95 %


@pytest.mark.parametrize(
    ("rows", "memory", "recall", "kind"),
    [
        (90_000, 1e9, 0.95, "exact"),
        (1_000_000, 4e9, 0.95, "ivf"),
        (12_000_000, 4e9, 0.95, "ivfpq"),
        (12_000_000, 4e9, 1.0, "exact"),
    ],
)
def test_auto_chooses_by_rows_memory_and_floor(rows: int, memory: float, recall: float, kind: Kind) -> None:
    assert choose(rows, 512, memory, recall) == kind


def test_cells_grow_with_the_root_of_the_rows() -> None:
    assert [cells_of(n) for n in (1, 62_500, 1_000_000)] == [1, 512, 2048]


def write_embeddings(job: Job[Any]) -> None:
    parts = np.array_split(np.load(str(job.inputs["vectors"])), 3)
    shards = [f"s/{number}" for number in range(3)]
    job.map_shards(lambda: lambda shard: shard_output(shard, parts[shards.index(shard)]), shards)


def shard_output(shard: str, vectors: NDArray[np.float16]) -> Output:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), WIDTH)
    ids = [f"{shard}/{row}" for row in range(len(vectors))]
    return Output(tables={"embeddings": table_of("embeddings", {"sample_id": ids, "vector": lists})})


@pytest.fixture(scope="module")
def embeddings(vectors_MD: NDArray[np.float16], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An artifact of the vectors, and its store."""
    folder = tmp_path_factory.mktemp("search")
    np.save(folder / "vectors.npy", vectors_MD)
    store = Store(str(folder / "store"))
    inputs = {"vectors": str(folder / "vectors.npy")}
    return materialize(Stage("embed", 1, write_embeddings), None, inputs, store, Runtime(device="cpu")), store


@pytest.mark.parametrize("kind", ["ivf", "ivfpq", "hnsw"])
def test_stages_find_most_neighbours_with_a_certificate_in_the_manifest(
    kind: Any, embeddings: Any, vectors_MD: NDArray[np.float16]
) -> None:
    artifact, store = embeddings
    config = IndexConfig(kind=kind, recall=0.9, queries=200, cells=CELLS)
    index = materialize(INDEX, config, {"embeddings": artifact}, store, Runtime(device="cpu"))
    facts = index.manifest.facts
    assert 0.9 <= facts["recall"] <= facts["recall_high"] <= 1
    assert facts["recall_queries"] == 200
    inputs = {"embeddings": artifact, "index": index}
    found = materialize(EXPAND, ExpandConfig(8), inputs, store, Runtime(device="cpu")).read("neighbours")
    names = load_index(index).names
    exact = names[nearest(vectors_MD, vectors_MD, 8)[0]]
    shares = [
        len(set(a) & set(b)) / 8 for a, b in zip(found["neighbour_ids"].to_pylist(), exact, strict=True)
    ]
    assert np.mean(shares) == pytest.approx(facts["recall"], abs=0.03)


def test_shards_searched_together_have_the_neighbours_of_shards_searched_alone(
    embeddings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, store = embeddings
    config = IndexConfig(kind="ivf", recall=0.9, queries=200, cells=CELLS)
    index = materialize(INDEX, config, {"embeddings": artifact}, store, Runtime(device="cpu"))
    inputs = {"embeddings": artifact, "index": index}
    found = []
    for met in (1, 1 << 20):
        monkeypatch.setattr("curation.index.MET_IN_A_CELL", met)
        where = Store(str(tmp_path / str(met)))
        found.append(materialize(EXPAND, ExpandConfig(8), inputs, where, Runtime(device="cpu")))
    alone, together = ([part.sha256 for part in run.manifest.parts] for run in found)
    assert len(alone) > 1
    assert alone == together


@pytest.mark.parametrize("kind", ["ivf", "ivfpq", "hnsw"])
def test_index_built_twice_has_the_same_bytes(kind: Any, embeddings: Any, tmp_path: Path) -> None:
    artifact, _ = embeddings
    config = IndexConfig(kind=kind, recall=0.5, queries=50, cells=CELLS)
    runs = [
        materialize(
            INDEX, config, {"embeddings": artifact}, Store(str(tmp_path / name)), Runtime(device="cpu")
        )
        for name in ("a", "b")
    ]
    one, other = ([part.sha256 for part in run.manifest.parts] for run in runs)
    assert one == other


def test_index_below_its_floor_fails_and_says_what_to_change(
    embeddings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, store = embeddings
    monkeypatch.setattr("curation.search.RESCORED", 1)
    config = IndexConfig(kind="ivfpq", recall=0.999, queries=100, cells=CELLS)
    with pytest.raises(ConfigError, match=r"ivfpq finds 0\.\d+ of the exact.*0\.999.*'ivf' or 'exact'"):
        materialize(INDEX, config, {"embeddings": artifact}, store, Runtime(device="cpu"))
    assert not [a for a in store.artifacts("index") if a.manifest.config.get("recall") == 0.999]


@pytest.mark.parametrize("setting", [{"recall": 0.0}, {"recall": 1.1}, {"queries": 0}, {"memory_gb": 0.0}])
def test_impossible_index_settings_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give positive numbers|it is a share"):
        IndexConfig(**setting)
