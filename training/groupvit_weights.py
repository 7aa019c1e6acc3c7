"""GroupViT weights under the names that `transformers` gives them, to load and to hand back."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

INWARD = ".inward."  # of queries, keys and values: one matrix here, three there
# Ours to theirs, applied in this order to every name.
RENAMES = (
    ("image.patches.", "vision_model.embeddings.patch_embeddings.projection."),
    ("image.norm_patches.", "vision_model.embeddings.layernorm."),
    ("image.positions", "vision_model.embeddings.position_embeddings"),
    ("image.stages.", "vision_model.encoder.stages."),
    ("image.norm.", "vision_model.layernorm."),
    ("text.tokens.", "text_model.embeddings.token_embedding."),
    ("text.positions.", "text_model.embeddings.position_embedding."),
    ("text.blocks.", "text_model.encoder.layers."),
    ("text.norm.", "text_model.final_layer_norm."),
    ("image_projector.", "visual_projection."),
    ("text_projector.", "text_projection."),
    ("projection.widen.", "projection.0."),
    ("projection.norm.", "projection.1."),
    ("projection.narrow.", "projection.3."),
    (".group_tokens", ".group_token"),
    (".inherit.1.mlp.", ".inherit.1."),
    (".inherit.", ".group_projector."),
    (".blocks.", ".layers."),
    (".grouping.norm_groups.", ".grouping.norm_tokens_."),
    (".grouping.norm_tokens.", ".grouping.norm_x."),
    (".norm_tokens_.", ".norm_tokens."),
    (".grouping.mixer.mlp.", ".grouping.mlp_inter."),
    (".grouping.norm_mixed.", ".grouping.norm_post_tokens."),
    (".grouping.norm_mlp.", ".grouping.norm_new_x."),
    (".grouping.mlp.", ".grouping.mlp_channels."),
    (".grouping.assignment.out.", ".grouping.assign.proj."),
    (".grouping.assignment.", ".grouping.assign."),
    (".grouping.context.attention.", ".grouping.pre_assign_attn.attn."),
    (".grouping.context.norm_mlp.", ".grouping.pre_assign_attn.norm2."),
    (".grouping.context.norm_out.", ".grouping.pre_assign_attn.norm_post."),
    (".grouping.context.", ".grouping.pre_assign_attn."),
    (".grouping.", ".downsample."),
    (".attention.", ".self_attn."),
    (".norm_attention.", ".layer_norm1."),
    (".norm_mlp.", ".layer_norm2."),
    (".query.", ".q_proj."),
    (".key.", ".k_proj."),
    (".value.", ".v_proj."),
    (".out.", ".out_proj."),
    (".widen.", ".fc1."),
    (".narrow.", ".fc2."),
)


def transformers_names(name: str) -> tuple[str, ...]:
    """Returns the names in `transformers`' GroupViTModel of one of our parameters or buffers.

    One, or three for what here is one matrix (and bias) of queries, keys and values.
    """
    for ours, theirs in RENAMES:
        name = name.replace(ours, theirs)
    parts = (".q_proj.", ".k_proj.", ".v_proj.") if INWARD in name else ("",)
    return tuple(name.replace(INWARD, part) for part in parts)


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the state of a `GroupViT` for `transformers`; the tensors are views, not copies."""
    theirs: dict[str, Tensor] = {}
    for name, weight in state.items():
        names = transformers_names(name)
        parts = weight.chunk(len(names)) if len(names) > 1 else (weight,)
        theirs |= dict(zip(names, parts, strict=True))
    return theirs


def from_transformers(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Renames a state of `transformers`' GroupViTModel for ours.

    Args:
        state: its parameters and buffers. `position_ids`, which old files carry, are passed over.
        names: those of our state, `GroupViT(config).state_dict()`.

    Raises:
        ValueError: if weights are missing or left over, as when the configurations differ.
    """
    theirs = {name: transformers_names(name) for name in names}
    wanted = {part for parts in theirs.values() for part in parts}
    given = {name for name in state if not name.endswith("position_ids")}
    if given != wanted:
        raise ValueError(
            f"missing weights {_few(wanted - given)}, unknown weights "
            f"{_few(given - wanted)}; the file must hold a GroupViTModel of this configuration"
        )
    return {name: _joined([state[part] for part in parts]) for name, parts in theirs.items()}


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _few(names: Iterable[str]) -> str:
    listed = sorted(names)
    return f"{listed[:3]} and {len(listed) - 3} more" if len(listed) > 3 else str(listed)
