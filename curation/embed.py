"""Stage ``embed``: one unit vector per image.

Batches are formed inside a shard, in the tar's order, so the vectors of a shard do not depend on how many
workers there are. Decoding runs in a thread of its own, one batch ahead of the model.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from curation.encoder import Encoder, Precision, load_encoder
from curation.images import decode_rgb
from storage.errors import InputError
from storage.reader import IMAGE_EXTENSIONS, CorpusReader, image_bytes
from storage.schemas import table_of, vector_column
from storage.stage import Job, Output, ShardFunction, Stage
from storage.tars import Sample

Decoded = tuple[str, str, Tensor | str]  # sample_id, key, image [3, S, S] or why there is none


@dataclass(frozen=True)
class EmbedConfig:
    """How images become vectors. All of it changes bytes, so all of it is identity."""

    batch_size: int = 64  # images per forward pass
    precision: Precision = "fp32"


def embed(job: Job[EmbedConfig]) -> None:
    """Stage ``embed``: reads a corpus and an encoder, writes ``embeddings`` shard by shard."""
    reader = CorpusReader(job.artifact("corpus"), job.runtime.locations)
    folder = str(job.artifact("encoder").local_folder())
    make = partial(_make_shard_function, job.config, reader, folder, job.runtime.device)
    job.map_shards(make, reader.shards)


def _make_shard_function(
    config: EmbedConfig, reader: CorpusReader, folder: str, device: str
) -> ShardFunction:
    encoder = load_encoder(folder, device, config.precision)
    return lambda shard: embed_shard(config, encoder, reader, shard)


def embed_shard(config: EmbedConfig, encoder: Encoder, reader: CorpusReader, shard: str) -> Output:
    """Vectors of one shard.

    Raises:
        InputError: when the encoder gives vectors that are not finite, naming the shard.
    """
    ids: list[str] = []
    vectors: list[NDArray[np.float32]] = []
    quarantine: list[dict[str, str]] = []
    for batch in _one_ahead(_decoded_batches(config, encoder, reader, shard)):
        images = [(sample_id, image) for sample_id, _, image in batch if isinstance(image, Tensor)]
        quarantine += [_fault(name, key, fault) for name, key, fault in batch if isinstance(fault, str)]
        if images:
            ids += [sample_id for sample_id, _ in images]
            vectors.append(encoder.encode_images(torch.stack([image for _, image in images])))
    vectors_ND = np.concatenate(vectors) if vectors else np.zeros((0, encoder.dimension), np.float32)
    _refuse_broken(vectors_ND, shard)
    table = embeddings_table(ids, vectors_ND)
    seen = len(ids) + len(quarantine)
    return Output(tables={"embeddings": table}, quarantine=quarantine, seen=seen, kept=len(ids))


def embeddings_table(ids: list[str], vectors_ND: NDArray[np.float32]) -> pa.Table:
    """The ``embeddings`` table of unit vectors [N, D], stored as float16."""
    column = vector_column(vectors_ND.astype(np.float16), pa.float16())
    return table_of("embeddings", {"sample_id": ids, "vector": column})


def _decoded_batches(
    config: EmbedConfig, encoder: Encoder, reader: CorpusReader, shard: str
) -> Iterator[list[Decoded]]:
    members = reader.members(shard, IMAGE_EXTENSIONS)
    while chunk := list(islice(members, config.batch_size)):
        yield [_decode(encoder, sample_id, sample) for sample_id, sample in chunk]


def _decode(encoder: Encoder, sample_id: str, sample: Sample) -> Decoded:
    try:
        return sample_id, sample.key, encoder.transform(decode_rgb(image_bytes(sample) or b""))
    except ValueError as error:
        return sample_id, sample.key, str(error)


def _one_ahead(batches: Iterable[list[Decoded]]) -> Iterator[list[Decoded]]:
    """Yields batches while the next one is being decoded in another thread."""
    source, done = iter(batches), object()
    with ThreadPoolExecutor(1) as pool:
        upcoming: Future[Any] = pool.submit(next, source, done)
        while (batch := upcoming.result()) is not done:
            upcoming = pool.submit(next, source, done)
            yield batch


def _fault(sample_id: str, key: str, detail: str) -> dict[str, str]:
    return {"sample_id": sample_id, "key": key, "reason": "image_undecodable", "detail": detail}


def _refuse_broken(vectors_ND: NDArray[np.float32], shard: str) -> None:
    broken = int((~np.isfinite(vectors_ND).all(axis=1)).sum())
    if broken:
        raise InputError(
            f"the encoder gave {broken} of {len(vectors_ND)} vectors with NaN or infinity on shard "
            f"'{shard}': its weights are broken, or the precision is too low for them; check the checkpoint or set "
            'embed.precision = "fp32"'
        )


EMBED = Stage("embed", 1, embed)
