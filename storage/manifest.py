"""The record written beside the data, last of all. No manifest, no artifact."""

import dataclasses
import json
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from storage.errors import StoreError

PROVENANCE_PACKAGES = (
    "cocu", "torch", "open_clip_torch", "timm", "faiss-cpu", "numpy", "pyarrow", "ray", "prefect",
)  # fmt: skip


BESIDE = (
    None,
    "quarantine",
    "ids",
    "candidates",
    "captions",
    "speeds",
)  # what an artifact holds beside its rows


@dataclasses.dataclass(frozen=True)
class Part:
    """One file of an artifact."""

    name: str
    table: str | None  # schema name, None for a file that is not a table
    shard: str
    rows: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many samples came in, and where they went."""

    seen: int = 0
    kept: int = 0
    rejected: dict[str, int] = dataclasses.field(default_factory=dict)  # by reason

    def __post_init__(self) -> None:
        lost = self.seen - self.kept - sum(self.rejected.values())
        assert lost == 0, f"{self.seen} samples in, {self.kept} kept, {self.rejected} rejected: {lost} lost"

    def __add__(self, other: "Counts") -> "Counts":
        rejected = Counter(self.rejected) + Counter(other.rejected)
        return Counts(self.seen + other.seen, self.kept + other.kept, dict(sorted(rejected.items())))


@dataclasses.dataclass(frozen=True)
class ShardRecord:
    """What one shard has written: the unit of commit and of resume."""

    shard: str
    parts: tuple[Part, ...]
    counts: Counts
    facts: dict[str, float]  # sums over samples that a stage wants in the manifest
    seconds: float
    timings: dict[str, float] = dataclasses.field(default_factory=dict)  # seconds by phase; see storage.stall
    peak_bytes: int = 0  # resident in the process at most; 0 where it was not recorded


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Everything needed to trust, repeat and read an artifact."""

    stage: str
    version: int
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, str]
    parts: tuple[Part, ...]
    counts: Counts
    facts: dict[str, float]
    created: str  # ISO 8601, UTC
    seconds: float  # wall time of the run that committed, earlier interrupted runs not counted
    shard_seconds: dict[str, float]
    provenance: dict[str, Any]
    shards: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)  # counts and facts of each
    shard_timings: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    stall: dict[str, Any] = dataclasses.field(default_factory=dict)  # see storage.stall
    peak_bytes: int = 0  # resident at most in one process that worked on it; 0 where it was not recorded

    @property
    def rows(self) -> int:
        """Rows of the tables, or samples in the files when there is no table."""
        tables = [part.rows for part in self.parts if part.table not in BESIDE]
        return sum(tables) if tables else sum(part.rows for part in self.parts if part.table is None)

    @property
    def bytes(self) -> int:
        """Size of all parts."""
        return sum(part.bytes for part in self.parts)


def merge_records(
    records: Sequence[ShardRecord],
) -> tuple[tuple[Part, ...], Counts, dict[str, float]]:
    """Parts, counts and facts of all shards, in shard order whatever order they finished in."""
    ordered = sorted(records, key=lambda record: record.shard)
    facts: Counter[str] = Counter()
    for record in ordered:
        facts.update(record.facts)
    parts = tuple(part for record in ordered for part in record.parts)
    return parts, sum((record.counts for record in ordered), Counts()), dict(sorted(facts.items()))


def shard_record(manifest: Manifest, shard: str) -> ShardRecord:
    """What one shard of an artifact wrote, as it was recorded then."""
    told = manifest.shards[shard]
    parts = tuple(part for part in manifest.parts if part.shard == shard)
    seconds, timings = manifest.shard_seconds.get(shard, 0.0), manifest.shard_timings.get(shard, {})
    return ShardRecord(shard, parts, Counts(**told["counts"]), told["facts"], seconds, timings)


def to_json(record: Manifest | ShardRecord) -> bytes:
    """Readable JSON of a manifest or shard record."""
    return (json.dumps(dataclasses.asdict(record), indent=1, sort_keys=True) + "\n").encode()


def manifest_from_json(data: bytes, where: str) -> Manifest:
    """Reads a manifest.

    Raises:
        StoreError: if the file is not a manifest.
    """
    try:
        fields = json.loads(data)
        return Manifest(**{**fields, **_nested(fields)})
    except (ValueError, TypeError, KeyError, AssertionError) as error:
        raise StoreError(f"{where} is not a manifest ({error}); remove it and run the stage again") from error


def record_from_json(data: bytes) -> ShardRecord | None:
    """Reads a shard record; None for a torn one, whose shard is then done again."""
    try:
        fields = json.loads(data)
        return ShardRecord(**{**fields, **_nested(fields)})
    except (ValueError, TypeError, KeyError, AssertionError):
        return None


def _nested(fields: dict[str, Any]) -> dict[str, Any]:
    parts = tuple(Part(**part) for part in fields["parts"])
    return {"parts": parts, "counts": Counts(**fields["counts"])}


@cache
def provenance() -> dict[str, Any]:
    """Library versions, source revision and host facts. Not part of any identity."""
    return {
        "packages": {name: version for name in PROVENANCE_PACKAGES if (version := _version(name))},
        "revision": _revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
