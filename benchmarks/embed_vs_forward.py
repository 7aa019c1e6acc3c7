"""Embedding end to end (tar, JPEG decoding, transform, model, Parquet) against the bare forward pass.

Both sides run the same model on the same device with the same batch, in turn, several rounds each.
Run: ``python -m benchmarks.embed_vs_forward``.
"""

import json
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import seconds
from curation.corpus import CORPUS, CorpusConfig
from curation.embed import EmbedConfig, embed_shard
from curation.encoder import Encoder, load_encoder, save_encoder
from curation.images import decode_rgb
from curation.openclip import new_model, open_clip
from curation.scenes import SceneConfig
from curation.sources import Scenes, Source
from storage.artifact import Store
from storage.parquet import table_bytes
from storage.reader import IMAGE_EXTENSIONS, CorpusReader, image_bytes
from storage.runtime import Runtime
from storage.stage import materialize


def measure(
    *, images: int = 192, side: int = 256, batch: int = 64, rounds: int = 3, model: str = "ViT-B-32"
) -> dict[str, Any]:
    """Rates of both sides in images per second, their ratio, and the machine's limit."""
    with tempfile.TemporaryDirectory() as scratch:
        reader = scene_corpus(Path(scratch), images, side)
        encoder = random_encoder(Path(scratch) / "encoder", model)
        embed = partial(embed_all, EmbedConfig(batch_size=batch), encoder, reader)
        forward = partial(_forward, encoder, images, batch)
        embed(), forward()  # the first pass of each allocates
        times = [(seconds(embed), seconds(forward)) for _ in range(rounds)]
        decode = images / seconds(partial(_decode, encoder, reader))
    ours, peer = (images / statistics.median(side) for side in zip(*times, strict=True))
    limit = min(peer, decode)
    return {
        "case": "embed_vs_forward",
        "ours": ours,
        "peer": peer,
        "unit": "images/s",
        "ratio": statistics.median(forward / embed for embed, forward in times),
        "limit": limit,
        "limit_share": ours / limit,
        "note": f"{model} with random weights on {encoder.device}, {images} images of {side} px, batches of "
        f"{batch}; limit: the slower of the forward pass and of reading and decoding ({decode:.0f} images/s)",
    }


def scene_corpus(scratch: Path, images: int, side: int) -> CorpusReader:
    scenes = Scenes(count=images, shard_size=images, scene=SceneConfig(size=side))
    config = CorpusConfig((Source("bench", "scenes", scenes=scenes),))
    return CorpusReader(materialize(CORPUS, config, {}, Store(str(scratch / "store")), Runtime()))


def random_encoder(folder: Path, model: str) -> Encoder:
    folder.mkdir()
    save_encoder(new_model(model), open_clip.get_model_config(model), folder)
    return load_encoder(folder)


def embed_all(config: EmbedConfig, encoder: Encoder, reader: CorpusReader) -> None:
    for shard in reader.shards:
        table_bytes(embed_shard(config, encoder, reader, shard).tables["embeddings"], "embeddings")


def _forward(encoder: Encoder, images: int, batch: int) -> None:
    pixels_NCHW = torch.randn(batch, 3, encoder.image_size, encoder.image_size)
    for _ in range(images // batch):
        encoder.encode_images(pixels_NCHW)


def _decode(encoder: Encoder, reader: CorpusReader) -> None:
    for shard in reader.shards:
        for _, sample in reader.members(shard, IMAGE_EXTENSIONS):
            encoder.transform(decode_rgb(image_bytes(sample) or b""))


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
