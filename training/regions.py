"""Vectors of regions from an encoder of whole images, all regions of an image in one forward pass."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.low_rank import adapt, merge
from training.region_masking import MaskedTransformer, is_transformer
from training.region_pooling import PooledMaps, is_convolutional
from training.region_resnet import AttendedMaps, is_resnet
from training.region_trunk import TimmTransformer, is_timm_transformer

PARTS = "none, head, last, last:N (blocks or stages), projections, lora:R (rank) or all"


@dataclass(frozen=True)
class Regions:
    """What a tower says of N images with K regions each, in the joint space, not normalised."""

    region_NKD: Tensor
    pooled_ND: Tensor  # the images' own vectors
    valid_NK: Tensor  # bool: the region covers some of the tower's grid
    token_NKC: Tensor  # what lies before the projection of each region
    picture_NC: Tensor  # and of each image


class RegionEncoder(nn.Module):
    """An image tower of open_clip that also encodes regions.

    Transformers mask attention (`training.region_masking`, `training.region_trunk`), convolutional towers
    pool under the masks (`training.region_pooling`, `training.region_resnet`). The images' own vectors are
    the tower's: bit for bit without regions, and with them to the rounding of a longer sequence at most.

    Without context each region is encoded by a forward pass of its own, which sees no other pixel: the rest
    of the image is its mean colour. That is for comparison; it takes as many passes as there are regions.

    What `trainable` has frozen stays in evaluation mode, whatever `train()` is told, and batch norms keep
    their statistics unless the whole tower learns.

    Raises:
        ValueError: for a tower that cannot be adapted; the message names those that can.
    """

    def __init__(self, visual: nn.Module, context: bool = True) -> None:
        super().__init__()
        self._tower = _adapt(visual)
        self.visual = visual
        self.context = context

    def forward(self, image_NCHW: Tensor, regions_NKhw: Tensor) -> Regions:
        """Encodes images and their regions.

        Args:
            image_NCHW: as the tower expects them; a transformer takes any multiple of its patch size.
            regions_NKhw: masks, boolean or soft in [0, 1], on any grid: they are averaged over the cells of
                the tower's. K may be 0. A transformer's region holds every cell it touches, pooling
                weighs a cell by the part that is covered.

        Raises:
            ValueError: for masks that are not [N, K, h, w], or images that do not fit the tower.
        """
        if regions_NKhw.ndim != 4 or len(regions_NKhw) != len(image_NCHW):
            raise ValueError(
                f"got regions {list(regions_NKhw.shape)} for images {list(image_NCHW.shape)}; "
                "give masks [N, K, h, w] of the same N images"
            )
        seen_at_once = regions_NKhw if self.context else regions_NKhw[:, :0]
        regions_NKC, pooled_NC, valid_NK = self._tower.tokens(image_NCHW, seen_at_once)
        if not self.context:
            regions_NKC, valid_NK = self.tokens(image_NCHW, regions_NKhw)
        return self.projected(regions_NKC, pooled_NC, valid_NK)

    def tokens(self, image_NCHW: Tensor, regions_NKhw: Tensor) -> tuple[Tensor, Tensor]:
        """What lies before the projection: region vectors [N, K, C], and which of them count [N, K].

        With everything else frozen they never change, so training the projection can start from them.
        """
        if self.context or regions_NKhw.shape[1] == 0:
            regions_NKC, _, valid_NK = self._tower.tokens(image_NCHW, regions_NKhw)
            return regions_NKC, valid_NK
        alone = [self._tower.tokens(_hidden(image_NCHW, r), r) for r in torch.split(regions_NKhw, 1, dim=1)]
        return torch.cat([token for token, _, _ in alone], 1), torch.cat([valid for *_, valid in alone], 1)

    @property
    def pools(self) -> bool:
        """Whether regions are means of the maps that `dense` gives, so that maps in hand can be pooled."""
        return self.context and isinstance(self._tower, PooledMaps)

    def pool(self, maps_NCHW: Tensor, regions_NKhw: Tensor) -> Regions:
        """Regions of maps that `dense` gave. Only where the tower pools."""
        assert isinstance(self._tower, PooledMaps), "a transformer's regions are not means of its maps"
        regions_NKC, pooled_NC, valid_NK = self._tower.pool(maps_NCHW, regions_NKhw)
        return self.projected(regions_NKC, pooled_NC, valid_NK)

    def projected(self, token_NKC: Tensor, pooled_NC: Tensor, valid_NK: Tensor) -> Regions:
        """Regions and images of which what lies before the projection is known."""
        return Regions(self.project(token_NKC), self.project(pooled_NC), valid_NK, token_NKC, pooled_NC)

    def project(self, tokens_XC: Tensor) -> Tensor:
        """The tower's projection into the joint space, of vectors [..., C]."""
        return self._tower.project(tokens_XC)

    def dense(self, image_NCHW: Tensor) -> Tensor:
        """The tower's last feature map [N, C, h, w], before pooling and projection."""
        return self._tower.dense(image_NCHW)

    def train(self, mode: bool = True) -> "RegionEncoder":
        """Sets the mode of whatever has parameters to train; the rest evaluates."""
        super().train(mode)
        whole = all(parameter.requires_grad for parameter in self.visual.parameters())
        for module in self.visual.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not whole:  # noqa: SLF001
                module.eval()  # statistics of a tower that is mostly frozen are those of its own training
        return self

    def parameters_of(self, parts: str) -> list[nn.Parameter]:
        """The parameters of some parts of the tower; see `trainable`. Low-rank adapters are put there now."""
        kind, number = parse_parts(parts)
        match kind:
            case "none":
                return []
            case "head":
                return self._tower.head()
            case "last":
                return self._tower.last(number)
            case "projections":
                return list(dict.fromkeys([*self._tower.projections(), *self._tower.head()]))
            case "lora":
                return adapt(self.visual, rank=number)
        return list(self.visual.parameters())


