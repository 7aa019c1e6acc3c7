"""One stage, really run on a sample for as long as it may take, with what can be learnt from that."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from flows.forecast.laws import Point
from storage.artifact import MANIFEST, Artifact, Store
from storage.fingerprint import fingerprint
from storage.manifest import ShardRecord, to_json
from storage.memory import resident_bytes
from storage.runtime import Bar, Runtime, ShardTask
from storage.stage import WHOLE, Stage, materialize

LEAST = 2  # shards
Inputs = Mapping[str, Artifact | str]


class OutOfTime(Exception):
    """A stage that is not done shard by shard took longer than it may."""


@dataclass
class Budgeted:
    """A loop over shards while there is time: a small one that warms up, then the largest that fit twice.

    Large shards tell the pace, since what every shard costs anew weighs little in them, and two of them tell
    how sure it is.
    """

    seconds: float
    sizes: Mapping[str, int]  # images by shard
    usable: Collection[str]
    records: list[ShardRecord] = field(default_factory=list)
    loaded: int = 0  # bytes resident when the first shard began
    begun: float = 0.0  # time.perf_counter

    def __call__(self, make_task: Callable[[], ShardTask], shards: Sequence[str]) -> Iterator[ShardRecord]:
        """The records of those shards that were done."""
        task = make_task()
        self.loaded, self.begun = resident_bytes(), time.perf_counter()
        pending = sorted(set(shards) & set(self.usable), key=lambda shard: (self.sizes[shard], shard))
        while shard := self.chosen(pending):
            pending.remove(shard)
            self.records.append(task(shard))
            yield self.records[-1]

    def chosen(self, pending: Sequence[str]) -> str | None:
        """Of shards by size the smallest first, then the largest that fits twice; two at least."""
        left = (self.seconds - (time.perf_counter() - self.begun)) / 2
        if len(self.records) and (fitting := [shard for shard in pending if self.expected(shard) <= left]):
            return fitting[-1]
        return pending[0] if pending and len(self.records) < LEAST else None

    def expected(self, shard: str) -> float:
        """Seconds of a shard at the pace of the last one."""
        last = self.records[-1]
        return last.seconds / max(1, self.sizes[last.shard]) * self.sizes[shard]


@dataclass
class Steps:
    """A progress that is not shown but timed, and breaks off what takes too long."""

    limit: float = float("inf")  # seconds from the first step on
    seconds: list[float] = field(default_factory=list)  # of each step
    loaded: int = 0  # bytes resident when the first step began

    @contextmanager
    def __call__(self, title: str, total: int) -> Iterator[Bar]:  # noqa: ARG002
        """A bar whose steps are timed."""
        self.begun = self.last = time.perf_counter()
        self.loaded = resident_bytes()
        yield self

    def advance(self, steps: int = 1, note: str = "") -> None:  # noqa: ARG002
        """One step is done.

        Raises:
            OutOfTime: past the limit.
        """
        if steps:
            now = time.perf_counter()
            self.seconds.append(now - self.last)
            self.last = now
            if now - self.begun > self.limit and len(self.seconds) > 1:
                raise OutOfTime


@dataclass(frozen=True)
class Measured:
    """What a stage did with the sample."""

    seconds: float  # in all
    points: tuple[Point, ...] = ()  # its shards
    steps: tuple[float, ...] = ()  # seconds of each step of its progress
    bytes: int = 0  # written
    loaded: int = 0  # resident when the shards or steps began
    peak: int = 0  # resident at most
    left: int = 0  # resident when it was done
    artifact: Artifact | None = None  # none if it was broken off
    shrunk: float = 1.0  # images of a batch in the config over those of a batch here

    @property
    def images(self) -> int:
        """Images of its shards."""
        return sum(point.images for point in self.points)

    @property
    def inside(self) -> float:
        """Seconds in its shards, or in its steps where it has no shards."""
        return sum(point.seconds for point in self.points) if self.points else sum(self.steps)

    @property
    def outside(self) -> float:
        """The others: loading models, joining tables, writing the manifest."""
        return max(0.0, self.seconds - self.inside)


@dataclass(frozen=True)
class Bench:
    """Where stages are measured: a store that is thrown away, and how much is in each shard."""

    store: Store
    runtime: Runtime
    sizes: Mapping[str, int]  # images by shard

    def measure(
        self,
        stage: Stage[Any],
        config: Any,
        inputs: Inputs,
        seconds: float,
        steps_limit: float = float("inf"),
    ) -> Measured:
        """Runs a stage: as many of its shards as fit, at least two; all of it where it has none.

        Args:
            stage: to run.
            config: its config.
            inputs: artifacts of this store.
            seconds: for its shards.
            steps_limit: seconds for the steps of a training, which is broken off then.
        """
        engine = Budgeted(seconds, self.sizes, common_shards(inputs, self.sizes))
        steps = Steps(steps_limit)
        runtime = replace(self.runtime, engine=engine, progress=steps)
        started = time.perf_counter()
        try:
            artifact = materialize(stage, config, inputs, self.store, runtime)
        except OutOfTime:
            spent = time.perf_counter() - started
            return Measured(spent, steps=tuple(steps.seconds), loaded=steps.loaded, peak=resident_bytes())
        manifest = artifact.manifest
        written = {record.shard: sum(part.bytes for part in record.parts) for record in engine.records}
        points = [Point(self.sizes[r.shard], r.seconds, written[r.shard]) for r in engine.records]
        return Measured(
            seconds=manifest.seconds,
            points=tuple(points),
            steps=tuple(steps.seconds),
            bytes=manifest.bytes,
            loaded=engine.loaded or steps.loaded,
            peak=manifest.peak_bytes,
            left=resident_bytes(),
            artifact=artifact,
        )

    def excerpt(self, artifact: Artifact, shards: Collection[str]) -> Artifact:
        """A copy of an artifact with some of its shards."""
        identity = fingerprint("excerpt", 1, sorted(shards), {"of": artifact.fingerprint})
        copy, manifest = self.store.artifact(artifact.stage, identity), artifact.manifest
        parts = tuple(part for part in manifest.parts if part.shard in shards)
        for part in parts:
            copy.folder.write(part.name, artifact.folder.read(part.name))
        copy.folder.write(MANIFEST, to_json(replace(manifest, fingerprint=identity, parts=parts)))
        return copy


def common_shards(inputs: Inputs, sizes: Mapping[str, int]) -> set[str]:
    """The sample's shards that all those inputs have which are done shard by shard."""
    found = set(sizes)
    for item in inputs.values():
        if isinstance(item, Artifact) and WHOLE not in item.shards:
            found &= set(item.shards)
    return found
