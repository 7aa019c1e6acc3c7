"""A corpus that gained or lost shards: what an unchanged shard gave before is taken over, not made again.

Nothing has to be declared about a corpus' history. A shard is unchanged for a stage when an earlier artifact
of the same stage, version and config read the very same parts of it, and the same whole artifacts beside it.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

from storage.artifact import Artifact, Store
from storage.errors import StoreError
from storage.files import Folder
from storage.manifest import Manifest, ShardRecord, shard_record

DIGESTS = ("*",)  # a stage whose digests from outside are one a shard
Identities = dict[str, tuple[Any, ...]]  # shard -> what it is made of


@dataclass(frozen=True)
class Reading:
    """What a stage reads: whole artifacts, and shards."""

    whole: dict[str, str]  # input -> fingerprint
    shards: Identities


def reading(
    by_shard: tuple[str, ...], inputs: Mapping[str, str], stages: Mapping[str, str], store: Store
) -> Reading | None:
    """What a stage with such inputs reads; None if an input that it reads by shards is not there.

    Args:
        by_shard: the inputs that are read by shards; `DIGESTS` for those from outside.
        inputs: fingerprints and digests.
        stages: which stage each artifact among the inputs is of.
        store: where they lie.
    """
    if by_shard == DIGESTS:
        return Reading({}, {shard: (digest,) for shard, digest in inputs.items()})
    if not {*by_shard} <= stages.keys() & inputs.keys():
        return None
    artifacts = [store.artifact(stages[name], inputs[name]) for name in by_shard]
    if not all(artifact.committed for artifact in artifacts):
        return None
    whole = {name: identity for name, identity in inputs.items() if name not in by_shard}
    columns = [_parts_by_shard(artifact.manifest) for artifact in artifacts]
    shared = set.intersection(*(set(column) for column in columns))
    return Reading(whole, {shard: tuple(column[shard] for column in columns) for shard in sorted(shared)})


def _parts_by_shard(manifest: Manifest) -> Identities:
    found: dict[str, list[tuple[str, str]]] = {}
    for part in manifest.parts:
        found.setdefault(part.shard, []).append((part.name, part.sha256))
    return {shard: tuple(parts) for shard, parts in found.items()}


def unchanged(
    artifact: Artifact,
    version: int,
    config: Mapping[str, Any],
    by_shard: tuple[str, ...],
    inputs: Mapping[str, str],
    stages: Mapping[str, str],
    store: Store,
) -> dict[str, Artifact]:
    """The shards that an earlier artifact of the stage holds already, each with the newest that does."""
    wanted = reading(by_shard, inputs, stages, store)
    found: dict[str, Artifact] = {}
    for earlier in store.artifacts(artifact.stage) if wanted else ():
        manifest = earlier.manifest
        alike = manifest.version == version and manifest.config == config and manifest.shards
        if not alike:
            continue
        had = reading(by_shard, manifest.inputs, stages, store)
        if wanted and had and had.whole == wanted.whole:
            same = (s for s, made_of in wanted.shards.items() if had.shards.get(s) == made_of)
            found |= {shard: earlier for shard in same if shard in manifest.shards}
    return found


def take_over(earlier: Artifact, shard: str, folder: Folder) -> ShardRecord | None:
    """Copies the parts of a shard; None if one of them is no longer what its manifest says."""
    parts = tuple(part for part in earlier.manifest.parts if part.shard == shard)
    try:
        for part in parts:
            size, checksum = folder.write(part.name, partial(_pour, earlier.folder, part.name))
            if (size, checksum) != (part.bytes, part.sha256):
                return None
    except (FileNotFoundError, StoreError):
        return None
    return shard_record(earlier.manifest, shard)


def _pour(source: Folder, name: str, stream: BinaryIO) -> None:
    with source.open(name) as opened:
        shutil.copyfileobj(opened, stream, 4 << 20)
