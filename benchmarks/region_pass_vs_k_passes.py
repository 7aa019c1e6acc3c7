"""Naming the regions of an image: region tokens in one masked pass, against one masked pass per region.

The peer is a plain reading of masked attention: for each region a forward pass of the same tower, whose class
token may attend to the patches of that region only. Both sides take the same images and masks, in turn.
One case has open_clip's own transformer, the other one of timm's, to whose tokens regions' are appended.
Run: ``python -m benchmarks.region_pass_vs_k_passes``.
"""

import json
import statistics
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import products_per_second, seconds
from curation.openclip import new_model
from training.grouping import coverage, masks
from training.regions import RegionEncoder, Regions

REGIONS, ROUNDS = 8, 3


def cases() -> list[dict[str, Any]]:
    """Both transformers."""
    return [measure(), measure(case="region_pass_vs_k_passes_timm", model="EVA02-B-16")]


@torch.inference_mode()
def measure(
    *, case: str = "region_pass_vs_k_passes", model: str = "ViT-B-16", images: int = 2
) -> dict[str, Any]:
    """Images per second of both sides, their ratio, and the machine's limit."""
    torch.manual_seed(0)
    network: Any = new_model(model)
    visual = network.visual.eval()
    encoder = RegionEncoder(visual).eval()
    size = visual.image_size[0]
    image_NCHW = torch.randn(images, 3, size, size)
    regions_NKhw = masks(blobs(images, *grid_of(visual)), REGIONS)
    masked_pass = _masked_trunk if hasattr(visual, "trunk") else _masked_pass

    def ours() -> Tensor:
        found: Regions = encoder(image_NCHW, regions_NKhw)
        return found.region_NKD

    def peer() -> Tensor:
        return torch.stack([masked_pass(visual, image_NCHW, r) for r in regions_NKhw.unbind(1)], 1)

    ours(), peer()
    times = [(seconds(ours), seconds(peer)) for _ in range(ROUNDS)]
    fast, slow = (images / statistics.median(side) for side in zip(*times, strict=True))
    limit = statistics.median(products_per_second() for _ in range(ROUNDS)) / operations(visual)
    cosine = torch.cosine_similarity(ours(), peer(), dim=-1).mean()
    return {
        "case": case,
        "ours": fast,
        "peer": slow,
        "unit": "images/s",
        "ratio": statistics.median(theirs / mine for mine, theirs in times),
        "limit": limit,
        "limit_share": fast / limit,
        "note": f"{model} with random weights, {images} images of {size} px, {REGIONS} regions each; the "
        f"regions' vectors have a mean cosine of {cosine:.4f}; limit: the tower's own products at the rate "
        "of sgemm",
    }


def blobs(images: int, height: int, width: int) -> Tensor:
    """Label maps [N, h, w]: cells go to the nearest of as many random places as there are regions."""
    places_NK2 = torch.rand(images, REGIONS, 2) * torch.tensor([height, width])
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    cells_P2 = torch.stack([rows, columns], -1).reshape(1, -1, 2).float().expand(images, -1, -1)
    return torch.cdist(cells_P2, places_NK2).argmin(2).reshape(images, height, width)


def _masked_pass(visual: Any, image_NCHW: Tensor, region_Nhw: Tensor) -> Tensor:
    """The image vector [N, D] by the tower's own blocks, its class token kept to one region."""
    patches_NPD = visual.conv1(image_NCHW).flatten(2).mT
    class_N1D = visual.class_embedding.expand(len(patches_NPD), 1, -1)
    tokens_NTD = visual.ln_pre(torch.cat([class_N1D, patches_NPD], 1) + visual.positional_embedding)
    inside_NP = coverage(region_Nhw[:, None], *visual.grid_size)[:, 0].flatten(1) > 0
    hidden_NTT = torch.zeros(*tokens_NTD.shape[:2], tokens_NTD.shape[1], dtype=torch.bool)
    hidden_NTT[:, 0, 1:] = ~inside_NP  # patches see all, the class token as well: only it is masked
    heads = visual.transformer.resblocks[0].attn.num_heads
    bias = torch.zeros(hidden_NTT.shape).masked_fill_(hidden_NTT, -torch.inf).repeat_interleave(heads, 0)
    for block in visual.transformer.resblocks:
        tokens_NTD = block(tokens_NTD, attn_mask=bias)
    vector_ND: Tensor = visual.ln_post(tokens_NTD[:, 0]) @ visual.proj
    return vector_ND


def _masked_trunk(visual: Any, image_NCHW: Tensor, region_Nhw: Tensor) -> Tensor:
    """The same of a transformer of timm's with rotary positions."""
    trunk = visual.trunk
    tokens_NTD, turns = trunk._pos_embed(trunk.patch_embed(image_NCHW))  # noqa: SLF001
    inside_NP = coverage(region_Nhw[:, None], *grid_of(visual))[:, 0].flatten(1) > 0
    seen_NTT = torch.ones(*tokens_NTD.shape[:2], tokens_NTD.shape[1], dtype=torch.bool)
    seen_NTT[:, 0, 1:] = inside_NP
    tokens_NTD = trunk.norm_pre(tokens_NTD)
    for block in trunk.blocks:
        tokens_NTD = block(tokens_NTD, rope=turns, attn_mask=seen_NTT[:, None])
    vector_ND: Tensor = visual.head(trunk.forward_head(trunk.norm(tokens_NTD)))
    return vector_ND


def grid_of(visual: Any) -> tuple[int, int]:
    """Rows and columns of its patches."""
    grid = visual.trunk.patch_embed.grid_size if hasattr(visual, "trunk") else visual.grid_size
    return int(grid[0]), int(grid[1])


def operations(visual: Any) -> float:
    """Floating-point operations of the tower on one image: weights times tokens, and attention."""
    height, width = grid_of(visual)
    trunk = getattr(visual, "trunk", None)
    blocks, patches = (
        (trunk.blocks, trunk.patch_embed.proj) if trunk else (visual.transformer.resblocks, visual.conv1)
    )
    weights = sum(p.numel() for p in blocks.parameters() if p.ndim == 2) + patches.weight.numel()
    tokens, channels = 1 + height * width, patches.out_channels
    return float(2 * tokens * (weights + 2 * len(blocks) * tokens * channels))


if __name__ == "__main__":
    print(json.dumps(cases(), indent=1))
