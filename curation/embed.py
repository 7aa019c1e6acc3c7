"""Stage ``embed``: one unit vector per image.

Batches are formed inside a shard, in the tar's order, and each is decoded and encoded by one thread: the
vectors of a shard depend neither on the number of workers nor on that of threads. Where the model is on a
GPU, threads decode while it works.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from curation.agreement import agreement
from curation.decode import Decode, Decoder, exact_decoder, fast_decoder
from curation.encoder import Encoder, Precision, load_encoder, pick_device
from curation.stopwatch import Timed
from curation.threads import each_alone
from storage.errors import ConfigError, InputError
from storage.reader import IMAGE_EXTENSIONS, CorpusReader, image_bytes
from storage.schemas import table_of, vector_column
from storage.stage import WHOLE, Job, Output, ShardFunction, Stage
from storage.tars import Sample

Chunk = list[tuple[str, Sample]]  # sample_id, members


@dataclass(frozen=True)
class EmbedConfig:
    """How images become vectors. All of it changes bytes, so all of it is identity."""

    batch_size: int = 64  # images per forward pass
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"  # auto: see `decided`
    decode: Decode = "exact"  # open_clip's own transform; "fast": a copy, refused where vectors differ by it


def decided(config: EmbedConfig, device: str = "auto") -> EmbedConfig:
    """The same with ``auto`` replaced by what suits a run: bf16 on a GPU, else fp32.

    Vectors are known by the precision they were made in, so it is decided where a run is declared and not
    where a batch happens to be encoded.
    """
    if config.precision != "auto":
        return config
    return replace(config, precision="bf16" if pick_device(device).type == "cuda" else "fp32")


@dataclass(frozen=True)
class _Embedded:
    """What became of a batch."""

    ids: list[str]
    vectors_ND: NDArray[np.float32]
    faults: list[dict[str, str]]
    decode_seconds: float
    model_seconds: float


def embed(job: Job[EmbedConfig]) -> None:
    """Stage ``embed``: reads a corpus and an encoder, writes ``embeddings`` shard by shard.

    Raises:
        InputError: for an encoder with broken weights, or whose vectors fast decoding changes.
    """
    reader = CorpusReader(job.artifact("corpus"), job.runtime.locations)
    folder = str(job.artifact("encoder").local_folder())
    given = (job.config, reader, folder, job.runtime.device)
    if job.config.decode == "fast":
        job.map_shards(partial(_make_comparison, *given), [WHOLE])
    job.map_shards(partial(_make_shard_function, *given), reader.shards)


def _make_comparison(config: EmbedConfig, reader: CorpusReader, folder: str, device: str) -> ShardFunction:
    encoder = load_encoder(folder, device, _precision(config))
    return lambda _: Output(facts=agreement(encoder, reader, config.batch_size))


def _make_shard_function(
    config: EmbedConfig, reader: CorpusReader, folder: str, device: str
) -> ShardFunction:
    encoder = load_encoder(folder, device, _precision(config))
    return lambda shard: embed_shard(config, encoder, reader, shard)


def _precision(config: EmbedConfig) -> Precision:
    if config.precision == "auto":
        raise ConfigError(
            "embed.precision 'auto' says nothing of the vectors: name fp32, bf16 or fp16, or let "
            "curation.embed.decided choose for this machine before the stage is declared"
        )
    return config.precision


def embed_shard(config: EmbedConfig, encoder: Encoder, reader: CorpusReader, shard: str) -> Output:
    """Vectors of one shard.

    Raises:
        InputError: when the encoder gives vectors that are not finite, naming the shard.
    """
    decode: Decoder = fast_decoder(encoder) if config.decode == "fast" else exact_decoder(encoder)
    given = Timed(chunks(reader, shard, config.batch_size))
    on_cpu = encoder.device.type == "cpu"
    least = 1 if on_cpu else 2  # one decodes while the other's batch is on the GPU
    batches = list(each_alone(partial(_embed_chunk, encoder, decode), given, least))
    ids = [sample_id for batch in batches for sample_id in batch.ids]
    quarantine = [fault for batch in batches for fault in batch.faults]
    vectors_ND = np.concatenate(
        [np.zeros((0, encoder.dimension), np.float32), *(b.vectors_ND for b in batches)]
    )
    _refuse_broken(vectors_ND, shard)
    table = embeddings_table(ids, vectors_ND)
    seen = len(ids) + len(quarantine)
    threads = max(torch.get_num_threads(), least)
    timings = {
        "read": given.seconds,
        "decode": sum(batch.decode_seconds for batch in batches) / threads,
        "model": sum(batch.model_seconds for batch in batches) / (threads if on_cpu else 1),
    }
    return Output({"embeddings": table}, {}, quarantine, seen, len(ids), timings=timings)


def embeddings_table(ids: list[str], vectors_ND: NDArray[np.float32]) -> pa.Table:
    """The ``embeddings`` table of unit vectors [N, D], stored as float16."""
    column = vector_column(vectors_ND.astype(np.float16), pa.float16())
    return table_of("embeddings", {"sample_id": ids, "vector": column})


def chunks(reader: CorpusReader, shard: str, size: int) -> Iterator[Chunk]:
    """The samples of a shard in batches, in the tar's order."""
    members = reader.members(shard, IMAGE_EXTENSIONS)
    while chunk := list(islice(members, size)):
        yield chunk


def _embed_chunk(encoder: Encoder, decode: Decoder, chunk: Chunk) -> _Embedded:
    """Decodes and encodes a batch; what cannot be decoded is left out of it."""
    started = time.perf_counter()
    decoded = [(sample_id, sample, _decode(decode, sample)) for sample_id, sample in chunk]
    images = [image for _, _, image in decoded if isinstance(image, Tensor)]
    batch_NCHW = encoder.stack(images) if images else None
    decode_seconds = time.perf_counter() - started
    nothing: NDArray[np.float32] = np.zeros((0, encoder.dimension), np.float32)
    vectors_ND, seconds = encoder.encode_timed(batch_NCHW) if batch_NCHW is not None else (nothing, 0.0)
    return _Embedded(
        ids=[sample_id for sample_id, _, image in decoded if isinstance(image, Tensor)],
        vectors_ND=vectors_ND,
        faults=[_fault(name, s.key, image) for name, s, image in decoded if isinstance(image, str)],
        decode_seconds=decode_seconds,
        model_seconds=seconds,
    )


def _decode(decode: Decoder, sample: Sample) -> Tensor | str:
    """The image [3, S, S] as the encoder wants it, or why there is none."""
    try:
        return decode(image_bytes(sample) or b"")
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


def knobs(config: EmbedConfig) -> dict[str, str]:
    """What to turn where a phase is the slowest."""
    more = "more cores, or more workers (--engine ray --workers N)"
    return {
        "read": "bring the tars nearer, or read more of them at once (--engine ray --workers N)",
        "decode": more if config.decode == "fast" else f'embed.decode = "fast"; {more}',
        "model": 'a GPU, embed.precision = "bf16", or a larger embed.batch_size; ' + more,
        "write": "bring the store nearer, or give corpora of larger shards",
    }


EMBED = Stage("embed", 1, embed, by_shard=("corpus",), knobs=knobs)
