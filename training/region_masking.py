"""Contextually aware masking (Zhang et al. 2023, arXiv 2304.01114): region tokens in a transformer.

Region tokens start as copies of the class token. Region token k attends to itself and to the patches of
region k; patches and class token attend as ever, never to region tokens. So patches bring the context of
the whole image, one pass names all regions, and the image's own vector is the tower's, bit for bit.

Since nothing looks at a region token, the K of them run beside the tower as a second, narrow stream of
queries through the same weights: no mask over all pairs of tokens is needed. Beside T = 197 tokens, 8
region tokens of a ViT-B/16 add 12 % to the work, mostly keys and values projected a second time.
"""

from collections.abc import Sequence
from typing import Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from training.grouping import coverage


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
    attn_pool: nn.Module | None
    pool_type: str
    final_ln_after_pool: bool


def is_transformer(visual: nn.Module) -> TypeGuard[VisionTransformer]:
    """Whether it has the parts of open_clip's own VisionTransformer."""
    return all(hasattr(visual, name) for name in ("transformer", "class_embedding", "ln_post", "attn_pool"))


class MaskedTransformer:
    """An open_clip VisionTransformer with region tokens.

    Raises:
        ValueError: for a variant whose class token is not all there is to its image vector.
    """

    def __init__(self, visual: VisionTransformer) -> None:
        if fault := _fault(visual):
            raise ValueError(
                f"cannot add region tokens to this {type(visual).__name__}: {fault}; give one that pools by "
                "its class token, with open_clip's default blocks, no patch dropout, and its projection"
            )
        self.visual = visual

    def tokens(self, image_NCHW: Tensor, regions_NKhw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Region tokens [N, K, D] and class tokens [N, D], normalised, and which regions hold any patch."""
        tokens_NTD, grid = self._embed(image_NCHW)
        inside_NKP = coverage(regions_NKhw, *grid).flatten(2) > 0
        tokens_NTD, regions_NKD = self._run(tokens_NTD, inside_NKP)
        return self.visual.ln_post(regions_NKD), self._pool(tokens_NTD), inside_NKP.any(2)

    def project(self, tokens_XC: Tensor) -> Tensor:
        """The tower's own projection: vectors [..., D] of tokens [..., C]."""
        return tokens_XC @ self.visual.proj

    def dense(self, image_NCHW: Tensor) -> Tensor:
        """Normalised patch tokens [N, D, h, w] after the last block."""
        tokens_NTD, grid = self._embed(image_NCHW)
        for block in self.visual.transformer.resblocks:
            tokens_NTD = block(tokens_NTD)
        patches_NPD: Tensor = self.visual.ln_post(tokens_NTD[:, 1:])
        return patches_NPD.mT.reshape(len(patches_NPD), -1, *grid)

    def head(self) -> list[nn.Parameter]:
        """The projection."""
        return [self.visual.proj]

    def last(self, count: int) -> list[nn.Parameter]:
        """The last blocks, the norm after them and the projection.

        Raises:
            ValueError: for more blocks than there are.
        """
        blocks = self.visual.transformer.resblocks
        if count > len(blocks):
            raise ValueError(f"this tower has {len(blocks)} blocks, not {count}; choose fewer, or all")
        inside = [parameter for block in blocks[-count:] for parameter in block.parameters()]
        return [*inside, *self.visual.ln_post.parameters(), self.visual.proj]

    def projections(self) -> list[nn.Parameter]:
        """The query, key, value and output projections of all blocks."""
        return [
            parameter for block in self.visual.transformer.resblocks for parameter in block.attn.parameters()
        ]

    def _embed(self, image_NCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens [N, 1 + P, D] as they enter the first block, class token first, and the patches' grid."""
        _refuse_partial_patches(image_NCHW, self.visual.conv1)
        maps_NDhw: Tensor = self.visual.conv1(image_NCHW)
        grid = (maps_NDhw.shape[2], maps_NDhw.shape[3])
        class_N1D = self.visual.class_embedding.to(maps_NDhw.dtype).expand(len(maps_NDhw), 1, -1)
        tokens_NTD = torch.cat([class_N1D, maps_NDhw.flatten(2).mT], 1)
        tokens_NTD = tokens_NTD + self._positions(grid).to(maps_NDhw.dtype)
        return self.visual.ln_pre(tokens_NTD), grid

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings [1 + P, D], bicubic on any grid but the one they were learnt on."""
        learnt_TD = self.visual.positional_embedding
        if grid == tuple(self.visual.grid_size):
            return learnt_TD
        maps_Dhw = learnt_TD[1:].T.reshape(-1, *self.visual.grid_size).float()
        maps_Dhw = functional.interpolate(maps_Dhw[None], grid, mode="bicubic", antialias=True)[0]
        return torch.cat([learnt_TD[:1], maps_Dhw.flatten(1).T.to(learnt_TD.dtype)])

    def _run(self, tokens_NTD: Tensor, inside_NKP: Tensor) -> tuple[Tensor, Tensor]:
        transformer = self.visual.transformer
        regions_NKD = tokens_NTD[:, :1].expand(-1, inside_NKP.shape[1], -1)
        hidden = _hidden(inside_NKP, transformer.resblocks[0].attn.num_heads)
        for block in transformer.resblocks:
            streams = (block, tokens_NTD, regions_NKD, hidden)
            if transformer.grad_checkpointing:
                tokens_NTD, regions_NKD = checkpoint(_step, *streams, use_reentrant=False)
            else:
                tokens_NTD, regions_NKD = _step(*streams)
        return tokens_NTD, regions_NKD

    def _pool(self, tokens_NTD: Tensor) -> Tensor:
        norm = self.visual.ln_post
        late = self.visual.final_ln_after_pool  # the same numbers, but not the same bits
        class_ND: Tensor = norm(tokens_NTD[:, 0]) if late else norm(tokens_NTD)[:, 0]
        return class_ND


def _fault(visual: VisionTransformer) -> str:
    if visual.attn_pool is not None:
        return "it pools by attention"
    if visual.pool_type != "tok":
        return f"its pooling is '{visual.pool_type}', not 'tok'"
    if getattr(visual.patch_dropout, "prob", 0.0) > 0:
        return "it drops patches while it trains (force_patch_dropout=0 leaves them)"
    if not all(isinstance(block.attn, nn.MultiheadAttention) for block in visual.transformer.resblocks):
        return "its blocks are custom ones"
    return "its projection was taken off" if visual.proj is None else ""


def _refuse_partial_patches(image_NCHW: Tensor, patches: nn.Conv2d) -> None:
    (height, width), (down, across) = image_NCHW.shape[2:], patches.kernel_size
    if height % down or width % across:
        raise ValueError(
            f"an image of {height} x {width} px does not split into patches of {down} x {across} px; "
            "resize it to multiples of them"
        )


def _hidden(inside_NKP: Tensor, heads: int) -> Tensor:
    """Which of K region tokens and P patches each region token may not see: [N·heads, K, K + P]."""
    images, regions, _ = inside_NKP.shape
    itself_NKK = torch.eye(regions, dtype=torch.bool, device=inside_NKP.device).expand(images, -1, -1)
    return ~torch.cat([itself_NKK, inside_NKP], 2).repeat_interleave(heads, 0)


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
