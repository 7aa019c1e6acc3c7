"""Any open_clip model as an artifact, and the image and text vectors it gives.

The ``encoder`` stage resolves what the config names (a model and its pretrained tag, ``hf-hub:…``,
``local-dir:…``, or a checkpoint file) into a folder in open_clip's own ``local-dir`` format. Every later
stage loads that folder, so a run never depends on a network or a path again.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from curation.stopwatch import Stopwatch
from curation.threads import each_alone
from storage.errors import InputError
from storage.files import Folder, sha256
from storage.stage import Job, Output, Stage

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
LOCAL, HUB = "local-dir:", "hf-hub:"
PROMPTS = 64  # texts per forward pass, always
Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class EncoderConfig:
    """Which image–text encoder. What the weights are enters the fingerprint as a digest, not by location."""

    model: str = field(default="ViT-B-16", metadata={"identity": False})  # name, hf-hub:…, local-dir:…
    pretrained: str = field(default="", metadata={"identity": False})  # tag or checkpoint file


@dataclass
class Encoder:
    """A loaded model with its preprocessing. Vectors are float32 of unit length."""

    model: nn.Module
    transform: Callable[[Image.Image], Tensor]  # RGB image -> [3, S, S]
    tokenizer: Callable[[list[str]], Tensor]  # texts -> [N, context]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int  # pixels per side
    device: torch.device
    precision: Precision = "fp32"
    turn: AbstractContextManager[Any] = field(default_factory=nullcontext)  # threads share a GPU by turns
    preprocess: dict[str, Any] = field(default_factory=dict)  # what the transform was made from

    @property
    def visual(self) -> nn.Module:
        """The image tower."""
        return cast("nn.Module", self.model.visual)

    @cached_property
    def dimension(self) -> int:
        """Length of a vector."""
        return int(self.encode_texts(["a"], ("{}",)).shape[1])

    def encode_images(self, image_NCHW: Tensor) -> NDArray[np.float32]:
        """Unit vectors [N, D] of images as the transform gives them."""
        return self.encode_timed(image_NCHW)[0]

    @torch.inference_mode()
    def encode_timed(self, image_NCHW: Tensor) -> tuple[NDArray[np.float32], float]:
        """Unit vectors [N, D] of images, and the seconds for which the device worked on them.

        A thread has its turn only until a GPU's work is queued: the next one queues more before it is done.
        """
        with self.turn:
            watch = Stopwatch(self.device)
            batch = image_NCHW.to(self.device, non_blocking=True).to(DTYPES[self.precision])
            vectors_ND = _unit(cast("Any", self.model).encode_image(batch))
            watch.stop()
        return vectors_ND.cpu().numpy(), watch.seconds()

    def stack(self, images: Sequence[Tensor]) -> Tensor:
        """A batch [N, 3, H, W]; for a GPU in pinned memory and in the order that convolutions want."""
        if self.device.type != "cuda":
            return torch.stack(list(images))
        shape = (len(images), *images[0].shape)
        batch_NCHW = torch.empty(shape, pin_memory=True, memory_format=torch.channels_last)
        return torch.stack(list(images), out=batch_NCHW)

    def encode_texts(self, names: Sequence[str], templates: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors [N, D] of names: the mean over templates (with one ``{}``) of unit text vectors.

        Raises:
            InputError: when a vector has no direction: NaN, infinity or zero.
        """
        vectors = [self._encode_prompts([t.replace("{}", name) for name in names]) for t in templates]
        mean_ND = np.mean(vectors, axis=0)
        length_N1 = np.linalg.norm(mean_ND, axis=1, keepdims=True)
        broken = [name for name, (length,) in zip(names, length_N1, strict=True) if not length > 0]
        if broken:
            raise InputError(
                f"the encoder gave {len(broken)} of {len(names)} text vectors ('{broken[0]}', …) with "
                "NaN, infinity or nothing but zeros: its weights are broken; check the checkpoint"
            )
        return np.asarray(mean_ND / length_N1, np.float32)

    def _encode_prompts(self, prompts: list[str]) -> NDArray[np.float32]:
        """Batches are filled up: the last bits of a product depend on its size, and a name's must not."""
        short = -len(prompts) % PROMPTS
        tokens_NT = self.tokenizer(prompts + prompts[:1] * short)
        vectors = list(each_alone(self._encode_tokens, torch.split(tokens_NT, PROMPTS)))
        return np.concatenate(vectors)[: len(prompts)]

    @torch.inference_mode()
    def _encode_tokens(self, tokens_NT: Tensor) -> NDArray[np.float32]:
        with self.turn:
            vectors_ND = _unit(cast("Any", self.model).encode_text(tokens_NT.to(self.device)))
        return vectors_ND.cpu().numpy()


def _unit(vectors_ND: Tensor) -> Tensor:
    return nn.functional.normalize(vectors_ND.float(), dim=-1)


