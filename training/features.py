"""Dense features that pixels are grouped by: colour, the encoder's own maps, or a self-supervised network.

A backbone turns images into vectors whose Euclidean distances count. It resizes them itself, to
`config.size` squared, so the grid of its features depends on the config alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.grouping import TIMM, GroupingConfig
from training.regions import RegionEncoder

Backbone = Callable[[Tensor], Tensor]  # uint8 NHWC or float NCHW in [0, 1], RGB -> features [N, C, h, w]
_RGB_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.950456, 1.0, 1.088754)  # D65


def lab_position(size: int, position_weight: float) -> Backbone:
    """Every pixel's colour (CIE Lab over 100) and place; no model."""

    def features(image: Tensor) -> Tensor:
        pixels_NCHW = _resized(image, size)
        return with_position(rgb_to_lab(pixels_NCHW) / 100, position_weight)

    return features


def tower_features(
    visual: nn.Module, mean: Sequence[float], std: Sequence[float], size: int, position_weight: float = 0.0
) -> Backbone:
    """The last map of the encoder's own image tower, unit vectors; the tower is put in evaluation mode.

    Mean and std are the encoder's normalisation of RGB in [0, 1].
    """
    return _network(RegionEncoder(visual).eval().dense, visual, (mean, std), size, position_weight)


def timm_features(
    name: str,
    size: int,
    position_weight: float = 0.0,
    pretrained: bool = True,
    device: torch.device | str = "cpu",
) -> Backbone:
    """A network of timm's: a transformer's patch tokens or a convolutional network's last map, unit vectors.

    Raises:
        RuntimeError: from timm, for a name it does not know.
    """
    import timm  # noqa: PLC0415  (slow to import; not every backbone needs it)

    network: Any = timm.create_model(name, pretrained=pretrained, num_classes=0).eval().requires_grad_(False)
    if hasattr(network, "set_input_size"):
        network.set_input_size(size)
    normalisation = network.pretrained_cfg["mean"], network.pretrained_cfg["std"]

    def dense(image_NCHW: Tensor) -> Tensor:
        last: list[Tensor] = network.forward_intermediates(
            image_NCHW, indices=1, norm=True, intermediates_only=True
        )
        return last[0]

    return _network(dense, network.to(device), normalisation, size, position_weight)


def backbone(
    config: GroupingConfig, clip: Backbone | None = None, device: torch.device | str = "cpu"
) -> Backbone:
    """The backbone a config names.

    Args:
        config: its `backbone`, `size` and `position_weight` count.
        clip: what "clip" stands for: `tower_features` of the encoder.
        device: where a network of timm's runs.

    Raises:
        ValueError: for "clip" without the encoder's features.
    """
    if config.backbone == "lab":
        return lab_position(config.size, config.position_weight)
    if config.backbone.startswith(TIMM):
        name = config.backbone.removeprefix(TIMM)
        return timm_features(name, config.size, config.position_weight, device=device)
    if clip is None:
        raise ValueError("the backbone 'clip' groups by the encoder's own tower: pass its tower_features")
    return clip


def with_position(features_NChw: Tensor, weight: float) -> Tensor:
    """Appends each cell's row and column, in [0, weight]; nothing for weight 0."""
    if weight == 0:
        return features_NChw
    height, width = features_NChw.shape[2:]
    rows = (torch.arange(height, device=features_NChw.device) + 0.5) / height
    columns = (torch.arange(width, device=features_NChw.device) + 0.5) / width
    place_2hw = weight * torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    place_N2hw = place_2hw.to(features_NChw.dtype).expand(len(features_NChw), -1, -1, -1)
    return torch.cat([features_NChw, place_N2hw], 1)


def rgb_to_lab(rgb_NCHW: Tensor) -> Tensor:
    """CIE L*a*b* (D65) of sRGB in [0, 1]: L in [0, 100], a and b within about ±110."""
    linear_NCHW = torch.where(rgb_NCHW <= 0.04045, rgb_NCHW / 12.92, ((rgb_NCHW + 0.055) / 1.055) ** 2.4)
    to_xyz = rgb_NCHW.new_tensor(_RGB_TO_XYZ) / rgb_NCHW.new_tensor(_WHITE)[:, None]
    xyz_NCHW = torch.einsum("xc,nchw->nxhw", to_xyz, linear_NCHW)
    line_NCHW = xyz_NCHW * (841 / 108) + 4 / 29
    x, y, z = torch.where(xyz_NCHW > (6 / 29) ** 3, xyz_NCHW.clamp_min(1e-6) ** (1 / 3), line_NCHW).unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def _network(
    dense: Backbone,
    network: nn.Module,
    normalisation: tuple[Sequence[float], Sequence[float]],
    size: int,
    position_weight: float,
) -> Backbone:
    """Resizes, normalises, runs where the network is, and scales each cell's vector to unit length."""
    place = next(network.parameters())

    @torch.no_grad()
    def features(image: Tensor) -> Tensor:
        pixels_NCHW = _resized(image.to(place.device), size)
        mean, std = (pixels_NCHW.new_tensor(list(values))[:, None, None] for values in normalisation)
        maps_NChw = dense(((pixels_NCHW - mean) / std).to(place.dtype))
        return unit_maps(maps_NChw, position_weight)

    return features


def unit_maps(maps_NChw: Tensor, position_weight: float) -> Tensor:
    """Each cell's vector at unit length, with its place."""
    return with_position(functional.normalize(maps_NChw.float(), dim=1), position_weight)


def _resized(image: Tensor, size: int) -> Tensor:
    """RGB in [0, 1], float32 [N, 3, size, size], of either layout."""
    if image.ndim == 4 and image.dtype == torch.uint8:
        image = image.permute(0, 3, 1, 2).float() / 255
    if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
        raise ValueError(f"images are uint8 [N, H, W, 3] or float [N, 3, H, W], not {list(image.shape)}")
    if tuple(image.shape[2:]) == (size, size):
        return image.float()
    return functional.interpolate(image.float(), (size, size), mode="bilinear", antialias=True)
