"""Pixels into regions: dense features are clustered, fragments merged, and labels kept as small PNGs.

On a CPU the grouping of an image depends on its features and its seed alone, to the last bit, and not on the
batch it came in. On a GPU a batch is clustered at once.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from training.fragments import merge_small
from training.kmeans import kmeans

Method = Literal["kmeans", "agglomerative", "spectral"]
Upsampling = Literal["linear", "guided"]
TIMM = "timm:"
IGNORE = 255
MOST_SPECTRAL = 10_000  # cells: their graph has as many weights squared, 0.4 GB in float32


@dataclass(frozen=True)
class GroupingConfig:
    """How the pixels of an image are grouped into regions."""

    backbone: str = (
        "timm:vit_small_patch8_224.dino"  # or "lab", "clip" (the encoder's tower), another "timm:…"
    )
    size: int = 448  # pixels: images are resized to size x size; with "lab" each of them is a vector
    regions: int = 8  # at most, 1 … 255
    method: Method = "kmeans"
    min_area: float = 0.005  # fraction of the image; smaller fragments are merged into a neighbour
    position_weight: float = 0.5  # distance between opposite sides of the image, in units of the features'
    seed: int = 0
    iterations: int = 30  # of k-means, at most
    starts: int = 3  # of k-means; the best is kept
    upsample: Upsampling = "guided"  # to pixels: masks follow the image's colours, or "linear": interpolated

    def __post_init__(self) -> None:
        if self.backbone not in ("lab", "clip") and not self.backbone.startswith(TIMM):
            raise ValueError(f"unknown backbone '{self.backbone}'; use lab, clip or timm:<a model of timm's>")
        if self.method not in ("kmeans", "agglomerative", "spectral"):
            raise ValueError(f"unknown method '{self.method}'; use kmeans, agglomerative or spectral")
        if self.upsample not in ("linear", "guided"):
            raise ValueError(f"unknown way to upsample '{self.upsample}'; use linear or guided")
        if not 1 <= self.regions <= 255:
            raise ValueError(f"cannot make {self.regions} regions: labels are 8-bit; ask for 1 to 255")
        if not 0 <= self.min_area < 1:
            raise ValueError(f"min_area is a fraction of the image in [0, 1), not {self.min_area}")


def group(features_NCHW: Tensor, seeds_N: Sequence[int], config: GroupingConfig) -> Tensor:
    """Groups the pixels of each image.

    Args:
        features_NCHW: vectors whose Euclidean distances count, as the backbones give them.
        seeds_N: one per image; a hash of the run's seed and the image's id.
        config: how many regions, by which method, and the least area of a fragment.

    Returns:
        int64 labels [N, H, W] on the CPU, 0 … R - 1 without gaps, R ≤ `config.regions`.
    """
    features_NCHW = features_NCHW.float()
    shape = (features_NCHW.shape[2], features_NCHW.shape[3])
    points_NCP = features_NCHW.flatten(2)
    match config.method:
        case "kmeans":
            labels_NP, _ = kmeans(points_NCP, config.regions, seeds_N, config.iterations, config.starts)
        case "agglomerative":
            labels_NP = torch.stack([_agglomerative(p.T, shape, config.regions) for p in points_NCP])
        case "spectral":
            pairs = zip(points_NCP, seeds_N, strict=True)
            labels_NP = torch.stack([_spectral(p.T, config.regions, seed) for p, seed in pairs])
    labels_NHW = labels_NP.reshape(-1, *shape).cpu().numpy()
    pairs_N = zip(labels_NHW, features_NCHW.cpu().numpy(), strict=True)
    merged = [merge_small(labels_HW, features_CHW, config.min_area) for labels_HW, features_CHW in pairs_N]
    return torch.from_numpy(np.stack(merged))


def _agglomerative(points_PD: Tensor, shape: tuple[int, int], clusters: int) -> Tensor:
    """Ward's linkage along the pixel grid: every cluster is connected."""
    from sklearn.cluster import AgglomerativeClustering  # noqa: PLC0415  (slow to import, seldom used)
    from sklearn.feature_extraction.image import grid_to_graph  # noqa: PLC0415

    method = AgglomerativeClustering(clusters, connectivity=grid_to_graph(*shape))
    return torch.from_numpy(method.fit_predict(points_PD.cpu().numpy()).astype(np.int64))


