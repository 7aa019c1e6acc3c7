"""Naming regions of a picture's windows, by a tower whose maps are made up."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.grouping import GroupingConfig
from training.naming import LEAST, Naming, RegionScores, RegionSegmenter
from training.regions import RegionEncoder

SIZE = 8  # pixels, and cells of the maps
GROUPING = GroupingConfig(
    backbone="clip", size=SIZE, regions=2, min_area=0, position_weight=0, upsample="linear"
)
CLASSES = [np.eye(4, dtype=np.float32)[[number]] for number in range(3)]
BACKGROUND = np.eye(4, dtype=np.float32)[[3]]


class Trunk(nn.Module):
    """Maps are the pixels, of which there are four channels' worth: red, green, blue and black."""

    num_features = 4

    def forward_features(self, image_NCHW: Tensor) -> Tensor:
        return torch.cat([image_NCHW, 1 - image_NCHW.amax(1, keepdim=True)], 1)

    def forward_head(self, maps_NCHW: Tensor) -> Tensor:
        return maps_NCHW.mean((2, 3))


def segmenter(**naming: Any) -> RegionSegmenter:
    tower = RegionEncoder(cast("Any", _tower()))
    encoder: Any = SimpleNamespace(mean=(0.0,) * 3, std=(1.0,) * 3, device=torch.device("cpu"))
    return RegionSegmenter(tower, encoder, GROUPING, None, CLASSES, BACKGROUND, SIZE, Naming(**naming))


def _tower() -> nn.Module:
    tower = nn.Module()
    tower.trunk, tower.head = Trunk(), nn.Identity()
    return tower


def halves(left: tuple[float, float, float], right: tuple[float, float, float]) -> Tensor:
    window_CHW = torch.empty(3, SIZE, SIZE)
    for half, colour in ((slice(None, 4), left), (slice(4, None), right)):
        window_CHW[:, :, half] = torch.tensor(colour)[:, None, None]
    return window_CHW


RED, GREEN, BLUE, BLACK = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0)
WINDOWS = torch.stack([halves(RED, RED), halves(RED, GREEN), halves(BLACK, RED)])
PICTURE = WINDOWS.transpose(0, 1).transpose(1, 2).flatten(2)  # one beside the other: [3, H, 3W]
GREENER = halves(GREEN, GREEN)


def score(found: RegionScores, window: int, row: int, column: int) -> list[float]:
    """Of a cell of a window: background first."""
    shares_K = found.masks_NKhw[window, :, row, column]
    return [round(value, 4) for value in (shares_K @ found.scores_NKC[window]).tolist()]


def test_region_is_scored_by_its_cosine_to_each_class_and_to_the_background() -> None:
    found = segmenter()(WINDOWS, PICTURE)
    assert found.masks_NKhw.shape[2:] == (4, 4)  # every second pixel
    assert score(found, 0, 0, 0) == [0, 1, 0, 0]
    assert score(found, 1, 0, 0) == [0, 1, 0, 0]
    assert score(found, 1, 0, 3) == [0, 0, 1, 0]
    assert score(found, 2, 0, 0) == [1, 0, 0, 0]


def test_classes_are_those_of_the_picture_and_not_of_a_window() -> None:
    found = segmenter(top_k=1)(WINDOWS, PICTURE)
    assert score(found, 1, 0, 3) == [
        0,
        0,
        LEAST + 1,
        LEAST,
    ]  # green is there, but red is what the picture shows
    assert segmenter(top_k=1)(WINDOWS[1:2], PICTURE).scores_NKC.isfinite().all()
    assert score(segmenter(top_k=9)(WINDOWS, PICTURE), 1, 0, 3) == [0, 0, 1, 0]


def test_class_that_is_far_from_the_picture_loses_by_the_weight_of_the_picture() -> None:
    picture_D = WINDOWS.mean((0, 2, 3))  # red 4/6, green 1/6, blue none
    length = float(torch.cat([picture_D, torch.tensor([1 / 6])]).norm())
    expected = [0, 0, 1 - 0.5 * (4 / 6 - 1 / 6) / length, -0.5 * (4 / 6) / length]
    assert score(segmenter(image_weight=0.5)(WINDOWS, PICTURE), 1, 0, 3) == pytest.approx(expected, abs=1e-4)


def test_bias_is_added_to_the_background_alone() -> None:
    found = segmenter(background_bias=0.25)(WINDOWS, PICTURE)
    assert score(found, 0, 0, 0) == [0.25, 1, 0, 0]
    assert score(found, 2, 0, 0) == [1.25, 0, 0, 0]


def test_border_counts_where_there_is_a_background() -> None:
    assert segmenter()(WINDOWS, PICTURE).border_weight == 0
    with_background = segmenter(border_weight=0.1)
    assert with_background(WINDOWS, PICTURE).border_weight == 0.1
    with_background.background_BD = None
    assert with_background(WINDOWS, PICTURE).border_weight == 0


def test_evidence_of_pictures_says_which_classes_there_are() -> None:
    def blue(tokens_RC: Tensor) -> Tensor:
        assert tokens_RC.shape[1:] == (4,)
        return torch.tensor([0.0, 0.0, 2.0])

    found = segmenter(top_k=1, picture_evidence=blue)(WINDOWS, PICTURE)
    assert score(found, 1, 0, 3) == [0, LEAST, LEAST + 1, 0]  # by its own vector it would be red


def test_look_at_the_whole_picture_says_in_place_of_its_windows_which_classes_there_are() -> None:
    found = segmenter(top_k=1, picture_size=4)(WINDOWS, GREENER)
    assert score(found, 0, 0, 0) == [0, LEAST + 1, 0, LEAST]
    assert score(found, 1, 0, 3) == [0, LEAST, 1, LEAST]
    as_its_windows = segmenter(top_k=1, picture_size=4)(WINDOWS, PICTURE)
    assert score(as_its_windows, 1, 0, 3) == [0, 0, LEAST + 1, LEAST]


def test_look_at_the_whole_picture_is_what_evidence_of_pictures_gets() -> None:
    seen = []

    def remember(tokens_RC: Tensor) -> Tensor:
        seen.append(tokens_RC)
        return torch.zeros(3)

    segmenter(picture_evidence=remember, picture_size=PICTURE.shape[2])(WINDOWS, PICTURE)
    (token_1C,) = seen
    torch.testing.assert_close(token_1C, torch.tensor([[4 / 6, 1 / 6, 0, 1 / 6]]))


def test_evidence_of_regions_is_added_where_they_are() -> None:
    def of_green(tokens_RC: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(tokens_RC)), tokens_RC[:, 1], 2 * tokens_RC[:, 1]], 1)

    found = segmenter(region_evidence=of_green)(WINDOWS, PICTURE)
    assert score(found, 1, 0, 3) == [0, 0, 2, 2]
    assert score(found, 1, 0, 0) == [0, 1, 0, 0]
    assert score(found, 2, 0, 0) == [1, 0, 0, 0]


def test_region_too_small_to_be_drawn_keeps_its_place() -> None:
    found = segmenter()
    labels_Nhw = torch.zeros(1, 2, 2, dtype=torch.int64)
    labels_Nhw[0, 0, 0] = 2  # the last of three, one of which is nowhere
    drawn_NKHW = found.drawn(labels_Nhw, WINDOWS[:1])
    assert drawn_NKHW.shape == (1, 3, SIZE, SIZE)
    one_cell = found.drawn(labels_Nhw.repeat_interleave(4, 1).repeat_interleave(4, 2), WINDOWS[:1])
    assert one_cell.sum((2, 3)).tolist() == [[48, 0, 16]]
