"""GroupViT weights under the names that `transformers` gives them, to load and to hand back."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from training.groupvit import GroupViT, GroupViTConfig

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

# What `transformers` lets one configure and the paper, and so this code, holds fixed.
FIXED_TEXT = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
FIXED_VISION = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "assign_eps": 1.0,
    "assign_mlp_ratio": [0.5, 4],
    "num_channels": 3,
}


def transformers_name(name: str) -> str:
    """Returns the name in `transformers`' GroupViTModel of one of our parameters or buffers."""
    for ours, theirs in RENAMES:
        name = name.replace(ours, theirs)
    return name


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the state of a `GroupViT` for `transformers`; the tensors are shared, not copied."""
    return {transformers_name(name): weight for name, weight in state.items()}


def from_transformers(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Renames a state of `transformers`' GroupViTModel for ours.

    Args:
        state: its parameters and buffers. `position_ids`, which old files carry, are passed over.
        names: those of our state, `GroupViT(config).state_dict()`.

    Raises:
        ValueError: if weights are missing or left over, as when the configurations differ.
    """
    theirs = {transformers_name(name): name for name in names}
    given = {name for name in state if not name.endswith("position_ids")}
    if given != theirs.keys():
        raise ValueError(
            f"missing weights {_few(theirs.keys() - given)}, unknown weights "
            f"{_few(given - theirs.keys())}; the file must hold a GroupViTModel of this configuration"
        )
    return {ours: state[name] for name, ours in theirs.items()}


def config_from_transformers(config: Mapping[str, Any]) -> GroupViTConfig:
    """Reads a `transformers` GroupViT configuration, the parsed `config.json`.

    Raises:
        ValueError: if it departs from the paper in something that is fixed here.
    """
    text, vision = config.get("text_config") or {}, config.get("vision_config") or {}
    ours = GroupViTConfig(
        image_size=vision.get("image_size", 224),
        patch_size=vision.get("patch_size", 16),
        width=vision.get("hidden_size", 384),
        heads=vision.get("num_attention_heads", 6),
        depths=tuple(vision.get("depths", (6, 3, 3))),
        groups=tuple(vision.get("num_group_tokens", (64, 8, 0))),
        text_width=text.get("hidden_size", 256),
        text_layers=text.get("num_hidden_layers", 12),
        text_heads=text.get("num_attention_heads", 4),
        context_length=text.get("max_position_embeddings", 77),
        vocab_size=text.get("vocab_size", 49408),
        projection_dim=config.get("projection_dim", 256),
        projection_hidden=config.get("projection_intermediate_dim", 4096),
        logit_scale_init=config.get("logit_scale_init_value", 2.6592),
    )
    outputs = [*ours.groups[:-1], ours.groups[-2]]
    _require("text_config", text, FIXED_TEXT | {"intermediate_size": 4 * ours.text_width})
    _require(
        "vision_config",
        vision,
        FIXED_VISION | {"intermediate_size": 4 * ours.width, "num_output_groups": outputs},
    )
    return ours


def load_pretrained(folder: Path) -> GroupViT:
    """Builds the model of a `transformers` folder: `config.json` beside `model.safetensors`.

    Raises:
        FileNotFoundError: if one of the two is not there.
        ValueError: if they do not describe a GroupViT of the paper's architecture.
    """
    config = config_from_transformers(json.loads((folder / "config.json").read_text()))
    model = GroupViT(config)
    state = load_file(folder / "model.safetensors")
    model.load_state_dict(from_transformers(state, model.state_dict()))
    return model.eval()


def _require(section: str, given: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    for key, allowed in fixed.items():
        value = given.get(key, allowed)
        if (list(value) if isinstance(value, tuple) else value) != allowed:
            raise ValueError(
                f"{section}.{key} is {value!r}; only {allowed!r}, the paper's architecture, is "
                "supported: train or convert a model that has it"
            )


def _few(names: Iterable[str]) -> str:
    listed = sorted(names)
    return f"{listed[:3]} and {len(listed) - 3} more" if len(listed) > 3 else str(listed)
