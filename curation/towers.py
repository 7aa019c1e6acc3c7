"""A tiny convolutional image tower, known to timm (and so to open_clip) by its name.

It sees the built-in corpus only: 64 px scenes. Its receptive field is small on purpose, so that a vector on
its 16 × 16 map speaks of the place where it stands; a transformer of this size pools the image globally.
"""

from typing import Any

import timm.models
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions, through half as many channels, beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *convolution(width, width // 2, 3),
            nn.Conv2d(width // 2, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, maps_NCHW: Tensor) -> Tensor:
        """Same shape in and out."""
        return nn.functional.relu(maps_NCHW + self.body(maps_NCHW))


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """A convolution, its normalisation and ReLU (GELU costs half as much again on a processor)."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - stride + 1) // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


class TinyConv(nn.Module):
    """Stride 4, ``width`` channels, mean pooled; the interface timm gives its convolutional networks."""

    def __init__(self, width: int = 64, num_classes: int = 0, global_pool: str = "avg", **_: Any) -> None:
        super().__init__()
        assert global_pool == "avg", f"the tiny tower pools by the mean, not '{global_pool}'"
        self.num_features = width
        self.default_cfg = {"pool_size": (16, 16), "input_size": (3, 64, 64)}
        quarter = width // 4
        self.stem = nn.Sequential(*convolution(3, quarter, 4, 2), *convolution(quarter, width, 4, 2))
        self.blocks = nn.Sequential(ResidualBlock(width), ResidualBlock(width))
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        """Replaces the classifier; 0 classes leave the pooled features."""
        assert global_pool == "avg", f"the tiny tower pools by the mean, not '{global_pool}'"
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, image_NCHW: Tensor) -> Tensor:
        """Maps [N, width, H/4, W/4]."""
        maps: Tensor = self.blocks(self.stem(image_NCHW))
        return maps

    def forward_head(self, maps_NCHW: Tensor, pre_logits: bool = False) -> Tensor:
        """Mean over the map, then the classifier."""
        pooled_ND = maps_NCHW.mean((2, 3))
        return pooled_ND if pre_logits else self.head(pooled_ND)

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Pooled features [N, width]."""
        return self.forward_head(self.forward_features(image_NCHW))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Part of timm's interface; the network is too small to need it."""


@timm.models.register_model
def cocu_tiny_conv(pretrained: bool = False, **options: Any) -> TinyConv:
    """The tower of the built-in corpus."""
    if pretrained:
        raise ValueError("cocu_tiny_conv has no published weights: the built-in corpus trains it")
    return TinyConv(**options)
