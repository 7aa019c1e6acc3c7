"""Labels for a whole picture from a segmenter that sees windows of it."""

import typing
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from evaluation.protocols import Protocol
from training.naming import RegionScores

CHUNK = 1 << 16  # pixels whose scores of all labels are made at a time

Box = tuple[int, int, int, int]  # top, left, bottom, right


class Segmenter(typing.Protocol):
    """Scores the windows of a picture; normalises pixels itself."""

    def __call__(self, window_NCHW: Tensor, picture_CHW: Tensor, /) -> Tensor | RegionScores:
        """Scores of every label.

        Args:
            window_NCHW: all windows of one picture, float32 RGB in [0, 1].
            picture_CHW: what they were cut from.

        Returns:
            [N, labels, h, w] at the windows' resolution or a coarser one, or regions on such a grid with
            their scores [N, K, labels]. Labels are the benchmark's: background first where there is one.
        """
        ...


def predict(
    segmenter: Segmenter,
    image_HWC: NDArray[np.uint8],
    protocol: Protocol,
    device: torch.device | str = "cpu",
) -> NDArray[np.uint8]:
    """Labels of a picture: resize, slide, average, resize back, arg max.

    Steps and roundings are those of mmsegmentation's sliding-window inference.

    Args:
        segmenter: scores windows.
        image_HWC: RGB pixels.
        protocol: sizes of picture and windows.
        device: where the segmenter lives.

    Returns:
        uint8 [H, W], indices into the benchmark's labels.

    Raises:
        ValueError: for another array than uint8 [H, W, 3], or scores that are no [N, C, h, w] or NaN.
    """
    return score_picture(segmenter, image_HWC, protocol, device).labels()


@dataclass(frozen=True)
class PictureScores:
    """Scores of every pixel of a picture, as they are or in two factors."""

    planes_PHW: Tensor  # of the labels; or the share of each region of each window, 0 outside of it
    score_PC: Tensor | None = None  # then the scores of those regions
    border_P: Tensor | None = None  # and their parts in the picture's border, see `border_parts`
    border_weight: float = 0.0  # of these, for the first label

    @torch.inference_mode()
    def labels(self) -> NDArray[np.uint8]:
        """The best label of every pixel: [H, W]."""
        if self.score_PC is None:
            return self.planes_PHW.argmax(dim=0).to(torch.uint8).cpu().numpy()
        score_PC = self.score_PC.clone()
        if self.border_P is not None:
            score_PC[:, 0] += self.border_weight * self.border_P
        chunks = torch.split(self.planes_PHW.flatten(1), CHUNK, dim=1)
        labels_X = torch.cat([(chunk_PX.T @ score_PC).argmax(dim=1) for chunk_PX in chunks])
        return labels_X.reshape(self.planes_PHW.shape[1:]).to(torch.uint8).cpu().numpy()


@torch.inference_mode()
def score_picture(
    segmenter: Segmenter, image_HWC: NDArray[np.uint8], protocol: Protocol, device: torch.device | str = "cpu"
) -> PictureScores:
    """The scores that `predict` takes the best of, at the picture's own size; else as there."""
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3:
        raise ValueError(f"an image of {image_HWC.dtype} {image_HWC.shape}; give RGB pixels, uint8 [H, W, 3]")
    resized_HWC = resize(image_HWC, protocol.short_side, protocol.long_side)
    image_CHW = torch.from_numpy(resized_HWC).to(device).permute(2, 0, 1).float() / 255
    found = slide(segmenter, image_CHW, protocol.window, protocol.stride)
    return replace(found, planes_PHW=_upsample(found.planes_PHW[None], image_HWC.shape[:2])[0])


def resize(image_HWC: NDArray[np.uint8], short_side: int, long_side: int) -> NDArray[np.uint8]:
    """Bilinear, aspect kept: as large as fits both the short and the long side's pixels."""
    height, width = image_HWC.shape[:2]
    scale = min(long_side / max(height, width), short_side / min(height, width))
    size = max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))
    return np.asarray(cv2.resize(image_HWC, size, interpolation=cv2.INTER_LINEAR), np.uint8)


def window_boxes(height: int, width: int, window: int, stride: int) -> list[Box]:
    """Windows that cover a picture, row by row.

    All have the same size: ``window``, or the picture's where that is smaller. The last window of a
    row or column is shifted back inside.
    """
    rows, columns = _starts(height, window, stride), _starts(width, window, stride)
    tall, wide = min(window, height), min(window, width)
    return [(top, left, top + tall, left + wide) for top in rows for left in columns]


