"""What training and evaluation need of an image–text encoder. They are handed one; they import none."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class EncoderLike(Protocol):
    """A loaded encoder."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int  # pixels per side
    device: torch.device
    tokenizer: Callable[..., Tensor]  # (texts, context_length=…) -> int64 [N, T]

    @property
    def model(self) -> nn.Module:
        """The whole model."""

    @property
    def visual(self) -> nn.Module:
        """Its image tower."""

    def encode_texts(self, names: Sequence[str], templates: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors [N, D] of names in prompts."""
