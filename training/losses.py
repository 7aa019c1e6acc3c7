"""Contrastive losses between images and their texts, and between nouns and regions.

All vectors have unit length, and `scale` is the inverse temperature. A batch without a single term
(no valid text, no noun) has loss 0. Compute them outside autocast, in float32: at a scale of 100
neighbouring bfloat16 logits lie 0.5 apart.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Pooling = Literal["max", "softmax"]  # of the regions of an image


def caption_contrast(image_ND: Tensor, text_ND: Tensor, scale: Tensor | float) -> Tensor:
    """Symmetric InfoNCE: each image finds its caption and each caption its image (CLIP, 2021).

    Args:
        image_ND: unit vectors of N images.
        text_ND: unit vectors of their captions, in the same order.
        scale: inverse temperature.

    Returns:
        Scalar: the mean of both directions' mean cross entropies, in nats.
    """
    logits_NN = scale * image_ND @ text_ND.T
    own_N = torch.arange(len(logits_NN), device=logits_NN.device)
    image_to_text = functional.cross_entropy(logits_NN, own_N)
    text_to_image = functional.cross_entropy(logits_NN.T, own_N)
    return (image_to_text + text_to_image) / 2


def multi_label_contrast(
    image_ND: Tensor, text_NMD: Tensor, valid_NM: Tensor, scale: Tensor | float
) -> Tensor:
    """Contrast of images with several texts each (GroupViT's multi-label contrastive loss).

    An image spreads its probability evenly over its own valid texts among all valid texts of the
    batch; every valid text finds its image. Images without a valid text take no part, not even as
    negatives.

    Args:
        image_ND: unit vectors of N images.
        text_NMD: unit vectors of M texts an image.
        valid_NM: bool, which of them count.
        scale: inverse temperature.

    Returns:
        Scalar: the mean of both directions' mean cross entropies, in nats.
    """
    labelled_N = valid_NM.any(dim=1)
    owners_T = (labelled_N.cumsum(0) - 1)[valid_NM.nonzero()[:, 0]]
    logits_IT = scale * image_ND[labelled_N] @ text_NMD[valid_NM].T
    images_I = torch.arange(len(logits_IT), device=logits_IT.device)
    own_IT = images_I[:, None] == owners_T
    shares_IT = own_IT / own_IT.sum(dim=1, keepdim=True)
    image_to_text_I = -(shares_IT * logits_IT.log_softmax(dim=1)).sum(dim=1)
    text_to_image_T = functional.cross_entropy(logits_IT.T, owners_T, reduction="none")
    return (_mean(image_to_text_I) + _mean(text_to_image_T)) / 2


def noun_to_region(
    region_NKD: Tensor,
    region_valid_NK: Tensor,
    noun_PD: Tensor,
    *,
    owner_P: Tensor,
    carries_PN: Tensor,
    scale: Tensor | float,
    weights_P: Tensor | None = None,
    pooling: Pooling = "max",
    both_ways: bool = False,
) -> Tensor:
    """One-way contrast: every noun finds its image by the image's regions.

    With S(n, j) = max_r t_n·v_{j,r}, L is the mean over nouns of −log softmax_j(scale·S(n, ·)) at
    the noun's own image. Other images that carry the same noun are left out of the denominator.
    There is no region-to-noun term, because a region that nobody named has no positive
    (Zhang et al., 2023).

    Args:
        region_NKD: unit vectors of K regions in each of N images.
        region_valid_NK: bool, which regions exist. An image without any is no candidate, and its
            nouns take no part.
        noun_PD: unit vectors of P noun instances.
        owner_P: int64, the image whose noun it is.
        carries_PN: bool, whether image j carries noun p; the owner counts in either case.
        scale: inverse temperature.
        weights_P: non-negative weights of the nouns in the mean; equal when absent.
        pooling: S of an image from its regions: the best one, or the mean by softmax_r(scale·t_n·v_r),
            which gives the second best a gradient too.
        both_ways: adds the other way, for comparison: every image spreads its probability evenly over
            its own nouns among all of the batch. The loss is then the mean of both.

    Returns:
        Scalar, in nats.
    """
    located_P = region_valid_NK.any(dim=1)[owner_P]
    owner_P, carries_PN = owner_P[located_P], carries_PN[located_P]
    pooled_PN = _pooled(region_NKD, region_valid_NK, noun_PD[located_P], scale, pooling)
    own_PN = torch.arange(len(region_NKD), device=owner_P.device) == owner_P[:, None]
    logits_PN = pooled_PN.masked_fill(carries_PN & ~own_PN, -torch.inf)
    losses_P = functional.cross_entropy(logits_PN, owner_P, reduction="none")
    one_way = _mean(losses_P) if weights_P is None else _weighted_mean(losses_P, weights_P[located_P])
    return (one_way + _image_to_nouns(logits_PN, own_PN)) / 2 if both_ways else one_way


def _pooled(
    region_NKD: Tensor, valid_NK: Tensor, noun_PD: Tensor, scale: Tensor | float, pooling: Pooling
) -> Tensor:
    """Logits of every noun for every image, [P, N]; −inf for images without regions."""
    logits_PNK = scale * torch.einsum("pd,nkd->pnk", noun_PD, region_NKD)
    best_PN = logits_PNK.masked_fill(~valid_NK, -torch.inf).amax(dim=2)
    if pooling == "max":
        return best_PN
    present_N = valid_NK.any(dim=1)
    shares_PNK = logits_PNK.masked_fill(~valid_NK & present_N[:, None], -torch.inf).softmax(dim=2)
    return (shares_PNK * logits_PNK).sum(dim=2).masked_fill(~present_N, -torch.inf)


def _image_to_nouns(logits_PN: Tensor, own_PN: Tensor) -> Tensor:
    named_N = own_PN.any(dim=0)
    logits_PI, own_PI = logits_PN[:, named_N], own_PN[:, named_N]
    chosen_PI = logits_PI.log_softmax(dim=0).where(own_PI, 0)
    return -_mean(chosen_PI.sum(dim=0) / own_PI.sum(dim=0))


def _mean(terms: Tensor) -> Tensor:
    """The mean, and 0 of nothing."""
    return terms.sum() / max(terms.numel(), 1)


def _weighted_mean(terms: Tensor, weights: Tensor) -> Tensor:
    return (weights * terms).sum() / weights.sum().clamp_min(torch.finfo(torch.float).tiny)
