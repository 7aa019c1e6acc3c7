"""A stage is a name, a version and a plain function; ``materialize`` runs it once per identity."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Generic, TypeVar

import pyarrow as pa

from storage.artifact import MANIFEST, Artifact, Store
from storage.errors import StoreError
from storage.files import Folder, Writer
from storage.fingerprint import canonical, fingerprint
from storage.growth import take_over, unchanged
from storage.manifest import (
    Counts,
    Manifest,
    Part,
    ShardRecord,
    merge_records,
    provenance,
    record_from_json,
    to_json,
)  # fmt: skip
from storage.memory import forget_peak, peak_bytes
from storage.parquet import read_table, table_bytes
from storage.runtime import Runtime, ShardTask
from storage.schemas import table_of
from storage.stall import stall_report, verdict

C = TypeVar("C")
PROGRESS = "_progress"  # shard records of a run that has not committed yet
WHOLE = "all"  # the shard of a stage that is not done shard by shard


@dataclass
class Output:
    """What a stage function returns for one shard."""

    tables: dict[str, pa.Table] = field(default_factory=dict)
    files: dict[str, tuple[bytes | Writer, int]] = field(
        default_factory=dict
    )  # name -> content, samples in it
    quarantine: list[dict[str, str]] = field(default_factory=list)
    seen: int = 0
    kept: int = 0
    facts: dict[str, float] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)  # seconds by phase; writing is added to them


ShardFunction = Callable[[str], Output]
BlockFunction = Callable[
    [Sequence[str]], Iterator[tuple[str, Output]]
]  # of shards that are worked on together


@dataclass(frozen=True)
class Earlier:
    """An artifact that the same stage made with the same config, of other inputs."""

    artifact: Artifact
    inputs: Mapping[str, Artifact]


@dataclass(frozen=True)
class Job(Generic[C]):
    """What a stage function is given."""

    config: C
    inputs: Mapping[str, Artifact | str]
    runtime: Runtime
    folder: Folder
    stage: str
    earlier: tuple[Earlier, ...] = ()  # what a stage that looks back may build on, newest first

    def artifact(self, name: str) -> Artifact:
        """An input by name."""
        found = self.inputs[name]
        assert isinstance(found, Artifact), f"input '{name}' of {self.stage} is a digest, not an artifact"
        return found

    def optional(self, name: str) -> Artifact | None:
        """An input that need not be there."""
        return self.artifact(name) if name in self.inputs else None

    def map_shards(self, make: Callable[[], ShardFunction], shards: Sequence[str]) -> None:
        """Runs a shard function over the shards that no earlier run has finished.

        ``make`` is called once per worker and must be picklable (a ``functools.partial`` of a module's
        function): it loads what the function needs.

        Raises:
            StoreError: when a shard that an engine was given has no record in the end.
        """
        self.map_blocks(partial(_one_by_one, make), shards, 1)

    def map_blocks(self, make: Callable[[], BlockFunction], shards: Sequence[str], together: int) -> None:
        """The same with a function of ``together`` shards, for work that is dearer when shards come alone.

        What it gives of a shard must not depend on the company.
        """
        todo = [shard for shard in shards if _finished(self.folder, shard) is None]
        blocks = {todo[start]: todo[start : start + together] for start in range(0, len(todo), together)}
        sizes = {block[-1]: len(block) for block in blocks.values()}
        with self.runtime.progress(self.stage, len(shards)) as bar:
            bar.advance(len(shards) - len(todo), note="resumed" if len(todo) < len(shards) else "")
            if todo:
                make_task = partial(_block_task, make, self.folder, self.stage, blocks)
                for last in self.runtime.engine(make_task, list(blocks)):
                    bar.advance(sizes[last.shard], note=_note(last))
                self._refuse_lost(todo)

    def _refuse_lost(self, shards: Sequence[str]) -> None:
        lost = [shard for shard in shards if _finished(self.folder, shard) is None]
        overtaken = self.folder.exists(MANIFEST)  # another run has committed, and removed the records
        if lost and not overtaken:
            raise StoreError(
                f"stage '{self.stage}' worked on {len(shards)} shards; {len(lost)} of them ({lost[0]}, …) "
                f"are not in '{self.folder.url}': give a --store that this machine and all workers share"
            )

    def write(self, output: Output, shard: str = WHOLE) -> None:
        """Commits the output of a stage that works on everything at once."""
        _commit_shard(self.folder, self.stage, shard, output, time.perf_counter())


@dataclass(frozen=True)
class Stage(Generic[C]):
    """One step of the method. Raise ``version`` when the same input and config give other bytes."""

    name: str
    version: int
    run: Callable[[Job[C]], None]
    outside: Callable[[C, Folder], Mapping[str, str]] = lambda config, store: {}  # noqa: ARG005
    """Digests of what the stage reads from outside the store (they may be cached in it)."""
    by_shard: tuple[str, ...] = ()
    """Inputs of which a shard of the result depends on the same shard only; see ``storage.growth``."""
    looks_back: bool = False
    """Whether the job is told of earlier artifacts."""
    knobs: Callable[[C], Mapping[str, str]] = lambda config: {}  # noqa: ARG005
    """What to turn where a phase of the timings is the slowest; see ``storage.stall``."""

    def artifact(self, store: Store, config: C, inputs: Mapping[str, Artifact | str]) -> Artifact:
        """The handle of this stage's result for a config and all its inputs, computed or not."""
        return store.artifact(self.name, fingerprint(self.name, self.version, config, _identities(inputs)))


