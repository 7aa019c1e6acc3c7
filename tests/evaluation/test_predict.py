from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from evaluation.predict import Segmenter, border_parts, predict, resize, slide, window_boxes
from evaluation.protocols import GROUPVIT
from training.naming import RegionScores

Labels = NDArray[np.uint8]

SMALL = replace(GROUPVIT, name="small", short_side=32, window=32, stride=16)


def quadrants(height: int, width: int) -> tuple[Labels, Labels]:
    """A picture of four flat colours, and the labels 0-3 they stand for."""
    label_HW = np.zeros((height, width), np.uint8)
    label_HW[: height // 2, width // 2 :] = 1
    label_HW[height // 2 :, : width // 2] = 2
    label_HW[height // 2 :, width // 2 :] = 3
    return np.repeat(label_HW[..., None] * 80, 3, axis=2), label_HW


def by_colour(window_NCHW: Tensor, _: Tensor) -> Tensor:
    """A segmenter that knows the four colours."""
    colours_1C11 = torch.arange(4).view(1, 4, 1, 1) * 80 / 255
    return -(window_NCHW[:, :1] - colours_1C11).abs()


def mmseg_starts(length: int, window: int, stride: int) -> list[int]:
    """The grid as the published procedure states it: forward, then back from the far edge."""
    grids = max(length - window + stride - 1, 0) // stride + 1
    ends = [min(i * stride + window, length) for i in range(grids)]
    return [max(end - window, 0) for end in ends]


@given(height=st.integers(1, 90), width=st.integers(1, 90), window=st.integers(1, 40), data=st.data())
def test_window_boxes_any_size_cover_every_pixel_and_match_the_published_grid(
    height: int, width: int, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window))
    boxes = window_boxes(height, width, window, stride)
    seen_HW = np.zeros((height, width), int)
    for top, left, bottom, right in boxes:
        assert 0 <= top < bottom <= height
        assert 0 <= left < right <= width
        assert (bottom - top, right - left) == (min(window, height), min(window, width))
        seen_HW[top:bottom, left:right] += 1
    assert seen_HW.min() >= 1
    rows, columns = mmseg_starts(height, window, stride), mmseg_starts(width, window, stride)
    assert [box[:2] for box in boxes] == [(top, left) for top in rows for left in columns]


def test_window_boxes_protocols_worked_example_has_two_windows() -> None:
    assert resize(np.zeros((480, 640, 3), np.uint8), 448, 2048).shape == (448, 597, 3)
    assert window_boxes(448, 597, 448, 224) == [(0, 0, 448, 448), (0, 149, 448, 597)]


@settings(max_examples=25, deadline=None)
@given(height=st.integers(3, 40), width=st.integers(3, 40), window=st.integers(2, 16), data=st.data())
def test_slide_scores_equal_a_loop_over_single_pixels(
    height: int, width: int, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window))
    image_CHW = torch.rand(3, height, width, generator=torch.Generator().manual_seed(height))

    def segmenter(window_NCHW: Tensor, _: Tensor) -> Tensor:  # by the window's own mean: neighbours disagree
        return (window_NCHW - window_NCHW.mean(dim=(1, 2, 3), keepdim=True))[:, :2]

    expected_CHW = np.zeros((2, height, width))
    windows_seen = np.zeros((height, width))
    for top in mmseg_starts(height, window, stride):
        for left in mmseg_starts(width, window, stride):
            crop_1CHW = image_CHW[None, :, top : top + window, left : left + window]
            score_CHW = segmenter(crop_1CHW, image_CHW)[0].numpy()
            for y in range(score_CHW.shape[1]):
                for x in range(score_CHW.shape[2]):
                    expected_CHW[:, top + y, left + x] += score_CHW[:, y, x]
                    windows_seen[top + y, left + x] += 1
    found = slide(segmenter, image_CHW, window, stride)
    np.testing.assert_allclose(found.planes_PHW.numpy(), expected_CHW / windows_seen, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (32, 80), (45, 33), (300, 290)])
def test_predict_regions_with_scores_are_the_labels_of_the_scores_they_make(size: tuple[int, int]) -> None:
    rng = torch.Generator().manual_seed(size[0])
    image_HWC = torch.randint(256, (*size, 3), generator=rng, dtype=torch.uint8).numpy()

    def by_regions(window_NCHW: Tensor, _: Tensor) -> RegionScores:
        noise = torch.Generator().manual_seed(3)
        count = len(window_NCHW)
        masks_NKhw = torch.rand(count, 5, 16, 16, generator=noise)
        return RegionScores(masks_NKhw, torch.randn(count, 5, 7, generator=noise))

    def dense(window_NCHW: Tensor, picture_CHW: Tensor) -> Tensor:
        found = by_regions(window_NCHW, picture_CHW)
        return torch.einsum("nkhw,nkc->nchw", found.masks_NKhw, found.scores_NKC)

    labels_HW, expected_HW = (predict(s, image_HWC, SMALL) for s in (by_regions, dense))
    assert len(np.unique(expected_HW)) > 2
    assert (labels_HW == expected_HW).mean() > 0.9999  # but for ties that rounding breaks


