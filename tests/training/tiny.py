"""Both objectives at tiny size, on rendered scenes. Worker processes of the tests import it by its name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from curation.openclip import open_clip
from curation.scenes import SceneConfig, render_scene
from storage.stage import Job
from training.data import Batch
from training.distributed import Peers
from training.groups import resize_square
from training.groupvit import GroupViTConfig
from training.precision import Arithmetic
from training.recognition import RecognitionConfig, RecognitionObjective
from training.segmentation import GroupViTObjective
from training.sharding import clip, shard, whole
from training.step import backward, piece

CONCEPTS = 9
SIZE = 32  # pixels
GROUPVIT = GroupViTConfig(
    image_size=SIZE,
    patch_size=8,
    width=24,
    heads=3,
    depths=(2, 1, 1),
    groups=(6, 4, 0),
    text_width=16,
    text_layers=2,
    text_heads=2,
    context_length=10,
    vocab_size=50,
    projection_dim=12,
    projection_hidden=20,
)


def tokens_of(texts: Sequence[str], context_length: int) -> Tensor:
    """Letters as ids from 1; 49 ends a text and 0 pads it."""
    rows = [[*(1 + ord(letter) % 47 for letter in text[: context_length - 1]), 49] for text in texts]
    return torch.tensor([row + [0] * (context_length - len(row)) for row in rows])


@dataclass
class Encoder:
    """As much of an encoder as the objectives read."""

    visual: nn.Module
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.3, 0.3, 0.3)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    tokenizer: Callable[..., Tensor] = tokens_of

    def encode_texts(self, names: Sequence[str], templates: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors [N, 16]: each text has its own, which depends on all its letters."""
        texts = [template.replace("{}", name) for template in templates for name in names]
        rows = [np.random.default_rng(list(text.encode())).normal(size=16) for text in texts]
        return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)


def batch(count: int, epoch: int = 0) -> Batch:
    """Scenes whose captions differ in length; some have fewer nouns than others, and many share one."""
    rng = np.random.default_rng(epoch)
    drawn_NM = rng.integers(-1, CONCEPTS, (count, 3))
    drawn_NM[0] = -1
    fixed = [rng.choice(CONCEPTS, n % 3, replace=False).astype(np.int64) for n in range(count)]
    named = [np.union1d(row[row >= 0], own) for row, own in zip(drawn_NM, fixed, strict=True)]
    scenes = [render_scene(SceneConfig(), 5, epoch * count + n, "salient") for n in range(count)]
    return Batch(
        epoch=epoch,
        sample_ids=[f"scenes/0/{n}" for n in range(count)],
        captions=["abcdefg"[: 2 + n % 5] + str(n) for n in range(count)],
        drawn_NM=drawn_NM,
        fixed=fixed,
        named=named,
        pixels_NHWC=np.stack([resize_square(scene.image_HWC, SIZE) for scene in scenes]),
        regions=[label_map(n) for n in range(count)],
    )


def label_map(n: int) -> NDArray[np.uint8]:
    """2 to 5 regions [H, W] of whole patches."""
    patches_HW = np.random.default_rng((2, n)).integers(0, 2 + n % 4, (SIZE // 8, SIZE // 8))
    return patches_HW.repeat(8, 0).repeat(8, 1).astype(np.uint8)


def groupvit() -> GroupViTObjective:
    """In training mode, with noise."""
    torch.manual_seed(1)
    encoder = cast("Any", Encoder(nn.Identity()))
    made = GroupViTObjective(GROUPVIT, encoder, [f"{n}" * (n + 1) for n in range(CONCEPTS)], "a {}", seed=4)
    _spread(made.model)
    made.model.train()
    return made


def _spread(model: nn.Module) -> None:
    """Fresh weights see nearly the same in every image, and batch norms blow up the rounding errors."""
    stream = torch.Generator().manual_seed(7)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data.normal_(std=0.3, generator=stream)


def transformer() -> nn.Module:
    """open_clip's own."""
    sizes = {"image_size": SIZE, "patch_size": 8, "width": 32, "layers": 3, "heads": 4, "mlp_ratio": 2.0}
    return cast("nn.Module", open_clip.transformer.VisionTransformer(**sizes, output_dim=16))


def perception() -> nn.Module:
    """One of timm's, small: rotary positions, and a latent query that reads class token and patches."""
    tower = open_clip.timm_model.TimmModel("test_vit", 16, image_size=SIZE, pool="token", proj="none")
    sizes = {
        "img_size": SIZE,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 3,
        "num_heads": 4,
        "num_classes": 16,
    }
    rotary = {"use_rot_pos_emb": True, "ref_feat_shape": (4, 4), "attn_type": "rope"}
    tower.trunk = open_clip.timm_model.timm.models.Eva(**sizes, **rotary, global_pool="map")
    return cast("nn.Module", tower)


def recognition(
    trains: str = "all", make: Callable[[], nn.Module] = transformer, **settings: Any
) -> RecognitionObjective:
    """A transformer on label maps of 2 to 5 regions."""
    torch.manual_seed(1)
    tower = make()
    vectors_CD = nn.functional.normalize(torch.randn(CONCEPTS, 16), dim=-1)
    concepts = pa.table({"vector": pa.FixedSizeListArray.from_arrays(vectors_CD.flatten().numpy(), 16)})
    config, encoder = RecognitionConfig(trains=trains, size=SIZE, **settings), cast("Any", Encoder(tower))
    made = RecognitionObjective(config, encoder, concepts)
    made.model.train()
    return made


MAKE: dict[str, Callable[[], Any]] = {
    "groupvit": groupvit,
    "recognition": recognition,
    "recognition by timm's": partial(recognition, make=perception),
}


def fit(job: Job[Any], peers: Peers) -> None:
    """Five steps of each objective on batches of eight; weights are written under the process' rank.

    Not of AdamW, which makes whole steps of the rounding errors where a gradient is zero (a bias before a
    batch norm).
    """
    arithmetic = Arithmetic.of("fp32", torch.device("cpu"))
    for name, make in MAKE.items():
        objective = make()
        if job.config["shard"]:
            shard(objective.towers)
        optimizer = torch.optim.SGD(objective.model.parameters(), lr=0.01, momentum=0.9)
        for epoch in range(5):
            share = 8 // peers.world
            own = piece(batch(8, epoch), slice(peers.rank * share, (peers.rank + 1) * share))
            optimizer.zero_grad()
            backward(objective, own, arithmetic, job.config["micro_batch"], peers)
            clip(objective.model.parameters(), 5.0)
            optimizer.step()
        weights = whole(objective.model.state_dict())
        job.folder.write(f"{name}.{peers.rank}.safetensors", save(weights))
