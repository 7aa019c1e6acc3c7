"""Regions of CLIP's ResNets, which pool by attention: the mean of a region asks the region's cells alone."""

from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.grids import last_of, positions_on, require_whole_patches
from training.region_pooling import cells_of, itself_and_inside, mean_inside

CELL = 32  # pixels a side


class ResNet(Protocol):
    """What we use of open_clip's ModifiedResNet, which is CLIP's."""

    image_size: int  # pixels a side, 32 a cell
    stem: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module
    attnpool: Any  # positional_embedding [1 + P, C], q_proj, k_proj, v_proj, c_proj, num_heads


def is_resnet(visual: nn.Module) -> TypeGuard[ResNet]:
    """Whether it has the parts of open_clip's ModifiedResNet."""
    return hasattr(visual, "stem") and hasattr(visual, "attnpool")


class AttendedMaps:
    """An open_clip ModifiedResNet.

    A region that covers the image gets the image's own vector.
    """

    def __init__(self, visual: ResNet) -> None:
        self.visual = visual

    def tokens(self, image_NCHW: Tensor, regions_NKhw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What lies before the projection: of regions [N, K, C] and images [N, C]; which cover anything."""
        maps_NCHW = self.dense(image_NCHW)
        cover_NKP = cells_of(regions_NKhw, maps_NCHW)
        whole_N1P = cover_NKP.new_ones(len(cover_NKP), 1, cover_NKP.shape[2])
        token_NKC = self._asked(maps_NCHW, torch.cat([whole_N1P, cover_NKP], 1))
        return token_NKC[:, 1:], token_NKC[:, 0], cover_NKP.any(2)

    def project(self, tokens_XC: Tensor) -> Tensor:
        """The output projection of the attention: vectors [..., D] of tokens [..., C]."""
        vectors_XD: Tensor = self.visual.attnpool.c_proj(tokens_XC)
        return vectors_XD

    def dense(self, image_NCHW: Tensor) -> Tensor:
        """The last maps [N, C, h, w]."""
        require_whole_patches(image_NCHW, CELL, CELL)
        maps_NCHW = image_NCHW
        for stage in (self.visual.stem, *self._stages()):
            maps_NCHW = stage(maps_NCHW)
        return maps_NCHW

    def head(self) -> list[nn.Parameter]:
        """The output projection of the attention."""
        return list(self.visual.attnpool.c_proj.parameters())

    def last(self, count: int) -> list[nn.Parameter]:
        """The last stages and the attention.

        Raises:
            ValueError: for more stages than there are.
        """
        parts = (*last_of(self._stages(), count, "stages"), self.visual.attnpool)
        return [parameter for part in parts for parameter in part.parameters()]

    def projections(self) -> list[nn.Parameter]:
        """The query, key, value and output projections of the attention."""
        pool = self.visual.attnpool
        parts = (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj)
        return [parameter for part in parts for parameter in part.parameters()]

    def _stages(self) -> tuple[nn.Module, ...]:
        return (self.visual.layer1, self.visual.layer2, self.visual.layer3, self.visual.layer4)

    def _asked(self, maps_NCHW: Tensor, cover_NKP: Tensor) -> Tensor:
        """Attention of each region's mean to itself and to the cells it covers, heads side by side."""
        pool, cells_NPC = self.visual.attnpool, maps_NCHW.flatten(2).mT
        side, (down, across) = self.visual.image_size // CELL, maps_NCHW.shape[2:]
        places_TC = positions_on(pool.positional_embedding, (side, side), (down, across))
        mean_NKC = mean_inside(cells_NPC, cover_NKP) + places_TC[0]
        keys_NTC = torch.cat([mean_NKC, cells_NPC + places_TC[1:]], 1)
        parts = (pool.q_proj(mean_NKC), pool.k_proj(keys_NTC), pool.v_proj(keys_NTC))
        query, key, value = (part.unflatten(2, (pool.num_heads, -1)).transpose(1, 2) for part in parts)
        seen_NKT = itself_and_inside(cover_NKP > 0)
        found_NHKE = functional.scaled_dot_product_attention(query, key, value, seen_NKT[:, None])
        return found_NHKE.transpose(1, 2).flatten(2)
