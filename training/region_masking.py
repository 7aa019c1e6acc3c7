"""Contextually aware masking (Zhang et al. 2023, arXiv 2304.01114): region tokens in a transformer.

Region tokens start as copies of the class token. Region token k attends to itself and to the patches of
region k; patches and class token attend as ever, never to region tokens. So patches bring the context of
the whole image, one pass names all regions, and the image's own vector is the tower's, bit for bit.

Since nothing looks at a region token, the K of them run beside the tower as a second, narrow stream of
queries through the same weights: no mask over all pairs of tokens is needed. Beside T = 197 tokens, 8
region tokens of a ViT-B/16 add 12 % to the work, mostly keys and values projected a second time.

Towers whose picture is not their class token pool a region as they pool the picture: CLIPA's by the mean of
the region's patches, CoCa's by its first query, which sees the region's token and patches alone.
"""

from collections.abc import Sequence
from typing import Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.grids import last_of, positions_on, require_whole_patches
from training.grouping import coverage
from training.region_pooling import itself_and_inside, mean_inside


class Block(Protocol):
    """What we use of open_clip's ResidualAttentionBlock."""

    ln_1: nn.Module
    attn: nn.MultiheadAttention
    ls_1: nn.Module
    ln_2: nn.Module
    mlp: nn.Module
    ls_2: nn.Module

    def __call__(self, tokens_NTD: Tensor) -> Tensor:
        """The block's own path."""
        ...

    def parameters(self) -> Sequence[nn.Parameter]:
        """The block's weights."""
        ...


class Blocks(Protocol):
    """What we use of open_clip's Transformer."""

    resblocks: Sequence[Block]
    grad_checkpointing: bool


class Pooler(Protocol):
    """What we use of open_clip's AttentionalPooler."""

    query: nn.Parameter
    ln_q: nn.Module
    ln_k: nn.Module
    attn: nn.MultiheadAttention

    def parameters(self) -> Sequence[nn.Parameter]:
        """Its weights."""
        ...

    def __call__(self, tokens_NTD: Tensor) -> Tensor:
        """What its queries read."""
        ...


class VisionTransformer(Protocol):
    """What we use of open_clip's VisionTransformer."""

    conv1: nn.Conv2d
    class_embedding: nn.Parameter
    positional_embedding: nn.Parameter  # [1 + P, D]
    grid_size: tuple[int, int]
    patch_dropout: nn.Module
    ln_pre: nn.Module
    transformer: Blocks
    ln_post: nn.Module
    proj: nn.Parameter
    attn_pool: Pooler | None
    attn_pool_contrastive: nn.Module | None  # where there is a pooler
    pool_type: str
    final_ln_after_pool: bool


def is_transformer(visual: nn.Module) -> TypeGuard[VisionTransformer]:
    """Whether it has the parts of open_clip's own VisionTransformer."""
    return all(hasattr(visual, name) for name in ("transformer", "class_embedding", "ln_post", "attn_pool"))


