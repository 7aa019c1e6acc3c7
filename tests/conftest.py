"""What many tests start from: a tiny encoder, a corpus of rendered scenes, all that curation makes of it."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from curation.corpus import CORPUS, CorpusConfig
from curation.encoder import CONFIG, WEIGHTS, EncoderConfig
from curation.pretrain import PRETRAIN, PretrainConfig
from curation.scenes import SceneConfig, encode_jpeg, render_scene
from curation.sources import Scenes, Source, scene_shards, scene_tar
from curation.vocabulary import VocabularyConfig
from flows.config import Config
from flows.pipeline import declare
from flows.plan import Plan
from storage.artifact import Artifact, Store
from storage.fingerprint import stable_seed
from storage.runtime import Runtime
from storage.stage import materialize
from storage.tars import Sample, write_tar

ON_CPU = Runtime(device="cpu")


@dataclass(frozen=True)
class Run:
    """The stages of a run up to one of them, materialised."""

    plan: Plan

    def __getitem__(self, label: str) -> Artifact:
        return next(node.artifact for node in self.plan.nodes if node.label == label)


Curate = Callable[..., Run]


def _curate(
    url: str | Path,
    corpus: CorpusConfig,
    encoder: Path,
    until: str = "export",
    runtime: Runtime = ON_CPU,
    **stages: Any,
) -> Run:
    """Runs the pipeline's own declaration into the store at ``url``."""
    stages = {"vocabulary": VocabularyConfig(gallery="scenes"), **stages}
    model = EncoderConfig(model=f"local-dir:{encoder}")
    plan = Plan(Store(str(url)))
    declare(plan, Config(name="test", corpus=corpus, encoder=model, **stages))
    for node in plan.until(until):
        located = replace(runtime, locations=plan.locations)
        materialize(node.stage, node.config, node.inputs, plan.store, located)
    return Run(plan)


@pytest.fixture(scope="session")
def curate() -> Curate:
    return _curate


@pytest.fixture(scope="session")
def scene_corpus() -> CorpusConfig:
    """90 scenes in three shards, which the corpus stage renders."""
    scenes = Scenes(split="curate", count=90, shard_size=30)
    return CorpusConfig(sources=(Source("scenes", kind="scenes", scenes=scenes),))


@pytest.fixture(scope="session")
def scene_tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tars 00000 to 00003, 20 scenes each, as they would come from outside."""
    folder = tmp_path_factory.mktemp("tars")
    scenes = Scenes(split="tars", count=80, shard_size=20)
    for stem, indices in scene_shards(scenes).items():
        (folder / f"{stem}.tar").write_bytes(scene_tar(scenes, indices))
    return folder


def _write_pairs(folder: Path, pairs: Sequence[tuple[bytes, str]], shard_size: int = 1000) -> CorpusConfig:
    """Tars 00000, 00001, … of encoded images with captions; keys are numbers from 0."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = [Sample(f"{n:04d}", {"jpg": i, "txt": c.encode()}) for n, (i, c) in enumerate(pairs)]
    for start in range(0, len(samples), shard_size):
        with (folder / f"{start // shard_size:05d}.tar").open("wb") as stream:
            write_tar(stream, samples[start : start + shard_size])
    return CorpusConfig(sources=(Source("web", urls=(f"{folder}/*.tar",)),))


@pytest.fixture(scope="session")
def write_pairs() -> Callable[..., CorpusConfig]:
    return _write_pairs


@pytest.fixture(scope="session")
def scene_jpegs() -> list[bytes]:
    """Twelve scenes as JPEGs."""
    seed, scene = stable_seed("jpegs"), SceneConfig()
    return [encode_jpeg(render_scene(scene, seed, n, "salient").image_HWC) for n in range(12)]


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP that has seen 200 scenes twice, as an open_clip folder."""
    store = Store(str(tmp_path_factory.mktemp("encoder")))
    scenes = Scenes(split="pretrain", count=200, shard_size=200, captions="random")
    pairs = CorpusConfig(sources=(Source("pretrain", kind="scenes", scenes=scenes),))
    corpus = materialize(CORPUS, pairs, {}, store, ON_CPU)
    config = PretrainConfig(epochs=2, batch_size=50)
    made = materialize(PRETRAIN, config, {"corpus": corpus}, store, ON_CPU).local_folder()
    folder = tmp_path_factory.mktemp("tiny-encoder")
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(made / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def curated(tmp_path_factory: pytest.TempPathFactory, scene_corpus: CorpusConfig, tiny_encoder: Path) -> Run:
    """Every stage from corpus to export over ``scene_corpus``. Read only: tests share it."""
    return _curate(tmp_path_factory.mktemp("curated"), scene_corpus, tiny_encoder)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real photographs and a real encoder beside the project; tests that need them skip without."""
    beside = Path(__file__).parents[1] / ".." / "shared" / "data"
    root = Path(os.environ.get("COCU_DATA", beside)).resolve()
    if not (root / "flickr8k-2500").is_dir():
        pytest.skip(f"no real data at {root}: set COCU_DATA")
    return root
