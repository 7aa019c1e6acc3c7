import dataclasses
import io
from collections.abc import Callable
from typing import Literal

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from sklearn.cluster import KMeans
from torch import Tensor

from curation.openclip import open_clip
from training.features import backbone, lab_position, rgb_to_lab, timm_features, tower_features, with_position
from training.grouping import (
    GroupingConfig,
    coverage,
    decode_label_png,
    encode_label_png,
    group,
    masks,
    merge_small,
    oracle_labels,
)
from training.groups import spread
from training.kmeans import kmeans, together
from training.upsampling import shares, upsample

CONFIG = GroupingConfig(backbone="lab", regions=4, min_area=0.0)
CONV = open_clip.timm_model.TimmModel


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same_partition(one: Tensor, other: Tensor) -> bool:
    pairs = torch.stack([one.flatten(), other.flatten()], 1).unique(dim=0)
    return len(pairs) == len(one.unique()) == len(other.unique())


def planted(count: int = 5, size: int = 12) -> tuple[Tensor, Tensor]:
    """Four quarters of unlike features, with noise."""
    quarters = torch.arange(2).repeat_interleave(size // 2)
    labels = quarters[:, None] * 2 + quarters
    centres = 3 * torch.randn(count, 6, 4, generator=stream(1))
    noise = 0.1 * torch.randn(count, 6, size, size, generator=stream(2))
    return centres[:, :, labels] + noise, labels


@pytest.mark.parametrize("method", ["kmeans", "agglomerative", "spectral"])
def test_grouping_of_a_planted_partition_recovers_it(method: str) -> None:
    features, labels = planted()
    got = group(features, range(5), dataclasses.replace(CONFIG, method=method))
    assert got.shape == (5, 12, 12)
    assert all(same_partition(one, labels) for one in got)


def test_grouping_of_an_image_in_any_batch_is_the_same() -> None:
    features, seeds = torch.randn(7, 40, 14, 14, generator=stream()), list(range(7))
    together = group(features, seeds, CONFIG)
    alone = [group(features[n : n + 1], seeds[n : n + 1], CONFIG)[0] for n in range(7)]
    backwards = group(features.flip(0), seeds[::-1], CONFIG).flip(0)
    assert torch.equal(together, torch.stack(alone))
    assert torch.equal(together, backwards)


def test_grouping_with_the_same_seed_repeats_and_with_another_may_differ() -> None:
    features = torch.randn(1, 8, 14, 14, generator=stream())
    config = dataclasses.replace(CONFIG, starts=1, iterations=1)
    assert torch.equal(group(features, [5], config), group(features, [5], config))
    assert not torch.equal(group(features, [5], config), group(features, [6], config))


def test_grouping_of_a_flat_image_is_one_region() -> None:
    assert group(torch.ones(1, 3, 8, 8), [0], CONFIG).unique().tolist() == [0]


def test_grouping_into_more_regions_than_pixels_gives_each_its_own() -> None:
    features = torch.randn(1, 3, 2, 2, generator=stream())
    got = group(features, [0], dataclasses.replace(CONFIG, regions=8))
    assert sorted(got.flatten().tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"backbone": "dino"}, "lab, clip or timm:"),
        ({"method": "dbscan"}, "kmeans, agglomerative or spectral"),
        ({"upsample": "cubic"}, "linear or guided"),
        ({"regions": 256}, "1 to 255"),
        ({"min_area": 1.5}, "fraction"),
    ],
)
def test_grouping_config_with_a_wrong_value_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroupingConfig(**wrong)


def columns(points_NPD: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(points_NPD.swapaxes(1, 2)))


@pytest.mark.parametrize("shape", [(25, 150, 5), (6, 700, 20)])  # below and above the size of a sample
def test_kmeans_inertia_on_random_data_is_no_worse_than_scikit_learns_on_average(
    shape: tuple[int, ...],
) -> None:
    points = rng().normal(size=shape).astype(np.float32)
    ours = kmeans(columns(points), 8, range(len(points)), 100, 3)[1]
    theirs = [KMeans(8, n_init=3, max_iter=100, random_state=n).fit(p).inertia_ for n, p in enumerate(points)]
    assert float(ours.mean()) <= 1.005 * np.mean(theirs)


