"""Mask pooling: a region's vector is the tower's own pooling and head, of its part of the last map."""

from collections.abc import Iterable
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn

from training.grids import last_of
from training.grouping import coverage
from training.low_rank import is_pointwise


class Trunk(Protocol):
    """What we use of a network of timm's that ends in maps: a convolutional one, or Swin."""

    num_features: int

    def forward_features(self, image_NCHW: Tensor) -> Tensor:
        """Maps [N, num_features, h, w], or [N, h, w, num_features] where `output_fmt` is NHWC."""
        ...

    def forward_head(self, maps_NCHW: Tensor) -> Tensor:
        """Pooled features [N, C]."""
        ...

    def modules(self) -> Iterable[nn.Module]:
        """All its parts."""
        ...

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """All its weights, in the order of its parts."""
        ...


class TimmModel(Protocol):
    """What we use of open_clip's TimmModel."""

    trunk: Trunk
    head: nn.Module


def is_convolutional(visual: nn.Module) -> TypeGuard[TimmModel]:
    """Whether it has the parts of open_clip's TimmModel; its first batch tells a trunk that ends in maps."""
    return hasattr(visual, "trunk") and isinstance(getattr(visual, "head", None), nn.Module)


def mean_inside(values_NPC: Tensor, cover_NKP: Tensor) -> Tensor:
    """Means [N, K, C] of P values under K masks with weights in [0, 1]; 0 where a mask covers none."""
    weights_NKP = cover_NKP.to(values_NPC.dtype)
    area_NK1 = weights_NKP.sum(2, keepdim=True)
    return weights_NKP @ values_NPC / torch.where(area_NK1 > 0, area_NK1, 1)


def cells_of(regions_NKhw: Tensor, maps_NCHW: Tensor) -> Tensor:
    """The part of each cell of some maps that each region covers, [N, K, P]."""
    return coverage(regions_NKhw, maps_NCHW.shape[2], maps_NCHW.shape[3]).flatten(2)


def itself_and_inside(inside_NKP: Tensor) -> Tensor:
    """What each region sees of K tokens, one a region, and the P patches behind them: bool [N, K, K + P]."""
    images, regions, _ = inside_NKP.shape
    itself_NKK = torch.eye(regions, dtype=torch.bool, device=inside_NKP.device).expand(images, -1, -1)
    return torch.cat([itself_NKK, inside_NKP], 2)


def projection_of(visual: TimmModel) -> list[nn.Parameter]:
    """The parameters of a TimmModel's projection: open_clip's, or else the trunk's own classifier.

    Raises:
        ValueError: if it has none.
    """
    classifier = getattr(visual.trunk, "get_classifier", nn.Identity)()
    parameters = [*classifier.parameters(), *visual.head.parameters()]
    if not parameters:
        raise ValueError(
            "this tower has no projection to train (timm_proj 'none'); choose last, lora:R or all"
        )
    return parameters