def unchanged_shards(
    stage: Stage[C], config: C, inputs: Mapping[str, Artifact | str], store: Store
) -> dict[str, Artifact]:
    """The shards that an earlier artifact holds already, as far as what they are made of is known."""
    if not stage.by_shard:
        return {}
    stages = {name: item.stage for name, item in inputs.items() if isinstance(item, Artifact)}
    artifact = stage.artifact(store, config, inputs)
    identities = _identities(inputs)
    return unchanged(artifact, stage.version, canonical(config), stage.by_shard, identities, stages, store)


def _take_over(
    stage: Stage[C], config: C, inputs: Mapping[str, Artifact | str], store: Store, folder: Folder
) -> None:
    for shard, earlier in unchanged_shards(stage, config, inputs, store).items():
        if _finished(folder, shard) is None and (record := take_over(earlier, shard, folder)):
            folder.write(f"{PROGRESS}/{file_stem(shard)}.json", to_json(record))


def _earlier(
    stage: Stage[C], config: C, inputs: Mapping[str, Artifact | str], store: Store
) -> Iterator[Earlier]:
    stages = {name: item.stage for name, item in inputs.items() if isinstance(item, Artifact)}
    for artifact in reversed(store.artifacts(stage.name)):
        manifest = artifact.manifest
        if manifest.version == stage.version and manifest.config == canonical(config):
            had = {name: store.artifact(stages[name], manifest.inputs[name]) for name in stages}
            if all(item.committed for item in had.values()):
                yield Earlier(artifact, had)


def _identities(inputs: Mapping[str, Artifact | str]) -> dict[str, str]:
    return {name: item.fingerprint if isinstance(item, Artifact) else item for name, item in inputs.items()}


def materialize(
    stage: Stage[C], config: C, inputs: Mapping[str, Artifact | str], store: Store, runtime: Runtime
) -> Artifact:
    """Returns the committed artifact if there is one, else runs the stage (or the rest of it) and commits.

    Raises:
        StoreError: when the store cannot be written.
    """
    artifact = stage.artifact(store, config, inputs)
    if artifact.committed:
        artifact.folder.remove(PROGRESS)  # which a run that was killed right after its manifest has left
        return artifact
    started = time.perf_counter()
    forget_peak()
    _take_over(stage, config, inputs, store, artifact.folder)
    earlier = tuple(_earlier(stage, config, inputs, store)) if stage.looks_back else ()
    stage.run(Job(config, inputs, runtime, artifact.folder, stage.name, earlier))
    if artifact.committed:  # by another run that worked on the same
        return artifact
    manifest = _assemble(stage, config, inputs, artifact, time.perf_counter() - started)
    artifact.folder.write(MANIFEST, to_json(manifest))
    artifact.folder.remove(PROGRESS)
    return artifact