@pytest.mark.parametrize("count", [200, 900])
def test_kmeans_labels_are_the_nearest_means_and_inertia_their_squared_distances(count: int) -> None:
    points = 100 + torch.randn(count, 4, generator=stream())
    labels, inertia = (found[0] for found in kmeans(points.T[None], 5, [0], 300, 2))
    centres = torch.stack([points[labels == k].mean(0) for k in range(5)])
    squares = (points[:, None] - centres).square().sum(2)
    assert torch.equal(squares.argmin(1), labels)
    assert float(inertia) == pytest.approx(float(squares.min(1).values.sum()), rel=1e-4)


def test_kmeans_with_more_starts_of_one_stream_is_no_worse() -> None:
    points = torch.randn(1, 3, 200, generator=stream()).expand(10, -1, -1)
    few, many = (float(kmeans(points, 8, range(10), 100, s)[1].mean()) for s in (1, 10))
    assert many < few


@pytest.mark.parametrize("count", [150, 900])
def test_kmeans_of_a_whole_batch_at_once_as_on_a_gpu_finds_the_same_clusters(count: int) -> None:
    points = torch.randn(5, 12, count, generator=stream())
    together_labels, together_inertia = together(points, 6, range(5), 100, 3, compiled=False)
    labels, inertia = kmeans(points, 6, range(5), 100, 3)
    assert torch.equal(together_labels, labels)
    torch.testing.assert_close(together_inertia, inertia)


def test_kmeans_of_few_distinct_points_gives_each_its_own_cluster() -> None:
    distinct = torch.randn(3, 6, generator=stream())
    which = torch.arange(40) % 3
    labels, inertia = kmeans(distinct[which].T[None], 8, [0], 30, 3)
    assert same_partition(labels[0], which)
    assert float(inertia) == pytest.approx(0.0, abs=1e-4)


def merge_by_brute_force(labels: NDArray[np.int64], features: NDArray, least: float) -> NDArray[np.int64]:
    """Starts over with all components after every merge; components keep an identity of their own."""
    parts, label_of, count = np.zeros(labels.shape, int), {}, 0
    for label in np.unique(labels):
        found, number = ndimage.label(labels == label)
        for part in range(1, number + 1):
            count += 1
            parts[found == part] = count
            label_of[count] = label
    first = {part: np.flatnonzero(parts == part)[0] for part in label_of}
    while True:
        sizes = {part: int((parts == part).sum()) for part in np.unique(parts)}
        small = [(size, first[part], part) for part, size in sizes.items() if size < least]
        if not small or len(sizes) == 1:
            return np.unique(np.vectorize(label_of.get)(parts), return_inverse=True)[1].reshape(labels.shape)
        part = min(small)[2]
        ring = ndimage.binary_dilation(parts == part) & (parts != part)
        mean = {p: features[:, parts == p].mean(1) for p in {part, *np.unique(parts[ring])}}
        others = sorted(set(mean) - {part}, key=lambda p: first[p])
        parts[parts == part] = min(others, key=lambda p: np.square(mean[p] - mean[part]).sum())


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.int64, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(0, 3)),
    st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.9]),
    st.integers(0, 99),
)
def test_merging_of_small_components_is_that_of_a_brute_force(
    labels: NDArray[np.int64], min_area: float, seed: int
) -> None:
    features = rng(seed).normal(size=(3, *labels.shape)).astype(np.float32)
    expected = merge_by_brute_force(labels, features.astype(np.float64), min_area * labels.size)
    assert np.array_equal(merge_small(labels, features, min_area), expected)


