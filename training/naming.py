"""Segmenting by naming regions: the pixels of a window are grouped, and each group gets the nearest class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from training.encoder import EncoderLike
from training.features import Backbone, unit_maps
from training.grouping import GroupingConfig, group, masks
from training.groups import normalised
from training.regions import RegionEncoder, Regions
from training.upsampling import shares, upsample

LEAST = -100.0  # below every score: windows are averaged, and minus infinity would spread
COARSER = 2  # shares are told at every second pixel of a window: what lies between is interpolated
Evidence = Callable[[Tensor], Tensor]  # tokens of a picture's regions [R, C'] -> scores of the classes
Scale = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RegionScores:
    """Scores of windows by their regions: a pixel has those of its regions, by its share in each.

    So few numbers are looked at, however many classes there are, until each pixel takes its best.
    """

    masks_NKhw: Tensor  # shares in [0, 1], about; on any grid
    scores_NKC: Tensor
    border_weight: float = 0.0  # of how much of the picture's border a region has, for the first label


@dataclass(frozen=True)
class Naming:
    """What, beside cosines, has a say in the names of a picture's regions."""

    top_k: int = 0  # classes a picture may show: its nearest ones; 0 for all
    image_weight: float = 0.0  # of how much farther than the nearest a class is from the picture
    background_bias: float = 0.0  # added to what the background's names score
    border_weight: float = 0.0  # of how much of the picture's border a region has, for the background
    picture_size: int = 0  # pixels of a look at the whole picture; 0: what its windows say, on average
    picture_evidence: Evidence | None = None  # what else tells which classes a picture shows: [C]
    region_evidence: Evidence | None = None  # and what tells which region is of which class: [R, C]


