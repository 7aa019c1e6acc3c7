"""A GroupViT in a folder of `transformers`' format: `config.json` beside `model.safetensors`."""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from storage.digest import combined, digest_files
from storage.errors import InputError
from storage.files import Folder
from training.groupvit import GroupViT, GroupViTConfig
from training.groupvit_weights import from_transformers, to_transformers

CONFIG, WEIGHTS, OLD_WEIGHTS = "config.json", "model.safetensors", "pytorch_model.bin"
HUB = "hf-hub:"

# What `transformers` lets one configure and the paper, and so this code, holds fixed.
FIXED_TEXT = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
FIXED_VISION = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "assign_eps": 1.0,
    "assign_mlp_ratio": [0.5, 4],
    "num_channels": 3,
}


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
    _require("text_config", text, FIXED_TEXT | {"intermediate_size": 4 * ours.text_width})
    _require(
        "vision_config",
        vision,
        FIXED_VISION | {"intermediate_size": 4 * ours.width, "num_output_groups": _outputs(ours)},
    )
    return ours


def config_to_transformers(config: GroupViTConfig) -> dict[str, Any]:
    """The `config.json` of a model; the inverse of `config_from_transformers`."""
    text = FIXED_TEXT | {
        "hidden_size": config.text_width,
        "intermediate_size": 4 * config.text_width,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": config.text_heads,
        "max_position_embeddings": config.context_length,
        "vocab_size": config.vocab_size,
        "bos_token_id": config.vocab_size - 2,
        "eos_token_id": config.vocab_size - 1,  # the highest id ends a text, as in CLIP
    }
    vision = FIXED_VISION | {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_hidden_layers": sum(config.depths),
        "num_attention_heads": config.heads,
        "depths": list(config.depths),
        "num_group_tokens": list(config.groups),
        "num_output_groups": _outputs(config),
    }
    return {
        "architectures": ["GroupViTModel"],
        "model_type": "groupvit",
        "text_config": text,
        "vision_config": vision,
        "projection_dim": config.projection_dim,
        "projection_intermediate_dim": config.projection_hidden,
        "logit_scale_init_value": config.logit_scale_init,
    }


def save_pretrained(config: GroupViTConfig, state: Mapping[str, Tensor], folder: Folder) -> None:
    """Writes a model where `transformers.GroupViTModel.from_pretrained` finds it.

    Args:
        config: its sizes.
        state: of our `GroupViT`.
        folder: local or remote.

    Raises:
        StoreError: where the folder cannot be written.
    """
    tensors = {name: weight.contiguous() for name, weight in to_transformers(state).items()}
    folder.write(WEIGHTS, save(tensors, {"format": "pt"}))
    folder.write(CONFIG, (json.dumps(config_to_transformers(config), indent=2) + "\n").encode())


def load_pretrained(place: str) -> GroupViT:
    """Builds the model of a folder in `transformers`' format, in evaluation mode.

    Args:
        place: a folder, an fsspec URL of one, or ``hf-hub:`` and the name of a published model, such as
            ``hf-hub:nvidia/groupvit-gcc-yfcc``.

    Raises:
        InputError: if there is none, or it holds no GroupViT of the paper's architecture.
    """
    folder = pretrained_folder(place)
    try:
        model = GroupViT(config_from_transformers(json.loads(folder.read(CONFIG))))
        model.load_state_dict(from_transformers(_weights(folder), model.state_dict()))
    except FileNotFoundError as error:
        raise InputError(
            f"'{place}' holds no {CONFIG} with {WEIGHTS} (or {OLD_WEIGHTS}) beside it; give a folder that "
            "transformers' save_pretrained or 'cocu export' has written"
        ) from error
    except Exception as error:  # broken JSON, broken weights and other sizes are told in many kinds
        reason = " ".join(str(error).split())[:400]
        raise InputError(f"'{place}' holds no GroupViT that can be used here: {reason}") from error
    return model.eval()


def pretrained_folder(place: str) -> Folder:
    """Where a model lies; a published one is fetched, or found among those fetched before.

    Raises:
        InputError: if a published one cannot be fetched.
    """
    if not place.startswith(HUB):
        return Folder(place)
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - takes a second to import

    name = place.removeprefix(HUB)
    try:
        return Folder(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, OLD_WEIGHTS]))
    except Exception as error:  # the client tells of an absent network in half a dozen kinds
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"cannot fetch '{name}' ({reason}); download it where there is a network "
            f"(hf download {name} --local-dir FOLDER) and give that folder instead of {place}"
        ) from error


def start_from(place: str, model: GroupViT) -> None:
    """Gives a model the weights of a folder.

    Raises:
        InputError: as `load_pretrained`, and if the model has other sizes.
    """
    given = load_pretrained(place)
    theirs, ours = asdict(given.config), asdict(model.config)
    differ = [
        f"{name} = {theirs[name]} (not {ours[name]})"
        for name in ours
        if theirs[name] != ours[name] and name != "logit_scale_init"
    ]
    if differ:
        raise InputError(
            f"the model in '{place}' has other sizes than the configured one; set model to "
            f"{', '.join(differ)}, or start from another"
        )
    model.load_state_dict(given.state_dict())


def identity_of(place: str, store: Folder) -> str:
    """What a folder's model is, as a stage input: a digest of its files, or a published model's name.

    Raises:
        InputError: if it is not there.
    """
    if place.startswith(HUB):
        return place
    folder = Folder(place)
    weights = WEIGHTS if folder.exists(WEIGHTS) else OLD_WEIGHTS
    files = [f"{place.rstrip('/')}/{name}" for name in (CONFIG, weights)]
    return combined(list(digest_files(files, store).values()))


def _weights(folder: Folder) -> dict[str, Tensor]:
    """A state, of safetensors or of an old file of tensors, from which nothing else is ever loaded."""
    if folder.exists(WEIGHTS):
        return dict(load(folder.read(WEIGHTS)))
    stream = io.BytesIO(folder.read(OLD_WEIGHTS))
    return dict(torch.load(stream, map_location="cpu", weights_only=True))


def _outputs(config: GroupViTConfig) -> list[int]:
    """Groups that leave each stage; the last stage passes on those it was given."""
    return [*config.groups[:-1], config.groups[-2]]


def _require(section: str, given: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    for key, allowed in fixed.items():
        value = given.get(key, allowed)
        if (list(value) if isinstance(value, tuple) else value) != allowed:
            raise ValueError(
                f"{section}.{key} is {value!r}; only {allowed!r}, the paper's architecture, is "
                "supported: train or convert a model that has it"
            )
