"""What runs in progress are working on, so that nothing takes it away from them."""

import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from storage.artifact import Artifact, Store
from storage.errors import StoreError

PREFIX = "running-"


@dataclass(frozen=True)
class Claim:
    """A run that has said it is working, and has not said it stopped."""

    file: str  # in the store
    host: str
    pid: int
    started: str  # ISO 8601, UTC
    artifacts: tuple[str, ...]  # stage/fingerprint

    @property
    def holds(self) -> bool:
        """Whether the run may still be alive: known on this host, believed of another one."""
        return self.host != platform.node() or _alive(self.pid)


@contextmanager
def claim(store: Store, name: str, artifacts: Sequence[Artifact]) -> Iterator[None]:
    """Marks artifacts as being worked on, for as long as the block lasts."""
    file = f"runs/{name}/{PREFIX}{platform.node()}-{os.getpid()}.json"
    record = {
        "host": platform.node(),
        "pid": os.getpid(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "artifacts": [artifact.id for artifact in artifacts],
    }
    store.folder.write(file, (json.dumps(record, indent=1) + "\n").encode())
    try:
        yield
    finally:
        store.folder.remove(file)


def claims(store: Store) -> list[Claim]:
    """Every claim that may still hold.

    Raises:
        StoreError: for a claim that cannot be read.
    """
    files = [f"runs/{run}/{name}" for run in store.folder.list("runs") for name in _marks(store, run)]
    return [found for found in (_read(store, file) for file in files) if found.holds]


def _marks(store: Store, run: str) -> list[str]:
    names = store.folder.list(f"runs/{run}")
    return [name for name in names if name.startswith(PREFIX) and name.endswith(".json")]


def _read(store: Store, file: str) -> Claim:
    try:
        record = json.loads(store.folder.read(file))
        return Claim(file, record["host"], record["pid"], record["started"], tuple(record["artifacts"]))
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{store.url}/{file} cannot be read; remove it if no such run is working") from error


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
