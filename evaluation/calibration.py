"""Scores of different names on one scale, learnt without a single mask.

The one-way loss does not change when a constant is added to all scores of one noun, so which noun is highest
in a region is not what it learns. What the regions of the training images score is known, and what their
captions name: enough to set the nouns against each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional

from evaluation.benchmarks import Benchmark
from evaluation.training_images import TrainingImages, named
from training.naming import RegionSegmenter
from training.regions import RegionEncoder

IntArray = NDArray[np.int64]
SHRINKAGE = np.array([20.0, 0.5])  # pulls slope and intercept of a name towards those of all; of z-scores


@dataclass(frozen=True)
class CalibrationConfig:
    """How scores of names are made comparable."""

    kind: Literal["none", "standard", "captions"] = "none"
    sources: tuple[str, ...] = ()  # of the corpus whose regions are looked at; all of them when empty
    images: int = 50_000  # of these, about, in whole shards: regions are in memory together; 0 for all
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


def calibrate(
    segmenter: RegionSegmenter, config: CalibrationConfig, benchmark: Benchmark, images: TrainingImages
) -> None:
    """Sets a segmenter's scales by training images."""
    vector_RD, image_R, nouns = _unit_vectors(images, segmenter.tower)

    def scale(scores_RC: Tensor, names: Sequence[Sequence[str]]) -> Affine:
        if config.kind == "standard":
            return standardised(scores_RC)
        return by_captions(scores_RC, image_R, named(nouns, names), config.prior)

    segmenter.scale = scale(segmenter.class_cosines(vector_RD), benchmark.synonyms)
    if segmenter.background_BD is not None:
        names = [(name,) for name in benchmark.background_names]
        segmenter.background_scale = scale(vector_RD @ segmenter.background_BD.T, names)


def _unit_vectors(images: TrainingImages, tower: RegionEncoder) -> tuple[Tensor, IntArray, list[list[str]]]:
    """Vectors of all regions [R, D], as a tower's head projects them; their images [R]; nouns of captions."""
    tokens, nouns = zip(*images, strict=True)
    device = next(tower.parameters()).device
    with torch.inference_mode():
        vector_RD = tower.project(torch.cat(tokens).float().to(device))
    image_R = np.repeat(np.arange(len(tokens)), [len(own) for own in tokens])
    return functional.normalize(vector_RD, dim=-1), image_R, list(nouns)


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