def _spectral(points_PD: Tensor, clusters: int, seed: int) -> Tensor:
    """Normalised cut of the full graph whose weights fall off with the median squared distance.

    Raises:
        ValueError: for more points than such a graph can have.
    """
    from sklearn.cluster import SpectralClustering  # noqa: PLC0415  (slow to import, seldom used)

    if len(points_PD) > MOST_SPECTRAL:
        raise ValueError(
            f"the graph of {len(points_PD)} cells is too large: spectral grouping takes {MOST_SPECTRAL} at "
            "most; give a smaller size, or use kmeans"
        )

    squares_PP = torch.cdist(points_PD, points_PD).square()
    affinity_PP = torch.exp(-squares_PP / squares_PP.median().clamp_min(1e-12)).cpu().numpy()
    method = SpectralClustering(
        clusters, affinity="precomputed", assign_labels="cluster_qr", random_state=seed % 2**32
    )
    return torch.from_numpy(method.fit_predict((affinity_PP + affinity_PP.T) / 2).astype(np.int64))


def masks(labels_NHW: Tensor, regions: int) -> Tensor:
    """Boolean masks [N, K, H, W] of the labels 0 … K - 1; labels beyond are in no mask."""
    numbers_K11 = torch.arange(regions, device=labels_NHW.device)[:, None, None]
    return labels_NHW[:, None] == numbers_K11


def coverage(regions_NKhw: Tensor, height: int, width: int) -> Tensor:
    """The part of each cell of a grid that each mask covers: float32 [N, K, height, width]."""
    images, regions = regions_NKhw.shape[:2]
    if regions == 0:
        return torch.zeros(images, 0, height, width, device=regions_NKhw.device)
    return functional.interpolate(regions_NKhw.float(), (height, width), mode="area")


def oracle_labels(regions_HW: NDArray[np.integer], mask_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Gives each region the class that most of its pixels have: the ceiling of naming regions.

    Args:
        regions_HW: labels from 0.
        mask_HW: classes, 255 where there is none to be told.

    Returns:
        uint8 classes [H, W]; 255 for regions without any class; the lower of two equal ones.
    """
    known = mask_HW != IGNORE
    votes = np.zeros((int(regions_HW.max()) + 1, IGNORE), np.int64)
    np.add.at(votes, (regions_HW[known], mask_HW[known]), 1)
    classes = np.where(votes.any(1), votes.argmax(1), IGNORE)
    return np.asarray(classes[regions_HW], np.uint8)


def encode_label_png(labels_HW: NDArray[np.integer]) -> bytes:
    """8-bit greyscale PNG of labels 0 … 255; the same labels give the same bytes.

    Raises:
        ValueError: for labels that are no matrix or beyond 8 bits.
    """
    if labels_HW.ndim != 2 or labels_HW.min(initial=0) < 0 or labels_HW.max(initial=0) > 255:
        raise ValueError(
            f"a label PNG holds a matrix of 0 to 255, not {list(labels_HW.shape)} of "
            f"{labels_HW.min()} to {labels_HW.max()}; give fewer regions"
        )
    file = io.BytesIO()
    Image.fromarray(labels_HW.astype(np.uint8)).save(file, "PNG", compress_level=9)
    return file.getvalue()


def decode_label_png(content: bytes) -> NDArray[np.uint8]:
    """The labels of such a PNG, uint8 [H, W].

    Raises:
        ValueError: for an image that is not 8-bit greyscale.
    """
    with Image.open(io.BytesIO(content)) as image:
        if image.format != "PNG" or image.mode != "L":
            raise ValueError(f"labels are an 8-bit greyscale PNG, not a {image.format} of mode {image.mode}")
        return np.array(image, np.uint8)
