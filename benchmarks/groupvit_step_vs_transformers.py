"""A training step of GroupViT (forward, loss, backward, AdamW) against `transformers`' model.

Both sides have the same weights, images, token ids, loss and optimiser, in float32, and draw noise for their
assignments; what differs is the model's code alone. Each lives in a process of its own, which tells its peak
memory, and they step in turn. Before, both tell the loss without noise, which must be the same.
Run: ``python -m benchmarks.groupvit_step_vs_transformers``; one side by hand: the same with ``ours`` or
``transformers``, a batch size and the tokens of a text, then a line on its standard input for each step.
"""

import importlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.timing import products_per_second, seconds
from flows.forecast.flops import image_flops, text_flops
from storage.memory import peak_bytes
from training.groupvit import GroupViT, GroupViTConfig
from training.groupvit_weights import to_transformers
from training.gumbel import sample_keys
from training.losses import caption_contrast, multi_label_contrast

NOUNS = 3  # prompts an image
WORDS = (10.3, 4.5)  # of CC3M's captions: mean and deviation
PIECES = 1.15  # tokens a word
START, END = 49406, 49407
SAME = 1e-4  # between the losses, in nats
Vectors = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor]]


def cases(*, batch: int = 8, rounds: int = 5) -> list[dict[str, Any]]:
    """With texts as CLIP's tokeniser gives them, padded to 77 tokens; and cut to the longest of the batch."""
    longest = int(a_batch(batch, 77)[1].argmax(dim=1).max()) + 1
    padded = measure("groupvit_step_vs_transformers", batch, 77, rounds)
    return [padded, measure("groupvit_step_vs_transformers_cut", batch, longest, rounds)]


def measure(case: str, batch: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Samples a second of both sides, their ratio, peak memory, and the machine's limit."""
    sides = [Side(name, batch, tokens) for name in ("ours", "transformers")]
    times = [tuple(side.step() for side in sides) for _ in range(rounds)]
    mine, other = (side.end() for side in sides)
    assert abs(mine["loss"] - other["loss"]) < SAME, f"the losses differ: {mine['loss']}, {other['loss']}"
    ours, peer = (batch / statistics.median(column) for column in zip(*times, strict=True))
    limit = products_per_second() * batch / mine["flops"]
    return {
        "case": case,
        "ours": ours,
        "peer": peer,
        "unit": "samples/s",
        "ratio": statistics.median(theirs / mine for mine, theirs in times),
        "limit": limit,
        "limit_share": ours / limit,
        "note": f"224 px, batch {batch} with {NOUNS} prompts an image, texts of {tokens} tokens, float32, "
        f"{torch.get_num_threads()} threads; peak memory {mine['peak'] / 1e9:.2f} GB against "
        f"{other['peak'] / 1e9:.2f}; limit: the step's {mine['flops'] / 1e9:.0f} GFLOP, padding left out, "
        "at the rate of a large float32 product",
    }


class Side:
    """One of the two, in a process of its own."""

    def __init__(self, name: str, batch: int, tokens: int) -> None:
        command = [sys.executable, "-m", "benchmarks.groupvit_step_vs_transformers", name]
        self.process = subprocess.Popen(  # noqa: S603 - our own module
            [*command, str(batch), str(tokens)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.step()  # the first, which allocates

    def step(self) -> float:
        """Seconds of one."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return float(self._line())

    def end(self) -> dict[str, float]:
        """What it has to tell in the end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return dict(json.loads(self._line()))

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a side ended with status {self.process.wait()}; its fault is above")
        return line


def serve(name: str, batch: int, tokens: int, orders: IO[str]) -> None:
    """One side: a step for each line it reads; in the end its memory and its loss before any step."""
    torch.manual_seed(0)
    model, vectors = (_ours if name == "ours" else _theirs)(GroupViT(GroupViTConfig()), batch)
    images_NCHW, texts_MT = a_batch(batch, tokens)
    model.eval()
    with torch.no_grad():
        loss = float(loss_of(vectors, images_NCHW, texts_MT, noisy=False))
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4, weight_decay=0.05, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(vectors, images_NCHW, texts_MT, noisy=True).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    for _ in orders:
        print(seconds(step), flush=True)
    print(json.dumps({"loss": loss, "peak": peak_bytes(), "flops": step_flops(texts_MT, batch)}))


def _ours(model: GroupViT, batch: int) -> tuple[nn.Module, Vectors]:
    keys_N2 = sample_keys([str(n) for n in range(batch)], seed=0, epoch=0)

    def vectors(images_NCHW: Tensor, texts_MT: Tensor, noisy: bool) -> tuple[Tensor, Tensor, Tensor]:
        image_ND, text_MD, scale = model(images_NCHW, texts_MT, keys_N2 if noisy else None)
        return image_ND, text_MD, scale

    return model, vectors


def _theirs(ours: GroupViT, _batch: int) -> tuple[nn.Module, Vectors]:
    importlib.import_module("curation.openclip")  # mends torchvision, which transformers imports
    from transformers import GroupViTConfig as Config  # noqa: PLC0415
    from transformers import GroupViTModel  # noqa: PLC0415

    model = GroupViTModel(Config())
    model.load_state_dict(to_transformers(ours.state_dict()))

    def vectors(images_NCHW: Tensor, texts_MT: Tensor, _noisy: bool) -> tuple[Tensor, Tensor, Tensor]:
        found = model(input_ids=texts_MT, pixel_values=images_NCHW)  # noisy in training
        return found.image_embeds, found.text_embeds, model.logit_scale.exp()

    return model, vectors


def loss_of(vectors: Vectors, images_NCHW: Tensor, texts_MT: Tensor, *, noisy: bool) -> Tensor:
    """Image–caption and multi-label contrast; the texts are the captions, then the prompts image by image."""
    count = len(images_NCHW)
    image_ND, text_MD, scale = vectors(images_NCHW, texts_MT, noisy)
    nouns_NMD = text_MD[count:].reshape(count, NOUNS, -1)
    valid_NM = torch.ones(count, NOUNS, dtype=torch.bool)
    captions = caption_contrast(image_ND, text_MD[:count], scale)
    return captions + multi_label_contrast(image_ND, nouns_NMD, valid_NM, scale)


def a_batch(count: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Random images and texts with the lengths of CC3M's captions and of "a photo of a {noun}."."""
    rng = np.random.default_rng(0)
    images_NCHW = torch.from_numpy(rng.standard_normal((count, 3, 224, 224), dtype=np.float32))
    mean, deviation = WORDS
    words_N = rng.gamma((mean / deviation) ** 2, deviation**2 / mean, count)
    nouns_P = rng.choice([8, 9, 10], NOUNS * count, p=[0.7, 0.2, 0.1])
    texts_MT = torch.zeros(count + len(nouns_P), tokens, dtype=torch.int64)
    for row, length in enumerate((*np.rint(PIECES * words_N + 2).astype(int), *nouns_P)):
        texts_MT[row, :length] = torch.from_numpy(rng.integers(1, START, length))
        texts_MT[row, 0], texts_MT[row, length - 1] = START, END
    return images_NCHW, texts_MT


def step_flops(texts_MT: Tensor, batch: int) -> float:
    """Of forward and backward (twice the forward), for texts without their padding."""
    config = GroupViTConfig()
    lengths = (texts_MT.argmax(dim=1) + 1).tolist()
    return 3 * (batch * image_flops(config) + sum(text_flops(config, length) for length in lengths))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.stdin)
    else:
        print(json.dumps(cases(), indent=1))