class RegionSegmenter:
    """Groups the pixels of a picture's windows and names each region by the class nearest to its vector.

    Which classes a picture shows is asked of the picture, not of each window of it: of a look at all of it,
    or else of the windows together. Background is what falls to one of the background prompts, if there are
    any.
    """

    def __init__(
        self,
        tower: RegionEncoder,
        encoder: EncoderLike,
        grouping: GroupingConfig,
        features: Backbone | None,
        class_vectors: Sequence[NDArray[np.float32]],
        background_vectors: NDArray[np.float32] | None,
        size: int,
        naming: Naming = Naming(),
        scale: Scale | None = None,
        background_scale: Scale | None = None,
    ) -> None:
        """Makes a segmenter.

        Args:
            tower: names the regions.
            encoder: its pixel normalisation and device.
            grouping: how pixels are grouped.
            features: by which; None to group by the maps that the tower pools anyway (one pass for both).
            class_vectors: unit vectors [S, D] of each class' names.
            background_vectors: unit vectors [B, D] of the background's names.
            size: pixels a window is named at, whatever its aspect.
            naming: what the picture as a whole has to say.
            scale: what cosines [..., C] of regions to classes are taken for; for themselves if None.
            background_scale: the same, for the background's names.
        """
        assert features is not None or tower.pools, "a transformer does not pool maps: give features"
        self.tower, self.encoder, self.size, self.naming = tower.eval(), encoder, size, naming
        self.grouping, self.features = grouping, features
        self.scale, self.background_scale = scale, background_scale
        self.class_vectors = [torch.from_numpy(v).to(encoder.device) for v in class_vectors]
        background = None if background_vectors is None else torch.from_numpy(background_vectors)
        self.background_BD = background.to(encoder.device) if background is not None else None

    @torch.inference_mode()
    def __call__(self, window_NCHW: Tensor, picture_CHW: Tensor) -> RegionScores:
        """Regions of a picture's windows and their scores [N, K, C]; pixels come in [0, 1].

        Background comes first where there is one.
        """
        whole = self.look(picture_CHW)
        if self.features is None:
            maps_NChw = self.maps(window_NCHW)
            labels_Nhw = self.regions(unit_maps(maps_NChw, self.grouping.position_weight))
            scores_NKC = self.pooled_scores(maps_NChw, labels_Nhw, whole)
        else:
            labels_Nhw = self.regions(self.features(window_NCHW))
            drawn_NKHW = self.drawn(labels_Nhw, window_NCHW)
            scores_NKC = self.scores(self.tower(self.pixels(window_NCHW), drawn_NKHW), whole)
        return RegionScores(self.shares(labels_Nhw, window_NCHW), scores_NKC, self.border_weight)

    @property
    def border_weight(self) -> float:
        """What background gains for each standard deviation of a region's part in the picture's border."""
        return self.naming.border_weight if self.background_BD is not None else 0.0

    @torch.inference_mode()
    def look(self, picture_CHW: Tensor) -> Regions | None:
        """All of a picture as one region, whatever its aspect; None where its windows are asked."""
        size = self.naming.picture_size
        if not size:
            return None
        pixels_1CHW = normalised(resized(picture_CHW[None], size), self.encoder)
        found: Regions = self.tower(pixels_1CHW, torch.ones(1, 1, 1, 1, device=self.encoder.device))
        return found

    def maps(self, window_NCHW: Tensor) -> Tensor:
        """The tower's maps of windows [N, C, h, w]."""
        return self.tower.dense(self.pixels(window_NCHW))

    def pooled_scores(self, maps_NChw: Tensor, labels_Nhw: Tensor, whole: Regions | None) -> Tensor:
        """Scores [N, K, C] of regions of such maps; only where the tower pools."""
        return self.scores(self.tower.pool(maps_NChw, self._masks(labels_Nhw)), whole)

    def pixels(self, window_NCHW: Tensor) -> Tensor:
        """Windows as the tower expects them."""
        return normalised(resized(window_NCHW, self.size), self.encoder)

    def drawn(self, labels_Nhw: Tensor, window_NCHW: Tensor) -> Tensor:
        """Masks [N, K, H, W] as fine as the stage ``groups`` stores them, which towers are trained on."""
        labels_Nhw, size = labels_Nhw.to(self.encoder.device), self.grouping.size
        fine_NHW = upsample(labels_Nhw, window_NCHW, size, size, self.grouping.upsample)
        return masks(fine_NHW, int(labels_Nhw.max()) + 1)  # a region may be too small to be drawn

    def regions(self, features_NChw: Tensor) -> Tensor:
        """Labels [N, h, w]. Every window has the same seed, so none depends on its batch."""
        return group(features_NChw, [self.grouping.seed] * len(features_NChw), self.grouping)

    def shares(self, labels_Nhw: Tensor, window_NCHW: Tensor) -> Tensor:
        """The share of each region in every second pixel [N, K, H/2, W/2]."""
        height, width = (-(-side // COARSER) for side in window_NCHW.shape[2:])
        labels_Nhw = labels_Nhw.to(self.encoder.device)
        return shares(labels_Nhw, window_NCHW, height, width, self.grouping.upsample)

    def _masks(self, labels_Nhw: Tensor) -> Tensor:
        return masks(labels_Nhw, int(labels_Nhw.max()) + 1).to(self.encoder.device)

    def scores(self, found: Regions, whole: Regions | None) -> Tensor:
        """Scores [N, K, labels] of the regions of a picture's windows, and of a look at all of it."""
        region_NKD = functional.normalize(found.region_NKD, dim=-1)
        score_NKC = self.class_cosines(region_NKD)
        if self.scale:
            score_NKC = self.scale(score_NKC)
        if self.naming.region_evidence:
            score_RC = self.naming.region_evidence(found.token_NKC[found.valid_NK])
            score_NKC = score_NKC.index_put((found.valid_NK,), score_RC.to(score_NKC), accumulate=True)
        score_NKC = score_NKC + self._of_picture(whole or found)
        if self.background_BD is None:
            return score_NKC
        background_NKB = region_NKD @ self.background_BD.T
        if self.background_scale:
            background_NKB = self.background_scale(background_NKB)
        background_NK1 = background_NKB.amax(-1, keepdim=True) + self.naming.background_bias
        return torch.cat([background_NK1, score_NKC], -1)

    def class_cosines(self, vectors_XD: Tensor) -> Tensor:
        """Cosine [..., C] of each vector to each class: the best over the class' names."""
        return torch.stack([(vectors_XD @ names_SD.T).amax(-1) for names_SD in self.class_vectors], -1)

    def _of_picture(self, seen: Regions) -> Tensor:
        """What is added to the score of each class [C], wherever it is: 0 for the likeliest class."""
        score_C = self.class_cosines(functional.normalize(seen.pooled_ND.mean(dim=0), dim=-1))
        if self.naming.picture_evidence:
            score_C = score_C + self.naming.picture_evidence(seen.token_NKC[seen.valid_NK])
        added_C = self.naming.image_weight * (score_C - score_C.amax())
        if not self.naming.top_k:
            return added_C
        allowed = score_C.topk(min(self.naming.top_k, len(score_C))).indices
        forbidden_C = torch.ones_like(score_C, dtype=torch.bool).scatter(0, allowed, value=False)
        return added_C.masked_fill(forbidden_C, LEAST)


def resized(window_NCHW: Tensor, size: int) -> Tensor:
    """Windows as squares of ``size`` pixels, whatever their aspect."""
    if tuple(window_NCHW.shape[2:]) == (size, size):
        return window_NCHW
    return functional.interpolate(
        window_NCHW, (size, size), mode="bilinear", align_corners=False, antialias=True
    )
