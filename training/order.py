"""In which order an epoch visits the samples: a function of the seed, so that any step can be resumed.

Shards are shuffled, then pooled a few at a time and shuffled inside the pool. Memory is bounded by the
pool, reading stays sequential, and nothing about the order has to be saved: step s of epoch e is computed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from storage.fingerprint import stable_seed

Reference = tuple[str, int]  # shard, row of its samples table


@dataclass(frozen=True)
class Pool:
    """Shards that are in memory together, and the batches to be made of them."""

    shards: tuple[str, ...]
    batches: tuple[tuple[Reference, ...], ...]


def epoch_pools(
    sizes: Mapping[str, int], *, seed: int, epoch: int, batch_size: int, open_shards: int
) -> Iterator[Pool]:
    """Yields the pools of an epoch, in order.

    Each sample comes once. What is left of a pool after whole batches goes into the next one's first
    batches; the last, incomplete batch of the epoch is left out (a contrast needs its full batch).

    Args:
        sizes: samples of each shard.
        seed: of the run.
        epoch: counted from 0.
        batch_size: samples.
        open_shards: shards in one pool.
    """
    rng = np.random.default_rng(stable_seed("order", seed, epoch))
    names = sorted(sizes)
    shuffled = [names[i] for i in rng.permutation(len(names))]
    left: list[Reference] = []
    for start in range(0, len(shuffled), open_shards):
        shards = shuffled[start : start + open_shards]
        fresh = [(shard, row) for shard in shards for row in range(sizes[shard])]
        left += [fresh[i] for i in rng.permutation(len(fresh))]
        whole = len(left) // batch_size * batch_size
        batches = tuple(tuple(left[i : i + batch_size]) for i in range(0, whole, batch_size))
        needed = tuple(dict.fromkeys(shard for batch in batches for shard, _ in batch))
        left = left[whole:]
        yield Pool(needed, batches)


def batches_per_epoch(sizes: Mapping[str, int], batch_size: int) -> int:
    """Steps of an epoch."""
    return sum(sizes.values()) // batch_size


def rank_part(batch: Sequence[Reference], rank: int, world: int) -> Sequence[Reference]:
    """The part of a batch that one of ``world`` processes takes: parts are contiguous and of equal length."""
    assert len(batch) % world == 0, f"{len(batch)} samples for {world} processes"
    length = len(batch) // world
    return batch[rank * length : (rank + 1) * length]


def resume_at(pools: Iterator[Pool], step: int) -> Iterator[Pool]:
    """Drops the first ``step`` batches; pools that hold nothing else are never read."""
    for pool in pools:
        done = min(step, len(pool.batches))
        step -= done
        if done < len(pool.batches):
            rest = pool.batches[done:]
            needed = tuple(dict.fromkeys(shard for batch in rest for shard, _ in batch))
            yield Pool(needed, rest)