class PooledMaps:
    """An open_clip TimmModel around a trunk that ends in maps, with average pooling.

    A region that covers the image gets the image's own vector: the trunk's own head runs on its mean.

    Raises:
        ValueError: for another pooling, whose value over a region is not a mean.
    """

    def __init__(self, visual: TimmModel) -> None:
        if pooling := _other_pooling(visual):
            raise ValueError(
                f"cannot pool regions with this {type(visual).__name__}: it pools by '{pooling}'; "
                "give one around a convolutional trunk with timm_pool='avg'"
            )
        self.visual = visual

    def tokens(self, image_NCHW: Tensor, regions_NKhw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Region means [N, K, C] and image means [N, C] of the last maps, and which regions are there."""
        return self.pool(self.dense(image_NCHW), regions_NKhw)

    def pool(self, maps_NCHW: Tensor, regions_NKhw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same, of maps that are already there."""
        cover_NKP = cells_of(regions_NKhw, maps_NCHW)
        means_NKC = mean_inside(maps_NCHW.flatten(2).mT, cover_NKP)
        return means_NKC, maps_NCHW.mean((2, 3)), cover_NKP.any(2)

    def project(self, tokens_XC: Tensor) -> Tensor:
        """The tower's own head on means [..., C]: vectors [..., D]."""
        tokens_MC = tokens_XC.reshape(-1, tokens_XC.shape[-1])
        maps = tokens_MC[:, None, None] if self._channels_last else tokens_MC[..., None, None]
        vectors: Tensor = self.visual.head(self.visual.trunk.forward_head(maps))
        return vectors.reshape(*tokens_XC.shape[:-1], vectors.shape[-1])

    def dense(self, image_NCHW: Tensor) -> Tensor:
        """The trunk's last maps [N, C, h, w].

        Raises:
            ValueError: if the trunk does not end in maps, or takes no images of this size.
        """
        _refuse_other_size(image_NCHW, self.visual.trunk)
        maps_NCHW, channels = self.visual.trunk.forward_features(image_NCHW), self.visual.trunk.num_features
        if self._channels_last and maps_NCHW.ndim == 4:
            maps_NCHW = maps_NCHW.permute(0, 3, 1, 2)
        if maps_NCHW.ndim != 4 or maps_NCHW.shape[1] != channels:
            raise ValueError(
                f"{type(self.visual.trunk).__name__} gives features {list(maps_NCHW.shape)}, not maps "
                f"[N, {channels}, h, w]; give a trunk that ends in maps, or a plain transformer"
            )
        return maps_NCHW

    def head(self) -> list[nn.Parameter]:
        """The projection: open_clip's, or else the trunk's own classifier."""
        return projection_of(self.visual)

    def last(self, count: int) -> list[nn.Parameter]:
        """From the last stages on: networks of timm hold their parts in the order they run.

        Raises:
            ValueError: for more stages than there are, or a network that does not tell them.
        """
        named, stages = list(self.visual.trunk.named_parameters()), _stages(self.visual.trunk)
        begin, *_ = last_of(stages, count, "stages")
        first = next(i for i, (name, _) in enumerate(named) if name.startswith(f"{begin}."))
        return [*(parameter for _, parameter in named[first:]), *self.visual.head.parameters()]

    def projections(self) -> list[nn.Parameter]:
        """Its linear layers over channels, written as convolutions of one pixel or not.

        They are to a cell what attention's projections are to a token.

        Raises:
            ValueError: if there are none.
        """
        layers = [m for m in self.visual.trunk.modules() if is_pointwise(m) or isinstance(m, nn.Linear)]
        if not layers:
            raise ValueError(
                "this tower has no convolution of one pixel to train; choose head, last:N or all"
            )
        return [parameter for layer in layers for parameter in layer.parameters()]

    @property
    def _channels_last(self) -> bool:
        return str(getattr(self.visual.trunk, "output_fmt", "NCHW")).endswith("NHWC")


def _refuse_other_size(image_NCHW: Tensor, trunk: Any) -> None:
    embed: Any = getattr(trunk, "patch_embed", None)
    if getattr(embed, "strict_img_size", False) and tuple(image_NCHW.shape[2:]) != tuple(embed.img_size):
        (down, across), (height, width) = embed.img_size, image_NCHW.shape[2:]
        raise ValueError(
            f"{type(trunk).__name__} takes images of {down} x {across} px alone, not {height} x {width}; "
            "give that size (regions.size, recognition.size)"
        )


def _other_pooling(visual: TimmModel) -> str:
    if hasattr(visual.head, "pool"):
        return type(visual.head.pool).__name__
    poolings = [str(m.pool_type) for m in visual.trunk.modules() if hasattr(m, "pool_type")]
    return next((pooling for pooling in poolings if pooling not in ("avg", "fastavg")), "")


def _stages(trunk: Trunk) -> list[str]:
    """Names of its stages that have weights, in the order they run."""
    if features := getattr(trunk, "feature_info", None):
        names = [str(feature["module"]) for feature in features]
        return [n for n in names if any(name.startswith(f"{n}.") for name, _ in trunk.named_parameters())]
    if blocks := getattr(trunk, "blocks", None):
        return [f"blocks.{number}" for number in range(len(blocks))]
    raise ValueError(
        f"{type(trunk).__name__} does not tell its stages (feature_info, or blocks); choose head or all"
    )
