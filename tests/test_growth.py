"""A corpus that gains or loses shards: unchanged ones are taken over, and the result is a full rebuild's."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation.corpus import CorpusConfig
from curation.expand import nearest
from curation.grow import merged
from curation.index import ExpandConfig
from curation.sources import Source
from curation.visualness import VisualnessConfig
from curation.vocabulary import VocabularyConfig
from flows.decisions import decide
from storage.runtime import Runtime, local_engine
from storage.stage import materialize
from storage.tars import Sample, read_tar, write_tar

UNTIL = "export"
BY_SHARD = ("corpus", "embed", "mentions")  # whatever else changes when the corpus does


class Watched:
    """An engine that notes which shards it was given, stage by stage."""

    def __init__(self) -> None:
        self.shards: list[str] = []

    def __call__(self, make_task: Callable[[], Any], shards: Sequence[str]) -> Any:
        self.shards += shards
        return local_engine(make_task, shards)


@pytest.fixture
def tars(scene_tars: Path, tmp_path: Path) -> Path:
    """Four tars in a folder of the test's own."""
    folder = tmp_path / "tars"
    shutil.copytree(scene_tars, folder)
    return folder


def corpus_of(tars: Path) -> CorpusConfig:
    return CorpusConfig((Source("mine", urls=(str(tars / "*.tar"),)),))


def bytes_of(store: Path) -> dict[str, bytes]:
    """Every part that a manifest names, but for what earlier corpora left."""
    found = {}
    for manifest in store.glob("*/*/manifest.json"):
        for part in json.loads(manifest.read_bytes())["parts"]:
            path = manifest.parent / part["name"]
            found[str(path.relative_to(store))] = path.read_bytes()
    return found


def shards_made(curate: Any, tars: Path, store: Path, encoder: Path, **stages: Any) -> dict[str, list[str]]:
    """Runs the pipeline; which shards each stage really worked on."""
    made: dict[str, list[str]] = {}
    plan = curate(store, corpus_of(tars), encoder, until="encoder", **stages).plan
    for node in plan.until(UNTIL):
        engine = Watched()
        runtime = Runtime(engine, device="cpu", locations=plan.locations)
        materialize(node.stage, node.config, node.inputs, plan.store, runtime)
        made[node.label] = [shard.partition("/")[2] for shard in engine.shards]
    return made


