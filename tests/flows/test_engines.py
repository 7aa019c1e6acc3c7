"""The local loop and Ray write the same bytes, with one worker, two on two nodes, and a node that dies."""

import hashlib
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from curation.corpus import CorpusConfig
from curation.sources import Scenes, Source
from flows.engine import ray_engine, start_ray
from storage.artifact import Artifact
from storage.errors import CocuError
from storage.manifest import Counts, ShardRecord
from storage.runtime import Runtime, local_engine

pytestmark = [
    pytest.mark.slow,
    # Ray sets settings of its own that it calls deprecated
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]
SHARDED = ("corpus", "embed", "mentions", "expand", "archive", "export")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray of one node with one processor, told by RAY_ADDRESS as to a user; stopped at the end."""
    import ray
    from ray.cluster_utils import Cluster

    death_in_seconds = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": death_in_seconds}
    found = Cluster(initialize_head=True, head_node_args=head)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", found.address)
        start_ray()
        yield found
        ray.shutdown()
    found.shutdown()


@pytest.fixture
def second(cluster: Any) -> Iterator[Any]:
    """A second node: another raylet with ports and an object store of its own."""
    node = cluster.add_node(num_cpus=1)
    yield node
    cluster.remove_node(node)


def raylet(node: Any) -> int:
    """Process id of a node's raylet."""
    (started,) = node.all_processes["raylet"]
    return int(started.process.pid)


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
    cluster: Any, second: Any, local: Any, curate: Any, scene_tars: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    import ray

    assert {node["NodeID"] for node in ray.nodes() if node["Alive"]} == {
        cluster.head_node.node_id,
        second.node_id,
    }
    assert raylet(second) != raylet(cluster.head_node)
    assert_same(curate(tmp_path, corpus_of(scene_tars), tiny_encoder, runtime=on_ray(2)), local)


def test_node_killed_at_work_on_a_shard_leaves_it_to_the_other_which_writes_the_same_bytes(
    second: Any, local: Any, curate: Any, scene_tars: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    shutil.copytree(local.plan.store.url, tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "embed")
    held, doomed = tmp_path / "held", second.node_id

    def holding(make_task: Any) -> Any:
        """On the second node work on a shard does not end; the first such shard is written down."""
        import ray

        task, here = make_task(), ray.get_runtime_context().get_node_id()

        def held_or_done(shard: str) -> Any:
            if here == doomed:
                held.write_text(shard)
                threading.Event().wait()
            return task(shard)

        return held_or_done

    def kill_when_held() -> None:
        while not held.exists():
            time.sleep(0.01)
        os.kill(raylet(second), signal.SIGKILL)

    def dying(make_task: Any, shards: Any) -> Any:
        yield from ray_engine(2)(partial(holding, make_task), shards)

    killer = threading.Thread(target=kill_when_held, daemon=True)
    killer.start()
    runtime = Runtime(engine=dying, device="cpu")
    corpus = corpus_of(scene_tars)
    curate(tmp_path / "store", corpus, tiny_encoder, runtime=runtime, until="embed")
    run = curate(tmp_path / "store", corpus, tiny_encoder)
    assert held.read_text() in run["embed"].shards
    assert_same(run, local)


@pytest.mark.usefixtures("cluster")
def test_shard_under_which_every_worker_dies_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    def make_task() -> Any:
        def done_or_dead(shard: str) -> ShardRecord:
            if shard == "web/bad":
                os.kill(os.getpid(), signal.SIGKILL)
            (tmp_path / shard.replace("/", ".")).touch()
            return ShardRecord(shard, (), Counts(), {}, 0.0)

        return done_or_dead

    with pytest.raises(CocuError, match=r"3 workers died at work on shard 'web/bad'.*--engine local"):
        list(ray_engine(1)(make_task, ["web/a", "web/bad"]))
    assert (tmp_path / "web.a").exists()


@pytest.mark.usefixtures("cluster")
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


@pytest.mark.usefixtures("cluster")
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


def test_address_where_no_cluster_answers_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        with pytest.raises(CocuError, match=f"no Ray cluster answers at '{address}'.*RAY_ADDRESS"):
            start_ray()