def pick_device(device: str) -> torch.device:
    """``auto`` is the first GPU when there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def load_encoder(folder: str | Path, device: str = "auto", precision: Precision = "fp32") -> Encoder:
    """Loads an encoder from a folder in open_clip's ``local-dir`` format.

    Raises:
        InputError: when the folder holds no such model, or weights of another shape.
    """
    where = pick_device(device)
    name = f"{LOCAL}{folder}"
    model = _create(name, None)
    model = model.to(where, DTYPES[precision]).eval().requires_grad_(False)
    cast("Any", model.visual).to(
        memory_format=torch.channels_last
    )  # convolutions run two to three times as fast
    preprocess = cast("Any", model.visual).preprocess_cfg
    size = preprocess["size"]
    return Encoder(
        model=model,
        transform=_transform(preprocess),
        tokenizer=_open_clip().get_tokenizer(name),
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
        image_size=size if isinstance(size, int) else size[0],
        device=where,
        precision=precision,
        turn=nullcontext() if where.type == "cpu" else Lock(),
        preprocess=preprocess,
    )


def _open_clip() -> Any:
    """open_clip takes seconds to import: it is, when the first model is."""
    from curation.openclip import open_clip  # noqa: PLC0415

    return open_clip


def _transform(preprocess: dict[str, Any]) -> Callable[[Image.Image], Tensor]:
    module = _open_clip().transform
    built = module.image_transform_v2(module.PreprocessCfg(**preprocess), is_train=False)
    return cast("Callable[[Image.Image], Tensor]", built)


def _create(name: str, pretrained: str | None) -> nn.Module:
    try:
        model = _open_clip().create_model(name, pretrained=pretrained or None, require_pretrained=True)
    except (
        Exception
    ) as error:  # open_clip raises half a dozen kinds for weights that are absent or do not fit
        given = f"'{name}'" + (f" with pretrained '{pretrained}'" if pretrained else "")
        reason = " ".join(str(error).split())[:400]
        raise InputError(
            f"cannot load the encoder {given}: {reason}. Give an open_clip model name with one of its "
            "pretrained tags or a checkpoint file, or hf-hub:<repository>, or local-dir:<folder>"
        ) from error
    return cast("nn.Module", model)


def weights_identity(config: EncoderConfig, _store: Folder) -> dict[str, str]:
    """What the weights are, as a stage input: digests of local files, else the published name.

    Raises:
        InputError: for a folder without a model.
    """
    if config.model.startswith(LOCAL):
        folder = Path(config.model.removeprefix(LOCAL))
        return {name: sha256(folder / name) for name in _model_files(folder)}
    if config.pretrained and Path(config.pretrained).is_file():
        return {"architecture": config.model, "weights": sha256(Path(config.pretrained))}
    return {"architecture": config.model, "weights": config.pretrained or "published"}


def _model_files(folder: Path) -> list[str]:
    if not (folder / CONFIG).is_file():
        raise InputError(f"'{folder}' holds no {CONFIG}; give a folder in open_clip's local-dir format")
    return sorted(entry.name for entry in folder.iterdir() if entry.is_file())


def snapshot_encoder(job: Job[EncoderConfig]) -> None:
    """Stage ``encoder``: the configured model as a folder any machine can load."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if job.config.model.startswith(LOCAL):
            _copy_folder(Path(job.config.model.removeprefix(LOCAL)), folder)
        else:
            _save_published(job.config, folder)
        write_encoder(job, folder)


def write_encoder(job: Job[Any], folder: Path) -> None:
    """Commits a ``local-dir`` folder as the output of a stage, after loading it once."""
    dimension = load_encoder(folder, "cpu").dimension
    files = {path.name: (partial(_pour_file, path), 0) for path in sorted(folder.iterdir())}
    job.write(Output(files=dict(files), facts={"dimension": float(dimension)}))


def _pour_file(path: Path, stream: Any) -> None:
    with path.open("rb") as source:
        shutil.copyfileobj(source, stream)


def _copy_folder(source: Path, target: Path) -> None:
    for name in _model_files(source):
        shutil.copyfile(source / name, target / name)


def _save_published(config: EncoderConfig, folder: Path) -> None:
    model = _create(config.model, config.pretrained)
    save_encoder(model, _open_clip().get_model_config(config.model), folder)
    tokenizer = _open_clip().get_tokenizer(config.model)
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder)


def save_encoder(model: nn.Module, model_config: dict[str, Any], folder: Path) -> None:
    """Writes a model in open_clip's ``local-dir`` format (config and safetensors)."""
    from safetensors.torch import save_file  # noqa: PLC0415

    preprocess = cast("Any", model.visual).preprocess_cfg
    text = json.dumps({"model_cfg": model_config, "preprocess_cfg": preprocess}, indent=1)
    (folder / CONFIG).write_text(text + "\n")
    tensors = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)


ENCODER = Stage("encoder", 1, snapshot_encoder, weights_identity)