def test_border_parts_are_lengths_at_the_pictures_border_by_the_root_of_areas() -> None:
    masks_NKhw = torch.zeros(2, 3, 4, 4)
    masks_NKhw[0, 0, :, :2] = 1  # of the left window: its left half, its right one
    masks_NKhw[0, 1, :, 2:] = 1
    masks_NKhw[1, 0, 1:3, 1:3] = 1  # of the right window: the middle, and what is around it
    masks_NKhw[1, 1] = 1 - masks_NKhw[1, 0]
    found_NK = border_parts(masks_NKhw, [(0, 0, 8, 8), (0, 4, 8, 12)], 8, 12)
    lengths, areas = np.array([0.5 + 1 + 0.5, 0.5 + 0.5, 0, 1 + 1 + 1]), np.array([0.5, 0.5, 0.25, 0.75])
    parts = lengths / np.sqrt(areas)
    expected = (parts - parts.mean()) / parts.std(ddof=1)
    np.testing.assert_allclose(found_NK[:, :2].flatten(), expected, rtol=1e-5)
    assert not found_NK[:, 2].any()


def test_border_parts_of_a_single_region_say_nothing() -> None:
    assert not border_parts(torch.ones(1, 1, 4, 4), [(0, 0, 8, 8)], 8, 8).any()


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_predict_with_a_border_weight_takes_regions_along_the_border_for_the_first_label(
    weight: float,
) -> None:
    def segmenter(*_: Tensor) -> RegionScores:
        masks_1Khw = torch.zeros(1, 2, 16, 16)
        masks_1Khw[0, 1, 4:12, 4:12] = 1
        masks_1Khw[0, 0] = 1 - masks_1Khw[0, 1]
        return RegionScores(masks_1Khw, torch.tensor([[[0.0, 0.2], [0.0, 0.2]]]), weight)

    labels_HW = predict(segmenter, np.zeros((32, 32, 3), np.uint8), SMALL)
    assert labels_HW[16, 16] == 1
    assert labels_HW[0, 0] == labels_HW[31, 31] == (0 if weight else 1)


def test_predict_perfect_segmenter_at_protocol_size_is_exact() -> None:
    image_HWC, label_HW = quadrants(32, 80)
    np.testing.assert_array_equal(predict(by_colour, image_HWC, SMALL), label_HW)


@pytest.mark.parametrize("size", [(100, 71), (20, 33), (7, 200), (1, 1)])
def test_predict_other_sizes_come_back_at_their_own_size(size: tuple[int, int]) -> None:
    image_HWC, label_HW = quadrants(*size)
    found_HW = predict(by_colour, image_HWC, SMALL)
    assert found_HW.shape == size
    assert found_HW.dtype == np.uint8
    if min(size) > 30:
        assert (found_HW == label_HW).mean() > 0.9


def test_predict_coarse_scores_are_brought_to_window_size() -> None:
    image_HWC, label_HW = quadrants(32, 32)

    def coarse(window_NCHW: Tensor, picture_CHW: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(by_colour(window_NCHW, picture_CHW), 8)

    assert (predict(coarse, image_HWC, SMALL) == label_HW).mean() > 0.9


def test_predict_windows_of_an_image_arrive_as_one_batch_in_unit_range_beside_the_image() -> None:
    seen = []

    def segmenter(window_NCHW: Tensor, picture_CHW: Tensor) -> Tensor:
        seen.append((window_NCHW.clone(), picture_CHW.clone()))
        return by_colour(window_NCHW, picture_CHW)

    predict(segmenter, quadrants(32, 80)[0], SMALL)
    ((batch_NCHW, picture_CHW),) = seen
    assert batch_NCHW.shape == (4, 3, 32, 32)
    assert picture_CHW.shape == (3, 32, 80)
    assert torch.equal(picture_CHW[:, :, :32], batch_NCHW[0])
    assert torch.equal(picture_CHW[:, :, -32:], batch_NCHW[-1])
    assert batch_NCHW.dtype == torch.float32
    assert (batch_NCHW.min(), batch_NCHW.max()) == (0, 240 / 255)


def test_resize_very_long_image_is_bounded_by_its_long_side() -> None:
    assert resize(np.zeros((10, 400, 3), np.uint8), 448, 2048).shape == (51, 2048, 3)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))]
)
def test_predict_other_arrays_than_rgb_bytes_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"give RGB pixels, uint8 \[H, W, 3\]"):
        predict(by_colour, image, SMALL)


@pytest.mark.parametrize(
    ("segmenter", "message"),
    [
        (lambda *_: RegionScores(torch.zeros(1, 2, 4, 4), torch.zeros(2, 3)), r"\(2, 3\) for 1 windows"),
        (lambda *given: by_colour(*given) * float("nan"), "returned NaN"),
        (lambda *given: by_colour(*given)[0], r"shape \(4, 32, 32\) for 1 windows"),
    ],
)
def test_predict_scores_that_mean_nothing_are_refused(segmenter: Segmenter, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict(segmenter, quadrants(32, 32)[0], SMALL)
