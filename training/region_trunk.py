"""Regions of a transformer of timm's, as open_clip wraps them: SigLIP, EVA, PE, MobileCLIP, ViTamin.

A region is encoded as the tower encodes its picture, its own patches in the place of all of them. Where there
is a class token, each region has a copy of it, which attends to itself, to registers and to the region's
patches (Zhang et al. 2023, arXiv 2304.01114); nothing looks at it. Where the picture's vector is a mean or is
read by a latent query, the same mean or query sees the region's patches alone. Either way context flows
between patches, one pass names all regions, and one that covers the picture has the picture's own vector.

Blocks of timm's take a mask of all pairs of tokens, so region tokens are appended to the sequence, and 8 of
them cost little beside 197. Without regions nothing is appended: the output is the tower's, bit for bit.
"""

import copy
from functools import partial
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from training.grids import last_of, positions_on, require_whole_patches
from training.grouping import coverage
from training.region_pooling import itself_and_inside, mean_inside, projection_of

PARTS = ("patch_embed", "cls_token", "no_embed_class", "norm_pre", "blocks", "norm", "attn_pool", "fc_norm")


class TimmTower(Protocol):
    """What we use of open_clip's TimmModel around such a transformer."""

    trunk: Any  # timm's VisionTransformer or Eva
    head: nn.Module


def is_timm_transformer(visual: nn.Module) -> TypeGuard[TimmTower]:
    """Whether it is open_clip's TimmModel around timm's VisionTransformer or Eva, by their parts."""
    return all(hasattr(getattr(visual, "trunk", None), part) for part in PARTS)


