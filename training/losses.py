"""Contrastive losses between images and their texts, and between nouns and regions.

All vectors have unit length, and `scale` is the inverse temperature. A batch without a single term
(no valid text, no noun) has loss 0. Compute them outside autocast, in float32: at a scale of 100
neighbouring bfloat16 logits lie 0.5 apart.
"""

import torch
from torch import Tensor
from torch.nn import functional


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
) -> Tensor:
    """One-way contrast: every noun finds its image by the image's best region.

    S(n, j) = max_r t_n·v_{j,r}, and L is the mean over nouns of −log softmax_j(scale·S(n, ·)) at
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

    Returns:
        Scalar, in nats.
    """
    located_P = region_valid_NK.any(dim=1)[owner_P]
    owner_P, carries_PN = owner_P[located_P], carries_PN[located_P]
    logits_PNK = scale * torch.einsum("pd,nkd->pnk", noun_PD[located_P], region_NKD)
    best_PN = logits_PNK.masked_fill(~region_valid_NK, -torch.inf).amax(dim=2)
    images_N = torch.arange(len(region_NKD), device=owner_P.device)
    also_named_PN = carries_PN & (images_N != owner_P[:, None])
    logits_PN = best_PN.masked_fill(also_named_PN, -torch.inf)
    losses_P = functional.cross_entropy(logits_PN, owner_P, reduction="none")
    if weights_P is None:
        return _mean(losses_P)
    weights_P = weights_P[located_P]
    return (weights_P * losses_P).sum() / weights_P.sum().clamp_min(torch.finfo(torch.float).tiny)


def _mean(terms: Tensor) -> Tensor:
    """The mean, and 0 of nothing."""
    return terms.sum() / max(terms.numel(), 1)
