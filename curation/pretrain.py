"""Stage ``pretrain``: the tiny CLIP of the built-in corpus, trained with open_clip's own loss.

The built-in corpus has no published encoder, so the demo makes one: an open_clip model from a config of
this package, fitted to a split of its own. What comes out is an encoder like any other.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from curation.encoder import pick_device, save_encoder, write_encoder
from curation.images import decode_rgb
from storage.errors import InputError
from storage.fingerprint import stable_seed
from storage.reader import IMAGE_EXTENSIONS, CorpusReader, image_bytes
from storage.stage import Job, Stage


@dataclass(frozen=True)
class PretrainConfig:
    """A small model and a short schedule."""

    model: str = "cocu-tiny-conv"  # or cocu-tiny-vit; any open_clip model name
    epochs: int = 6
    batch_size: int = 250  # pairs
    rate: float = 2e-3  # peak learning rate, one cycle
    weight_decay: float = 0.05
    seed: int = 0


def pretrain(job: Job[PretrainConfig]) -> None:
    """Stage ``pretrain``: fits an open_clip model to a corpus and writes it as an encoder."""
    from curation.openclip import new_model, open_clip  # noqa: PLC0415  (seconds to import)

    config = job.config
    reader = CorpusReader(job.artifact("corpus"), job.runtime.locations)
    torch.manual_seed(config.seed)
    device = pick_device(job.runtime.device)
    model = new_model(config.model).to(device)
    cast("Any", model.visual).to(memory_format=torch.channels_last)
    pixels_N, tokens_NT = _load_pairs(reader, open_clip.get_tokenizer(config.model))
    _fit(job, model, open_clip.ClipLoss(), pixels_N, tokens_NT)
    with tempfile.TemporaryDirectory() as scratch:
        save_encoder(model.eval(), open_clip.get_model_config(config.model), Path(scratch))
        write_encoder(job, Path(scratch))


def _load_pairs(reader: CorpusReader, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """All images uint8 [N, 3, S, S] and caption tokens [N, T]: the built-in corpus is small."""
    images, captions = [], []
    for shard in reader.shards:
        texts = dict(reader.samples(shard).select("sample_id", "caption").iter_rows())
        for sample_id, sample in reader.members(shard, IMAGE_EXTENSIONS):
            images.append(np.asarray(decode_rgb(image_bytes(sample) or b"")))
            captions.append(texts[sample_id])
    if len({image.shape for image in images}) != 1:
        raise InputError("pre-training takes images of one size, such as rendered scenes")
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), tokenizer(captions)


def _fit(
    job: Job[PretrainConfig], model: nn.Module, loss_of: Any, pixels_N: Tensor, tokens_NT: Tensor
) -> None:
    config = job.config
    steps = config.epochs * (len(pixels_N) // config.batch_size)
    if steps == 0:
        raise InputError(
            f"{len(pixels_N)} pairs make no batch of {config.batch_size}; lower pretrain.fit.batch_size"
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.rate, total_steps=steps)
    model.train()
    with job.runtime.progress(job.stage, steps) as bar:
        for rows in _batches(len(pixels_N), config):
            images_NCHW = _normalised(model, pixels_N[rows])
            image_ND, text_ND, scale = cast("Any", model)(images_NCHW, tokens_NT[rows].to(images_NCHW.device))
            loss = loss_of(image_ND, text_ND, scale)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.advance(note=f"loss {float(loss.detach()):.3f}")


def _batches(count: int, config: PretrainConfig) -> Iterator[Tensor]:
    for epoch in range(config.epochs):
        order = np.random.default_rng(stable_seed("pretrain", config.seed, epoch)).permutation(count)
        for start in range(0, count - config.batch_size + 1, config.batch_size):
            yield torch.from_numpy(order[start : start + config.batch_size])


def _normalised(model: nn.Module, pixels_NCHW: Tensor) -> Tensor:
    preprocess = cast("Any", model.visual).preprocess_cfg
    images = pixels_NCHW.to(next(model.parameters()).device).float() / 255
    mean, std = (images.new_tensor(preprocess[name])[:, None, None] for name in ("mean", "std"))
    return (images - mean) / std


PRETRAIN = Stage("pretrain", 1, pretrain)
