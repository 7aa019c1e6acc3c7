"""Naming regions: training by the one-way noun-to-region loss, and segmenting with it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from storage.errors import ConfigError
from training.data import Batch, as_images
from training.encoder import EncoderLike
from training.features import Backbone, unit_maps
from training.grouping import GroupingConfig, group, masks
from training.groups import normalised
from training.losses import Pooling, noun_to_region
from training.regions import PARTS, RegionEncoder, Regions, parse_parts, trainable
from training.step import Features

LEAST = -100.0  # below every score: windows are averaged, and minus infinity would spread
Scale = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RecognitionConfig:
    """What trains, and how sharply."""

    trains: str = (
        "head"  # of the tower: head, last:N, projections, lora:R or all (training/regions.py, `trainable`)
    )
    size: int = 224  # pixels: images are resized to size x size
    temperature: float = 0.07  # of the contrast
    pooling: Pooling = "max"  # of an image's regions, for a noun: the best, or their mean by softmax
    both_ways: bool = False  # images find their nouns too: for comparison with the one-way loss
    alike: float = 1.0  # cosine of two names from which an image with one is no negative for the other
    drawn_weight: float = 1.0  # of a drawn noun's term beside those that need no draw
    keep: float = 0.0  # share of the untrained weights in the artifact's (Wortsman et al., 2022)

    def __post_init__(self) -> None:
        parse_parts(self.trains)
        if not 0 <= self.keep < 1 or self.drawn_weight < 0 or not 0 < self.alike <= 1:
            raise ValueError(
                f"recognition.keep={self.keep}, drawn_weight={self.drawn_weight}, alike={self.alike}: keep "
                "is a share in [0, 1), a weight 0 at least, and alike a cosine in (0, 1]"
            )


class Nouns:
    """The noun instances of N images: P of them, each with its image and the images that carry it too."""

    def __init__(self, features: Features, vectors_CD: Tensor | None = None, alike: float = 1.0) -> None:
        """Reads them from the features of any number of pieces.

        Args:
            features: `noun_P` with `nouns_N` (how many an image), and `named_Q` with `named_N`.
            vectors_CD: unit vectors of the names; needed where ``alike`` is below 1.
            alike: cosine from which a name is carried by images that carry the other.
        """
        self.owner_P = _owners(features["nouns_N"])
        concept_U, place_P = torch.unique(features["noun_P"], return_inverse=True)
        named_Q, owner_Q = features["named_Q"], _owners(features["named_N"])
        known_Q = torch.isin(named_Q, concept_U)
        carries_UN = torch.zeros(
            len(concept_U), len(features["nouns_N"]), dtype=torch.bool, device=named_Q.device
        )
        carries_UN[torch.searchsorted(concept_U, named_Q[known_Q]), owner_Q[known_Q]] = True
        if alike < 1:
            assert vectors_CD is not None, "names are compared by their vectors"
            carries_UN |= _carries_alike(vectors_CD, concept_U, named_Q, owner_Q, len(carries_UN[0]), alike)
        self.carries_PN = carries_UN[place_P]


def _carries_alike(
    vectors_CD: Tensor, concept_U: Tensor, named_Q: Tensor, owner_Q: Tensor, images: int, alike: float
) -> Tensor:
    """Whether an image carries a name that is nearly the same: bool [U, N]."""
    other_V, place_Q = torch.unique(named_Q, return_inverse=True)
    named_VN = torch.zeros(len(other_V), images, device=named_Q.device)
    named_VN[place_Q, owner_Q] = 1
    near_UV = vectors_CD[concept_U] @ vectors_CD[other_V].T >= alike
    return near_UV.to(named_VN) @ named_VN > 0


def noun_features(batch: Batch) -> Features:
    """Concept ids of a batch's nouns (fixed and drawn), and of all its samples may be called by."""
    nouns = [_nouns_of(batch, row) for row in range(len(batch.sample_ids))]
    fixed = [np.isin(own, known) for own, known in zip(nouns, batch.fixed, strict=True)]
    return {
        "noun_P": _flat(nouns),
        "fixed_P": _flat([own.astype(np.int64) for own in fixed]),
        "nouns_N": torch.tensor([len(own) for own in nouns]),
        "named_Q": _flat(batch.named),
        "named_N": torch.tensor([len(names) for names in batch.named]),
    }