def test_new_shards_are_all_that_is_made_and_the_result_is_a_full_rebuild(
    curate: Any, tars: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    aside = tmp_path / "aside"
    aside.mkdir()
    for name in ("00001.tar", "00003.tar"):
        (tars / name).rename(aside / name)
    before = shards_made(curate, tars, tmp_path / "grown", tiny_encoder)
    assert all(before[stage] == ["00000", "00002"] for stage in BY_SHARD)
    for tar in aside.iterdir():
        tar.rename(tars / tar.name)
    after = shards_made(curate, tars, tmp_path / "grown", tiny_encoder)
    assert after["corpus"] == after["embed"] == ["00001", "00003"]
    assert after["expand"] == ["00000", "00001", "00002", "00003"]
    shards_made(curate, tars, tmp_path / "rebuilt", tiny_encoder)
    grown, rebuilt = bytes_of(tmp_path / "grown"), bytes_of(tmp_path / "rebuilt")
    assert {name: grown[name] for name in rebuilt} == rebuilt


def test_a_vocabulary_of_nouns_tags_new_shards_only(
    curate: Any, tars: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    built = {"vocabulary": VocabularyConfig("captions", visualness=VisualnessConfig())}
    (tars / "00001.tar").rename(tmp_path / "00001.tar")
    shards_made(curate, tars, tmp_path / "grown", tiny_encoder, **built)
    (tmp_path / "00001.tar").rename(tars / "00001.tar")
    assert shards_made(curate, tars, tmp_path / "grown", tiny_encoder, **built)["nouns"] == ["00001"]
    shards_made(curate, tars, tmp_path / "rebuilt", tiny_encoder, **built)
    grown, rebuilt = bytes_of(tmp_path / "grown"), bytes_of(tmp_path / "rebuilt")
    assert {name: grown[name] for name in rebuilt} == rebuilt


def test_old_images_are_compared_with_new_ones_only(
    curate: Any, tars: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tars / "00001.tar").rename(tmp_path / "00001.tar")
    shards_made(curate, tars, tmp_path / "grown", tiny_encoder)
    (tmp_path / "00001.tar").rename(tars / "00001.tar")
    compared = []

    def watched(queries: Any, vectors: Any, *rest: Any) -> Any:
        compared.append((len(queries), len(vectors)))
        return nearest(queries, vectors, *rest)

    monkeypatch.setattr("curation.grow.nearest", watched)
    monkeypatch.setattr("curation.index.nearest", watched)
    shards_made(curate, tars, tmp_path / "grown", tiny_encoder)
    assert compared == [(20, 20), (20, 80), (20, 20), (20, 20)]


@pytest.mark.parametrize("min_frequency", [1, 5])
@pytest.mark.parametrize("first", ["without", "with"])
def test_only_archives_of_something_else_are_ranked_anew(
    curate: Any, tars: Path, tiny_encoder: Path, tmp_path: Path, min_frequency: int, first: str
) -> None:
    """The last shard comes, or goes; where rare concepts are left out, concepts come and go as well."""
    vocabulary = VocabularyConfig(gallery="scenes", min_frequency=min_frequency)
    stages = {"until": "archive", "vocabulary": vocabulary, "expand": ExpandConfig(neighbours=2)}

    def archives(store: str) -> Any:
        return curate(tmp_path / store, corpus_of(tars), tiny_encoder, **stages)["archive"]

    outside = (tmp_path / "00003.tar", tars / "00003.tar")
    if first == "without":
        (tars / "00003.tar").rename(outside[0])
    archives("store")
    source, goal = outside if first == "without" else reversed(outside)
    source.rename(goal)
    after, rebuilt = archives("store"), archives("rebuilt")
    images = rebuilt.manifest.facts["ranked"]
    assert images == rebuilt.manifest.counts.kept
    assert 0 < after.manifest.facts["ranked"] < images
    assert after.manifest.parts == rebuilt.manifest.parts
    for fact in ("concepts", "clamped", "empty_archives"):
        assert after.manifest.facts[fact] == rebuilt.manifest.facts[fact]


def test_archives_of_other_concepts_are_ranked_anew(
    curate: Any, tars: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    for words in ("a photo of a {}.", "a drawing of a {}."):
        vocabulary = VocabularyConfig(gallery="scenes", templates=(words,))
        run = curate(tmp_path, corpus_of(tars), tiny_encoder, until="archive", vocabulary=vocabulary)
        assert run["archive"].manifest.facts["ranked"] == 80


def test_archives_of_other_captions_are_ranked_anew(
    curate: Any, tars: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    curate(tmp_path / "store", corpus_of(tars), tiny_encoder, until="archive")
    with (tars / "00001.tar").open("rb") as stream:
        samples = [sample for sample in read_tar(stream) if isinstance(sample, Sample)]
    with (tars / "00001.tar").open("wb") as stream:
        write_tar(stream, [Sample(s.key, {**s.members, "txt": b"a dog on the grass"}) for s in samples])
    after = curate(tmp_path / "store", corpus_of(tars), tiny_encoder, until="archive")["archive"]
    rebuilt = curate(tmp_path / "rebuilt", corpus_of(tars), tiny_encoder, until="archive")["archive"]
    assert after.manifest.facts["ranked"] >= len(samples)
    assert after.manifest.parts == rebuilt.manifest.parts


def test_neighbours_that_changed_under_their_names_are_searched_anew(
    curate: Any, tars: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    shards_made(curate, tars, tmp_path / "store", tiny_encoder)
    (tars / "00002.tar").write_bytes((tars / "00000.tar").read_bytes())  # the same keys, other pictures
    shards_made(curate, tars, tmp_path / "store", tiny_encoder)
    shards_made(curate, tars, tmp_path / "rebuilt", tiny_encoder)
    changed, rebuilt = bytes_of(tmp_path / "store"), bytes_of(tmp_path / "rebuilt")
    assert {name: changed[name] for name in rebuilt} == rebuilt


@pytest.mark.parametrize("seed", range(6))
def test_merged_neighbours_are_those_of_a_full_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((90, 4)).astype(np.float32)
    vectors_MD = np.concatenate([vectors, vectors[:30]])[rng.permutation(120)].astype(np.float16)
    new_R = np.sort(rng.choice(120, int(rng.integers(0, 100)), replace=False))
    old_R = np.setdiff1d(np.arange(120), new_R)
    found_QL, _ = nearest(vectors_MD[old_R], vectors_MD[old_R], 8)
    before_QL = np.where(found_QL < 0, -1, old_R[found_QL])
    complete_Q = rng.random(len(old_R)) < 0.8
    before_QL[~complete_Q] = -1
    rows, similarities = merged(vectors_MD[old_R], vectors_MD, before_QL, complete_Q, new_R, 8, "cpu")
    expected_rows, expected = nearest(vectors_MD[old_R], vectors_MD, 8)
    assert np.array_equal(rows, expected_rows)
    assert np.array_equal(similarities, expected)


def test_lost_shards_leave_without_anything_embedded_again(
    curate: Any, tars: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    shards_made(curate, tars, tmp_path / "shrunk", tiny_encoder)
    (tars / "00002.tar").unlink()
    after = shards_made(curate, tars, tmp_path / "shrunk", tiny_encoder)
    assert after["corpus"] == after["embed"] == []
    shards_made(curate, tars, tmp_path / "rebuilt", tiny_encoder)
    shrunk, rebuilt = bytes_of(tmp_path / "shrunk"), bytes_of(tmp_path / "rebuilt")
    assert {name: shrunk[name] for name in rebuilt} == rebuilt


def test_counts_of_shards_taken_over_are_those_of_a_rebuild(
    curate: Any, tars: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    (tars / "00000.tar").rename(tmp_path / "00000.tar")
    shards_made(curate, tars, tmp_path / "store", tiny_encoder)
    (tmp_path / "00000.tar").rename(tars / "00000.tar")
    grown = curate(tmp_path / "store", corpus_of(tars), tiny_encoder, until="embed")
    whole = curate(tmp_path / "other", corpus_of(tars), tiny_encoder, until="embed")
    for stage in ("corpus", "embed"):
        one, other = grown[stage].manifest, whole[stage].manifest
        assert (one.counts, one.facts, one.parts, one.shards) == (
            other.counts, other.facts, other.parts, other.shards
        )  # fmt: skip


def test_plan_says_how_many_shards_are_taken_over(
    curate: Any, tars: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    (tars / "00003.tar").rename(tmp_path / "00003.tar")
    curate(tmp_path / "store", corpus_of(tars), tiny_encoder, until="embed")
    (tmp_path / "00003.tar").rename(tars / "00003.tar")
    plan = curate(tmp_path / "store", corpus_of(tars), tiny_encoder, until="encoder").plan
    reasons = {d.node.label: " ".join(d.reasons) for d in decide(plan.until("corpus"))}
    assert "3 shard(s) are as they were and are taken over" in reasons["corpus"]


def test_changed_config_or_version_takes_nothing_over(
    curate: Any, tars: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    run = curate(tmp_path / "store", corpus_of(tars), tiny_encoder, until="embed")
    node = next(node for node in run.plan.nodes if node.label == "embed")
    for stage, config in (
        (replace(node.stage, version=node.stage.version + 1), node.config),
        (node.stage, replace(node.config, batch_size=3)),
    ):
        engine = Watched()
        runtime = Runtime(engine, device="cpu", locations=run.plan.locations)
        materialize(stage, config, node.inputs, run.plan.store, runtime)
        assert len(engine.shards) == 4


def test_damaged_part_is_made_again(curate: Any, tars: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    (tars / "00003.tar").rename(tmp_path / "00003.tar")
    run = curate(tmp_path / "store", corpus_of(tars), tiny_encoder, until="embed")
    part = next(part for part in run["embed"].manifest.parts if "00001" in part.name)
    Path(run["embed"].folder.path(part.name)).write_bytes(b"damaged")
    (tmp_path / "00003.tar").rename(tars / "00003.tar")
    after = shards_made(curate, tars, tmp_path / "store", tiny_encoder)
    assert after["embed"] == ["00001", "00003"]
