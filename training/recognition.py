"""Training a tower to name regions, by the one-way noun-to-region loss."""

from collections.abc import Mapping, Sequence
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
from training.grouping import masks
from training.groups import normalised
from training.losses import Pooling, caption_contrast, noun_to_region
from training.regions import PARTS, RegionEncoder, Regions, parse_parts, trainable
from training.step import Features


@dataclass(frozen=True)
class RecognitionConfig:
    """What trains, and how sharply."""

    trains: str = (
        "head"  # of the tower: head, last:N, projections, lora:R or all (training/regions.py, `trainable`)
    )
    size: int = 224  # pixels: images are resized to size x size
    context: bool = True  # regions see the image around them; else a pass each, of their own pixels
    temperature: float = 0.07  # of the contrast
    pooling: Pooling = "max"  # of an image's regions, for a noun: the best, or their mean by softmax
    both_ways: bool = False  # images find their nouns too: for comparison with the one-way loss
    alike: float = 1.0  # cosine of two names from which an image with one is no negative for the other
    drawn_weight: float = 1.0  # of a drawn noun's term beside those that need no draw
    caption_weight: float = 0.0  # of the contrast of whole images with their captions, beside the nouns'
    keep: float = 0.0  # share of the untrained weights in the artifact's (Wortsman et al., 2022)

    def __post_init__(self) -> None:
        parse_parts(self.trains)
        weights = (self.drawn_weight, self.caption_weight)
        if not 0 <= self.keep < 1 or min(weights) < 0 or not 0 < self.alike <= 1:
            raise ValueError(
                f"recognition.keep={self.keep}, drawn_weight={self.drawn_weight}, caption_weight="
                f"{self.caption_weight}, alike={self.alike}: keep is a share in [0, 1), a weight 0 at "
                "least, and alike a cosine in (0, 1]"
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
        self.model: RegionEncoder = RegionEncoder(encoder.visual.float(), config.context)
        trainable(self.model, config.trains)
        vectors = concepts["vector"].combine_chunks()
        table_CD = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(concepts), -1)
        self.concept_vectors_CD = torch.from_numpy(table_CD.copy()).to(encoder.device)

    @property
    def towers(self) -> dict[str, nn.Module]:
        """What `encode` runs."""
        return {"visual": self.model.visual}

    def encode(self, batch: Batch) -> Features:
        """The regions' unit vectors, one image's after another's, and the concept ids of the nouns.

        With a weight for captions also a unit vector of each image and of its caption.
        """
        found = self._regions(batch)
        nouns = {name: ids.to(found.region_NKD.device) for name, ids in noun_features(batch).items()}
        region_RD = functional.normalize(found.region_NKD[found.valid_NK], dim=-1)
        features = {"region_RD": region_RD, "regions_N": found.valid_NK.sum(dim=1), **nouns}
        if self.config.caption_weight:
            features["image_ND"] = functional.normalize(found.pooled_ND, dim=-1)
            features["caption_ND"] = self._caption_vectors(batch.captions).to(found.pooled_ND)
        return features

    def _caption_vectors(self, captions: Sequence[str]) -> Tensor:
        """Of the text tower, which does not learn."""
        return torch.from_numpy(self.encoder.encode_texts(captions, ("{}",)))

    def contrast(self, features: Features) -> Tensor:
        """The loss of all samples, in nats."""
        region_NKD, valid_NK = padded(features["region_RD"], features["regions_N"])
        config, vectors_CD = self.config, self.concept_vectors_CD
        nouns = Nouns(features, vectors_CD, config.alike)
        loss = noun_to_region(
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
        if config.caption_weight:
            whole = caption_contrast(features["image_ND"], features["caption_ND"], 1 / config.temperature)
            loss = loss + config.caption_weight * whole
        return loss

    def _regions(self, batch: Batch) -> Regions:
        if self.config.trains == "head":
            tokens_NKC, valid_NK = self._stored_tokens(batch)
            means_NC = tokens_NKC.sum(dim=1) / valid_NK.sum(dim=1, keepdim=True).clamp_min(1)
            return self.model.projected(tokens_NKC, means_NC, valid_NK)
        image_NCHW = normalised(as_images(batch.pixels_NHWC, self.encoder.device), self.encoder)
        found: Regions = self.model(image_NCHW, self._masks(batch))
        return found

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