def _starts(length: int, window: int, stride: int) -> list[int]:
    last = max(length - window, 0)
    steps = -(-last // stride)  # rounded up: the end is covered too
    return [min(step * stride, last) for step in range(steps + 1)]


def slide(segmenter: Segmenter, image_CHW: Tensor, window: int, stride: int) -> PictureScores:
    """Scores of a picture: the mean over the windows that see a pixel.

    The windows of a picture go through the segmenter as one batch.
    """
    height, width = image_CHW.shape[-2:]
    boxes = window_boxes(height, width, window, stride)
    crops_NCHW = torch.stack([image_CHW[:, t:b, x:r] for t, x, b, r in boxes])
    found = _checked(segmenter(crops_NCHW, image_CHW), len(boxes))
    if isinstance(found, Tensor):
        return PictureScores(_laid_out(found, boxes, height, width, together=True))
    planes_PHW = _laid_out(found.masks_NKhw, boxes, height, width, together=False)
    border_P = border_parts(found.masks_NKhw, boxes, height, width).flatten()
    return PictureScores(planes_PHW, found.scores_NKC.flatten(0, 1), border_P, found.border_weight)


def border_parts(masks_NKhw: Tensor, boxes: typing.Sequence[Box], height: int, width: int) -> Tensor:
    """How much of the picture's border regions have, for their size: background has more of it than things.

    Length of the border over the root of the area (boundary connectivity; Zhu et al., *Saliency optimization
    from robust background detection*, CVPR 2014), less the mean of the picture's regions, by their spread.

    Args:
        masks_NKhw: shares of K regions in each of N windows.
        boxes: where the windows lie; an edge counts where it is one of the picture.
        height: of the picture.
        width: of the picture.

    Returns:
        [N, K]; 0 for regions that are not there.
    """
    box_N4 = torch.tensor(boxes, device=masks_NKhw.device)
    at_edge_N4 = box_N4 == torch.tensor([0, 0, height, width], device=masks_NKhw.device)
    edges = masks_NKhw[..., 0, :], masks_NKhw[..., 0], masks_NKhw[..., -1, :], masks_NKhw[..., -1]
    length_NK4 = torch.stack([edge_NKx.mean(dim=-1) for edge_NKx in edges], dim=-1)
    area_NK = masks_NKhw.mean(dim=(2, 3))
    there_NK = area_NK > 0
    part_NK = (length_NK4 * at_edge_N4[:, None]).sum(dim=-1) / area_NK.clamp_min(1e-6).sqrt()
    found = part_NK[there_NK]
    if len(found) < 2:
        return torch.zeros_like(part_NK)
    return ((part_NK - found.mean()) / found.std().clamp_min(1e-6)).masked_fill(~there_NK, 0)


def _laid_out(
    maps_NMhw: Tensor, boxes: typing.Sequence[Box], height: int, width: int, *, together: bool
) -> Tensor:
    """Maps of windows, by the number of windows that see a pixel: summed [M, H, W], or all [N·M, H, W]."""
    top, left, bottom, right = boxes[0]
    maps_NMHW = _upsample(maps_NMhw, (bottom - top, right - left))
    layers = 1 if together else len(boxes)
    laid_LMHW = maps_NMHW.new_zeros((layers, maps_NMHW.shape[1], height, width))
    seen_HW = maps_NMHW.new_zeros((height, width))
    for number, (top, left, bottom, right) in enumerate(boxes):
        laid_LMHW[0 if together else number, :, top:bottom, left:right] += maps_NMHW[number]
        seen_HW[top:bottom, left:right] += 1
    return laid_LMHW.flatten(0, 1).div_(seen_HW)


def _checked(found: Tensor | RegionScores, windows: int) -> Tensor | RegionScores:
    """What a segmenter returned, in float32."""
    if isinstance(found, RegionScores):
        _require(found.scores_NKC, 3, windows, "[windows, regions, labels]")
        _require(found.masks_NKhw, 4, windows, "[windows, regions, height, width]")
        return replace(found, masks_NKhw=found.masks_NKhw.float(), scores_NKC=found.scores_NKC.float())
    _require(found, 4, windows, "[windows, labels, height, width]")
    return found.float()


def _require(scores: Tensor, dimensions: int, windows: int, wanted: str) -> None:
    if scores.ndim != dimensions or scores.shape[0] != windows:
        raise ValueError(
            f"the segmenter returned scores of shape {tuple(scores.shape)} for {windows} windows; "
            f"it must return {wanted}"
        )
    if bool(scores.isnan().any()):
        raise ValueError("the segmenter returned NaN; a label would be a guess. Check its weights")


def _upsample(scores_NCHW: Tensor, size: typing.Sequence[int]) -> Tensor:
    if tuple(scores_NCHW.shape[-2:]) == tuple(size):
        return scores_NCHW
    return interpolate(scores_NCHW, size=list(size), mode="bilinear", align_corners=False)
