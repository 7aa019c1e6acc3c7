"""What lies in a store: artifacts as rows, one artifact found by what a person types, its first rows.

Only ``storage`` is imported here: looking at a store must not wait for torch.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from storage.artifact import Artifact, Store
from storage.errors import StoreError


def open_store(url: str) -> Store:
    """A store that is there.

    Raises:
        StoreError: when it is not.
    """
    store = Store(url)
    if not store.folder.exists(""):
        raise StoreError(f"there is no store at '{url}'; give its place with --store, or run a config first")
    return store


def stage_artifacts(store: Store, stage: str | None) -> list[Artifact]:
    """Committed artifacts of a stage, or of all, oldest first.

    Raises:
        StoreError: for a stage the store has nothing of.
    """
    found = store.artifacts(stage)
    if stage and not found:
        have = ", ".join(dict.fromkeys(artifact.stage for artifact in store.artifacts())) or "nothing yet"
        raise StoreError(f"no artifact of stage '{stage}' in '{store.url}'; it holds {have}")
    return found


def find_artifact(store: Store, stage: str, fingerprint: str | None = None) -> Artifact:
    """The newest artifact of a stage, or the one whose fingerprint begins with what is given.

    Raises:
        StoreError: when there is none, or more than one.
    """
    artifacts = stage_artifacts(store, stage)
    if not fingerprint:
        return artifacts[-1]
    found = [artifact for artifact in artifacts if artifact.fingerprint.startswith(fingerprint)]
    if len(found) != 1:
        have = ", ".join(artifact.fingerprint for artifact in (found or artifacts)[-8:])
        what = "more than one" if found else "no"
        raise StoreError(f"{what} artifact of '{stage}' begins with '{fingerprint}'; there is {have}")
    return found[0]


def location(artifact: Artifact) -> str:
    """Where an artifact lies: an absolute path, or its URL."""
    return artifact.folder.path() if artifact.folder.is_local else artifact.url


def row(artifact: Artifact) -> dict[str, Any]:
    """An artifact in a list."""
    manifest = artifact.manifest
    return {
        "stage": artifact.stage,
        "fingerprint": artifact.fingerprint,
        "rows": manifest.rows,
        "created": manifest.created,
        "bytes": manifest.bytes,
    }


def record(artifact: Artifact, limit: int) -> dict[str, Any]:
    """The manifest as plain data, where it lies, and the first rows of each of its tables."""
    return {
        "location": location(artifact),
        **asdict(artifact.manifest),
        "rows": artifact.manifest.rows,
        "bytes": artifact.manifest.bytes,
        "tables": {table: first_rows(artifact, table, limit) for table in tables(artifact)},
    }


def tables(artifact: Artifact) -> Sequence[str]:
    """Names of an artifact's tables."""
    return list(dict.fromkeys(part.table for part in artifact.manifest.parts if part.table))


def first_rows(artifact: Artifact, table: str, limit: int) -> list[dict[str, Any]]:
    """The first rows of a table, read from no more shards than it takes."""
    rows: list[dict[str, Any]] = []
    for part in artifact.parts(table):
        if len(rows) >= limit:
            break
        rows += artifact.read(table, part.shard).slice(0, limit - len(rows)).to_pylist()
    return rows
