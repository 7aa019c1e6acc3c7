"""Stage ``embed``: one unit vector per image.

Batches are formed inside a shard, in the tar's order, and each is decoded and encoded by one thread: the
vectors of a shard depend neither on the number of workers nor on that of threads.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from curation.encoder import Encoder, Precision, load_encoder
from curation.images import decode_rgb
from curation.threads import each_alone
from storage.errors import InputError
from storage.reader import IMAGE_EXTENSIONS, CorpusReader, image_bytes
from storage.schemas import table_of, vector_column
from storage.stage import Job, Output, ShardFunction, Stage
from storage.tars import Sample

Chunk = list[tuple[str, Sample]]  # sample_id, members


@dataclass(frozen=True)
class EmbedConfig:
    """How images become vectors. All of it changes bytes, so all of it is identity."""

    batch_size: int = 64  # images per forward pass
    precision: Precision = "fp32"


@dataclass(frozen=True)
class _Embedded:
    """What became of a batch."""

    ids: list[str]
    vectors_ND: NDArray[np.float32]
    faults: list[dict[str, str]]


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
    chunks = _chunks(reader, shard, config.batch_size)
    batches = list(each_alone(partial(_embed_chunk, encoder), chunks))
    ids = [sample_id for batch in batches for sample_id in batch.ids]
    quarantine = [fault for batch in batches for fault in batch.faults]
    vectors_ND = np.concatenate(
        [np.zeros((0, encoder.dimension), np.float32), *(b.vectors_ND for b in batches)]
    )
    _refuse_broken(vectors_ND, shard)
    table = embeddings_table(ids, vectors_ND)
    seen = len(ids) + len(quarantine)
    return Output(tables={"embeddings": table}, quarantine=quarantine, seen=seen, kept=len(ids))


def embeddings_table(ids: list[str], vectors_ND: NDArray[np.float32]) -> pa.Table:
    """The ``embeddings`` table of unit vectors [N, D], stored as float16."""
    column = vector_column(vectors_ND.astype(np.float16), pa.float16())
    return table_of("embeddings", {"sample_id": ids, "vector": column})


def _chunks(reader: CorpusReader, shard: str, size: int) -> Iterator[Chunk]:
    members = reader.members(shard, IMAGE_EXTENSIONS)
    while chunk := list(islice(members, size)):
        yield chunk


def _embed_chunk(encoder: Encoder, chunk: Chunk) -> _Embedded:
    """Decodes and encodes a batch; what cannot be decoded is left out of it."""
    decoded = [(sample_id, sample, _decode(encoder, sample)) for sample_id, sample in chunk]
    images = [image for _, _, image in decoded if isinstance(image, Tensor)]
    vectors_ND = encoder.encode_images(torch.stack(images)) if images else np.zeros((0, encoder.dimension))
    return _Embedded(
        ids=[sample_id for sample_id, _, image in decoded if isinstance(image, Tensor)],
        vectors_ND=vectors_ND.astype(np.float32, copy=False),
        faults=[_fault(name, s.key, image) for name, s, image in decoded if isinstance(image, str)],
    )


def _decode(encoder: Encoder, sample: Sample) -> Tensor | str:
    """The image [3, S, S] as the encoder wants it, or why there is none."""
    try:
        return encoder.transform(decode_rgb(image_bytes(sample) or b""))
    except ValueError as error:
        return str(error)


def _fault(sample_id: str, key: str, detail: str) -> dict[str, str]:
    return {"sample_id": sample_id, "key": key, "reason": "image_undecodable", "detail": detail}


def _refuse_broken(vectors_ND: NDArray[np.float32], shard: str) -> None:
    broken = int((~np.isfinite(vectors_ND).all(axis=1)).sum())
    if broken:
        raise InputError(
            f"the encoder gave {broken} of {len(vectors_ND)} vectors with NaN or infinity on shard "
            f"'{shard}': its weights are broken, or the precision is too low for them; "
            'check the checkpoint or set embed.precision = "fp32"'
        )


EMBED = Stage("embed", 1, embed, by_shard=("corpus",))
