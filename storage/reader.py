"""Samples of a corpus artifact, read from the tars they came in.

The artifact says which samples were accepted; where the tars lie is a matter of the run (they may have
moved since, their bytes are what counts). Tars that the corpus stage wrote itself lie in the artifact.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, cast

import fsspec
import polars as pl

from storage.artifact import Artifact
from storage.errors import InputError
from storage.runtime import Locations
from storage.stage import file_stem
from storage.tars import Sample, read_tar

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True)
class CorpusReader:
    """Reads a corpus shard by shard. Picklable."""

    corpus: Artifact
    locations: Locations = field(default_factory=dict)

    @property
    def shards(self) -> list[str]:
        """All shards, in order."""
        return self.corpus.shards

    def open(self, shard: str) -> BinaryIO:
        """The tar of a shard.

        Raises:
            InputError: if it is not where the configuration says.
        """
        in_place = self.locations.get(self.corpus.fingerprint, {})
        return open_tar(in_place.get(shard, f"{self.corpus.url}/{file_stem(shard)}.tar"), shard)

    def samples(self, shard: str) -> pl.DataFrame:
        """The accepted samples of a shard, in the tar's order."""
        return cast("pl.DataFrame", pl.from_arrow(self.corpus.read("samples", shard)))

    def members(self, shard: str, extensions: Collection[str]) -> Iterator[tuple[str, Sample]]:
        """Accepted samples of a shard as (sample_id, members with these extensions), in the tar's order.

        Raises:
            InputError: after the last one, if the tar no longer holds them all.
        """
        rows = self.samples(shard)
        accepted = dict(zip(rows["key"], rows["sample_id"], strict=True))
        with self.open(shard) as stream:
            for item in read_tar(stream, extensions):
                if isinstance(item, Sample) and item.key in accepted:
                    yield accepted.pop(item.key), item
        if accepted:
            raise InputError(
                f"shard '{shard}' no longer holds {len(accepted)} of its {len(rows)} samples, such as "
                f"'{next(iter(accepted.values()))}'; it has changed since the corpus was read: "
                "run the pipeline again"
            )


def open_tar(url: str, shard: str) -> BinaryIO:
    """A tar, wherever it lies.

    Raises:
        InputError: if it cannot be opened.
    """
    try:
        return cast("BinaryIO", fsspec.open(url, "rb").open())
    except Exception as error:  # each file system has its own kinds
        raise InputError(
            f"cannot open shard '{shard}' at '{url}' ({error}); check the source's urls"
        ) from error


def image_bytes(sample: Sample) -> bytes | None:
    """The encoded image of a sample, None if it has none."""
    return next((sample.members[ext] for ext in IMAGE_EXTENSIONS if ext in sample.members), None)
