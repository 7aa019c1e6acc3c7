import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from storage.artifact import Artifact, Store
from storage.errors import StoreError
from storage.manifest import ShardRecord
from storage.runtime import Runtime, ShardTask
from storage.schemas import table_of
from storage.stage import PROGRESS, BlockFunction, Job, Output, ShardFunction, Stage, materialize

SHARDS = ("a/00000", "a/00001", "b/00000")


@dataclass(frozen=True)
class Config:
    size: int = 3
    where: str = field(default="here", metadata={"identity": False})


@dataclass
class Trace:
    """Which shards were worked on, and where the work is to break off."""

    shards: list[str] = field(default_factory=list)
    stop_at: str = ""


def shard_output(trace: Trace, config: Config, shard: str) -> Output:
    if shard == trace.stop_at:
        raise KeyboardInterrupt
    trace.shards.append(shard)
    ids = [f"{shard}/{n}" for n in range(config.size)]
    faults = [{"sample_id": f"{shard}/x", "key": "x", "reason": "odd", "detail": "it is"}]
    return Output(
        tables={"ids": table_of("ids", {"sample_id": ids})},
        files={f"{shard.replace('/', '.')}.txt": (shard.encode(), config.size)},
        quarantine=faults,
        seen=config.size + 1,
        kept=config.size,
        facts={"letters": float(len(shard))},
    )


def make(trace: Trace, config: Config) -> ShardFunction:
    return partial(shard_output, trace, config)


def stage(trace: Trace, version: int = 1, shards: Sequence[str] = SHARDS) -> Stage[Config]:
    def run(job: Job[Config]) -> None:
        job.map_shards(partial(make, trace, job.config), shards)

    return Stage("letters", version, run)


def backwards(make_task: Callable[[], ShardTask], shards: Sequence[str]) -> Iterator[ShardRecord]:
    task = make_task()
    yield from map(task, reversed(shards))


def run(
    url: Path,
    trace: Trace | None = None,
    runtime: Runtime | None = None,
    config: Config | None = None,
    **inputs: str,
) -> Artifact:
    done = stage(trace or Trace())
    return materialize(done, config or Config(), inputs, Store(str(url)), runtime or Runtime())


def contents(artifact: Artifact) -> dict[str, bytes]:
    """Every file of an artifact but the manifest, which tells times."""
    files = [path for path in Path(artifact.url).rglob("*") if path.is_file()]
    return {path.name: path.read_bytes() for path in files if path.name != "manifest.json"}


def identity(artifact: Artifact) -> dict[str, Any]:
    """What a manifest says, without times."""
    fields = json.loads((Path(artifact.url) / "manifest.json").read_bytes())
    return {key: fields[key] for key in ("stage", "config", "inputs", "parts", "counts", "facts")}


def test_materialize_twice_runs_once(tmp_path: Path) -> None:
    trace = Trace()
    first, second = run(tmp_path, trace), run(tmp_path, trace)
    assert first == second
    assert trace.shards == list(SHARDS)


def test_manifest_tells_parts_counts_facts_config_and_inputs(tmp_path: Path) -> None:
    manifest = run(tmp_path, corpus="aa").manifest
    assert [part.shard for part in manifest.parts if part.table == "ids"] == list(SHARDS)
    assert (manifest.counts.seen, manifest.counts.kept, manifest.counts.rejected) == (12, 9, {"odd": 3})
    assert manifest.facts == {"letters": 21.0}
    assert (manifest.config, manifest.inputs) == ({"size": 3}, {"corpus": "aa"})
    assert "python" in manifest.provenance


def test_parts_of_a_manifest_are_the_files_with_their_checksums(tmp_path: Path) -> None:
    import hashlib

    artifact = run(tmp_path)
    found = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in contents(artifact).items()}
    assert {part.name: (part.bytes, part.sha256) for part in artifact.manifest.parts} == found