def _flat(lists: Sequence[NDArray[np.int64]]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *lists]))


def _owners(count_N: Tensor) -> Tensor:
    """To which sample each row belongs, where sample n has ``count_N[n]`` rows."""
    return torch.arange(len(count_N), device=count_N.device).repeat_interleave(count_N)


def _nouns_of(batch: Batch, row: int) -> NDArray[np.int64]:
    drawn = batch.drawn_NM[row]
    return np.union1d(batch.fixed[row], drawn[drawn >= 0])


class RecognitionObjective:
    """The one-way loss over regions of a batch, from images or (head only) from stored region vectors."""

    def __init__(self, config: RecognitionConfig, encoder: EncoderLike, concepts: pa.Table) -> None:
        if config.trains == "none":
            raise ConfigError(f"train.grouping.recognition.trains is 'none'; choose another of {PARTS}")
        self.config, self.encoder = config, encoder
        self.model: RegionEncoder = RegionEncoder(encoder.visual.float())
        trainable(self.model, config.trains)
        vectors = concepts["vector"].combine_chunks()
        table_CD = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(concepts), -1)
        self.concept_vectors_CD = torch.from_numpy(table_CD.copy()).to(encoder.device)

    @property
    def towers(self) -> dict[str, nn.Module]:
        """What `encode` runs."""
        return {"visual": self.model.visual}

    def encode(self, batch: Batch) -> Features:
        """The regions' unit vectors, one image's after another's, and the concept ids of the nouns."""
        region_NKD, valid_NK = self._region_vectors(batch)
        nouns = {name: ids.to(region_NKD.device) for name, ids in noun_features(batch).items()}
        region_RD = functional.normalize(region_NKD[valid_NK], dim=-1)
        return {"region_RD": region_RD, "regions_N": valid_NK.sum(dim=1), **nouns}

    def contrast(self, features: Features) -> Tensor:
        """The loss of all samples, in nats."""
        region_NKD, valid_NK = padded(features["region_RD"], features["regions_N"])
        config, vectors_CD = self.config, self.concept_vectors_CD
        nouns = Nouns(features, vectors_CD, config.alike)
        return noun_to_region(
            region_NKD,
            valid_NK,
            vectors_CD[features["noun_P"]],
            owner_P=nouns.owner_P,
            carries_PN=nouns.carries_PN,
            scale=1 / config.temperature,
            weights_P=torch.where(features["fixed_P"] > 0, 1.0, config.drawn_weight),
            pooling=config.pooling,
            both_ways=config.both_ways,
        )

    def _region_vectors(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if self.config.trains == "head":
            tokens_NKC, valid_NK = self._stored_tokens(batch)
            return self.model.project(tokens_NKC), valid_NK
        image_NCHW = normalised(as_images(batch.pixels_NHWC, self.encoder.device), self.encoder)
        found = self.model(image_NCHW, self._masks(batch))
        return found.region_NKD, found.valid_NK

    def _stored_tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Region vectors before the projection, padded to the batch's largest count."""
        padded_NKC = nn.utils.rnn.pad_sequence(batch.regions, batch_first=True)
        lengths_N1 = torch.tensor([len(row) for row in batch.regions])[:, None]
        valid_NK = torch.arange(padded_NKC.shape[1]) < lengths_N1
        return padded_NKC.float().to(self.encoder.device), valid_NK.to(self.encoder.device)

    def _masks(self, batch: Batch) -> Tensor:
        labels_NHW = torch.from_numpy(np.stack(batch.regions)).long()
        return masks(labels_NHW, int(labels_NHW.max()) + 1).to(self.encoder.device)


def interpolated(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """Weights between an untrained and a trained tower: what training forgot is partly kept.

    Source: Wortsman et al., *Robust fine-tuning of zero-shot models*, CVPR 2022.
    """
    return {name: _between(before[name], tensor, share).contiguous() for name, tensor in after.items()}


def _between(before: Tensor, after: Tensor, share: float) -> Tensor:
    return torch.lerp(before, after, share) if after.is_floating_point() and share < 1 else after


def padded(row_RD: Tensor, count_N: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of N samples as [N, K, D], K the largest count, zeros behind; and which of them are rows."""
    largest = int(count_N.max()) if len(count_N) else 0
    valid_NK = torch.arange(largest, device=count_N.device) < count_N[:, None]
    padded_NKD = row_RD.new_zeros(*valid_NK.shape, row_RD.shape[1])
    return padded_NKD.index_put((valid_NK,), row_RD), valid_NK


class RegionSegmenter:
    """Groups the pixels of a window and names each region by the class nearest to its vector.

    Like GroupViT's evaluation, the classes an image may show are its ``top_k`` nearest ones. Background is
    what falls to one of the background prompts, if there are any.
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
        top_k: int = 0,
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
            top_k: classes an image may show; 0 for all.
            scale: what cosines [..., C] of regions to classes are taken for; for themselves if None.
            background_scale: the same, for the background's names.
        """
        assert features is not None or tower.pools, "a transformer does not pool maps: give features"
        self.tower, self.encoder, self.size, self.top_k = tower.eval(), encoder, size, top_k
        self.grouping, self.features = grouping, features
        self.scale, self.background_scale = scale, background_scale
        self.class_vectors = [torch.from_numpy(v).to(encoder.device) for v in class_vectors]
        background = None if background_vectors is None else torch.from_numpy(background_vectors)
        self.background_BD = background.to(encoder.device) if background is not None else None

    @torch.inference_mode()
    def __call__(self, window_NCHW: Tensor) -> Tensor:
        """Cosines [N, C, h, w] (background first where there is one) of windows in [0, 1]."""
        pixels_NCHW = normalised(self._resized(window_NCHW), self.encoder)
        if self.features is None:
            maps_NChw = self.tower.dense(pixels_NCHW)
            regions_NKHW = self.regions(unit_maps(maps_NChw, self.grouping.position_weight))
            found = self.tower.pool(maps_NChw, regions_NKHW)
        else:
            regions_NKHW = self.regions(self.features(window_NCHW))
            found = self.tower(pixels_NCHW, regions_NKHW)
        scores_NKC = self._scores(found)
        return torch.einsum("nkhw,nkc->nchw", regions_NKHW.to(scores_NKC), scores_NKC)

    def _resized(self, window_NCHW: Tensor) -> Tensor:
        square = (self.size, self.size)
        if tuple(window_NCHW.shape[2:]) == square:
            return window_NCHW
        return functional.interpolate(
            window_NCHW, square, mode="bilinear", align_corners=False, antialias=True
        )

    def regions(self, features_NChw: Tensor) -> Tensor:
        """Masks [N, K, h, w]. Every window has the same seed, so none depends on its batch."""
        seeds = [self.grouping.seed] * len(features_NChw)
        labels_Nhw = group(features_NChw, seeds, self.grouping)
        return masks(labels_Nhw, int(labels_Nhw.max()) + 1).to(self.encoder.device)

    def _scores(self, found: Regions) -> Tensor:
        """Scores [N, K, labels] of the regions."""
        region_NKD = functional.normalize(found.region_NKD, dim=-1)
        score_NKC = self.class_cosines(region_NKD)
        if self.scale:
            score_NKC = self.scale(score_NKC)
        if self.top_k:
            score_NKC = self._restrict(score_NKC, functional.normalize(found.pooled_ND, dim=-1))
        if self.background_BD is None:
            return score_NKC
        background_NKB = region_NKD @ self.background_BD.T
        if self.background_scale:
            background_NKB = self.background_scale(background_NKB)
        return torch.cat([background_NKB.amax(-1, keepdim=True), score_NKC], -1)

    def class_cosines(self, vectors_XD: Tensor) -> Tensor:
        """Cosine [..., C] of each vector to each class: the best over the class' names."""
        return torch.stack([(vectors_XD @ names_SD.T).amax(-1) for names_SD in self.class_vectors], -1)

    def _restrict(self, score_NKC: Tensor, pooled_ND: Tensor) -> Tensor:
        image_NC = self.class_cosines(pooled_ND)
        allowed = image_NC.topk(min(self.top_k, image_NC.shape[1]), dim=1).indices
        forbidden_NC = torch.ones_like(image_NC, dtype=torch.bool).scatter(1, allowed, value=False)
        return score_NKC.masked_fill(forbidden_NC[:, None], LEAST)
