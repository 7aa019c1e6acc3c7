"""Batches for the trainers: original image bytes joined to sidecars by ``sample_id``, in a computed order."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.errors import InputError
from storage.fingerprint import stable_seed
from storage.reader import IMAGE_EXTENSIONS, CorpusReader, image_bytes
from training.nouns import DrawConfig, NounLists, NounSource, concatenate, draw_nouns
from training.order import Reference, batches_per_epoch, epoch_pools, resume_at


@dataclass(frozen=True)
class Batch:
    """N samples of one step."""

    epoch: int
    sample_ids: list[str]
    captions: list[str]
    drawn_NM: NDArray[np.int64]  # concept ids, -1 for none
    fixed: list[NDArray[np.int64]]  # concept ids that need no draw, of each sample
    named: list[NDArray[np.int64]]  # every concept a sample may be called by, for telling negatives
    images: list[bytes]  # encoded
    references: tuple[Reference, ...]


@dataclass(frozen=True)
class ShardSamples:
    """What is in memory of one shard."""

    sample_ids: list[str]
    captions: list[str]
    images: list[bytes]
    drawn: NounLists
    fixed: NounLists


@dataclass(frozen=True)
class Loader:
    """Visits the samples of some shards, epoch after epoch. Resumable at any step."""

    reader: CorpusReader
    drawn: NounSource | None  # what M nouns are drawn from in every epoch
    fixed: NounSource | None  # nouns that are always used
    draws: DrawConfig
    shards: tuple[str, ...]
    batch_size: int  # samples
    open_shards: int  # shards in memory
    epochs: int
    seed: int
    with_images: bool = True

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
        """All batches from ``step`` on."""
        first, within = divmod(step, self.steps_per_epoch)
        for epoch in range(first, self.epochs):
            yield from self._epoch(epoch, within if epoch == first else 0)

    def _epoch(self, epoch: int, step: int) -> Iterator[Batch]:
        pools = epoch_pools(
            self.sizes,
            seed=self.seed,
            epoch=epoch,
            batch_size=self.batch_size,
            open_shards=self.open_shards,
        )
        memory: dict[str, ShardSamples] = {}
        for pool in resume_at(pools, step):
            memory = {shard: memory.get(shard) or self._read(shard) for shard in pool.shards}
            for references in pool.batches:
                yield self._batch(epoch, references, memory)

    def _read(self, shard: str) -> ShardSamples:
        rows = self.reader.samples(shard)
        ids = rows["sample_id"].to_list()
        images = self._images(shard, ids) if self.with_images else [b""] * len(ids)
        drawn, fixed = (_lists(source, shard, ids) for source in (self.drawn, self.fixed))
        return ShardSamples(ids, rows["caption"].to_list(), images, drawn, fixed)

    def _images(self, shard: str, ids: Sequence[str]) -> list[bytes]:
        found = {key: image_bytes(s) or b"" for key, s in self.reader.members(shard, IMAGE_EXTENSIONS)}
        return [found[sample_id] for sample_id in ids]

    def _batch(
        self, epoch: int, references: tuple[Reference, ...], memory: Mapping[str, ShardSamples]
    ) -> Batch:
        ids = [memory[shard].sample_ids[row] for shard, row in references]
        drawn = concatenate([memory[shard].drawn.rows([row]) for shard, row in references])
        fixed = concatenate([memory[shard].fixed.rows([row]) for shard, row in references])
        fixed_lists = np.split(fixed.concept, fixed.offsets[1:-1])
        drawn_lists = np.split(drawn.concept, drawn.offsets[1:-1])
        return Batch(
            epoch=epoch,
            sample_ids=ids,
            captions=[memory[shard].captions[row] for shard, row in references],
            drawn_NM=draw_nouns(drawn, ids, self.draws, seed=self.seed, epoch=epoch),
            fixed=fixed_lists,
            named=[np.union1d(a, b) for a, b in zip(drawn_lists, fixed_lists, strict=True)],
            images=[memory[shard].images[row] for shard, row in references],
            references=references,
        )


def _lists(source: NounSource | None, shard: str, ids: Sequence[str]) -> NounLists:
    return source.shard(shard, ids) if source else NounLists.empty(len(ids))


@dataclass(frozen=True)
class CropConfig:
    """Random resized crops and flips."""

    smallest: float = 0.4  # share of the image's area
    flip: float = 0.5  # probability


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """RGB pixels [H, W, 3] of an image the corpus stage has accepted, upright."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        raise InputError("an accepted image cannot be decoded by OpenCV; run the corpus stage again")
    return cast("NDArray[np.uint8]", pixels)


def random_crop(
    image_HWC: NDArray[np.uint8], size: int, config: CropConfig, sample_id: str, *, seed: int, epoch: int
) -> NDArray[np.uint8]:
    """A random part of an image at ``size`` pixels, perhaps mirrored; decided by (seed, id, epoch)."""
    rng = np.random.default_rng(stable_seed("crop", seed, sample_id, epoch))
    height, width = image_HWC.shape[:2]
    area = rng.uniform(config.smallest, 1.0) * height * width
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    tall = min(height, max(1, round(float(np.sqrt(area / ratio)))))
    wide = min(width, max(1, round(float(np.sqrt(area * ratio)))))
    top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
    crop_HWC = image_HWC[top : top + tall, left : left + wide]
    way = cv2.INTER_AREA if min(tall, wide) > size else cv2.INTER_CUBIC
    resized_HWC = cv2.resize(crop_HWC, (size, size), interpolation=way)
    return np.asarray(resized_HWC[:, ::-1] if rng.random() < config.flip else resized_HWC, np.uint8)


def to_tensor(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Images of one size as float32 [N, 3, H, W] in [0, 1]."""
    stacked_NHWC = torch.from_numpy(np.ascontiguousarray(np.stack(images)))
    return stacked_NHWC.permute(0, 3, 1, 2).float() / 255
