"""Region recognition end to end: stored regions and whole images, convolutional tower and transformer."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from curation.corpus import CorpusConfig
from curation.encoder import EncoderConfig, load_encoder, save_encoder
from curation.openclip import new_model, open_clip
from curation.scenes import CONCEPTS
from curation.sources import Scenes, Source
from curation.vocabulary import VocabularyConfig
from evaluation.calibration import CalibrationConfig
from evaluation.discriminants import DiscriminantConfig
from evaluation.evaluate import BenchmarkConfig
from evaluation.training_images import TrainingImages
from flows.config import BenchmarkRun, Config, EvaluateRun, TrainRun
from flows.pipeline import declare
from flows.plan import Plan
from storage.artifact import Artifact, Store
from storage.errors import ConfigError
from storage.runtime import Runtime
from storage.stage import materialize
from training.data import Batch
from training.grouping import GroupingConfig
from training.groups import GROUPS, REGIONS, GroupsConfig, RegionsConfig, read_groups
from training.loop import LoopConfig
from training.recognition import Nouns, RecognitionConfig, interpolated, noun_features
from training.train import MODEL, GroupingTraining
from training.views import read_regions

LOOP = LoopConfig(epochs=2, batch_size=30, precision="fp32")
BENCHMARK = BenchmarkConfig("scenes", "shards", class_names=CONCEPTS, short_side=64, window=64, stride=64)


TAUGHT = replace(
    BENCHMARK,
    name="taught",
    calibration=CalibrationConfig("captions"),
    discriminants=DiscriminantConfig(weight=0.1, region_weight=0.1),
)
FINE = replace(BENCHMARK, name="fine", region_size=128, picture_size=32, image_weight=1.0)
TAUGHT_FINE = replace(TAUGHT, name="taught, fine", region_size=128)


def run(
    store: Path, encoder: Path, corpus: CorpusConfig, trains: Any, benchmarks: Any = (BENCHMARK,)
) -> dict[str, Artifact]:
    """Trains the grouping method from archives and measures it on a dozen scenes."""
    labelled = Source("scenes", kind="scenes", scenes=Scenes(split="test", count=12, masks=True))
    config = Config(
        name="test",
        corpus=corpus,
        encoder=EncoderConfig(model=f"local-dir:{encoder}"),
        vocabulary=VocabularyConfig(gallery="scenes"),
        groups=GroupsConfig(GroupingConfig(backbone="clip", size=64, regions=6)),
        regions=RegionsConfig(size=64),
        train=TrainRun(
            ("archive",),
            grouping=GroupingTraining(recognition=RecognitionConfig(trains=trains, size=64), loop=LOOP),
        ),
        evaluate=EvaluateRun(tuple(BenchmarkRun(b, CorpusConfig((labelled,))) for b in benchmarks)),
    )
    plan = Plan(Store(str(store)))
    declare(plan, config)
    runtime = Runtime(device="cpu", load_encoder=load_encoder, locations=plan.locations)
    return {n.label: materialize(n.stage, n.config, n.inputs, plan.store, runtime) for n in plan.nodes}


@pytest.fixture(scope="module")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    save_encoder(new_model("cocu-tiny-vit"), open_clip.get_model_config("cocu-tiny-vit"), folder)
    return folder


@pytest.mark.slow
def test_transformer_is_trained_with_region_tokens_and_measured(
    tiny_vit: Path, scene_corpus: CorpusConfig, tmp_path: Path
) -> None:
    made = run(tmp_path, tiny_vit, scene_corpus, "last", (BENCHMARK, FINE))
    before = load_encoder(tiny_vit, "cpu").visual.state_dict()
    after = load_file(made["train grouping_archive"].file(MODEL))
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[f"visual.{name}"])}
    assert "proj" in changed
    assert any("resblocks.3." in name for name in changed)
    assert not any("resblocks.0." in name for name in changed)
    for benchmark in ("scenes", "fine"):
        assert 0 <= made[f"evaluate grouping_archive on {benchmark}"].manifest.facts["miou"] <= 1
    assert "regions" not in made


@pytest.fixture(scope="module")
def tiny_siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer of timm's with a latent query and no projection, for pictures of 160 px."""
    folder = tmp_path_factory.mktemp("siglip")
    trunk = {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none", "image_size": 160}
    config = {**open_clip.get_model_config("cocu-tiny-vit"), "embed_dim": 96, "vision_cfg": trunk}
    described = folder / "tiny-siglip.json"
    described.write_text(json.dumps(config))
    open_clip.add_model_config(described)
    torch.manual_seed(0)
    save_encoder(new_model("tiny-siglip"), config, folder)
    return folder


@pytest.mark.slow
def test_head_of_a_tower_with_a_latent_query_is_trained_on_stored_regions_and_measured(
    tiny_siglip: Path, scene_corpus: CorpusConfig, tmp_path: Path
) -> None:
    made = run(tmp_path, tiny_siglip, scene_corpus, "head", (BENCHMARK, TAUGHT_FINE))
    before = load_encoder(tiny_siglip, "cpu").visual.state_dict()
    after = load_file(made["train grouping_archive"].file(MODEL))
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[f"visual.{name}"])}
    behind = {f"trunk.attn_pool.{name}" for name in ("norm", "mlp.fc1", "mlp.fc2")}
    assert {name.rsplit(".", 1)[0] for name in changed} == behind
    for benchmark in ("scenes", "taught, fine"):
        assert 0 <= made[f"evaluate grouping_archive on {benchmark}"].manifest.facts["miou"] <= 1


