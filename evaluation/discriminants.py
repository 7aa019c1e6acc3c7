"""What captions teach of whole pictures: a linear discriminant of each class, before the projection.

A projection learnt from few pairs keeps little of what its tower tells apart. Captions of the training images
name classes; where images so named lie among all others, in the tower's own space, is a closed form.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from evaluation.training_images import named

CHUNK = 1024  # images that moments are taken of at a time


@dataclass(frozen=True)
class DiscriminantConfig:
    """How much the discriminants of the classes have to say of a picture."""

    weight: float = 0.0  # of one standard deviation, beside a class' cosine to the picture; 0: nothing
    shrinkage: float = 0.6  # of the covariance, towards a multiple of the identity
    sources: tuple[str, ...] = ()  # of the corpus that they are learnt from; all of them when empty

    def __post_init__(self) -> None:
        if self.weight < 0 or not 0 < self.shrinkage <= 1:
            raise ValueError(
                f"discriminants.weight={self.weight}, shrinkage={self.shrinkage}: a weight is 0 at least, "
                "a shrinkage lies in (0, 1]"
            )


@dataclass(frozen=True, eq=False)
class Discriminants:
    """How much more than the average image an image looks like those whose captions name a class."""

    mean_D: Tensor
    weights_DC: Tensor

    def __call__(self, regions_RD: Tensor) -> Tensor:
        """Scores of the classes [C] for the image of such regions: standard deviations over the corpus.

        A class that no caption names, or every caption, has 0.
        """
        token_D = image_token(regions_RD)
        return (token_D - self.mean_D.to(token_D)) @ self.weights_DC.to(token_D)


def image_token(regions_RD: Tensor) -> Tensor:
    """What stands for an image: the mean of its regions' tokens, at unit length [D]."""
    return functional.normalize(regions_RD.float().mean(dim=0), dim=0)


def learn(
    images: Iterable[tuple[Tensor, Sequence[str]]], names: Sequence[Sequence[str]], shrinkage: float
) -> Discriminants:
    """Fisher's linear discriminants of classes that may appear together, each against all images.

    The covariance is that of all images, shrunk as by Friedman (*Regularized discriminant analysis*, JASA
    1989); the scores of every class are scaled to the same spread over the images.

    Args:
        images: tokens of an image's regions [K, D], and the nouns of its caption. Read once, a chunk at a
            time: memory is that of the covariance, whatever their number.
        names: of each class.
        shrinkage: in (0, 1].
    """
    moments = _Moments(len(names))
    remaining = iter(images)
    while chunk := list(islice(remaining, CHUNK)):
        tokens_ND = torch.stack([image_token(regions_RD) for regions_RD, _ in chunk]).double()
        moments.add(tokens_ND, named([nouns for _, nouns in chunk], names))
    return moments.discriminants(shrinkage)


class _Moments:
    """Sums over images."""

    def __init__(self, classes: int) -> None:
        self.images, self.named_C = 0, torch.zeros(classes, dtype=torch.float64)
        self.sum_D = self.square_DD = self.sum_CD = torch.zeros(0, dtype=torch.float64)

    def add(self, tokens_ND: Tensor, named_NC: NDArray[np.bool_]) -> None:
        """Images by their tokens, and which classes their captions name."""
        told_NC = torch.from_numpy(named_NC).double()
        if not self.images:
            dimensions = tokens_ND.shape[1]
            self.sum_D, self.square_DD = (
                tokens_ND.new_zeros(dimensions),
                tokens_ND.new_zeros(dimensions, dimensions),
            )
            self.sum_CD = tokens_ND.new_zeros(told_NC.shape[1], dimensions)
        self.images += len(tokens_ND)
        self.named_C += told_NC.sum(dim=0)
        self.sum_D += tokens_ND.sum(dim=0)
        self.square_DD += tokens_ND.T @ tokens_ND
        self.sum_CD += told_NC.T @ tokens_ND

    def discriminants(self, shrinkage: float) -> Discriminants:
        """Of all classes, with the covariance of all images that came."""
        mean_D = self.sum_D / self.images
        covariance_DD = self.square_DD / self.images - mean_D.outer(mean_D)
        identity_DD = torch.eye(len(mean_D), dtype=torch.float64)
        shrunk_DD = torch.lerp(covariance_DD, covariance_DD.diagonal().mean() * identity_DD, shrinkage)
        away_DC = (self.sum_CD - self.named_C[:, None] * mean_D).T
        weights_DC = torch.linalg.solve(shrunk_DD, away_DC)
        spread_C = (weights_DC * (covariance_DD @ weights_DC)).sum(dim=0).clamp_min(0).sqrt()
        telling_C = (self.named_C > 0) & (self.named_C < self.images)
        scaled_DC = torch.where(telling_C, weights_DC / spread_C, 0)
        return Discriminants(mean_D.float(), scaled_DC.float())
