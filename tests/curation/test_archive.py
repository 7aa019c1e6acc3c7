"""Archives recomputed from the other tables by plain loops, and the cases that peers get wrong."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from benchmarks import loop_oracle
from curation.archive import ArchiveConfig
from curation.corpus import CorpusConfig
from curation.index import ExpandConfig
from curation.sources import Source
from curation.vocabulary import VocabularyConfig
from storage.artifact import Artifact
from storage.tars import Sample, read_tar, write_tar


@dataclasses.dataclass(frozen=True)
class Tables:
    """What an archive is made from, read from the tables by id, and the archives themselves."""

    images_MD: NDArray[np.float64]
    concepts_CD: NDArray[np.float64]
    names: list[str]
    row: dict[str, int]  # of images_MD, by sample id
    neighbours: dict[str, list[str]]
    mentions: list[list[int]]  # by row of images_MD
    archives: dict[str, list[dict[str, Any]]]


def frame(artifact: Artifact, table: str) -> pl.DataFrame:
    found = pl.from_arrow(artifact.read(table))
    assert isinstance(found, pl.DataFrame)
    return found


def tables(run: Any) -> Tables:
    embeddings, concepts = frame(run["embed"], "embeddings"), frame(run["vocabulary"], "concepts")
    ids = embeddings["sample_id"].to_list()
    mentions = dict(frame(run["mentions"], "mentions").iter_rows())
    neighbours = frame(run["expand"], "neighbours")
    return Tables(
        images_MD=np.array(embeddings["vector"].to_list(), np.float64),
        concepts_CD=np.array(concepts["vector"].to_list(), np.float64),
        names=concepts["name"].to_list(),
        row={name: number for number, name in enumerate(ids)},
        neighbours=dict(neighbours.select("sample_id", "neighbour_ids").iter_rows()),
        mentions=[mentions[name] for name in ids],
        archives=dict(frame(run["archive"], "archives").iter_rows()),
    )


def check_against_the_oracle(found: Tables, temperature: float = 1.0) -> None:
    """Same concepts, same donors, every score within 1e-4, best first; probabilities of a single draw."""
    ids = list(found.row)
    assert list(found.archives) == ids
    for name, archive in found.archives.items():
        rows = [found.row[neighbour] for neighbour in found.neighbours[name]]
        entries = loop_oracle.archive(
            found.row[name], rows, found.mentions, found.images_MD, found.concepts_CD
        )
        expected = {entry.concept: entry for entry in entries}
        assert {record["concept_id"] for record in archive} == set(expected)
        for record in archive:
            entry = expected[record["concept_id"]]
            assert record["name"] == found.names[entry.concept]
            assert record["donors"] == [ids[row] for row in entry.donors]
            numbers = [record[key] for key in ("anchor_similarity", "local_score", "global_score", "score")]
            reading = [entry.anchor_similarity, entry.local, entry.global_, entry.score]
            np.testing.assert_allclose(numbers, reading, rtol=0, atol=1e-4)
        scores = [record["score"] for record in archive]
        assert scores == sorted(scores, reverse=True)
        chances = loop_oracle.probabilities(scores, [r["cluster"] for r in archive], temperature)
        np.testing.assert_allclose([record["probability"] for record in archive], chances, atol=1e-5)
        assert not archive or sum(r["probability"] for r in archive) == pytest.approx(1.0, abs=1e-5)


def check_clusters_against_sklearn(found: Tables, most: int = 60) -> None:
    """As many clusters as the formula asks for, and inertia no worse on average than scikit-learn's."""
    ours, theirs = [], []
    for archive in list(found.archives.values())[:most]:
        vectors_PD = found.concepts_CD[[record["concept_id"] for record in archive]]
        labels = [record["cluster"] for record in archive]
        assert len(set(labels)) == (-(-len(archive) // 2) if len(archive) > 2 else 1)
        means = {label: vectors_PD[[at == label for at in labels]].mean(axis=0) for label in set(labels)}
        ours.append(sum(((v - means[label]) ** 2).sum() for v, label in zip(vectors_PD, labels, strict=True)))
        theirs.append(loop_oracle.clusters(vectors_PD, seed=0)[1])
    assert np.mean(ours) <= np.mean(theirs) * (1 + 1e-6)


def test_archives_of_scenes_are_what_the_formulas_say(curated: Any) -> None:
    check_against_the_oracle(tables(curated))


def test_clusters_of_scenes_are_no_worse_than_sklearns(curated: Any) -> None:
    check_clusters_against_sklearn(tables(curated))


def test_archives_at_a_lower_temperature_change_probabilities_alone(
    curated: Any, curate: Any, scene_corpus: CorpusConfig, tiny_encoder: Path
) -> None:
    store = curated.plan.store.url
    cold = curate(store, scene_corpus, tiny_encoder, until="archive", archive=ArchiveConfig(temperature=0.05))
    check_against_the_oracle(tables(cold), temperature=0.05)
    dropped = ("probability",)
    before, after = (
        [[{k: v for k, v in record.items() if k not in dropped} for record in a] for a in archives.values()]
        for archives in (tables(curated).archives, tables(cold).archives)
    )
    assert before == after


def test_facts_of_the_archive_stage_are_what_the_tables_hold(curated: Any) -> None:
    found, facts = tables(curated), curated["archive"].manifest.facts
    assert facts["concepts"] == sum(map(len, found.archives.values()))
    assert facts["empty_archives"] == sum(not archive for archive in found.archives.values())
    below = 0
    for name, archive in found.archives.items():
        for record in archive:
            vector_D = found.concepts_CD[record["concept_id"]]
            below += float(found.images_MD[found.row[name]] @ vector_D) < 1e-3
    assert facts["clamped"] == below


@pytest.mark.slow
def test_archives_of_real_photographs_are_what_the_formulas_say(
    real_data: Path, curate: Any, tmp_path: Path
) -> None:
    with (real_data / "flickr8k-2500" / "00000.tar").open("rb") as stream:
        samples = [item for item in read_tar(stream, ("jpg", "txt")) if isinstance(item, Sample)][:240]
    for start in (0, 120):
        with (tmp_path / f"{start}.tar").open("wb") as stream:
            write_tar(stream, samples[start : start + 120])
    run = curate(
        tmp_path / "store",
        CorpusConfig(sources=(Source("flickr", urls=(f"{tmp_path}/*.tar",)),)),
        real_data / "encoders" / "lite0-minilm",
        until="archive",
        vocabulary=VocabularyConfig(),
    )
    found = tables(run)
    assert sum(map(len, found.archives.values())) > 1000
    check_against_the_oracle(found)
    check_clusters_against_sklearn(found, most=100)


def names_by_image(run: Any) -> list[list[str]]:
    archives = tables(run).archives.values()
    return [sorted(record["name"] for record in archive) for archive in archives]


def test_cat_is_in_no_archive_of_cattle(
    curate: Any, write_pairs: Any, scene_jpegs: list[bytes], tiny_encoder: Path, tmp_path: Path
) -> None:
    captions = ["cattle on a field", "a catalogue of boats", "scattered education", "the tall house"]
    corpus = write_pairs(tmp_path / "tars", list(zip(scene_jpegs, captions, strict=False)))
    run = curate(tmp_path / "store", corpus, tiny_encoder, until="archive")
    assert sorted(tables(run).names) == ["boat", "field", "house"]
    assert names_by_image(run) == [["boat", "field", "house"]] * 4


def test_plural_in_a_caption_gives_its_concept_to_every_neighbour_with_that_donor(
    curate: Any, write_pairs: Any, scene_jpegs: list[bytes], tiny_encoder: Path, tmp_path: Path
) -> None:
    captions = ["cattle", "two cats asleep", "a catalogue"]
    corpus = write_pairs(tmp_path / "tars", list(zip(scene_jpegs, captions, strict=False)))
    run = curate(tmp_path / "store", corpus, tiny_encoder, until="archive")
    assert names_by_image(run) == [["cat"]] * 3
    donors = [archive[0]["donors"] for archive in tables(run).archives.values()]
    assert donors == [["web/00000/0001"]] * 3


def test_archive_of_no_concept_is_empty_and_of_one_is_certain(
    curate: Any, write_pairs: Any, scene_jpegs: list[bytes], tiny_encoder: Path, tmp_path: Path
) -> None:
    captions = ["nothing to name", "a dog", "still nothing", "a boat and a tree"]
    corpus = write_pairs(tmp_path / "tars", list(zip(scene_jpegs, captions, strict=False)))
    run = curate(tmp_path / "store", corpus, tiny_encoder, expand=ExpandConfig(neighbours=1))
    found = tables(run)
    check_against_the_oracle(found)
    none, one, _, two = found.archives.values()
    assert none == []
    assert [(r["name"], r["cluster"], r["probability"], r["local_score"]) for r in one] == [
        ("dog", 0, 1.0, 1.0)
    ]
    assert {record["cluster"] for record in two} == {0}
    assert run["archive"].manifest.facts["empty_archives"] == 2
    assert run["export"].manifest.counts.kept == 4


@pytest.mark.parametrize("images", [1, 3])
def test_corpus_smaller_than_the_neighbourhood_has_every_image_as_neighbour(
    images: int, curate: Any, write_pairs: Any, scene_jpegs: list[bytes], tiny_encoder: Path, tmp_path: Path
) -> None:
    pairs = [(data, f"a dog and {n} trees") for n, data in enumerate(scene_jpegs[:images])]
    run = curate(tmp_path / "store", write_pairs(tmp_path / "tars", pairs), tiny_encoder)
    found = tables(run)
    check_against_the_oracle(found)
    everyone = [f"web/00000/{n:04d}" for n in range(images)]
    assert [sorted(ids) for ids in found.neighbours.values()] == [everyone] * images
    assert all(set(record["donors"]) == set(everyone) for a in found.archives.values() for record in a)


def test_identical_images_share_archives_and_keep_their_own_ids(
    curate: Any, write_pairs: Any, scene_jpegs: list[bytes], tiny_encoder: Path, tmp_path: Path
) -> None:
    pairs = [(scene_jpegs[0], f"a {name}") for name in ("dog", "tree", "boat", "cat", "house") * 2]
    run = curate(tmp_path / "store", write_pairs(tmp_path / "tars", pairs, 4), tiny_encoder)
    found = tables(run)
    check_against_the_oracle(found)
    first_eight = list(found.row)[:8]
    assert list(found.neighbours.values()) == [first_eight] * 10  # equals come in the corpus' order
    assert len({tuple(names) for names in names_by_image(run)}) == 1


def test_shard_that_lost_all_its_samples_has_an_empty_part_in_every_table(
    curate: Any, write_pairs: Any, scene_jpegs: list[bytes], tiny_encoder: Path, tmp_path: Path
) -> None:
    pairs = [(data, "a dog on the road") for data in scene_jpegs[:3]] + [(b"no image", "a dog")] * 3
    run = curate(tmp_path / "store", write_pairs(tmp_path / "tars", pairs, 3), tiny_encoder)
    for label, table in [("embed", "embeddings"), ("expand", "neighbours"), ("archive", "archives")]:
        assert run[label].shards == ["web/00000", "web/00001"]
        assert run[label].read(table, "web/00001").num_rows == 0
        assert run[label].read(table).num_rows == 3
