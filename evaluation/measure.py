"""Runs a labeller over pictures. A bad picture is rejected with its reason, never the whole run."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.labelled import IGNORE, LabelledImage, RejectedImage, Rejection, UInt8Array
from evaluation.metrics import Counts, confusion_counts

Labeller = Callable[[UInt8Array], NDArray[np.uint8]]  # image [H, W, 3] -> labels [H, W]


@dataclass(frozen=True)
class Measurement:
    """Counts of some pictures; those of disjoint sets of pictures add up."""

    confusion: Counts  # [C, C]
    measured: int  # pictures
    rejected: tuple[Rejection, ...] = ()

    def __add__(self, other: "Measurement") -> "Measurement":
        return Measurement(
            self.confusion + other.confusion,
            self.measured + other.measured,
            self.rejected + other.rejected,
        )


def measure(images: Iterable[LabelledImage], num_labels: int, labeller: Labeller) -> Measurement:
    """Confusion counts of a labeller, for example ``predict`` with its segmenter and protocol bound.

    Args:
        images: a benchmark's, or some of them.
        num_labels: of the benchmark, background included.
        labeller: labels a picture at its own size.

    Raises:
        ValueError: if the labeller returns labels of another size or range; its faults are not the
            picture's.
    """
    total = Measurement(np.zeros((num_labels, num_labels), np.int64), 0)
    for image in images:
        total = total + _measure_one(image, num_labels, labeller)
    return total


def _measure_one(image: LabelledImage, num_labels: int, labeller: Labeller) -> Measurement:
    try:
        image_HWC, truth_HW = _load(image, num_labels)
    except RejectedImage as error:
        rejection = Rejection(image.image_id, error.reason, error.detail)
        return Measurement(np.zeros((num_labels, num_labels), np.int64), 0, (rejection,))
    return Measurement(confusion_counts(truth_HW, labeller(image_HWC), num_labels), 1)


def _load(image: LabelledImage, num_labels: int) -> tuple[UInt8Array, UInt8Array]:
    image_HWC, truth_HW = image.load_image(), image.load_mask()
    if image_HWC.shape[:2] != truth_HW.shape:
        raise RejectedImage(
            "mask_size",
            f"{image.mask} is {truth_HW.shape}, its picture {image_HWC.shape[:2]}; draw it again",
        )
    highest = int(truth_HW[truth_HW != IGNORE].max(initial=0))
    if highest >= num_labels:
        raise RejectedImage(
            "mask_label",
            f"{image.mask} holds label {highest}; allowed are 0 to {num_labels - 1} and {IGNORE}",
        )
    return image_HWC, truth_HW
