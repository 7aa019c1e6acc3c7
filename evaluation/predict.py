"""Labels for a whole picture from a segmenter that sees windows of it."""

import typing

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from evaluation.protocols import Protocol

Box = tuple[int, int, int, int]  # top, left, bottom, right


class Segmenter(typing.Protocol):
    """Scores windows; normalises pixels itself."""

    def __call__(self, window_NCHW: Tensor, /) -> Tensor:
        """Scores of every label.

        Args:
            window_NCHW: float32 RGB in [0, 1].

        Returns:
            [N, labels, h, w] at the windows' resolution or a coarser one. Labels are the
            benchmark's: background first where there is one.
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
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3:
        raise ValueError(f"an image of {image_HWC.dtype} {image_HWC.shape}; give RGB pixels, uint8 [H, W, 3]")
    height, width = image_HWC.shape[:2]
    resized_HWC = resize(image_HWC, protocol.short_side, protocol.long_side)
    pixels_HWC = torch.from_numpy(resized_HWC).to(device)
    image_CHW = pixels_HWC.permute(2, 0, 1).float() / 255
    with torch.inference_mode():
        scores_1CHW = slide(segmenter, image_CHW, protocol.window, protocol.stride)[None]
        scores_1CHW = _upsample(scores_1CHW, (height, width))
        return scores_1CHW[0].argmax(dim=0).to(torch.uint8).cpu().numpy()


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


def slide(segmenter: Segmenter, image_CHW: Tensor, window: int, stride: int) -> Tensor:
    """Scores [labels, H, W] of a picture: mean over the windows that see a pixel.

    The windows of a picture go through the segmenter as one batch.
    """
    height, width = image_CHW.shape[-2:]
    boxes = window_boxes(height, width, window, stride)
    crops_NCHW = torch.stack([image_CHW[:, t:b, x:r] for t, x, b, r in boxes])
    scores_NCHW = _upsample(_checked(segmenter(crops_NCHW), len(boxes)), crops_NCHW.shape[-2:])
    total_CHW = scores_NCHW.new_zeros((scores_NCHW.shape[1], height, width))
    seen_HW = scores_NCHW.new_zeros((height, width))
    for (top, left, bottom, right), score_CHW in zip(boxes, scores_NCHW, strict=True):
        total_CHW[:, top:bottom, left:right] += score_CHW
        seen_HW[top:bottom, left:right] += 1
    return total_CHW / seen_HW


def _checked(scores_NCHW: Tensor, windows: int) -> Tensor:
    if scores_NCHW.ndim != 4 or scores_NCHW.shape[0] != windows:
        raise ValueError(
            f"the segmenter returned scores of shape {tuple(scores_NCHW.shape)} for {windows} windows; "
            "it must return [windows, labels, height, width]"
        )
    if bool(scores_NCHW.isnan().any()):
        raise ValueError("the segmenter returned NaN; a label would be a guess. Check its weights")
    return scores_NCHW.float()


def _upsample(scores_NCHW: Tensor, size: typing.Sequence[int]) -> Tensor:
    if tuple(scores_NCHW.shape[-2:]) == tuple(size):
        return scores_NCHW
    return interpolate(scores_NCHW, size=list(size), mode="bilinear", align_corners=False)