@pytest.fixture(scope="module")
def head_run(
    tiny_encoder: Path, scene_corpus: CorpusConfig, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Artifact]:
    return run(
        tmp_path_factory.mktemp("head"), tiny_encoder, scene_corpus, "head", (BENCHMARK, TAUGHT, TAUGHT_FINE)
    )


@pytest.mark.slow
def test_oracle_names_regions_better_than_any_encoder(head_run: dict[str, Artifact]) -> None:
    miou = {label: a.manifest.facts["miou"] for label, a in head_run.items() if label.startswith("evaluate")}
    assert miou["evaluate grouping_oracle on scenes"] == max(miou.values())
    assert miou["evaluate grouping_oracle on scenes"] > 2 * miou["evaluate grouping_archive on scenes"]


def counted(artifact: Artifact) -> Any:
    return artifact.read("confusion").drop_columns(["image_id"])


@pytest.mark.slow
def test_benchmark_may_ask_for_finer_maps(head_run: dict[str, Artifact]) -> None:
    for model in ("grouping_archive", "grouping_untrained"):
        coarse, fine = (head_run[f"evaluate {model} on {name}"] for name in ("taught", "taught, fine"))
        assert (coarse.manifest.config["size"], fine.manifest.config["size"]) == (64, 128)
        assert not counted(coarse).equals(counted(fine))


@pytest.mark.slow
def test_naming_learns_from_captions_where_a_benchmark_asks_for_it(head_run: dict[str, Artifact]) -> None:
    for model in ("grouping_archive", "grouping_untrained"):
        plain, taught = (head_run[f"evaluate {model} on {name}"] for name in ("scenes", "taught"))
        assert set(taught.manifest.inputs) - set(plain.manifest.inputs) == {
            "regions",
            "mentions",
            "vocabulary",
        }
        assert not counted(plain).equals(counted(taught))
    oracles = [head_run[f"evaluate grouping_oracle on {name}"] for name in ("scenes", "taught")]
    assert counted(oracles[0]).equals(counted(oracles[1]))


@pytest.mark.slow
def test_sources_that_are_not_there_are_named(head_run: dict[str, Artifact]) -> None:
    given = [head_run[name] for name in ("regions", "mentions", "vocabulary")]
    with pytest.raises(ConfigError, match="captions of web, and the corpus has scenes"):
        next(iter(TrainingImages(*given, sources=("web",))))


