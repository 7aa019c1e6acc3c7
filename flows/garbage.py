"""What no run needs any more: artifacts that no summary leads to, and what interrupted runs left."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from flows.claims import claims
from storage.artifact import MANIFEST, Artifact, Store
from storage.errors import StoreError


@dataclass(frozen=True)
class Garbage:
    """A folder that may be removed."""

    artifact: Artifact
    finished: bool
    bytes: int


def find_garbage(store: Store) -> list[Garbage]:
    """Artifacts that are neither in a run's summary, nor upstream of one, nor claimed by a run at work.

    Raises:
        StoreError: for a summary or manifest that cannot be read: then nothing can be known to be unused.
    """
    finished = store.artifacts()
    kept = _upstream({*_summarised(store), *_claimed(store)}, finished)
    unused = [artifact for artifact in (*finished, *store.unfinished()) if artifact.fingerprint not in kept]
    done = {artifact.fingerprint for artifact in finished}
    return [Garbage(a, a.fingerprint in done, _size(a)) for a in unused]


def as_rows(garbage: Iterable[Garbage]) -> list[dict[str, Any]]:
    """Garbage as plain data."""
    return [
        {
            "stage": item.artifact.stage,
            "fingerprint": item.artifact.fingerprint,
            "state": "unused" if item.finished else "unfinished",
            "bytes": item.bytes,
        }
        for item in garbage
    ]


def remove(garbage: Iterable[Garbage]) -> None:
    """Removes folders; the manifest goes first, so that a broken-off removal leaves no half artifact."""
    for item in garbage:
        item.artifact.folder.remove(MANIFEST)
        item.artifact.folder.remove()


def _summarised(store: Store) -> set[str]:
    found: set[str] = set()
    for run in store.folder.list("runs"):
        file = f"runs/{run}/summary.json"
        if store.folder.exists(file):
            found |= _fingerprints(_artifacts_of(store, file))
    return found


def _artifacts_of(store: Store, file: str) -> list[str]:
    try:
        return list(json.loads(store.folder.read(file))["artifacts"].values())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(
            f"{store.url}/{file} is no summary ({error}), so what it needs is unknown; "
            "remove it or run its config again"
        ) from error


def _claimed(store: Store) -> set[str]:
    return {name for claim in claims(store) for name in _fingerprints(claim.artifacts)}


def _fingerprints(ids: Iterable[str]) -> set[str]:
    return {artifact_id.rsplit("/", 1)[-1] for artifact_id in ids}


def _upstream(roots: set[str], artifacts: Iterable[Artifact]) -> set[str]:
    """The roots and all they were made from. Inputs that are digests of outside bytes lead nowhere."""
    inputs = {artifact.fingerprint: set(artifact.manifest.inputs.values()) for artifact in artifacts}
    reached, pending = set(roots), list(roots)
    while pending:
        new = inputs.get(pending.pop(), set()) - reached
        reached |= new
        pending += new
    return reached


def _size(artifact: Artifact) -> int:
    return int(artifact.folder.fs.du(artifact.folder.root, total=True))
