from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from evaluation.benchmarks import cityscapes, shards, voc
from evaluation.measure import measure
from evaluation.metrics import summary
from evaluation.predict import predict
from evaluation.protocols import GROUPVIT

Labels = NDArray[np.uint8]


@pytest.fixture
def files(encoded: Callable[..., bytes], labels: Labels) -> list[tuple[str, bytes]]:
    """Two good pictures, whose pixels are 100 times their labels, and six that cannot be measured."""
    picture = encoded(np.repeat((labels % 2)[..., None] * 100, 3, axis=2), "JPEG")
    mask, small = encoded(labels, "PNG"), encoded(labels[:3], "PNG")
    return [
        ("good.jpg", picture), ("good.png", mask),
        ("no_mask.jpg", picture),
        ("no_mask_bytes.jpg", picture), ("no_mask_bytes.png", b""),
        ("torn.jpg", picture[: len(picture) // 2]), ("torn.png", mask),
        ("small_mask.jpg", picture), ("small_mask.png", small),
        ("high_label.jpg", picture), ("high_label.png", encoded(labels + 40, "PNG")),
        ("again.jpg", picture), ("again.png", mask),
    ]  # fmt: skip


def by_brightness(image_HWC: Labels) -> Labels:
    return (image_HWC[..., 0] > 50).astype(np.uint8)


def test_measure_bad_pictures_are_rejected_by_reason_and_the_rest_counted(
    tmp_path: Path, save_tar: Callable[..., Path], files: list[tuple[str, bytes]]
) -> None:
    benchmark = shards("scenes", [save_tar(tmp_path / "00000.tar", files)], ["cat"], [])
    result = measure(benchmark.images, len(benchmark.labels), by_brightness)
    assert result.measured == 2
    assert {r.image_id.rsplit("/", 1)[1]: r.reason for r in result.rejected} == {
        "no_mask": "mask_missing",
        "no_mask_bytes": "mask_unreadable",
        "torn": "image_unreadable",
        "small_mask": "mask_size",
        "high_label": "mask_label",
    }
    assert all("00000.tar" in rejection.detail for rejection in result.rejected)
    assert result.confusion.sum() == 2 * 40  # the ignored row of each is not there
    assert summary(result.confusion)["miou"] > 0.7


def test_measurements_of_two_halves_add_up_to_the_whole(
    tmp_path: Path, save_tar: Callable[..., Path], files: list[tuple[str, bytes]]
) -> None:
    benchmark = shards("scenes", [save_tar(tmp_path / "00000.tar", files)], ["cat"], [])
    whole = measure(benchmark.images, 2, by_brightness)
    halves = [measure(half, 2, by_brightness) for half in (benchmark.images[:3], benchmark.images[3:])]
    added = halves[0] + halves[1]
    np.testing.assert_array_equal(added.confusion, whole.confusion)
    assert (added.measured, added.rejected) == (whole.measured, whole.rejected)


def test_measure_labeller_fault_stops_the_run(
    tmp_path: Path, save_tar: Callable[..., Path], files: list[tuple[str, bytes]]
) -> None:
    benchmark = shards("scenes", [save_tar(tmp_path / "00000.tar", files)], ["cat"], [])
    with pytest.raises(ValueError, match="predict at the mask's size"):
        measure(benchmark.images, 2, lambda image_HWC: image_HWC[:2, :2, 0])


def test_measure_real_voc_all_background_has_the_share_of_background_as_accuracy(real_data: Path) -> None:
    benchmark = voc(real_data / "VOCdevkit" / "VOC2012")
    result = measure(benchmark.images[:40], 21, lambda image_HWC: np.zeros_like(image_HWC[..., 0]))
    scores = summary(result.confusion)
    assert not result.rejected
    assert scores["pixel_accuracy"] == pytest.approx(result.confusion[0].sum() / result.confusion.sum())
    assert scores["miou_present"] == pytest.approx(scores["pixel_accuracy"] / scores["labels_present"])


def test_measure_real_cityscapes_pair_slides_at_full_size(real_data: Path) -> None:
    image = cityscapes(real_data / "cityscapes").images[0]
    batches = []

    def all_road(window_NCHW: Tensor, _: Tensor) -> Tensor:
        batches.append(tuple(window_NCHW.shape))
        scores_NCHW = window_NCHW.new_zeros((len(window_NCHW), 19, 28, 28))
        scores_NCHW[:, 0] = 1
        return scores_NCHW

    result = measure([image], 19, partial(predict, all_road, protocol=GROUPVIT))
    assert batches == [(3, 3, 448, 448)]
    assert result.confusion[:, 1:].sum() == 0
    assert 0.2 < summary(result.confusion)["pixel_accuracy"] < 0.6
