"""How a stage is executed. Nothing here may change what it writes, and nothing here is in a fingerprint."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from storage.manifest import ShardRecord

ShardTask = Callable[[str], ShardRecord]
Locations = Mapping[str, Mapping[str, str]]  # corpus fingerprint -> shard -> URL of a tar read in place


class Bar(Protocol):
    """One running progress bar."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Moves on by ``steps``; ``note`` is shown at the end of the line."""


class Progress(Protocol):
    """Where long work shows how far it is."""

    def __call__(self, title: str, total: int) -> AbstractContextManager[Bar]:
        """A bar over ``total`` steps."""


class Engine(Protocol):
    """Runs a shard task over shards, here or on a cluster."""

    def __call__(self, make_task: Callable[[], ShardTask], shards: Sequence[str]) -> Iterator[ShardRecord]:
        """Makes the task (loads its model) once per worker; yields records as shards finish."""


def local_engine(make_task: Callable[[], ShardTask], shards: Sequence[str]) -> Iterator[ShardRecord]:
    """A loop in this process."""
    task = make_task()
    for shard in shards:
        yield task(shard)


class _Silent:
    def advance(self, steps: int = 1, note: str = "") -> None:
        pass


@contextmanager
def silent_progress(title: str, total: int) -> Iterator[Bar]:  # noqa: ARG001  (a Progress that shows nothing)
    """Shows nothing."""
    yield _Silent()


def no_encoder(folder: str) -> Any:
    """Stands where no encoder loader was given."""
    raise AssertionError(f"this run was given no way to load the encoder in {folder}")


@dataclass(frozen=True)
class Runtime:
    """Execution choices of a run."""

    engine: Engine = local_engine
    device: str = "auto"  # auto, cpu, cuda, cuda:1, …
    progress: Progress = silent_progress
    load_encoder: Callable[..., Any] = no_encoder  # training and evaluation are handed one, they import none
    locations: Locations = field(default_factory=dict)
    processes: int = 1  # of a training, each with a part of every batch
