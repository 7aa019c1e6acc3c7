"""Scores of different names on one scale, learnt without a single mask.

The one-way loss does not change when a constant is added to all scores of one noun, so which noun is highest
in a region is not what it learns. What the regions of the training images score is known, and what their
captions name: enough to set the nouns against each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional

from evaluation.benchmarks import Benchmark
from evaluation.concepts import class_lookup
from storage.artifact import Artifact
from training.naming import RegionSegmenter
from training.regions import RegionEncoder
from training.views import read_regions

SHRINKAGE = np.array([20.0, 0.5])  # pulls slope and intercept of a name towards those of all; of z-scores


@dataclass(frozen=True)
class CalibrationConfig:
    """How scores of names are made comparable."""

    kind: Literal["none", "standard", "captions"] = "none"
    sources: tuple[str, ...] = ()  # of the corpus whose regions are looked at; all of them when empty
    prior: float = 0.25  # of captions: share of the log odds with which captions name a class

    def __post_init__(self) -> None:
        if self.kind not in ("none", "standard", "captions"):
            raise ValueError(f"calibration.kind is {self.kind!r}; give none, standard or captions")


@dataclass(frozen=True, eq=False)
class Affine:
    """A slope and an intercept per name: what a score is taken for."""

    slope_C: Tensor
    intercept_C: Tensor

    def __call__(self, scores: Tensor) -> Tensor:
        """Calibrated scores [..., C]."""
        return scores * self.slope_C.to(scores) + self.intercept_C.to(scores)


@dataclass(frozen=True, eq=False)
class TrainingRegions:
    """Regions of unlabelled training images: unit vectors [R, D], their images, and what captions name."""

    vector_RD: Tensor
    image_R: NDArray[np.int64]
    nouns: list[list[str]]  # of each image

    def named(self, names: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
        """Whether the caption of an image names a class, by any of its names or their plurals: [N, C]."""
        lookup = class_lookup([own[0] for own in names], {own[0]: own[1:] for own in names})
        place = {own[0]: number for number, own in enumerate(names)}
        found_NC = np.zeros((len(self.nouns), len(names)), bool)
        for row, nouns in enumerate(self.nouns):
            found_NC[row, [place[lookup[noun]] for noun in nouns if noun in lookup]] = True
        return found_NC


def calibrate(
    segmenter: RegionSegmenter, config: CalibrationConfig, benchmark: Benchmark, given: Mapping[str, Artifact]
) -> None:
    """Sets a segmenter's scales, from the artifacts `regions`, `mentions` and `vocabulary`."""
    seen = training_regions(
        given["regions"], given["mentions"], given["vocabulary"], segmenter.tower, config.sources
    )
    segmenter.scale = _scale(config, segmenter.class_cosines(seen.vector_RD), seen, benchmark.synonyms)
    if segmenter.background_BD is not None:
        scores_RB = seen.vector_RD @ segmenter.background_BD.T
        names = [(name,) for name in benchmark.background_names]
        segmenter.background_scale = _scale(config, scores_RB, seen, names)


def _scale(
    config: CalibrationConfig, scores_RC: Tensor, seen: TrainingRegions, names: Sequence[Sequence[str]]
) -> Affine:
    if config.kind == "standard":
        return standardised(scores_RC)
    return by_captions(scores_RC, seen.image_R, seen.named(names), config.prior)


def training_regions(
    regions: Artifact, mentions: Artifact, vocabulary: Artifact, tower: RegionEncoder, sources: Sequence[str]
) -> TrainingRegions:
    """Reads stored region vectors and projects them by a tower's head."""
    name_C = vocabulary.read("concepts", columns=["name"])["name"].to_pylist()
    vectors, counts, nouns = [], [], []
    for shard in regions.shards:
        if sources and shard.split("/")[0] not in sources:
            continue
        said: Mapping[str, list[int]] = dict(_rows(mentions, shard))
        for sample_id, tokens_KC in read_regions(regions, shard).items():
            vectors.append(tokens_KC.float())
            counts.append(len(tokens_KC))
            nouns.append([name_C[concept] for concept in said.get(sample_id, [])])
    device = next(tower.parameters()).device
    with torch.inference_mode():
        vector_RD = functional.normalize(tower.project(torch.cat(vectors).to(device)), dim=-1)
    return TrainingRegions(vector_RD, np.repeat(np.arange(len(counts)), counts), nouns)


def _rows(mentions: Artifact, shard: str) -> list[tuple[str, list[int]]]:
    table = mentions.read("mentions", shard)
    return list(zip(table["sample_id"].to_pylist(), table["concept_ids"].to_pylist(), strict=True))


def standardised(scores_RC: Tensor) -> Affine:
    """Each name's scores minus their mean, by their spread, over the regions of training images."""
    spread_C = scores_RC.std(dim=0).clamp_min(1e-6)
    return Affine(1 / spread_C, -scores_RC.mean(dim=0) / spread_C)


def by_captions(
    scores_RC: Tensor, image_R: NDArray[np.int64], named_NC: NDArray[np.bool_], prior: float
) -> Affine:
    """Log odds that a caption names a class, by the best region's score (Platt, 1999), of every class.

    A slope and an intercept of each class, shrunk to those of all classes: most are named in a handful of
    captions or in none. How often captions name a class says little of other corpora, so only the share
    ``prior`` of those log odds is left in.
    """
    best_NC = torch.full(named_NC.shape, -torch.inf).scatter_reduce(
        0, torch.from_numpy(image_R)[:, None].expand(-1, named_NC.shape[1]), scores_RC.cpu(), "amax"
    )
    mean, spread = float(best_NC.mean()), max(float(best_NC.std()), 1e-6)
    z_NC = ((best_NC - mean) / spread).double().numpy()
    shared = _logistic(z_NC.ravel(), named_NC.ravel(), np.array([1.0, -3.0]), np.zeros(2))
    each_C2 = np.stack(
        [_logistic(z_NC[:, c], named_NC[:, c], shared, SHRINKAGE) for c in range(z_NC.shape[1])]
    )
    often_C = named_NC.mean(axis=0).clip(1e-3, 0.99)
    intercept_C = each_C2[:, 1] - (1 - prior) * np.log(often_C / (1 - often_C))
    slope_C = each_C2[:, 0] / spread
    return Affine(torch.from_numpy(slope_C).float(), torch.from_numpy(intercept_C - slope_C * mean).float())


def _logistic(
    z_N: NDArray[np.float64],
    named_N: NDArray[np.bool_],
    start: NDArray[np.float64],
    shrinkage: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Slope and intercept of a logistic regression on one variable."""

    def cost(both: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logit_N, away = both[0] * z_N + both[1], both - start
        error_N = 1 / (1 + np.exp(-logit_N)) - named_N
        value = np.logaddexp(0, logit_N).sum() - logit_N[named_N].sum() + (shrinkage * away**2).sum()
        return value, np.array([(error_N * z_N).sum(), error_N.sum()]) + 2 * shrinkage * away

    found: NDArray[np.float64] = minimize(cost, start, jac=True).x
    return found
