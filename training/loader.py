"""Batches read from the original tars, in a computed order, decoded ahead of the step that wants them.

Three things go on side by side: a thread reads the shards of the next pool, threads decode and crop the
images of the next batches, and the caller takes a step. Which samples are in a batch, what is drawn for
them and how they are cropped are functions of (seed, id, epoch). So bytes depend on no thread, and the
batches of any number of processes are parts of the same ones.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from storage.errors import ConfigError, InputError
from storage.reader import IMAGE_EXTENSIONS, CorpusReader, image_bytes
from storage.threads import ahead, in_order
from training.data import Batch
from training.nouns import DrawConfig, NounLists, NounSource, concatenate, draw_nouns, union
from training.order import Pool, Reference, batches_per_epoch, epoch_pools, rank_part, resume_at

READY = 2  # batches that wait for their step
PIECE = 16  # images that a thread decodes at a time


class View(Protocol):
    """Makes pixels of an encoded image."""

    @property
    def size(self) -> int:
        """Pixels per side."""

    def __call__(self, data: bytes, sample_id: str, epoch: int) -> NDArray[np.uint8]:
        """RGB pixels [size, size, 3]."""


class Beside(Protocol):
    """What else is known of each sample, kept encoded until it is due."""

    def read(self, shard: str) -> Mapping[str, Any]:
        """By sample id."""

    def decode(self, value: Any) -> Any:
        """Of one sample, as a batch has it."""


@dataclass(frozen=True)
class ShardSamples:
    """What is in memory of one shard."""

    sample_ids: list[str]
    captions: list[str]
    images: list[bytes]
    drawn: NounLists
    fixed: NounLists
    beside: list[Any]

    def __len__(self) -> int:
        return len(self.sample_ids)


@dataclass(frozen=True)
class Encoded:
    """A batch whose images and regions are still encoded."""

    batch: Batch
    images: list[bytes]
    beside: list[Any]


@dataclass(frozen=True)
class PoolNouns:
    """The nouns of all shards of a pool, one after another."""

    first: dict[str, int]  # row of each shard's first sample
    drawn: NounLists
    fixed: NounLists

    @staticmethod
    def of(memory: Mapping[str, ShardSamples]) -> "PoolNouns":
        """Those of the shards in memory."""
        starts = accumulate((len(samples) for samples in memory.values()), initial=0)
        return PoolNouns(
            dict(zip(memory, starts, strict=False)),
            concatenate([samples.drawn for samples in memory.values()]),
            concatenate([samples.fixed for samples in memory.values()]),
        )

    def rows(self, references: Sequence[Reference]) -> tuple[NounLists, NounLists]:
        """Drawn and fixed nouns of some samples."""
        rows = np.array([self.first[shard] + row for shard, row in references], np.int64)
        return self.drawn.rows(rows), self.fixed.rows(rows)


@dataclass(frozen=True)
class Loader:
    """Visits the samples of some shards, epoch after epoch. Resumable at any step."""

    reader: CorpusReader
    drawn: NounSource | None  # what M nouns are drawn from in every epoch
    fixed: NounSource | None  # nouns that are always used
    draws: DrawConfig
    shards: tuple[str, ...]
    batch_size: int  # samples, of all ranks together
    open_shards: int  # shards in one pool; the next one is read meanwhile
    epochs: int
    seed: int
    view: View | None = None  # None: images are not read
    beside: Beside | None = None
    rank: int = 0  # of this process, which has its part of every batch
    world: int = 1  # processes
    threads: int = 1  # that decode

    def __post_init__(self) -> None:
        if self.batch_size % self.world:
            raise ConfigError(
                f"batch_size {self.batch_size} cannot be shared out evenly among {self.world} processes; "
                f"give a multiple of {self.world}"
            )

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Samples of each shard."""
        rows = {part.shard: part.rows for part in self.reader.corpus.parts("samples")}
        return {shard: rows[shard] for shard in self.shards}

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch.

        Raises:
            InputError: when there is not even one.
        """
        steps = batches_per_epoch(self.sizes, self.batch_size)
        if steps == 0:
            total = sum(self.sizes.values())
            raise InputError(f"{total} training samples make no batch of {self.batch_size}; lower batch_size")
        return steps

    @property
    def steps(self) -> int:
        """Steps of all epochs."""
        return self.epochs * self.steps_per_epoch

    def batches(self, step: int) -> Generator[Batch, None, None]:
        """All batches from ``step`` on, this rank's part of each."""
        return ahead(self._decoded(self._encoded(step)), READY)

    def _encoded(self, step: int) -> Iterator[Encoded]:
        for epoch, pool, memory in ahead(self._pools(step), 1):
            nouns = PoolNouns.of(memory)
            for references in pool.batches:
                yield self._batch(epoch, rank_part(references, self.rank, self.world), memory, nouns)

    def _pools(self, step: int) -> Iterator[tuple[int, Pool, dict[str, ShardSamples]]]:
        """The pools from a step on, each with what is in its shards."""
        first, within = divmod(step, self.steps_per_epoch)
        memory: dict[str, ShardSamples] = {}
        for epoch in range(first, self.epochs):
            pools = epoch_pools(
                self.sizes,
                seed=self.seed,
                epoch=epoch,
                batch_size=self.batch_size,
                open_shards=self.open_shards,
            )
            for pool in resume_at(pools, within if epoch == first else 0):
                memory = self._filled(pool, memory)
                yield epoch, pool, memory

    def _filled(self, pool: Pool, before: Mapping[str, ShardSamples]) -> dict[str, ShardSamples]:
        """The shards of a pool; those that the pool before it had are not read again."""
        new = [shard for shard in pool.shards if shard not in before]
        read = dict(zip(new, in_order(self._read, new, self.threads), strict=True))
        return {shard: read.get(shard) or before[shard] for shard in pool.shards}

    def _read(self, shard: str) -> ShardSamples:
        rows = self.reader.samples(shard)
        ids = rows["sample_id"].to_list()
        images = self._images(shard, ids) if self.view else [b""] * len(ids)
        drawn, fixed = (_lists(source, shard, ids) for source in (self.drawn, self.fixed))
        known = self.beside.read(shard) if self.beside else {}
        beside = [known[sample_id] for sample_id in ids] if self.beside else [None] * len(ids)
        return ShardSamples(ids, rows["caption"].to_list(), images, drawn, fixed, beside)

    def _images(self, shard: str, ids: Sequence[str]) -> list[bytes]:
        found = {key: image_bytes(s) or b"" for key, s in self.reader.members(shard, IMAGE_EXTENSIONS)}
        return [found[sample_id] for sample_id in ids]

    def _batch(
        self,
        epoch: int,
        references: Sequence[Reference],
        memory: Mapping[str, ShardSamples],
        nouns: "PoolNouns",
    ) -> Encoded:
        rows = [(memory[shard], row) for shard, row in references]
        ids = [samples.sample_ids[row] for samples, row in rows]
        drawn, fixed = nouns.rows(references)
        side = self.view.size if self.view else 0
        batch = Batch(
            epoch=epoch,
            sample_ids=ids,
            captions=[samples.captions[row] for samples, row in rows],
            drawn_NM=draw_nouns(drawn, ids, self.draws, seed=self.seed, epoch=epoch),
            fixed=fixed.lists,
            named=union(drawn, fixed),
            pixels_NHWC=np.empty((len(ids), side, side, 3), np.uint8),
            regions=[None] * len(ids),
        )
        return Encoded(
            batch,
            [samples.images[row] for samples, row in rows],
            [samples.beside[row] for samples, row in rows],
        )

    def _decoded(self, encoded: Iterable[Encoded]) -> Iterator[Batch]:
        """Batches whose pieces are decoded side by side."""
        pieces = (
            (item, slice(start, start + PIECE))
            for item in encoded
            for start in range(0, len(item.images), PIECE)
        )
        for item, rows in in_order(self._decode, pieces, self.threads):
            if rows.stop >= len(item.images):  # pieces come in order: it was the batch's last one
                yield item.batch

    def _decode(self, piece: tuple[Encoded, slice]) -> tuple[Encoded, slice]:
        """Fills some rows of a batch."""
        item, rows = piece
        batch = item.batch
        for row in range(*rows.indices(len(item.images))):
            if self.view:
                batch.pixels_NHWC[row] = self.view(item.images[row], batch.sample_ids[row], batch.epoch)
            if self.beside:
                batch.regions[row] = self.beside.decode(item.beside[row])
        return piece


def _lists(source: NounSource | None, shard: str, ids: Sequence[str]) -> NounLists:
    return source.shard(shard, ids) if source else NounLists.empty(len(ids))