@pytest.mark.slow
def test_naming_by_stored_regions_of_a_tower_that_changed_is_refused(
    tiny_encoder: Path, scene_corpus: CorpusConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="weights of discriminants to 0"):
        run(tmp_path, tiny_encoder, scene_corpus, "last", (TAUGHT,))


@pytest.mark.slow
def test_stored_regions_are_those_of_the_label_maps(head_run: dict[str, Artifact]) -> None:
    shard = head_run["corpus"].shards[0]
    stored, maps = read_regions(head_run["regions"], shard), read_groups(head_run["groups"], shard)
    assert {name.removeprefix(f"{shard}/") for name in stored} == set(maps)
    for name, vectors_KC in stored.items():
        assert len(vectors_KC) == len(np.unique(maps[name.removeprefix(f"{shard}/")]))


def test_regions_do_not_depend_on_the_number_of_threads(
    head_run: dict[str, Artifact], tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    runtime = Runtime(device="cpu", load_encoder=load_encoder)
    inputs = {name: head_run[name] for name in ("corpus", "encoder")}
    grouping = GroupingConfig(backbone="clip", size=64, regions=6)
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            store = Store(str(tmp_path / str(threads)))
            groups = materialize(GROUPS, GroupsConfig(grouping, batch_size=7), inputs, store, runtime)
            given = {**inputs, "groups": groups}
            regions = materialize(REGIONS, RegionsConfig(size=64, batch_size=7), given, store, runtime)
            found.append([part.sha256 for stage in (groups, regions) for part in stage.manifest.parts])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_nouns_of_a_batch_carry_owner_and_the_images_that_are_no_negatives() -> None:
    batch = Batch(
        epoch=0,
        sample_ids=["a", "b"],
        captions=["", ""],
        drawn_NM=np.array([[2, -1], [1, 2]]),
        fixed=[np.array([0]), np.array([1])],
        named=[np.array([0, 1, 2]), np.array([1, 2])],
        pixels_NHWC=np.zeros((2, 0, 0, 3), np.uint8),
        regions=[None, None],
    )
    features = noun_features(batch)
    nouns = Nouns(features)
    assert nouns.owner_P.tolist() == [0, 0, 1, 1]
    assert features["noun_P"].tolist() == [0, 2, 1, 2]
    assert nouns.carries_PN.tolist() == [[True, False], [True, True], [True, True], [True, True]]


def test_image_that_carries_a_name_nearly_the_same_is_no_negative() -> None:
    unit_CD = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0]]), dim=1)
    owned = {"noun_P": torch.tensor([0, 2]), "nouns_N": torch.tensor([1, 1, 0])}
    features = {**owned, "named_Q": torch.tensor([0, 2, 1]), "named_N": torch.tensor([1, 1, 1])}
    assert Nouns(features, unit_CD, alike=0.9).carries_PN.tolist() == [
        [True, False, True],
        [False, True, False],
    ]
    assert Nouns(features, unit_CD, alike=0.999).carries_PN.tolist() == Nouns(features).carries_PN.tolist()


def test_weights_between_untrained_and_trained_ones_leave_counters_alone() -> None:
    before = {"weight": torch.tensor([0.0, 2.0]), "batches": torch.tensor(0)}
    after = {"weight": torch.tensor([1.0, 4.0]), "batches": torch.tensor(7)}
    assert interpolated(before, after, 0.25)["weight"].tolist() == [0.25, 2.5]
    assert interpolated(before, after, 0.25)["batches"] == 7
    assert torch.equal(interpolated(before, after, 1.0)["weight"], after["weight"])


@pytest.mark.parametrize(
    "setting",
    [{"keep": 1.0}, {"keep": -0.1}, {"drawn_weight": -1.0}, {"caption_weight": -1.0}, {"alike": 0.0}],
)
def test_impossible_recognition_settings_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"recognition\.keep="):
        RecognitionConfig(**cast("Any", setting))
