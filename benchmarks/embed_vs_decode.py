"""Embedding end to end against only decoding the same tars, with the same threads and the same path.

The model is so small that decoding is the bottleneck. Both sides in turn, several rounds each.
Run: ``python -m benchmarks.embed_vs_decode``.
"""

import json
import statistics
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.embed_vs_forward import embed_all, scene_corpus
from benchmarks.timing import seconds
from curation.decode import Decode, Decoder, exact_decoder, fast_decoder
from curation.embed import EmbedConfig, chunks
from curation.encoder import Encoder
from curation.openclip import open_clip
from curation.threads import each_alone
from storage.reader import CorpusReader, image_bytes
from storage.tars import Sample


class Glance(nn.Module):
    """Sees 8 × 8 mean colours: hardly any work beside decoding."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(3 * 8 * 8, width), requires_grad=False)

    def encode_image(self, image_NCHW: Tensor) -> Tensor:
        """Vectors [N, width]."""
        return nn.functional.adaptive_avg_pool2d(image_NCHW, 8).flatten(1) @ self.weights


def measure(
    decode: Decode, *, images: int = 512, side: int = 512, batch: int = 64, rounds: int = 5
) -> dict[str, Any]:
    """Rates of both sides in images per second, and their ratio."""
    encoder, config = _encoder(), EmbedConfig(batch_size=batch, decode=decode)
    path = fast_decoder(encoder) if decode == "fast" else exact_decoder(encoder)
    with tempfile.TemporaryDirectory() as scratch:
        reader = scene_corpus(Path(scratch), images, side)
        embed = partial(embed_all, config, encoder, reader)
        only_decode = partial(_decode_all, path, reader, batch)
        embed(), only_decode()  # the first pass of each allocates
        times = [(seconds(embed), seconds(only_decode)) for _ in range(rounds)]
    ours, limit = (images / statistics.median(side) for side in zip(*times, strict=True))
    ratio = statistics.median(alone / embed for embed, alone in times)
    return {
        "case": f"embed_vs_decode_{decode}",
        "ours": ours,
        "peer": limit,
        "unit": "images/s",
        "ratio": ratio,
        "limit": limit,
        "limit_share": ratio,
        "note": f"{images} images of {side} px to {encoder.image_size}, {decode} decoding, batches of {batch}"
        f", {torch.get_num_threads()} threads, a model of 8 x 8 colours; limit: reading and decoding alone",
    }


def _encoder() -> Encoder:
    preprocess = open_clip.transform.PreprocessCfg()
    model = Glance()
    encoder = Encoder(
        model=model,
        transform=open_clip.transform.image_transform_v2(preprocess, is_train=False),
        tokenizer=open_clip.get_tokenizer("ViT-B-32"),
        mean=preprocess.mean,
        std=preprocess.std,
        image_size=preprocess.size,
        device=torch.device("cpu"),
        preprocess=asdict(preprocess),
    )
    encoder.dimension = model.weights.shape[1]
    return encoder


def _decode_all(decode: Decoder, reader: CorpusReader, batch: int) -> None:
    for shard in reader.shards:
        for _ in each_alone(partial(_decode, decode), chunks(reader, shard, batch)):
            pass


def _decode(decode: Decoder, chunk: list[tuple[str, Sample]]) -> list[Tensor]:
    return [decode(image_bytes(sample) or b"") for _, sample in chunk]


if __name__ == "__main__":
    print(json.dumps([measure("exact"), measure("fast")], indent=1))
