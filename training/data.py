"""What a step is given, and how an image becomes pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.errors import InputError
from storage.fingerprint import stable_seed


@dataclass(frozen=True)
class Batch:
    """N samples of one step."""

    epoch: int
    sample_ids: list[str]
    captions: list[str]
    drawn_NM: NDArray[np.int64]  # concept ids, -1 for none
    fixed: list[NDArray[np.int64]]  # concept ids that need no draw, of each sample
    named: list[NDArray[np.int64]]  # every concept a sample may be called by, for telling negatives
    pixels_NHWC: NDArray[np.uint8]  # RGB; of no height and width where images are not read
    regions: list[Any]  # label map [H, W] or stored vectors [K, C] of each sample; None where not read


@dataclass(frozen=True)
class CropConfig:
    """Random resized crops and flips."""

    smallest: float = 0.4  # share of the image's area
    flip: float = 0.5  # probability


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """RGB pixels [H, W, 3] of an image the corpus stage has accepted, upright."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        raise InputError("an accepted image cannot be decoded by OpenCV; run the corpus stage again")
    return cast("NDArray[np.uint8]", pixels)


def random_crop(
    image_HWC: NDArray[np.uint8], size: int, config: CropConfig, sample_id: str, *, seed: int, epoch: int
) -> NDArray[np.uint8]:
    """A random part of an image at ``size`` pixels, perhaps mirrored; decided by (seed, id, epoch)."""
    rng = np.random.default_rng(stable_seed("crop", seed, sample_id, epoch))
    height, width = image_HWC.shape[:2]
    area = rng.uniform(config.smallest, 1.0) * height * width
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    tall = min(height, max(1, round(float(np.sqrt(area / ratio)))))
    wide = min(width, max(1, round(float(np.sqrt(area * ratio)))))
    top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
    crop_HWC = image_HWC[top : top + tall, left : left + wide]
    way = cv2.INTER_AREA if min(tall, wide) > size else cv2.INTER_CUBIC
    resized_HWC = cv2.resize(crop_HWC, (size, size), interpolation=way)
    return np.asarray(cv2.flip(resized_HWC, 1) if rng.random() < config.flip else resized_HWC, np.uint8)


def to_tensor(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Images of one size as float32 [N, 3, H, W] in [0, 1]."""
    return as_images(np.stack(images), torch.device("cpu"))


def as_images(pixels_NHWC: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Pixels as float32 [N, 3, H, W] in [0, 1]. They travel to the device as bytes."""
    return torch.from_numpy(pixels_NHWC).to(device).permute(0, 3, 1, 2).float() / 255
