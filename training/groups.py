"""Stages ``groups`` and ``regions``: the regions of every image, and their vectors before the projection.

Both run once per image, shard by shard. ``regions`` is for training the projection alone: what lies before
it is frozen, so it is computed once instead of in every epoch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.artifact import Artifact
from storage.fingerprint import stable_seed
from storage.reader import IMAGE_EXTENSIONS, CorpusReader, image_bytes
from storage.schemas import table_of, vector_column
from storage.stage import Job, Output, ShardFunction, Stage, file_stem
from storage.tars import Sample, read_tar, write_tar
from training.data import decode_image, to_tensor
from training.encoder import EncoderLike
from training.features import Backbone, backbone, tower_features
from training.grouping import (
    GroupingConfig,
    decode_label_png,
    encode_label_png,
    group,
    masks,
)
from training.regions import RegionEncoder
from training.threads import each_alone
from training.upsampling import upsample

Chunk = list[tuple[str, Sample]]
LabelMaps = dict[str, NDArray[np.uint8]]  # [H, W] by key


@dataclass(frozen=True)
class GroupsConfig:
    """Regions of the images of a corpus."""

    grouping: GroupingConfig = field(default_factory=GroupingConfig)
    batch_size: int = 32  # images per forward pass


@dataclass(frozen=True)
class RegionsConfig:
    """Region vectors of a frozen tower."""

    size: int = 224  # pixels: images are resized to size x size
    context: bool = True  # regions see the image around them; else a pass each, of their own pixels
    batch_size: int = 32  # images per forward pass


def group_images(job: Job[GroupsConfig]) -> None:
    """Stage ``groups``: a tar of 8-bit PNG label maps per shard."""
    reader = CorpusReader(job.artifact("corpus"), job.runtime.locations)
    encoder = job.optional("encoder")  # only the backbone "clip" reads one
    folder = encoder.local_folder() if encoder else None
    load = partial(job.runtime.load_encoder, folder, job.runtime.device)
    job.map_shards(partial(_make_groups, job.config, reader, load, job.runtime.device), reader.shards)


def _make_groups(config: GroupsConfig, reader: CorpusReader, load: Any, device: str) -> ShardFunction:
    features = image_backbone(config.grouping, load, device)
    return lambda shard: _groups_shard(config, reader, features, shard)


def image_backbone(config: GroupingConfig, load: Any, device: str = "auto") -> Backbone:
    """The backbone of a grouping config; the encoder is loaded only if it is the backbone."""
    if config.backbone != "clip":
        where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        return backbone(config, device=where)
    encoder: EncoderLike = load()
    return tower_features(encoder.visual, encoder.mean, encoder.std, config.size, config.position_weight)


def _groups_shard(config: GroupsConfig, reader: CorpusReader, features: Backbone, shard: str) -> Output:
    chunks = _chunks(reader, shard, config.batch_size)
    most = 1 if config.grouping.backbone == "lab" else None  # without a network, every step is small
    found = each_alone(partial(_label_maps, config.grouping, features), chunks, most)
    maps = [sample for chunk in found for sample in chunk]
    tar = (lambda stream: write_tar(stream, maps), len(maps))
    facts = spread([decode_label_png(sample.members["png"]) for sample in maps])
    return Output(files={f"{file_stem(shard)}.tar": tar}, seen=len(maps), kept=len(maps), facts=facts)


def spread(label_maps: Sequence[NDArray[np.uint8]]) -> dict[str, float]:
    """Regions of some images, and how many they would be if all of an image were equally large: 1 / Σ area².

    Sums over the images, as facts of shards are added up.
    """
    areas = [np.bincount(labels_HW.ravel()) / labels_HW.size for labels_HW in label_maps]
    return {
        "regions": float(sum(np.count_nonzero(area_R) for area_R in areas)),
        "equal_regions": float(sum(1 / np.square(area_R).sum() for area_R in areas)),
    }


def _label_maps(config: GroupingConfig, features: Backbone, chunk: Chunk) -> list[Sample]:
    seeds = [stable_seed("groups", config.seed, sample_id) for sample_id, _ in chunk]
    image_NCHW = squashed(chunk, config.size)
    labels_Nhw = group(features(image_NCHW), seeds, config)
    labels_NHW = upsample(labels_Nhw, image_NCHW, config.size, config.size, config.upsample)
    pngs = map(encode_label_png, labels_NHW.numpy().astype(np.uint8))
    return [Sample(sample.key, {"png": png}) for (_, sample), png in zip(chunk, pngs, strict=True)]


def _chunks(reader: CorpusReader, shard: str, size: int) -> Iterator[Chunk]:
    members = reader.members(shard, IMAGE_EXTENSIONS)
    while chunk := list(islice(members, size)):
        yield chunk


def squashed(chunk: Chunk, size: int) -> Tensor:
    """Images of a chunk at size x size, float32 [N, 3, size, size] in [0, 1]."""
    return to_tensor([resize_square(decode_image(image_bytes(sample) or b""), size) for _, sample in chunk])


def resize_square(image_HWC: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """An image at size x size, whatever its aspect was."""
    if image_HWC.shape[:2] == (size, size):
        return image_HWC
    way = cv2.INTER_AREA if min(image_HWC.shape[:2]) > size else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image_HWC, (size, size), interpolation=way), np.uint8)


def read_groups(groups: Artifact, shard: str) -> LabelMaps:
    """Label maps [H, W] of a shard by key."""
    with groups.folder.open(f"{file_stem(shard)}.tar") as stream:
        items = [item for item in read_tar(stream, ("png",)) if isinstance(item, Sample)]
    return {item.key: decode_label_png(item.members["png"]) for item in items}


def encode_regions(job: Job[RegionsConfig]) -> None:
    """Stage ``regions``: for every image, the tower's vectors of its regions before the projection."""
    reader, groups = CorpusReader(job.artifact("corpus"), job.runtime.locations), job.artifact("groups")
    load = partial(job.runtime.load_encoder, job.artifact("encoder").local_folder(), job.runtime.device)
    job.map_shards(partial(_make_regions, job.config, reader, groups, load), reader.shards)