class TimmTransformer:
    """An open_clip TimmModel around a transformer, with regions.

    Raises:
        ValueError: for a pooling, positions or a dropout of patches that regions cannot have a part in.
    """

    def __init__(self, visual: TimmTower) -> None:
        if fault := _fault(visual.trunk):
            raise ValueError(
                f"cannot encode regions with this {type(visual.trunk).__name__}: {fault}; give one that "
                "pools by class token, mean of patches or latent query, with no patch dropout"
            )
        self.visual, self.trunk = visual, visual.trunk
        query, prefix = self.trunk.attn_pool, self.trunk.num_prefix_tokens
        self.mlp_projects = query is not None and query.mlp is not None and not _has_projection(visual)
        self.read_prefix = prefix if getattr(self.trunk, "pool_include_prefix", True) else 0  # by the query
        token_counts = self.read_prefix > 0 if query is not None else self.trunk.global_pool == "token"
        self.copies_token = self.trunk.cls_token is not None and token_counts

    def tokens(self, image_NCHW: Tensor, regions_NKhw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What lies before the projection: of regions [N, K, C] and images [N, C]; which hold any patch."""
        tokens_NTD, grid = self._embed(image_NCHW)
        cover_NKP = coverage(regions_NKhw, *grid).flatten(2)
        tokens_NTD, regions_NKD = self._run(tokens_NTD, cover_NKP > 0, grid)
        normed_NTD = self.trunk.norm(tokens_NTD)
        image_NC = self.trunk.fc_norm(self._pooled_picture(normed_NTD))
        pooled_NKC = self._pooled(normed_NTD, self.trunk.norm(regions_NKD), cover_NKP)
        return self.trunk.fc_norm(pooled_NKC), image_NC, (cover_NKP > 0).any(2)

    def project(self, tokens_XC: Tensor) -> Tensor:
        """The tower's own projection: vectors [..., D] of tokens [..., C].

        SigLIP has none but the residual MLP behind its query.
        """
        if self.mlp_projects:
            pool = self.trunk.attn_pool
            tokens_XC = tokens_XC + pool.mlp(pool.norm(tokens_XC))
        vectors_XD: Tensor = self.visual.head(self.trunk.head(self.trunk.head_drop(tokens_XC)))
        return vectors_XD

    def dense(self, image_NCHW: Tensor) -> Tensor:
        """Patch tokens [N, D, h, w] after the last block and the norm behind it."""
        tokens_NTD, grid = self._embed(image_NCHW)
        tokens_NTD, _ = self._run(tokens_NTD, tokens_NTD.new_zeros(len(tokens_NTD), 0, 0), grid)
        patches_NPD: Tensor = self.trunk.norm(tokens_NTD)[:, self.trunk.num_prefix_tokens :]
        return patches_NPD.mT.reshape(len(patches_NPD), -1, *grid)

    def head(self) -> list[nn.Parameter]:
        """The projection: open_clip's, or else the trunk's own classifier or the MLP in their place."""
        if self.mlp_projects:
            pool = self.trunk.attn_pool
            return [*pool.norm.parameters(), *pool.mlp.parameters()]
        return projection_of(self.visual)

    def last(self, count: int) -> list[nn.Parameter]:
        """The last blocks and what follows them.

        Raises:
            ValueError: for more blocks than there are.
        """
        blocks = last_of(self.trunk.blocks, count, "blocks")
        behind = (
            self.trunk.norm,
            self.trunk.attn_pool,
            self.trunk.fc_norm,
            self.trunk.head,
            self.visual.head,
        )
        parts = [*blocks, *(part for part in behind if part is not None)]
        return [parameter for part in parts for parameter in part.parameters()]

    def projections(self) -> list[nn.Parameter]:
        """The query, key, value and output projections of all blocks."""
        return [parameter for block in self.trunk.blocks for parameter in block.attn.parameters()]

    def _embed(self, image_NCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens [N, T, D] as they enter the first block, class token and registers first; the grid."""
        trunk, embed = self.trunk, self.trunk.patch_embed
        if tuple(image_NCHW.shape[2:]) != tuple(embed.img_size):  # its own size may leave a border out
            require_whole_patches(image_NCHW, embed.feat_ratio(), embed.feat_ratio())
        found = embed.backbone(image_NCHW) if hasattr(embed, "backbone") else image_NCHW
        maps_NDhw: Tensor = embed.proj(found[-1] if isinstance(found, list | tuple) else found)
        grid = (maps_NDhw.shape[2], maps_NDhw.shape[3])
        patches_NPD = getattr(embed, "norm", nn.Identity())(maps_NDhw.flatten(2).mT)
        places_TD = self._positions(grid)
        if trunk.no_embed_class:
            tokens_NTD = self._behind_prefix(patches_NPD + places_TD)
        else:
            tokens_NTD = self._behind_prefix(patches_NPD) + places_TD
        return trunk.norm_pre(trunk.pos_drop(tokens_NTD)), grid

    def _behind_prefix(self, patches_NPD: Tensor) -> Tensor:
        """Class token, registers and patches, [N, T, D]; patches alone stay as they lie in memory."""
        prefix = [token for token in (self.trunk.cls_token, self.trunk.reg_token) if token is not None]
        first = [token.expand(len(patches_NPD), -1, -1) for token in prefix]
        return torch.cat([*first, patches_NPD], 1) if first else patches_NPD

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings of the tokens that have some; 0 where no token has."""
        learnt_1TD = self.trunk.pos_embed
        if learnt_1TD is None:
            return torch.zeros((), device=next(self.trunk.parameters()).device)
        return positions_on(learnt_1TD[0], self.trunk.patch_embed.grid_size, grid)

    def _rotations(self, grid: tuple[int, int], regions: int) -> Tensor | None:
        """Rotary positions of patches, sines beside cosines; region tokens behind them are not turned."""
        if (rope := getattr(self.trunk, "rope", None)) is None:
            return None
        if grid != tuple(self.trunk.patch_embed.grid_size):
            rope = copy.deepcopy(rope)  # the tower's own stays as it is
            rope.update_feat_shape(list(grid))
        turns_PR: Tensor = rope.get_embed()
        half = turns_PR.shape[-1] // 2
        still_KR = torch.cat([turns_PR.new_zeros(regions, half), turns_PR.new_ones(regions, half)], -1)
        return torch.cat([turns_PR, still_KR])

    def _run(self, tokens_NTD: Tensor, inside_NKP: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Tokens and region tokens [N, K, D] after the last block; K is 0 where no class token counts."""
        inside_NKP = inside_NKP if self.copies_token else inside_NKP[:, :0]
        count, regions = tokens_NTD.shape[1], inside_NKP.shape[1]
        given: dict[str, Any] = {}
        if regions:
            given["attn_mask"] = _added(_visible(inside_NKP, self.trunk.num_prefix_tokens), tokens_NTD)
        if (turns := self._rotations(grid, regions)) is not None:
            given["rope"] = turns
        both_NSD = tokens_NTD
        if regions:
            both_NSD = torch.cat([tokens_NTD, tokens_NTD[:, :1].expand(-1, regions, -1)], 1)
        for block in self.trunk.blocks:
            step = partial(block, **given)
            again = self.trunk.grad_checkpointing
            both_NSD = checkpoint(step, both_NSD, use_reentrant=False) if again else step(both_NSD)
        return both_NSD[:, :count], both_NSD[:, count:]

    def _pooled_picture(self, tokens_NTD: Tensor) -> Tensor:
        """As the tower does: [N, C]."""
        if self.trunk.attn_pool is None:
            pooled_NC: Tensor = self.trunk.pool(tokens_NTD)
            return pooled_NC
        return self._read(tokens_NTD[:, self.trunk.num_prefix_tokens - self.read_prefix :])[:, 0]

    def _pooled(self, tokens_NTD: Tensor, regions_NKD: Tensor, cover_NKP: Tensor) -> Tensor:
        """Regions as the tower pools its picture: [N, K, C]."""
        patches_NPD = tokens_NTD[:, self.trunk.num_prefix_tokens :]
        if self.trunk.attn_pool is not None:
            return self._queried(tokens_NTD, regions_NKD, cover_NKP > 0)
        if self.trunk.global_pool == "avg":
            return mean_inside(patches_NPD, cover_NKP)
        return regions_NKD

    def _queried(self, tokens_NTD: Tensor, regions_NKD: Tensor, inside_NKP: Tensor) -> Tensor:
        """What the latent query reads of each region; of one that holds no patch, what it reads of all."""
        seen_NKP = inside_NKP | ~inside_NKP.any(2, keepdim=True)
        if not self.read_prefix:
            return self._read(tokens_NTD[:, self.trunk.num_prefix_tokens :], seen_NKP)
        copied = int(self.copies_token)  # registers are read as they are
        others_NTD = tokens_NTD[:, copied:]
        registers = self.read_prefix - copied
        seen_NKT = functional.pad(seen_NKP, (registers, 0), value=True)
        if not copied:
            return self._read(others_NTD, seen_NKT)
        return self._read(torch.cat([regions_NKD, others_NTD], 1), itself_and_inside(seen_NKT))

    def _read(self, keys_NTD: Tensor, seen_NKT: Tensor | None = None) -> Tensor:
        """What the latent query reads of all tokens, [N, 1, C], or of those that each region sees, [N, K, C].

        timm's own operations, with keys and values made once for all regions. The MLP behind them is left to
        the projection where there is no other.
        """
        pool = self.trunk.attn_pool
        latent_N1C = pool.q(pool.latent.expand(len(keys_NTD), -1, -1))
        query_NH1E = pool.q_norm(latent_N1C.unflatten(2, (pool.num_heads, -1)).transpose(1, 2))
        key_NHTE, value_NHTE = pool.kv(keys_NTD).unflatten(2, (2, pool.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None
        if seen_NKT is not None:
            query_NH1E, mask = query_NH1E.expand(-1, -1, seen_NKT.shape[1], -1), seen_NKT[:, None]
        read_NHKE = functional.scaled_dot_product_attention(
            query_NH1E, pool.k_norm(key_NHTE), value_NHTE, mask
        )
        read_NKC: Tensor = pool.proj_drop(pool.proj(read_NHKE.transpose(1, 2).flatten(2)))
        if pool.mlp is not None and not self.mlp_projects:
            read_NKC = read_NKC + pool.mlp(pool.norm(read_NKC))
        return read_NKC


def _has_projection(visual: TimmTower) -> bool:
    return any(True for part in (visual.trunk.head, visual.head) for _ in part.parameters())


def _fault(trunk: Any) -> str:
    query, rope, pooling = trunk.attn_pool, getattr(trunk, "rope", None), trunk.global_pool
    odd_query = query is not None and getattr(query, "latent_len", 0) != 1
    odd_mean = query is None and pooling == "avg" and getattr(trunk, "pool_include_prefix", False)
    off_grid = rope is not None and getattr(rope, "feat_shape", None) is None
    drops = getattr(trunk.patch_drop, "prob", 0.0) > 0
    faults = (
        (query is None and pooling not in ("token", "avg"), f"its pooling is '{pooling}'"),
        (odd_query, f"it pools by {type(query).__name__}, and not by one latent query"),
        (odd_mean, "its mean is of other tokens than patches, too"),
        (getattr(trunk, "rope_mixed", False), "its rotary positions differ from block to block"),
        (off_grid, "its rotary positions belong to no grid"),
        (getattr(trunk, "dist_token", None) is not None, "it has two class tokens"),
        (drops, "it drops patches while it trains (force_patch_dropout=0 leaves them)"),
    )
    return next((fault for there, fault in faults if there), "")


def _added(visible: Tensor, tokens: Tensor) -> Tensor:
    """A mask as what is added to logits, in the type they have, made once for all blocks."""
    device = tokens.device.type
    lowered = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if lowered else tokens.dtype
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, -torch.inf)


def _visible(inside_NKP: Tensor, prefix: int) -> Tensor:
    """Which token may see which: bool [N, 1, T + K, T + K], T = prefix + P; the class token is the first."""
    images, regions, patches = inside_NKP.shape
    own_NKS = torch.cat(
        [
            inside_NKP.new_zeros(images, regions, 1),  # the class token speaks of the whole picture
            inside_NKP.new_ones(images, regions, prefix - 1),
            inside_NKP,
            torch.eye(regions, dtype=torch.bool, device=inside_NKP.device).expand(images, -1, -1),
        ],
        2,
    )
    tokens_NTS = inside_NKP.new_ones(images, prefix + patches, prefix + patches + regions)
    tokens_NTS[..., prefix + patches :] = False
    return torch.cat([tokens_NTS, own_NKS], 1)[:, None]
