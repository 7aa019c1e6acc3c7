"""Intersection over union from confusion counts: count per picture, add, divide once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.labelled import IGNORE

Counts = NDArray[np.int64]  # [C, C]: rows are the true labels, columns the predicted ones


def confusion_counts(truth_HW: NDArray[np.uint8], label_HW: NDArray[np.uint8], num_labels: int) -> Counts:
    """Pixels of one picture by true and by predicted label; true label 255 is ignored.

    Raises:
        ValueError: if the sizes differ or a label is not below ``num_labels``.
    """
    if truth_HW.shape != label_HW.shape:
        raise ValueError(f"labels {label_HW.shape} for truth {truth_HW.shape}; predict at the mask's size")
    counted = truth_HW != IGNORE
    truth_N, label_N = truth_HW[counted].astype(np.int64), label_HW[counted].astype(np.int64)
    for name, labels_N in (("true", truth_N), ("predicted", label_N)):
        if labels_N.size and not 0 <= labels_N.min() <= labels_N.max() < num_labels:
            raise ValueError(
                f"{name} labels {labels_N.min()} to {labels_N.max()}; allowed are 0 to "
                f"{num_labels - 1}, and {IGNORE} in the truth. Check the benchmark's class list"
            )
    pairs = np.bincount(truth_N * num_labels + label_N, minlength=num_labels**2)
    return pairs.reshape(num_labels, num_labels).astype(np.int64)


def iou(confusion_CC: Counts) -> NDArray[np.float64]:
    """Intersection over union, float64 [C]; NaN where a label is neither true nor predicted."""
    hit_C = confusion_CC.diagonal().astype(np.float64)
    union_C = confusion_CC.sum(0) + confusion_CC.sum(1) - hit_C
    undefined_C = np.full(len(hit_C), np.nan)
    return np.asarray(np.divide(hit_C, union_C, out=undefined_C, where=union_C > 0))


def summary(confusion_CC: Counts) -> dict[str, float]:
    """Scores of a run, in [0, 1].

    ``miou`` is mmsegmentation's: the mean over labels that are true or predicted anywhere, so a
    label that is only ever predicted counts as 0. ``miou_present`` is the mean over labels that are
    true somewhere, for subsets in which classes are absent.

    Raises:
        ValueError: if nothing was counted.
    """
    pixels = int(confusion_CC.sum())
    if pixels == 0:
        raise ValueError("no pixel was counted; every picture was rejected or is all ignored")
    iou_C, present_C = iou(confusion_CC), confusion_CC.sum(1) > 0
    return {
        "miou": float(np.nanmean(iou_C)),
        "miou_present": float(iou_C[present_C].mean()),
        "pixel_accuracy": float(confusion_CC.trace() / pixels),
        "labels": float(len(iou_C)),
        "labels_present": float(present_C.sum()),
    }


def class_rows(
    confusion_CC: Counts, labels: Sequence[str], benchmark: str, protocol: str, model: str
) -> list[dict[str, Any]]:
    """One row per label for the ``metrics`` table; ``iou`` is None where it is undefined.

    Raises:
        ValueError: if there is not one name per label.
    """
    if len(labels) != len(confusion_CC):
        raise ValueError(f"{len(labels)} names for {len(confusion_CC)} labels; give one each")
    run = {"benchmark": benchmark, "protocol": protocol, "model": model}
    scores = zip(labels, iou(confusion_CC).tolist(), confusion_CC.sum(1).tolist(), strict=True)
    return [
        run
        | {
            "class_index": index,
            "class_name": name,
            "iou": None if np.isnan(score) else score,
            "present": pixels > 0,
        }
        for index, (name, score, pixels) in enumerate(scores)
    ]
