"""Likely concepts: a fit that finds what made its data, features without a trace of the own caption."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from curation.archive import ArchiveConfig
from curation.corpus import CorpusConfig
from curation.encoder import EncoderConfig
from curation.presence import PresenceConfig, likely_shard
from curation.presence_model import FEATURES, Candidates, Concepts, Presence, candidates_of, learn
from curation.vocabulary import VocabularyConfig
from evaluation.recall import RecallConfig
from flows.config import Config, TrainRun
from flows.pipeline import declare
from flows.plan import Plan
from storage.artifact import Store
from storage.errors import ConfigError, InputError
from storage.schemas import table_of
from training.train import GroupingTraining, GroupViTTraining

SAID = 0.4


@pytest.fixture
def concepts() -> Concepts:
    """Of six names: a dog, a puppy (nearly the same), and four that have nothing in common."""
    vectors_CD = np.eye(6, dtype=np.float32)
    vectors_CD[1, :2] = 0.8, 0.6
    return Concepts(vectors_CD, np.array([0.2, 0.1, 0.3, 0.05, 0.4, 0.1]))


def archive(rows: dict[str, dict[int, list[str]]], similarity: float = 0.2) -> pa.Table:
    """A table of archives: of each image its concepts, and of each concept its donors.

    Donors fit every concept half as well as the image itself does.
    """
    lists = []
    for name, found in rows.items():
        records = []
        for concept, donors in found.items():
            fits = [similarity if donor == name else similarity / 2 for donor in donors]
            record = {
                "concept_id": concept,
                "name": str(concept),
                "score": 1.0,
                "global_score": 1.0,
                "local_score": similarity * (len(donors) + 1) / (sum(fits) + similarity),
                "anchor_similarity": similarity,
                "cluster": 0,
                "probability": 0.5,
                "donors": donors,
            }
            records.append(record)
        lists.append(records)
    return table_of("archives", {"sample_id": list(rows), "concepts": lists})


def mentions(rows: dict[str, list[int]]) -> pa.Table:
    return table_of("mentions", {"sample_id": list(rows), "concept_ids": list(rows.values())})


def simulated(
    rows: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Features, the probability of being there, whether it is, and whether a caption names it."""
    rng = np.random.default_rng(0)
    features_AF = rng.normal(3, 2, (rows, 3))
    there_A = 1 / (1 + np.exp(-(features_AF @ [0.8, -0.3, 0.0] - 2)))
    is_A = rng.random(rows) < there_A
    return features_AF, there_A, is_A, is_A & (rng.random(rows) < SAID)


def test_probabilities_are_of_being_there_and_not_of_being_named() -> None:
    features_AF, there_A, _, named_A = simulated(40_000)
    presence = learn(features_AF, named_A, SAID)
    assert np.abs(presence.before_reading(features_AF) - there_A).mean() < 0.02
    as_if_all_were_said_A = learn(features_AF, named_A, 1.0).before_reading(features_AF)
    assert as_if_all_were_said_A.mean() == pytest.approx(named_A.mean(), abs=1e-3)


def test_what_a_caption_leaves_out_is_less_likely_there() -> None:
    features_AF, _, is_A, named_A = simulated(40_000)
    unread = Candidates(features_AF, np.zeros_like(named_A), np.ones(len(named_A), np.int64))
    presence = learn(features_AF, named_A, SAID)
    chance_A = presence(replace(unread, named_A=named_A))
    assert (chance_A[named_A] == 1).all()
    for low in np.arange(0, 0.8, 0.2):
        chosen_A = ~named_A & (chance_A >= low) & (chance_A < low + 0.2)
        assert is_A[chosen_A].mean() == pytest.approx(chance_A[chosen_A].mean(), abs=0.03)
    assert (presence(unread) <= presence.before_reading(features_AF)).all()


def test_features_hold_no_trace_of_what_the_own_caption_names(concepts: Concepts) -> None:
    without = archive({"a": {0: ["b", "c"], 2: ["c"]}})
    among_its_donors = archive({"a": {0: ["a", "b", "c"], 2: ["c"]}})
    silent = candidates_of(without, mentions({"a": []}), concepts, 0.7)
    spoken = candidates_of(among_its_donors, mentions({"a": [0]}), concepts, 0.7)
    np.testing.assert_allclose(spoken.features_AF, silent.features_AF, rtol=1e-6)
    assert spoken.named_A.tolist() == [True, False]
    assert not silent.named_A.any()


def test_archives_of_scenes_hold_no_trace_of_the_own_caption(curated: Any) -> None:
    """An image's donors, as the stages find them, are itself where its caption names the concept."""
    table, said = curated["archive"].read("archives"), curated["mentions"].read("mentions")
    concepts = Concepts.of(curated["vocabulary"], len(said))
    found = candidates_of(table, said, concepts, 1.0)
    records = [(name, r) for name, own in zip(*table.to_pydict().values(), strict=True) for r in own]
    assert found.named_A.any()
    for row, (name, record) in enumerate(records):
        others = [donor for donor in record["donors"] if donor != name]
        assert found.others_A[row] == len(others)
        assert found.named_A[row] == (name in record["donors"])
        assert found.features_AF[row, FEATURES.index("donors")] == pytest.approx(np.log1p(len(others)))
    alone = ~found.telling
    np.testing.assert_allclose(found.features_AF[alone, FEATURES.index("local")], 0, atol=1e-6)