def _make_regions(config: RegionsConfig, reader: CorpusReader, groups: Artifact, load: Any) -> ShardFunction:
    encoder: EncoderLike = load()
    tower = RegionEncoder(encoder.visual, config.context).eval()
    return lambda shard: _regions_shard(config, reader, groups, encoder, tower, shard)


def _regions_shard(
    config: RegionsConfig,
    reader: CorpusReader,
    groups: Artifact,
    encoder: EncoderLike,
    tower: RegionEncoder,
    shard: str,
) -> Output:
    label_maps = read_groups(groups, shard)
    chunks = _chunks(reader, shard, config.batch_size)
    encoded = list(each_alone(partial(_region_vectors, config.size, encoder, tower, label_maps), chunks))
    ids = [sample_id for names, _ in encoded for sample_id in names]
    vectors_RC = np.concatenate([v for _, v in encoded]) if encoded else np.zeros((0, 1), np.float32)
    column = vector_column(vectors_RC.astype(np.float16), pa.float16())
    table = table_of("regions", {"sample_id": ids, "vector": column})
    images = len(label_maps)
    return Output(tables={"regions": table}, seen=images, kept=images)


@torch.inference_mode()
def _region_vectors(
    size: int, encoder: EncoderLike, tower: RegionEncoder, label_maps: LabelMaps, chunk: Chunk
) -> tuple[list[str], NDArray[np.float32]]:
    """The sample id of each region, and the regions' vectors [R, C]."""
    labels_NHW = torch.from_numpy(np.stack([label_maps[sample.key] for _, sample in chunk])).long()
    regions_NKHW = masks(labels_NHW, int(labels_NHW.max()) + 1)
    pixels_NCHW = normalised(squashed(chunk, size), encoder)
    tokens_NKC, valid_NK = tower.tokens(pixels_NCHW, regions_NKHW.to(pixels_NCHW.device))
    valid_NK = valid_NK.cpu()
    counts = valid_NK.sum(1).tolist()
    ids = [sample_id for (sample_id, _), count in zip(chunk, counts, strict=True) for _ in range(count)]
    return ids, tokens_NKC.cpu()[valid_NK].numpy()


def normalised(image_NCHW: Tensor, encoder: EncoderLike) -> Tensor:
    """Pixels in [0, 1] as the encoder expects them, on its device."""
    pixels_NCHW = image_NCHW.to(encoder.device)
    mean, std = (pixels_NCHW.new_tensor(list(v))[:, None, None] for v in (encoder.mean, encoder.std))
    return (pixels_NCHW - mean) / std


GROUPS = Stage("groups", 3, group_images, by_shard=("corpus",))
REGIONS = Stage("regions", 1, encode_regions, by_shard=("corpus", "groups"))
