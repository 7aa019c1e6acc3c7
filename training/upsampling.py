"""Labels from a coarse grid to pixels: interpolated, or led by the edges of the image."""

import torch
from torch import Tensor
from torch.nn import functional

from training.grouping import Upsampling, masks

GRID = 56  # cells a side on which a colour's meaning is found: 8 px each at 448
REACH = 10  # cells to each side of a window's centre
RIDGE = 1e-4  # in squared units of colour: edges of less variance are blurred


def upsample(labels_Nhw: Tensor, image_NCHW: Tensor, height: int, width: int, way: Upsampling) -> Tensor:
    """The label of every pixel.

    Args:
        labels_Nhw: on any grid, from 0.
        image_NCHW: RGB in [0, 1], at any size; only "guided" looks at it.
        height: of the result, in pixels.
        width: likewise.
        way: "linear" interpolates each label's mask, "guided" lets it follow colours. The highest wins.

    Returns:
        int64 labels [N, height, width].
    """
    if tuple(labels_Nhw.shape[1:]) == (height, width):
        return labels_Nhw
    best = [  # image by image: K full-size maps of a whole batch are large
        shares(labels_Nhw[n : n + 1], image_NCHW[n : n + 1], height, width, way).argmax(1)
        for n in range(len(labels_Nhw))
    ]
    return torch.cat(best)


def shares(labels_Nhw: Tensor, image_NCHW: Tensor, height: int, width: int, way: Upsampling) -> Tensor:
    """The share that each label has in every pixel, float32 [N, K, height, width]; arguments as above.

    Shares add up to one. Those that follow colours may lie a little outside [0, 1].
    """
    scores_NKhw = masks(labels_Nhw, int(labels_Nhw.max()) + 1).float()
    if way == "linear":
        return functional.interpolate(scores_NKhw, (height, width), mode="bilinear")
    pairs = zip(scores_NKhw, image_NCHW.to(scores_NKhw.device), strict=True)
    return torch.stack([_guided(scores, image, height, width) for scores, image in pairs])


def _guided(scores_Khw: Tensor, image_CHW: Tensor, height: int, width: int) -> Tensor:
    """Scores [K, height, width] that follow the colours of the image: a guided filter of each label's mask.

    Around every place a score is explained by the colour, s ≈ a·colour + b, by ridge regression in a window
    (He, Sun and Tang, *Guided image filtering*, 2010). a and b are found on a coarse grid, interpolated, and
    applied to the pixels (He and Sun, *Fast guided filter*, 2015).
    """
    slopes_KCgg, offset_Kgg = _explained(_resized(scores_Khw, GRID, GRID), _resized(image_CHW, GRID, GRID))
    found_KHW = _resized(offset_Kgg, height, width)
    for slopes_Kgg, colour_HW in zip(slopes_KCgg.unbind(1), _resized(image_CHW, height, width), strict=True):
        found_KHW.addcmul_(_resized(slopes_Kgg, height, width), colour_HW)
    return found_KHW


def _resized(maps_Mhw: Tensor, height: int, width: int) -> Tensor:
    return functional.interpolate(maps_Mhw[None], (height, width), mode="bilinear", antialias=True)[0]


def _explained(scores_Kgg: Tensor, image_Cgg: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes [K, C, g, g] and offsets [K, g, g], each the mean over the windows that hold the cell."""
    colour_Cgg, score_Kgg = _mean(image_Cgg), _mean(scores_Kgg)
    spread_CCgg = _mean(image_Cgg[:, None] * image_Cgg) - colour_Cgg[:, None] * colour_Cgg
    joint_CKgg = _mean(image_Cgg[:, None] * scores_Kgg) - colour_Cgg[:, None] * score_Kgg
    ridge_CC = RIDGE * torch.eye(len(image_Cgg), device=image_Cgg.device)
    slopes_ggCK = torch.linalg.solve(
        spread_CCgg.permute(2, 3, 0, 1) + ridge_CC, joint_CKgg.permute(2, 3, 0, 1)
    )
    slopes_KCgg = slopes_ggCK.permute(3, 2, 0, 1)
    return _mean(slopes_KCgg), _mean(score_Kgg - (slopes_KCgg * colour_Cgg).sum(1))


def _mean(maps_Xgg: Tensor) -> Tensor:
    """Means over square windows, at the borders of what there is of them; maps [..., g, g]."""
    maps_1Mgg, window = maps_Xgg.reshape(1, -1, *maps_Xgg.shape[-2:]), 2 * REACH + 1
    maps_1Mgg = functional.avg_pool2d(maps_1Mgg, (window, 1), 1, (REACH, 0), count_include_pad=False)
    maps_1Mgg = functional.avg_pool2d(maps_1Mgg, (1, window), 1, (0, REACH), count_include_pad=False)
    return maps_1Mgg.reshape(maps_Xgg.shape)