def test_a_caption_with_nearly_the_same_name_counts_as_one(concepts: Concepts) -> None:
    table = archive({"a": {0: ["b"], 1: ["b"], 2: ["b"]}, "b": {1: ["a"]}})
    said = mentions({"a": [1], "b": [3]})
    assert candidates_of(table, said, concepts, 0.7).named_A.tolist() == [True, True, False, False]
    assert candidates_of(table, said, concepts, 1.0).named_A.tolist() == [False, True, False, False]


def test_likely_concepts_stay_in_their_order_and_the_own_captions_always(concepts: Concepts) -> None:
    by_donors = np.array([0.0, 0.0, 0.0, 1.0, 0.0])
    presence = Presence(np.zeros(5), np.ones(5), 10 * by_donors, -10 * float(np.log1p(1.5)), said=1e-6)
    table = archive({"a": {3: ["b", "c"], 4: ["b"], 0: ["a"]}, "b": {2: ["c"]}, "c": {}})
    said = mentions({"a": [0], "b": [], "c": []})
    out = likely_shard(PresenceConfig(), table, said, concepts, presence)
    left = out.tables["archives"].to_pylist()
    assert [[record["concept_id"] for record in row["concepts"]] for row in left] == [[3, 0], [], []]
    assert left[0]["concepts"][0] == table.to_pylist()[0]["concepts"][0]
    chances = out.tables["presence"]["probabilities"].to_pylist()
    assert [len(row) for row in chances] == [3, 1, 0]
    assert chances[0][0] > 0.5 > chances[0][1]
    assert chances[0][2] == 1
    assert out.facts == {"concepts_before": 4, "concepts": 2, "empty_archives": 2}


def test_training_reads_the_likely_concepts_and_the_rest_whole_archives(
    scene_corpus: CorpusConfig, tiny_encoder: Path, tmp_path: Path
) -> None:
    plan, encoder = Plan(Store(str(tmp_path))), EncoderConfig(model=f"local-dir:{tiny_encoder}")
    training = TrainRun(groupvit=GroupViTTraining(), grouping=GroupingTraining())
    common = {"encoder": encoder, "vocabulary": VocabularyConfig(gallery="scenes"), "train": training}
    declare(plan, Config("test", scene_corpus, presence=PresenceConfig(), recall=RecallConfig(), **common))
    nodes = {node.label: node for node in plan.nodes}
    read = {label: node.inputs.get("archive") for label, node in nodes.items()}
    for label in ("train groupvit_archive", "train grouping_archive"):
        assert read[label] == nodes["presence"].artifact
    for label in ("presence", "export", "recall", "report"):
        assert read[label] == nodes["archive"].artifact


def test_the_artifact_holds_what_is_likely_and_how_likely_the_rest_is(
    curate: Any, curated: Any, scene_corpus: CorpusConfig, tiny_encoder: Path
) -> None:
    store, config = curated.plan.store.url, PresenceConfig(least=0.5, said=0.5)
    run = curate(store, scene_corpus, tiny_encoder, until="presence", presence=config)
    facts, shards = run["presence"].manifest.facts, run["archive"].shards
    assert run["presence"].shards == shards
    assert 0 < facts["concepts"] < facts["concepts_before"] == run["archive"].manifest.facts["concepts"]
    assert 0.5 < facts["auc"] <= 1
    assert facts["likely_named"] == pytest.approx(facts["likely_expected"], abs=0.25)
    whole, left = (run[stage].read("archives").to_pylist() for stage in ("archive", "presence"))
    chances = run["presence"].read("presence")["probabilities"].to_pylist()
    for before, after, chance in zip(whole, left, chances, strict=True):
        kept = [r for r, p in zip(before["concepts"], chance, strict=True) if p >= config.least]
        assert after == {"sample_id": before["sample_id"], "concepts": kept}


def test_nothing_to_learn_from_is_said() -> None:
    with pytest.raises(InputError, match=r"0 of 2 concepts .* leave \[presence\] out"):
        learn(np.zeros((2, 5)), np.zeros(2, bool), SAID)
    with pytest.raises(ConfigError, match=r"said=0"):
        PresenceConfig(said=0)


def test_the_score_of_an_archive_has_no_part_in_it(
    curate: Any, curated: Any, scene_corpus: CorpusConfig, tiny_encoder: Path
) -> None:
    """So that an archive's novelty, which is what the caption names, cannot tell."""
    store = curated.plan.store.url
    run, other = (
        curate(store, scene_corpus, tiny_encoder, until="presence", presence=PresenceConfig(), archive=config)
        for config in (ArchiveConfig(), ArchiveConfig(support=1.0, novelty=4.0))
    )
    assert run["archive"].fingerprint != other["archive"].fingerprint
    assert other["presence"].manifest.facts == pytest.approx(run["presence"].manifest.facts, rel=1e-6)
