"""Trained models for those who do not have cocu."""

from typing import Any

from safetensors.torch import load

from storage.artifact import Artifact
from storage.errors import InputError
from storage.files import Folder
from training.groupvit import GroupViTConfig
from training.groupvit_folder import save_pretrained
from training.train import MODEL


def export_groupvit(trained: Artifact, target: str) -> None:
    """Writes a trained GroupViT in `transformers`' format.

    Args:
        trained: artifact of stage ``train``.
        target: folder or fsspec URL.

    Raises:
        InputError: if it is a training of region recognition.
        StoreError: if the target cannot be written.
    """
    recorded = trained.manifest.config.get("model")
    if recorded is None:
        raise InputError(
            f"train/{trained.fingerprint} is a training of region recognition, which transformers has no "
            "class for; name a GroupViT with --fingerprint (cocu ls train lists them all)"
        )
    sizes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in recorded.items()}
    save_pretrained(GroupViTConfig(**sizes), load(trained.folder.read(MODEL)), Folder(target))