def test_merging_leaves_distant_large_components_of_one_label_together() -> None:
    labels = np.array([[5, 5, 9, 5, 5]] * 3)
    features = np.zeros((1, 3, 5), np.float32)
    assert merge_small(labels, features, 0.1).tolist() == [[0, 0, 1, 0, 0]] * 3


def test_spread_counts_regions_and_how_many_equal_ones_they_amount_to() -> None:
    halves, uneven = np.repeat([[0, 1]], 4, 0).astype(np.uint8), np.array([[0, 0, 0, 2]], np.uint8)
    assert spread([halves]) == {"regions": 2, "equal_regions": pytest.approx(2.0)}
    assert spread([halves, uneven]) == {
        "regions": 4,
        "equal_regions": pytest.approx(2 + 1 / (9 / 16 + 1 / 16)),
    }


def test_upsampled_labels_of_a_vertical_border_keep_it_in_place() -> None:
    labels = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1]]])
    expected = torch.arange(2).repeat_interleave(10).expand(1, 9, 20)
    assert torch.equal(upsample(labels, torch.zeros(1, 3, 9, 20), 9, 20, "linear"), expected)


@pytest.mark.parametrize("way", ["linear", "guided"])
def test_shares_of_a_pixel_add_up_to_one(way: Literal["linear", "guided"]) -> None:
    labels, image = torch.randint(5, (2, 6, 7), generator=stream()), torch.rand(2, 3, 40, 30)
    found = shares(labels, image, 20, 15, way)
    assert found.shape == (2, 5, 20, 15)
    assert torch.allclose(found.sum(1), torch.ones(2, 20, 15), atol=1e-4)


def test_guided_upsampling_moves_a_coarse_border_to_the_edge_of_the_image() -> None:
    labels = (torch.arange(14) >= 7).long().expand(1, 14, 14)
    image = (torch.arange(224) >= 120).float().expand(1, 3, 224, 224)  # the grid's border is at 112
    truth = (torch.arange(224) >= 120).long().expand(1, 224, 224)
    wrong = {w: int((upsample(labels, image, 224, 224, w) != truth).sum()) for w in ("linear", "guided")}
    assert wrong["linear"] == 8 * 224
    assert wrong["guided"] < wrong["linear"] / 4


def test_guided_upsampling_over_one_colour_leaves_straight_borders_in_place() -> None:
    labels, image = (torch.arange(4) >= 2).long().expand(1, 4, 4), torch.full((1, 3, 64, 64), 0.5)
    linear, guided = (upsample(labels, image, 64, 64, way) for way in ("linear", "guided"))
    assert torch.equal(linear, guided)


def test_guided_upsampling_of_images_alone_or_together_is_the_same() -> None:
    labels = torch.randint(5, (3, 6, 6), generator=stream())
    images = torch.rand(3, 3, 40, 30, generator=stream(1))
    whole = upsample(labels, images, 40, 30, "guided")
    alone = [upsample(labels[n : n + 1], images[n : n + 1], 40, 30, "guided")[0] for n in range(3)]
    assert whole.shape == (3, 40, 30)
    assert torch.equal(whole, torch.stack(alone))


def test_guided_upsampling_to_the_size_there_is_leaves_the_labels() -> None:
    labels = torch.randint(6, (2, 9, 7), generator=stream())
    assert torch.equal(upsample(labels, torch.rand(2, 3, 9, 7), 9, 7, "guided"), labels)


def test_spectral_grouping_of_too_many_cells_is_refused() -> None:
    config = dataclasses.replace(CONFIG, method="spectral")
    with pytest.raises(ValueError, match="10000 at most"):
        group(torch.zeros(1, 1, 101, 100), [0], config)


def test_coverage_is_the_part_of_each_cell_and_keeps_the_area() -> None:
    labels = torch.randint(5, (2, 12, 18), generator=stream())
    cells = coverage(masks(labels, 5), 4, 6)
    expected = masks(labels, 5).float().unflatten(2, (4, 3)).unflatten(4, (6, 3)).mean((3, 5))
    torch.testing.assert_close(cells, expected)
    torch.testing.assert_close(cells.sum(1), torch.ones(2, 4, 6))
    assert coverage(masks(labels, 0), 4, 6).shape == (2, 0, 4, 6)


