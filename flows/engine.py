"""Shards on a Ray cluster: the same shard function, in actors that each hold their model."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, cast

from storage.errors import CocuError
from storage.manifest import ShardRecord, record_from_json, to_json
from storage.runtime import Engine, ShardTask


def start_ray(address: str | None = None) -> None:
    """Connects to the cluster at ``address`` (or RAY_ADDRESS); starts a local one where there is none."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # noqa: PLC0415  (seconds to import, and seldom used)

    if not ray.is_initialized():
        where = address or os.environ.get("RAY_ADDRESS")
        ray.init(address=where, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    from ray.data import DataContext  # noqa: PLC0415

    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # faults are raised, and told once


class ShardActor:
    """One worker: makes the task once (and loads its model), then works on shard after shard."""

    def __init__(self, make_task: Callable[[], ShardTask]) -> None:
        self.make_task = make_task

    @cached_property
    def task(self) -> ShardTask:
        """Made at the first shard: of a fault in a constructor, Ray keeps only a traceback's text."""
        return self.make_task()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Works on one shard; what comes back is its record, the data is in the store.

        A fault that a person can mend comes back as its text: Ray Data would wrap it beyond recognition.
        """
        try:
            return {"record": to_json(self.task(str(row["shard"]))), "fault": ""}
        except CocuError as error:
            return {"record": b"", "fault": str(error)}


def ray_engine(workers: int, gpus: float = 0.0, address: str | None = None) -> Engine:
    """An engine of ``workers`` actors, each with a share of a GPU.

    Its iterators raise CocuError, with the worker's own words, for a fault that a person can mend.
    """

    def run(make_task: Callable[[], ShardTask], shards: Sequence[str]) -> Iterator[ShardRecord]:
        start_ray(address)
        import ray  # noqa: PLC0415
        from ray.data import ActorPoolStrategy  # noqa: PLC0415

        rows = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
        size = min(workers, len(shards))
        done = rows.map(
            cast("Any", ShardActor),
            fn_constructor_args=(make_task,),
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