def parse_parts(parts: str) -> tuple[str, int]:
    """The kind of parts, and its number: ("last", 2) of "last:2"; "last" means "last:1".

    Raises:
        ValueError: for anything that `trainable` does not know.
    """
    found = re.fullmatch(r"(none|head|last|projections|all)|(last|lora):([1-9]\d*)", parts)
    if not found:
        raise ValueError(f"'{parts}' is no part of a tower; choose {PARTS}")
    return found[1] or found[2], int(found[3] or 1)


def trainable(encoder: RegionEncoder, parts: str) -> list[nn.Parameter]:
    """Freezes the tower except some parts.

    Args:
        encoder: all its `requires_grad` flags are set anew; low-rank adapters of an earlier call are merged.
        parts: "head" is the projection into the joint space. "last:N" adds the last N blocks or stages and
            what lies between them and the projection ("last" is one). "projections" is the head with the
            projections of attention (query, key, value, output), or all convolutions of one pixel where
            nothing attends. "lora:R" is none of the tower's own weights but adapters of rank R on all its
            matrices (`training.low_rank`). "all" and "none" are the whole tower and nothing.

    Returns:
        The parameters left to train.

    Raises:
        ValueError: for another name, or a tower without such a part.
    """
    merge(encoder.visual)
    chosen = encoder.parameters_of(parts)
    encoder.visual.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    encoder.train(encoder.training)
    return chosen


def _hidden(image_NCHW: Tensor, region_N1hw: Tensor) -> Tensor:
    """Normalised images of which one region is left; 0 is the mean colour."""
    return image_NCHW * functional.interpolate(region_N1hw.to(image_NCHW.dtype), image_NCHW.shape[2:])


Tower = MaskedTransformer | TimmTransformer | AttendedMaps | PooledMaps


def _adapt(visual: nn.Module) -> Tower:
    if is_transformer(visual):
        return MaskedTransformer(visual)
    if is_timm_transformer(visual):
        return TimmTransformer(visual)
    if is_resnet(visual):
        return AttendedMaps(visual)
    if is_convolutional(visual):
        return PooledMaps(visual)
    raise ValueError(
        f"cannot encode regions with {type(visual).__name__}: it is neither open_clip's VisionTransformer or "
        "ModifiedResNet nor its TimmModel; give the visual tower of such a model"
    )
