"""What ``benchmarks`` reports beside what the stages themselves say."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import ablation, ivf_vs_autofaiss
from curation.corpus import CorpusConfig
from evaluation.recall import RecallConfig


@pytest.fixture(scope="module")
def recall(curated: Any, curate: Any, scene_corpus: CorpusConfig, tiny_encoder: Path) -> Any:
    """The recall artifact of the shared run's archives, at m = 3."""
    run = curate(curated.plan.store.url, scene_corpus, tiny_encoder, until="recall", recall=RecallConfig(m=3))
    return run["recall"]


def test_ablation_of_best_concepts_gives_the_recalls_of_the_recall_stage(recall: Any, curated: Any) -> None:
    archives = ablation.read(curated.plan.store, recall.fingerprint)
    picks = {name: pick for name, pick, _ in ablation.designs(archives)}
    nothing, best = (
        ablation.measure(archives, picks[name], 3) for name in ("caption alone", "paper's score, best first")
    )
    facts = recall.manifest.facts
    assert nothing.union_N.mean() == pytest.approx(facts["caption_recall"])
    assert best.alone_N.mean() == pytest.approx(facts["archive_recall"])
    assert best.ever_N.mean() == pytest.approx(facts["archive_recall"])
    assert best.union_N.mean() == pytest.approx(facts["union_recall"])
    assert best.true_N.sum() / best.named_N.sum() == pytest.approx(facts["archive_precision"])


def test_ablation_draws_distinct_candidates_of_the_image_itself(recall: Any, curated: Any) -> None:
    archives = ablation.read(curated.plan.store, recall.fingerprint)
    for name, pick, _ in list(ablation.designs(archives))[1:]:
        given_NM = pick(3, 7)
        assert given_NM.shape == (len(archives.ids), 3)
        image_NM = np.where(
            given_NM < 0, np.arange(len(given_NM))[:, None], ablation.image_of(archives)[given_NM]
        )
        assert (image_NM == np.arange(len(given_NM))[:, None]).all(), name
        assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in given_NM)


def test_case_whose_peer_is_not_installed_has_nulls_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    result = json.loads(json.dumps(ivf_vs_autofaiss.measure()))
    assert result["case"] == "ivf_vs_autofaiss"
    assert result["ratio"] is result["ours"] is result["peer"] is None
    assert result["note"].startswith("not run: autofaiss is not installed")
