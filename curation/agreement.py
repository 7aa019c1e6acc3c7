"""How near vectors of fast decoding are to those of exact decoding, measured before anything is embedded."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from curation.decode import FastDecoder, fast_decoder
from curation.encoder import Encoder
from curation.threads import each_alone
from storage.errors import InputError
from storage.fingerprint import stable_seed
from storage.reader import IMAGE_EXTENSIONS, CorpusReader, image_bytes

LEAST = 0.999  # mean cosine below which fast decoding is refused
SHARDS, IMAGES = 4, 16  # shards that the sample is spread over, images of each
WINDOW = 1000  # first samples of a shard to choose among: no long tar is read to its end


def agreement(encoder: Encoder, reader: CorpusReader, batch_size: int) -> dict[str, float]:
    """Facts about the cosines of fast to exact vectors over a sample that depends on ids only.

    Returns:
        ``decode_sampled``, the plain JPEGs among the sampled images: what is not one is decoded exactly
        anyway. Where there are any, ``decode_cosine_mean``, ``_p5`` (the 5th percentile) and ``_min``.

    Raises:
        InputError: when their mean is below 0.999, or a vector is not finite.
    """
    fast = fast_decoder(encoder)
    shards = sorted(reader.shards, key=lambda shard: stable_seed("fast decoding", shard))[:SHARDS]
    images = (data for shard in shards for data in _sampled(reader, shard))
    pairs = [pair for data in images if (pair := _both(fast, data))]
    if not pairs:
        return {"decode_sampled": 0.0}
    fast_ND, exact_ND = (_encode(encoder, side, batch_size) for side in zip(*pairs, strict=True))
    cosine_N = (fast_ND * exact_ND).sum(axis=1)
    _judge(cosine_N, shards)
    return {
        "decode_sampled": float(len(pairs)),
        "decode_cosine_mean": float(cosine_N.mean()),
        "decode_cosine_p5": float(np.percentile(cosine_N, 5)),
        "decode_cosine_min": float(cosine_N.min()),
    }


def _sampled(reader: CorpusReader, shard: str) -> Iterator[bytes]:
    ids = reader.samples(shard)["sample_id"].head(WINDOW).to_list()
    chosen = set(sorted(ids, key=lambda sample_id: stable_seed("fast decoding", sample_id))[:IMAGES])
    for sample_id, sample in reader.members(shard, IMAGE_EXTENSIONS):
        if sample_id in chosen:
            yield image_bytes(sample) or b""
            chosen.remove(sample_id)
        if not chosen:
            return


def _both(fast: FastDecoder, data: bytes) -> tuple[Tensor, Tensor] | None:
    """The image both ways; None if the fast way is the exact one for it, or there is no image."""
    try:
        plain_CHW = fast.plain(data)
        return None if plain_CHW is None else (plain_CHW, fast.exact(data))
    except ValueError:
        return None


def _encode(encoder: Encoder, images: Sequence[Tensor], batch_size: int) -> NDArray[np.float32]:
    starts = range(0, len(images), batch_size)
    batches = (encoder.stack(images[start : start + batch_size]) for start in starts)
    return np.concatenate(list(each_alone(encoder.encode_images, batches)))


def _judge(cosine_N: NDArray[np.float32], shards: Sequence[str]) -> None:
    mean, low, least = cosine_N.mean(), np.percentile(cosine_N, 5), cosine_N.min()
    names = ", ".join(f"'{shard}'" for shard in shards)
    if not np.isfinite(mean):
        raise InputError(
            f"the encoder gave vectors with NaN or infinity on images of {names}: its weights are broken, or "
            'the precision is too low for them; check the checkpoint or set embed.precision = "fp32"'
        )
    if mean < LEAST:
        raise InputError(
            f"fast decoding changes this encoder's vectors: their mean cosine to exact ones is {mean:.5f} "
            f"over {len(cosine_N)} images of {names} (5th percentile {low:.5f}, least {least:.5f}), below "
            f'the {LEAST} that is allowed; set embed.decode = "exact"'
        )