@pytest.mark.parametrize(
    "runtime",
    [
        Runtime(device="cuda:1"),
        Runtime(engine=backwards),
        Runtime(locations={"aa": {"a/00000": "s3://elsewhere/00000.tar"}}),
    ],
    ids=["device", "engine", "locations"],
)
def test_fingerprint_and_bytes_do_not_depend_on_how_a_stage_is_executed(
    runtime: Runtime, tmp_path: Path
) -> None:
    plain, other = run(tmp_path / "1", corpus="aa"), run(tmp_path / "2", runtime=runtime, corpus="aa")
    assert other.fingerprint == plain.fingerprint
    assert contents(other) == contents(plain)
    assert identity(other) == identity(plain)


def test_fingerprint_does_not_depend_on_locations_in_the_config(tmp_path: Path) -> None:
    moved = run(tmp_path, config=Config(where="there"))
    assert moved == run(tmp_path)
    assert moved.fingerprint != run(tmp_path, config=Config(size=2)).fingerprint


def test_fingerprint_depends_on_version_and_inputs(tmp_path: Path) -> None:
    store, config = Store(str(tmp_path)), Config()
    handles = [
        stage(Trace()).artifact(store, config, {}),
        stage(Trace(), version=2).artifact(store, config, {}),
        stage(Trace()).artifact(store, config, {"corpus": "aa"}),
        stage(Trace()).artifact(store, config, {"corpus": "ab"}),
    ]
    assert len({handle.fingerprint for handle in handles}) == 4


@pytest.mark.parametrize("stop_at", SHARDS[1:])
def test_interrupted_stage_goes_on_with_the_unfinished_shards_and_ends_the_same(
    stop_at: str, tmp_path: Path
) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", Trace(stop_at=stop_at))
    store = Store(str(tmp_path / "broken"))
    assert store.artifacts() == []
    assert [artifact.id for artifact in store.unfinished()] == [whole.id]
    trace = Trace()
    resumed = run(tmp_path / "broken", trace)
    assert trace.shards == list(SHARDS[SHARDS.index(stop_at) :])
    assert contents(resumed) == contents(whole)
    assert identity(resumed) == identity(whole)
    assert store.unfinished() == []


def test_artifact_without_a_manifest_is_none(tmp_path: Path) -> None:
    trace = Trace()
    artifact = run(tmp_path, trace)
    (Path(artifact.url) / "manifest.json").unlink()
    handle = Store(str(tmp_path)).artifact("letters", artifact.fingerprint)
    assert not handle.committed
    assert Store(str(tmp_path)).artifacts() == []
    with pytest.raises(StoreError, match="is not in the store: run the pipeline up to 'letters'"):
        handle.read("ids")
    run(tmp_path, trace)
    assert trace.shards == [*SHARDS, *SHARDS]


def test_manifest_is_written_after_every_part(tmp_path: Path) -> None:
    artifact = run(tmp_path)
    times = {path.name: path.stat().st_mtime_ns for path in Path(artifact.url).iterdir()}
    assert max(times, key=lambda name: times[name]) == "manifest.json"


def test_torn_shard_record_makes_its_shard_anew(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Trace(stop_at=SHARDS[2]))
    record = next(tmp_path.rglob(f"{PROGRESS}/a.00001.json"))
    record.write_bytes(record.read_bytes()[:40])
    trace = Trace()
    run(tmp_path, trace)
    assert trace.shards == list(SHARDS[1:])


def test_stage_that_loses_a_sample_is_stopped_before_it_commits_the_shard(tmp_path: Path) -> None:
    def run_losing(job: Job[Config]) -> None:
        job.write(replace(shard_output(Trace(), job.config, "a/00000"), seen=9))

    store = Store(str(tmp_path))
    with pytest.raises(AssertionError, match=r"9 samples in, 3 kept, \{'odd': 1\} rejected: 5 lost"):
        materialize(Stage("letters", 1, run_losing), Config(), {}, store, Runtime())
    assert store.artifacts() == []
    assert not list(tmp_path.rglob(f"{PROGRESS}/*.json"))


