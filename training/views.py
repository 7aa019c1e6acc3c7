"""How a loader shows images and their regions to a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.artifact import Artifact
from storage.stage import file_stem
from storage.tars import Sample, read_tar
from training.data import CropConfig, decode_image, random_crop
from training.grouping import decode_label_png
from training.groups import resize_square


@dataclass(frozen=True)
class RandomCrops:
    """Another part of an image in every epoch."""

    size: int  # pixels
    seed: int
    config: CropConfig = field(default_factory=CropConfig)

    def __call__(self, data: bytes, sample_id: str, epoch: int) -> NDArray[np.uint8]:
        """RGB pixels [size, size, 3]."""
        image_HWC = decode_image(data)
        return random_crop(image_HWC, self.size, self.config, sample_id, seed=self.seed, epoch=epoch)


@dataclass(frozen=True)
class Squares:
    """The whole image, whatever its aspect."""

    size: int  # pixels

    def __call__(self, data: bytes, sample_id: str, epoch: int) -> NDArray[np.uint8]:  # noqa: ARG002
        """RGB pixels [size, size, 3]."""
        return resize_square(decode_image(data), self.size)


@dataclass(frozen=True)
class RegionVectors:
    """Stored vectors of each image's regions."""

    regions: Artifact

    def read(self, shard: str) -> Mapping[str, Tensor]:
        """Float16 [K, C] by sample id."""
        return read_regions(self.regions, shard)

    def decode(self, value: Tensor) -> Tensor:
        """The same."""
        return value


@dataclass(frozen=True)
class RegionMaps:
    """Label maps of each image."""

    groups: Artifact

    def read(self, shard: str) -> Mapping[str, bytes]:
        """PNGs by sample id."""
        with self.groups.folder.open(f"{file_stem(shard)}.tar") as stream:
            items = [item for item in read_tar(stream, ("png",)) if isinstance(item, Sample)]
        return {f"{shard}/{item.key}": item.members["png"] for item in items}

    def decode(self, value: bytes) -> NDArray[np.uint8]:
        """Labels [H, W]."""
        return decode_label_png(value)


def read_regions(regions: Artifact, shard: str) -> dict[str, Tensor]:
    """Stored region vectors float16 [K, C] by sample id."""
    table = regions.read("regions", shard)
    column = table["vector"].combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
    vectors_RC = torch.from_numpy(flat.copy())
    ids = np.array(table["sample_id"].to_pylist(), object)
    starts = np.flatnonzero(np.append(True, ids[1:] != ids[:-1])) if len(ids) else np.zeros(0, int)
    ends = np.append(starts[1:], len(ids))
    return {str(ids[a]): vectors_RC[a:b] for a, b in zip(starts, ends, strict=True)}
