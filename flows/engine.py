"""Shards on a Ray cluster: the same shard function, in actors that each hold their model."""

import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, cast

from storage.errors import CocuError
from storage.manifest import ShardRecord, record_from_json, to_json
from storage.runtime import Engine, ShardTask

MOST_TRIES = (
    3  # of one shard: a node may die under it, but a shard under which workers die is at fault itself
)


def start_ray(address: str | None = None) -> None:
    """Connects to the cluster at ``address`` (or RAY_ADDRESS); starts a local one where there is none.

    Raises:
        CocuError: when no cluster answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # noqa: PLC0415  (seconds to import, and seldom used)

    if not ray.is_initialized():
        where = address or os.environ.get("RAY_ADDRESS")
        _require_answer(where or "")
        ray.init(address=where, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    from ray.data import DataContext  # noqa: PLC0415

    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # faults are raised, and told once


def _require_answer(address: str, patience: float = 10.0) -> None:
    """Ray itself would try for a quarter of an hour."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # none at all, or a word of Ray's: auto, local
        return
    try:
        socket.create_connection((host, int(port)), patience).close()
    except (OSError, OverflowError) as error:
        raise CocuError(
            f"no Ray cluster answers at '{address}' ({error}): start one there (ray start --head), correct "
            "RAY_ADDRESS, or unset it for a Ray of this run's own"
        ) from error


class Tries:
    """Counts how often work on each shard was begun. It lives on the run's own node."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()

    def begin(self, shard: str) -> int:
        """The number of this try."""
        self.begun[shard] += 1
        return self.begun[shard]


class ShardActor:
    """One worker: makes the task once (and loads its model), then works on shard after shard."""

    def __init__(self, make_task: Callable[[], ShardTask], tries: Any) -> None:
        self.make_task, self.tries = make_task, tries

    @cached_property
    def task(self) -> ShardTask:
        """Made at the first shard: of a fault in a constructor, Ray keeps only a traceback's text."""
        return self.make_task()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Works on one shard; what comes back is its record, the data is in the store.

        A fault that a person can mend comes back as its text: Ray Data would wrap it beyond recognition.
        """
        try:
            self.begin(str(row["shard"]))
            return {"record": to_json(self.task(str(row["shard"]))), "fault": ""}
        except CocuError as error:
            return {"record": b"", "fault": str(error)}

    def begin(self, shard: str) -> None:
        """Ray gives the shards of a dead worker to others without end; this is the end."""
        import ray  # noqa: PLC0415

        if ray.get(self.tries.begin.remote(shard)) > MOST_TRIES:
            raise CocuError(
                f"{MOST_TRIES} workers died at work on shard '{shard}', perhaps for want of memory: try it "
                "with --engine local, give fewer workers, or take the shard out; finished shards are kept"
            )


def ray_engine(workers: int, gpus: float = 0.0, address: str | None = None) -> Engine:
    """An engine of ``workers`` actors, each with a share of a GPU.

    A shard whose worker or node dies goes to another worker, MOST_TRIES times at most. Its iterators raise
    CocuError, with the worker's own words, for a fault that a person can mend.
    """

    def run(make_task: Callable[[], ShardTask], shards: Sequence[str]) -> Iterator[ShardRecord]:
        start_ray(address)
        import ray  # noqa: PLC0415
        from ray.data import ActorPoolStrategy  # noqa: PLC0415

        rows = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
        size = min(workers, len(shards))
        done = rows.map(
            cast("Any", ShardActor),
            fn_constructor_args=(make_task, _on_this_node(Tries)),
            compute=ActorPoolStrategy(size=size),
            num_gpus=gpus or None,
        )
        for row in done.iter_rows():
            if row["fault"]:
                raise CocuError(row["fault"])
            record = record_from_json(row["record"])
            assert record is not None, "a worker returned a broken shard record"
            yield record

    return run


def _on_this_node(kind: type) -> Any:
    """An actor that dies with no node but the run's own."""
    import ray  # noqa: PLC0415
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(kind).options(num_cpus=0, scheduling_strategy=here).remote()
