"""How GroupViT names pixels: image-level classes restrict what its groups may be called."""

import torch
from torch import Tensor
from torch.nn import functional


def group_logits(
    groups_GD: Tensor, pooled_D: Tensor, text_CD: Tensor, scale: Tensor | float, top_k: int = 5
) -> Tensor:
    """Scores every class for every group of one image (GroupViT's evaluation).

    A group's softmax over the classes that the whole image is closest to, times its softmax over
    all classes: a class must be plausible for the image and certain for the group.

    Args:
        groups_GD: the image's last groups, of any length.
        pooled_D: the image's pooled vector, of any length.
        text_CD: the classes' text vectors, of any length.
        scale: inverse temperature.
        top_k: how many classes an image may show; all of them if there are fewer.

    Returns:
        (G, C) in [0, 1]; zero for the classes that the image is not allowed.
    """
    text_CD = functional.normalize(text_CD, dim=-1)
    group_GC = scale * functional.normalize(groups_GD, dim=-1) @ text_CD.T
    image_C = scale * text_CD @ functional.normalize(pooled_D, dim=-1)
    allowed = image_C.topk(min(top_k, len(image_C))).indices
    forbidden_C = torch.ones_like(image_C, dtype=torch.bool).index_fill(0, allowed, value=False)
    restricted_GC = group_GC.masked_fill(forbidden_C, -torch.inf).softmax(dim=1)
    return restricted_GC * group_GC.softmax(dim=1)


def pixel_logits(affinity_GC: Tensor, masks_GHW: Tensor, background: float | None) -> Tensor:
    """Gives every pixel the scores of the group it belongs to most.

    Args:
        affinity_GC: `group_logits` of one image.
        masks_GHW: how strongly its pixels belong to its groups.
        background: threshold below which a pixel is background, capped by the image's best score
            so that something always remains; None for benchmarks without a background class.

    Returns:
        (C, H, W); with a threshold (1 + C, H, W), whose first channel is 1 on background, else 0.
    """
    class_CHW = affinity_GC[masks_GHW.argmax(dim=0)].permute(2, 0, 1)
    if background is None:
        return class_CHW
    threshold = affinity_GC.max().clamp(max=background)
    background_1HW = class_CHW.amax(dim=0, keepdim=True) < threshold
    return torch.cat([background_1HW.to(class_CHW.dtype), class_CHW])