class MaskedTransformer:
    """An open_clip VisionTransformer with region tokens.

    Raises:
        ValueError: for a variant that regions cannot have a part in.
    """

    def __init__(self, visual: VisionTransformer) -> None:
        if fault := _fault(visual):
            raise ValueError(
                f"cannot add region tokens to this {type(visual).__name__}: {fault}; give one that pools by "
                "its class token, its patches' mean or CoCa's queries, with open_clip's default blocks, no "
                "patch dropout, and its projection"
            )
        self.visual = visual
        self.averages = visual.attn_pool is None and visual.pool_type == "avg"

    def tokens(self, image_NCHW: Tensor, regions_NKhw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What lies before the projection: of regions [N, K, D] and images [N, D]; which hold any patch."""
        tokens_NTD, grid = self._embed(image_NCHW)
        cover_NKP = coverage(regions_NKhw, *grid).flatten(2)
        tokens_NTD, regions_NKD = self._run(tokens_NTD, cover_NKP[:, :0] if self.averages else cover_NKP)
        return self._pooled(tokens_NTD, regions_NKD, cover_NKP), self._pool(tokens_NTD), cover_NKP.any(2)

    def project(self, tokens_XC: Tensor) -> Tensor:
        """The tower's own projection: vectors [..., D] of tokens [..., C]."""
        return tokens_XC @ self.visual.proj

    def dense(self, image_NCHW: Tensor) -> Tensor:
        """Normalised patch tokens [N, D, h, w] after the last block."""
        tokens_NTD, grid = self._embed(image_NCHW)
        for block in self.visual.transformer.resblocks:
            tokens_NTD = block(tokens_NTD)
        pooler = self.visual.attn_pool
        patches_NPD: Tensor = (pooler.ln_k if pooler else self.visual.ln_post)(tokens_NTD[:, 1:])
        return patches_NPD.mT.reshape(len(patches_NPD), -1, *grid)

    def head(self) -> list[nn.Parameter]:
        """The projection."""
        return [self.visual.proj]

    def last(self, count: int) -> list[nn.Parameter]:
        """The last blocks, the norm after them and the projection.

        Raises:
            ValueError: for more blocks than there are.
        """
        blocks = last_of(self.visual.transformer.resblocks, count, "blocks")
        inside = [parameter for block in blocks for parameter in block.parameters()]
        pooler = list(self.visual.attn_pool.parameters()) if self.visual.attn_pool is not None else []
        return [*inside, *pooler, *self.visual.ln_post.parameters(), self.visual.proj]

    def projections(self) -> list[nn.Parameter]:
        """The query, key, value and output projections of all blocks."""
        return [
            parameter for block in self.visual.transformer.resblocks for parameter in block.attn.parameters()
        ]

    def _embed(self, image_NCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens [N, 1 + P, D] as they enter the first block, class token first, and the patches' grid."""
        require_whole_patches(image_NCHW, *self.visual.conv1.kernel_size)
        maps_NDhw: Tensor = self.visual.conv1(image_NCHW)
        grid = (maps_NDhw.shape[2], maps_NDhw.shape[3])
        class_N1D = self.visual.class_embedding.to(maps_NDhw.dtype).expand(len(maps_NDhw), 1, -1)
        tokens_NTD = torch.cat([class_N1D, maps_NDhw.flatten(2).mT], 1)
        places_TD = positions_on(self.visual.positional_embedding, self.visual.grid_size, grid)
        tokens_NTD = tokens_NTD + places_TD.to(maps_NDhw.dtype)
        return self.visual.ln_pre(tokens_NTD), grid

    def _run(self, tokens_NTD: Tensor, cover_NKP: Tensor) -> tuple[Tensor, Tensor]:
        transformer = self.visual.transformer
        regions_NKD = tokens_NTD[:, :1].expand(-1, cover_NKP.shape[1], -1)
        hidden = _hidden(cover_NKP > 0, transformer.resblocks[0].attn.num_heads)
        for block in transformer.resblocks:
            streams = (block, tokens_NTD, regions_NKD, hidden)
            if transformer.grad_checkpointing:
                tokens_NTD, regions_NKD = checkpoint(_step, *streams, use_reentrant=False)
            else:
                tokens_NTD, regions_NKD = _step(*streams)
        return tokens_NTD, regions_NKD

    def _pool(self, tokens_NTD: Tensor) -> Tensor:
        """As the tower pools its picture, operation by operation, so that no bit differs."""
        norm, late = self.visual.ln_post, self.visual.final_ln_after_pool
        if self.visual.attn_pool is not None:
            read_NQD: Tensor = norm(self.visual.attn_pool(tokens_NTD))
            return read_NQD[:, 0]
        if self.averages:
            mean_ND: Tensor = norm(tokens_NTD[:, 1:].mean(dim=1)) if late else norm(tokens_NTD)[:, 1:].mean(1)
            return mean_ND
        class_ND: Tensor = norm(tokens_NTD[:, 0]) if late else norm(tokens_NTD)[:, 0]
        return class_ND

    def _pooled(self, tokens_NTD: Tensor, regions_NKD: Tensor, cover_NKP: Tensor) -> Tensor:
        """Regions likewise: [N, K, D]."""
        norm, patches_NPD = self.visual.ln_post, tokens_NTD[:, 1:]
        if self.visual.attn_pool is not None:
            regions_NKD = _queried(self.visual.attn_pool, patches_NPD, regions_NKD, cover_NKP > 0)
        elif self.averages and not self.visual.final_ln_after_pool:
            return mean_inside(norm(patches_NPD), cover_NKP)
        elif self.averages:
            regions_NKD = mean_inside(patches_NPD, cover_NKP)
        found_NKD: Tensor = norm(regions_NKD)
        return found_NKD


def _queried(pooler: Pooler, patches_NPD: Tensor, regions_NKD: Tensor, inside_NKP: Tensor) -> Tensor:
    """What the first query reads of each region's token and patches: [N, K, D']."""
    keys_NTD = pooler.ln_k(torch.cat([regions_NKD, patches_NPD], 1))
    query_NKD = pooler.ln_q(pooler.query[:1]).expand(*regions_NKD.shape[:2], -1)
    hidden = _hidden(inside_NKP, pooler.attn.num_heads)
    read_NKD: Tensor = pooler.attn(query_NKD, keys_NTD, keys_NTD, attn_mask=hidden, need_weights=False)[0]
    return read_NKD


def _fault(visual: VisionTransformer) -> str:
    if visual.attn_pool is not None and (visual.attn_pool_contrastive or visual.pool_type != "tok"):
        return "it pools by two poolers, or by no token of one"
    if visual.pool_type not in ("tok", "avg"):
        return f"its pooling is '{visual.pool_type}'"
    if getattr(visual.patch_dropout, "prob", 0.0) > 0:
        return "it drops patches while it trains (force_patch_dropout=0 leaves them)"
    if not all(isinstance(block.attn, nn.MultiheadAttention) for block in visual.transformer.resblocks):
        return "its blocks are custom ones"
    return "its projection was taken off" if visual.proj is None else ""


def _hidden(inside_NKP: Tensor, heads: int) -> Tensor:
    """Which of K region tokens and P patches each region token may not see: [N·heads, K, K + P]."""
    return ~itself_and_inside(inside_NKP).repeat_interleave(heads, 0)


def _step(block: Block, tokens_NTD: Tensor, regions_NKD: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """One block. Tokens take its own path, so no bit of theirs depends on the regions."""
    after_NTD = block(tokens_NTD)
    if regions_NKD.shape[1] == 0:
        return after_NTD, regions_NKD
    queries_NKD = block.ln_1(regions_NKD)
    keys = torch.cat([queries_NKD, block.ln_1(tokens_NTD[:, 1:])], 1)
    seen_NKD, _ = block.attn(queries_NKD, keys, keys, attn_mask=hidden, need_weights=False)
    regions_NKD = regions_NKD + block.ls_1(seen_NKD)
    return after_NTD, regions_NKD + block.ls_2(block.mlp(block.ln_2(regions_NKD)))
