"""Visualness: the AUC of cosines and its interval, against counting pairs and against simulation."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.candidates import Candidates, look
from curation.exact import fixed_point
from curation.ragged import ragged
from curation.visualness import BITS, Pairs, VisualnessConfig, interval, pairs_of, visualness
from storage.artifact import Artifact, Store
from storage.errors import ConfigError
from storage.files import Folder
from storage.runtime import Runtime
from storage.schemas import table_of, vector_column
from storage.stage import Job, Output, Stage, materialize


def _by_counting(cosine_N: Any, names_N: Any) -> float:
    """Share of the pairs of an image that names the concept and one that does not in which the first wins."""
    pairs = list(product(cosine_N[names_N], cosine_N[~names_N]))
    won = sum(1.0 if with_ > without else 0.5 if with_ == without else 0.0 for with_, without in pairs)
    return won / len(pairs) if pairs else float("nan")


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    concepts=st.integers(1, 4),
    images=st.integers(1, 12),
    different=st.integers(1, 12),
)
def test_visualness_with_ties_is_what_counting_pairs_gives(
    seed: int, concepts: int, images: int, different: int
) -> None:
    rng = np.random.default_rng(seed)
    texts_CD = fixed_point(rng.normal(size=(concepts, 3)).astype(np.float32) / 4, BITS)
    kinds_KD = fixed_point(rng.normal(size=(different, 3)).astype(np.float32) / 4, BITS)
    images_ND = kinds_KD[rng.integers(0, different, images)]  # the same picture several times: ties
    names_CN = rng.random((concepts, images)) < 0.4
    concept_P, image_P = np.nonzero(names_CN)
    pairs = pairs_of(texts_CD, images_ND, concept_P, image_P)
    shuffled = rng.permutation(len(concept_P))
    named = Pairs(pairs.concept_P[shuffled], pairs.cosine_P[shuffled])

    found = visualness(texts_CD, images_ND, named, pairs, 0.9)

    cosines_CN = np.array([[np.vecdot(text, image) for image in images_ND] for text in texts_CD])
    wanted = [_by_counting(cosines_CN[c], names_CN[c]) for c in range(concepts)]
    np.testing.assert_allclose(found.auc, wanted, rtol=0, atol=1e-12)
    unknown = np.isnan(found.auc)
    assert (found.low[unknown] == 0).all()
    assert (found.high[unknown] == 1).all()
    assert ((found.low <= found.auc) & (found.auc <= found.high))[~unknown].all()


def test_interval_bounds_solve_newcombes_equation() -> None:
    auc_C, named_C, others_C = (
        np.array([0.5, 0.9, 1.0, 0.2]),
        np.array([4, 30, 1, 7]),
        np.array([9, 400, 50, 7]),
    )
    for theta_C in interval(auc_C, named_C, others_C, 0.95):
        q1_C, q2_C = theta_C / (2 - theta_C), 2 * theta_C**2 / (1 + theta_C)
        more_C = (named_C + others_C) / 2 - 1  # Hanley and McNeil's variance, both sizes the mean of the two
        within_C = theta_C * (1 - theta_C) + more_C * ((q1_C - theta_C**2) + (q2_C - theta_C**2))
        deviation_C = np.abs(auc_C - theta_C) / np.sqrt(np.maximum(within_C, 1e-30) / (named_C * others_C))
        inside = (theta_C > 0) & (theta_C < 1)
        np.testing.assert_allclose(deviation_C[inside], 1.959964, rtol=1e-4)
        assert (theta_C[~inside] == auc_C[~inside]).all()  # an AUC of 1 is its own upper bound


@pytest.mark.parametrize("named", [2, 5, 25])
def test_interval_holds_the_true_auc_about_as_often_as_it_says(named: int) -> None:
    rng, others, runs, true = np.random.default_rng(0), 300, 400, 0.7602  # Φ(1 / √2)
    with_RN, without_RS = rng.normal(1, 1, (runs, named)), rng.normal(0, 1, (runs, others))
    auc_R = (with_RN[:, :, None] > without_RS[:, None, :]).mean(axis=(1, 2))
    low_R, high_R = interval(auc_R, np.full(runs, named), np.full(runs, others), 0.9)
    assert 0.84 <= np.mean((low_R <= true) & (true <= high_R)) <= 0.99


def test_interval_of_one_image_that_wins_every_time_stays_wide() -> None:
    (low,), _ = interval(np.array([1.0]), np.array([1]), np.array([4000]), 0.9)
    (many,), _ = interval(np.array([1.0]), np.array([100]), np.array([4000]), 0.9)
    assert low < 0.6
    assert many > 0.95


def test_one_image_alone_never_drops_a_concept_at_the_default_settings() -> None:
    default = VisualnessConfig()
    for others in (50, 4000, 1_000_000):
        _, (high,) = interval(np.array([0.0]), np.array([1]), np.array([others]), default.confidence)
        assert high > default.minimum


@pytest.mark.parametrize(
    "wrong", [{"minimum": 0.0}, {"minimum": 1.0}, {"confidence": 1.0}, {"named": 0}, {"others": 0}]
)
def test_visualness_config_out_of_range_names_the_field(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        VisualnessConfig(**wrong)


NAMES = ["dog", "unseen", "idea"]  # "dog" is the first axis; the second was never asked about
TEXTS = np.array([[1, 0, 0, 0], [0, 1, 0, 0]], np.float32)
ASKED = np.array([0, 2])


def _images(count: int) -> tuple[list[str], Any, list[list[int]]]:
    """Ids, vectors and named candidates of images, where "dog" is seen and "idea" is not."""
    rng = np.random.default_rng(3)
    named = [[c for c, often in enumerate((0.4, 0.5, 0.3)) if rng.random() < often] for _ in range(count)]
    vectors_ND = rng.normal(size=(count, 4))
    vectors_ND[:, 0] += [2.0 * (0 in names) for names in named]
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return [f"web/{n:04d}" for n in range(count)], vectors_ND.astype(np.float16), named


def _looked(folder: Path, count: int, shard_size: int, config: VisualnessConfig) -> Any:
    ids, vectors_ND, named = _images(count)
    shards = {f"web/{n:05d}": slice(n, n + shard_size) for n in range(0, count, shard_size)}

    def write(job: Job[None]) -> None:
        for shard, rows in shards.items():  # backwards, and without the first image: joined by id
            kept = slice(rows.start + (rows.start == 0), rows.stop)
            columns = {
                "sample_id": ids[kept][::-1],
                "vector": vector_column(vectors_ND[kept][::-1].copy(), pa.float16()),
            }
            job.write(Output({"embeddings": table_of("embeddings", columns)}), shard)

    stage, store = Stage("embed", 1, write), Store(str(folder))
    embeddings: Artifact = materialize(stage, None, {}, store, Runtime())
    frequency_C = np.bincount(np.concatenate([np.array(n, int) for n in named]), minlength=3)
    candidates = Candidates(
        NAMES, frequency_C, count, list(shards),
        lambda shard: (pa.chunked_array([ids[shards[shard]]]), ragged(named[shards[shard]], np.int64)),
    )  # fmt: skip
    job = Job(config, {"embeddings": embeddings}, Runtime(), Folder(str(folder)), "vocabulary")
    return look(job, config, candidates, ASKED, TEXTS)


def test_look_over_shards_joins_by_id_and_equals_counting_pairs(tmp_path: Path) -> None:
    found = _looked(tmp_path, 200, 70, VisualnessConfig())
    _, vectors_ND, named = _images(200)
    wide_ND = vectors_ND[1:].astype(np.float64)
    for place, (text, candidate) in enumerate(zip(TEXTS, ASKED, strict=True)):
        names_N = np.array([candidate in names for names in named[1:]])
        assert found.auc[place] == pytest.approx(_by_counting(wide_ND @ text, names_N), abs=1e-12)
    assert found.low[0] > 0.8
    assert found.low[1] < 0.5 < found.high[1]


def test_look_at_samples_does_not_depend_on_shards_and_comes_near_the_whole(tmp_path: Path) -> None:
    few = VisualnessConfig(named=150, others=300)
    one, other = (_looked(tmp_path / str(size), 1500, size, few) for size in (1500, 400))
    whole = _looked(tmp_path / "whole", 1500, 1500, VisualnessConfig())
    np.testing.assert_array_equal(one.auc, other.auc)
    assert (one.auc != whole.auc).all()
    np.testing.assert_allclose(one.auc, whole.auc, atol=0.08)
    assert ((one.high - one.low) > (whole.high - whole.low)).all()
