"""`transformers`' GroupViT as the oracle of ours: tiny models with the same weights, and their batches."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import curation.openclip  # noqa: F401  (before transformers: it mends torchvision)
from training.groupvit import GroupViT, GroupViTConfig
from training.groupvit_weights import from_transformers

TINY = GroupViTConfig(
    image_size=32,
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


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def texts(seed: int = 0) -> Tensor:
    """Three texts of different lengths; 49 ends a text and 0 pads it."""
    tokens = torch.randint(1, 49, (3, 10), generator=torch.Generator().manual_seed(seed))
    for row, end in enumerate((9, 5, 2)):
        tokens[row, end], tokens[row, end + 1 :] = 49, 0
    return tokens


def with_every_weight_random(model: nn.Module) -> nn.Module:
    """Default zeros and ones would hide a bias, position or norm that is read in the wrong place."""
    generator = torch.Generator().manual_seed(7)
    for name, weight in model.state_dict().items():
        if name.endswith("running_var"):
            weight.uniform_(0.5, 2.0, generator=generator)
        elif weight.is_floating_point() and weight.ndim > 0:
            weight.normal_(std=0.2, generator=generator)
    return model.eval()


def transformers_groupvit() -> ModuleType:
    """The oracle's module. What it imports on the way includes torchvision, which has one door here."""
    from transformers.models.groupvit import modeling_groupvit

    return modeling_groupvit


def transformers_config(module: ModuleType) -> Any:
    vision = module.GroupViTVisionConfig(
        hidden_size=24,
        intermediate_size=96,
        num_hidden_layers=4,
        depths=[2, 1, 1],
        num_group_tokens=[6, 4, 0],
        num_output_groups=[6, 4, 4],
        num_attention_heads=3,
        image_size=32,
        patch_size=8,
    )
    text = module.GroupViTTextConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=10,
        eos_token_id=49,
        bos_token_id=48,
    )
    return module.GroupViTConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=12,
        projection_intermediate_dim=20,
    )


def same_weights(theirs: Any, config: GroupViTConfig) -> GroupViT:
    """Ours with the weights of theirs, in evaluation mode."""
    model = GroupViT(config)
    model.load_state_dict(from_transformers(theirs.state_dict(), model.state_dict()))
    return model.eval()