def _assemble(
    stage: Stage[C],
    config: C,
    inputs: Mapping[str, Artifact | str],
    artifact: Artifact,
    seconds: float,
) -> Manifest:
    records = _records(artifact.folder)
    if not records:
        raise StoreError(f"stage '{stage.name}' had nothing to work on: its inputs hold no shards")
    parts, counts, facts = merge_records(records)
    return Manifest(
        stage=stage.name,
        version=stage.version,
        fingerprint=artifact.fingerprint,
        config=canonical(config),
        inputs=_identities(inputs),
        parts=parts,
        counts=counts,
        facts=facts,
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        seconds=round(seconds, 3),
        shard_seconds={record.shard: record.seconds for record in records},
        provenance=provenance(),
        shards={r.shard: {"counts": dataclasses.asdict(r.counts), "facts": r.facts} for r in records},
        shard_timings={record.shard: record.timings for record in records if record.timings},
        stall=stall_report(records, stage.knobs(config)),
        peak_bytes=max(peak_bytes(), *(record.peak_bytes for record in records)),
    )


def _one_by_one(make: Callable[[], ShardFunction]) -> BlockFunction:
    function = make()
    return lambda block: ((shard, function(shard)) for shard in block)


def _block_task(
    make: Callable[[], BlockFunction], folder: Folder, stage: str, blocks: Mapping[str, Sequence[str]]
) -> ShardTask:
    """Works on the block that begins with a shard; what comes back is the record of its last."""
    forget_peak()  # on a cluster this is a process of its own
    function = make()

    def task(first: str) -> ShardRecord:
        started = time.perf_counter()
        for shard, output in function(blocks[first]):
            record = _commit_shard(folder, stage, shard, output, started)
            started = time.perf_counter()
        return record

    return task


def _commit_shard(folder: Folder, stage: str, shard: str, output: Output, started: float) -> ShardRecord:
    writing = time.perf_counter()
    parts = [_write_table(folder, shard, name, table) for name, table in output.tables.items()]
    parts += [_write_file(folder, shard, name, *content) for name, content in output.files.items()]
    if output.quarantine:
        parts.append(_write_table(folder, shard, "quarantine", _quarantine_table(output, stage, shard)))
    ended = time.perf_counter()
    timings = {**output.timings, "write": round(ended - writing, 4)} if output.timings else {}
    told = (output.facts, ended - started, timings, peak_bytes())
    record = ShardRecord(shard, tuple(parts), _counts(output), *told)
    folder.write(f"{PROGRESS}/{file_stem(shard)}.json", to_json(record))
    return record


def _note(record: ShardRecord) -> str:
    bound = f", {verdict(record.timings)}" if record.timings else ""
    return f"{record.shard}  {record.counts.kept} kept{bound}"


def _write_table(folder: Folder, shard: str, name: str, table: pa.Table) -> Part:
    file = f"{file_stem(shard)}.{name}.parquet"
    size, checksum = folder.write(file, table_bytes(table, name))
    return Part(file, name, shard, table.num_rows, size, checksum)


def _write_file(folder: Folder, shard: str, name: str, content: bytes | Writer, rows: int) -> Part:
    size, checksum = folder.write(name, content)
    return Part(name, None, shard, rows, size, checksum)


def _quarantine_table(output: Output, stage: str, shard: str) -> pa.Table:
    rows = [{**row, "stage": stage, "shard": shard} for row in output.quarantine]
    names = ("sample_id", "shard", "key", "stage", "reason", "detail")
    return table_of("quarantine", {name: [row[name] for row in rows] for name in names})


def _counts(output: Output) -> Counts:
    reasons = [row["reason"] for row in output.quarantine]
    rejected = {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    return Counts(output.seen, output.kept, rejected)


def file_stem(shard: str) -> str:
    """How part files of a shard begin: ``source/00000`` writes ``source.00000.<table>.parquet``."""
    return shard.replace("/", ".")


def _records(folder: Folder) -> list[ShardRecord]:
    names = [name for name in folder.list(PROGRESS) if name.endswith(".json") and not name.startswith(".")]
    found = [record_from_json(folder.read(f"{PROGRESS}/{name}")) for name in names]
    return sorted((record for record in found if record), key=lambda record: record.shard)


def read_tables(folder: Folder, table: str) -> pa.Table:
    """All rows of a table that a running stage has written so far, in shard order."""
    parts = [part for record in _records(folder) for part in record.parts if part.table == table]
    return pa.concat_tables([read_table(folder, part.name) for part in parts])


def _finished(folder: Folder, shard: str) -> ShardRecord | None:
    try:
        return record_from_json(folder.read(f"{PROGRESS}/{file_stem(shard)}.json"))
    except FileNotFoundError:
        return None