def test_blocks_of_shards_broken_off_resume_with_the_result_of_single_shards(tmp_path: Path) -> None:
    whole = run(tmp_path / "single")
    trace = Trace(stop_at=SHARDS[-1])
    asked: list[list[str]] = []

    def make_block() -> BlockFunction:
        def work(shards: Sequence[str]) -> Iterator[tuple[str, Output]]:
            asked.append(list(shards))
            return ((shard, shard_output(trace, Config(), shard)) for shard in shards)

        return work

    blocks = Stage("letters", 1, lambda job: job.map_blocks(make_block, SHARDS, 2))
    with pytest.raises(KeyboardInterrupt):
        materialize(blocks, Config(), {}, Store(str(tmp_path)), Runtime())
    trace.stop_at = ""
    artifact = materialize(blocks, Config(), {}, Store(str(tmp_path)), Runtime())
    assert contents(artifact) == contents(whole)
    assert identity(artifact) == identity(whole)
    assert sorted(trace.shards) == sorted(SHARDS)  # none twice
    assert asked[0] == list(SHARDS[:2])


def test_stage_without_shards_says_that_its_inputs_are_empty(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="stage 'letters' had nothing to work on"):
        materialize(stage(Trace(), shards=()), Config(), {}, Store(str(tmp_path)), Runtime())


def test_stage_whose_engine_loses_a_shard_fails_and_names_it(tmp_path: Path) -> None:
    """As do workers on other machines, each with a folder of its own where the store should be."""

    def elsewhere(make_task: Callable[[], ShardTask], shards: Sequence[str]) -> Iterator[ShardRecord]:
        for record in map(make_task(), shards):
            if record.shard == shards[-1]:
                next(tmp_path.rglob(f"{PROGRESS}/{shards[-1].replace('/', '.')}.json")).unlink()
            yield record

    with pytest.raises(StoreError, match=rf"{len(SHARDS)} shards; 1 of them \({SHARDS[-1]}, …\) are not"):
        run(tmp_path, runtime=Runtime(engine=elsewhere))
    assert Store(str(tmp_path)).artifacts() == []
    assert identity(run(tmp_path)) == identity(run(tmp_path / "whole"))


def test_two_runs_of_one_stage_at_once_end_in_one_whole_artifact(tmp_path: Path) -> None:
    """The other run finishes while this one is between two shards, and takes its records away."""

    def overtaken(make_task: Callable[[], ShardTask], shards: Sequence[str]) -> Iterator[ShardRecord]:
        task = make_task()
        yield task(shards[0])
        run(tmp_path)
        yield from map(task, shards[1:])

    artifact = run(tmp_path, runtime=Runtime(engine=overtaken))
    assert artifact.shards == list(SHARDS)
    assert identity(artifact) == identity(run(tmp_path / "alone"))
    assert Store(str(tmp_path)).unfinished() == []


def test_store_lists_artifacts_oldest_first_and_passes_over_what_is_none(tmp_path: Path) -> None:
    first, second = run(tmp_path), run(tmp_path, config=Config(size=1))
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "letters" / "notes").mkdir()
    assert Store(str(tmp_path)).artifacts() == [first, second]
    assert Store(str(tmp_path)).artifacts("letters") == [first, second]
    assert Store(str(tmp_path)).artifacts("other") == []


def test_shards_of_an_artifact_are_read_one_by_one_or_all_in_order(tmp_path: Path) -> None:
    artifact = run(tmp_path)
    every = artifact.read("ids")["sample_id"].to_pylist()
    assert every == [f"{shard}/{n}" for shard in SHARDS for n in range(3)]
    assert artifact.read("ids", "a/00001")["sample_id"].to_pylist() == every[3:6]
    assert artifact.read("quarantine")["shard"].to_pylist() == list(SHARDS)


def test_file_that_an_artifact_does_not_have_is_named_beside_those_it_has(tmp_path: Path) -> None:
    artifact = run(tmp_path)
    assert artifact.file("a.00000.txt").read_bytes() == b"a/00000"
    with pytest.raises(StoreError, match=r"has no file 'vectors.npy', it has \['a\.00000\.ids"):
        artifact.file("vectors.npy")
