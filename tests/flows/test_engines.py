"""The local loop and Ray write the same bytes, with one worker and with two that lie on different nodes."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curation.corpus import CorpusConfig
from curation.sources import Scenes, Source
from flows.engine import ray_engine, start_ray
from storage.artifact import Artifact
from storage.errors import CocuError
from storage.runtime import Runtime, local_engine

pytestmark = [
    pytest.mark.slow,
    # Ray sets settings of its own that it calls deprecated
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]
SHARDED = ("corpus", "embed", "mentions", "expand", "archive", "export")


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[str]]:
    """Addresses of a Ray of two raylets with one processor each, stopped at the end."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    start_ray()
    yield [node["NodeID"] for node in ray.nodes()]
    ray.shutdown()
    cluster.shutdown()


def on_ray(workers: int) -> Runtime:
    return Runtime(engine=ray_engine(workers), device="cpu")


def corpus_of(folder: Path) -> CorpusConfig:
    """Two tars read in place beside two of rendered scenes."""
    scenes = Scenes(split="curate", count=16, shard_size=8)
    web = Source("web", urls=(f"{folder}/{{00000..00001}}.tar",))
    return CorpusConfig(sources=(web, Source("scenes", kind="scenes", scenes=scenes)))


@pytest.fixture(scope="module")
def local(curate: Any, scene_tars: Path, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return curate(tmp_path_factory.mktemp("local"), corpus_of(scene_tars), tiny_encoder)


def parts(artifact: Artifact) -> dict[str, str]:
    """Checksums of the files themselves."""
    folder = Path(artifact.url)
    names = [part.name for part in artifact.manifest.parts]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def assert_same(run: Any, local: Any) -> None:
    for label in SHARDED:
        assert run[label].fingerprint == local[label].fingerprint
        assert parts(run[label]) == parts(local[label]), label
        ours, theirs = run[label].manifest, local[label].manifest
        assert (ours.parts, ours.counts, ours.facts) == (theirs.parts, theirs.counts, theirs.facts)


def test_two_workers_on_two_nodes_write_the_bytes_of_the_local_loop(
    nodes: list[str], local: Any, curate: Any, scene_tars: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    assert len(nodes) == 2
    assert_same(curate(tmp_path, corpus_of(scene_tars), tiny_encoder, runtime=on_ray(2)), local)


@pytest.mark.usefixtures("nodes")
def test_stages_begun_by_the_local_loop_and_finished_by_one_ray_worker_have_the_same_bytes(
    local: Any, curate: Any, scene_tars: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    def breaking_off(make_task: Any, shards: Any) -> Any:
        yield from local_engine(make_task, shards[:1])
        raise KeyboardInterrupt

    shutil.copytree(local.plan.store.url, tmp_path / "store")
    corpus, broken = corpus_of(scene_tars), Runtime(engine=breaking_off, device="cpu")
    for label in ("embed", "archive"):
        shutil.rmtree(tmp_path / "store" / label)
        with pytest.raises(KeyboardInterrupt):
            curate(tmp_path / "store", corpus, tiny_encoder, runtime=broken, until=label)
    assert_same(curate(tmp_path / "store", corpus, tiny_encoder, runtime=on_ray(1)), local)


@pytest.mark.usefixtures("nodes")
def test_fault_on_a_ray_worker_reaches_the_person_in_its_own_words(
    local: Any, curate: Any, scene_tars: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tars"
    shutil.copytree(scene_tars, folder)
    corpus = corpus_of(folder)
    curate(tmp_path / "store", corpus, tiny_encoder, until="corpus")

    def moving_away(make_task: Any, shards: Any) -> Any:
        (folder / "00001.tar").rename(folder / "gone")
        yield from ray_engine(1)(make_task, shards)

    runtime = Runtime(engine=moving_away, device="cpu")
    with pytest.raises(CocuError, match=r"cannot open shard 'web/00001' at '.*00001\.tar'.*check the source"):
        curate(tmp_path / "store", corpus, tiny_encoder, runtime=runtime, until="embed")