def test_masks_of_labels_beyond_the_count_are_left_out() -> None:
    assert masks(torch.tensor([[[0, 2, 255]]]), 2).tolist() == [[[[True, False, False]], [[False] * 3]]]


def test_oracle_gives_each_region_its_majority_among_the_known() -> None:
    regions = np.array([[0, 0, 0, 1], [2, 2, 3, 3]])
    truth = np.array([[7, 7, 1, 255], [255, 4, 9, 2]], np.uint8)
    assert oracle_labels(regions, truth).tolist() == [[7, 7, 7, 255], [4, 4, 2, 2]]


@settings(max_examples=30, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20))))
def test_label_png_round_trip_gives_the_labels_and_the_same_bytes(labels: NDArray[np.uint8]) -> None:
    content = encode_label_png(labels)
    assert np.array_equal(decode_label_png(content), labels)
    assert encode_label_png(labels.astype(np.int64)) == content


def test_label_png_of_wrong_content_is_refused() -> None:
    with pytest.raises(ValueError, match="fewer regions"):
        encode_label_png(np.array([[256]]))
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG")
    with pytest.raises(ValueError, match="mode RGB"):
        decode_label_png(file.getvalue())


def test_lab_of_random_colours_is_opencvs() -> None:
    rgb = rng().random((9, 9, 3), np.float32)
    expected = cv2.cvtColor(rgb, cv2.COLOR_RGB2Lab)
    got = rgb_to_lab(torch.from_numpy(rgb).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    assert np.abs(got.numpy() - expected).max() < 0.5  # OpenCV interpolates a table


def test_position_in_lab_features_spans_its_weight() -> None:
    features = lab_position(4, 2.0)(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
    assert features.shape == (1, 5, 4, 4)
    assert features[0, 3, :, 0].tolist() == [0.25, 0.75, 1.25, 1.75]
    assert torch.equal(features[0, 3], features[0, 4].T)
    assert with_position(features, 0.0) is features


Maker = Callable[[], Callable[[Tensor], Tensor]]


def tower_backbone() -> Callable[[Tensor], Tensor]:
    return tower_features(CONV("cocu_tiny_conv", 8, image_size=64), (0.5,) * 3, (0.5,) * 3, 32)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: lab_position(16, 0.0), (3, 16, 16)),
        (tower_backbone, (64, 8, 8)),
        (lambda: timm_features("vit_tiny_patch16_224", 64, pretrained=False), (192, 4, 4)),
        (lambda: timm_features("resnet18", 64, pretrained=False), (512, 2, 2)),
    ],
)
def test_backbone_of_either_image_layout_gives_the_same_finite_map(
    make: Maker, shape: tuple[int, ...]
) -> None:
    features = make()
    bytes_NHWC = torch.randint(256, (2, 40, 50, 3), generator=stream(), dtype=torch.uint8)
    got = features(bytes_NHWC)
    assert got.shape == (2, *shape)
    assert got.isfinite().all()
    torch.testing.assert_close(features(bytes_NHWC.permute(0, 3, 1, 2) / 255), got)
    if shape[0] > 3:
        torch.testing.assert_close(got.norm(dim=1), torch.ones(2, *shape[1:]))


def test_backbone_of_a_config_is_the_named_one() -> None:
    image = torch.rand(1, 3, 8, 8)
    lab = GroupingConfig(backbone="lab", size=8, position_weight=0.5)
    assert torch.equal(backbone(lab)(image), lab_position(8, 0.5)(image))
    clip = GroupingConfig(backbone="clip")
    own = tower_backbone()
    assert backbone(clip, own) is own
    with pytest.raises(ValueError, match="tower_features"):
        backbone(clip)
    with pytest.raises(ValueError, match="uint8"):
        lab_position(8, 0.0)(torch.zeros(1, 8, 8, 3))
