"""What captions teach of pictures and their regions: linear discriminants of classes, before the projection.

A projection learnt from few pairs keeps little of what its tower tells apart. Captions of the training images
name classes; where images so named lie among all others, in the tower's own space, is a closed form. So is
where the region that a class fits best lies among the others of the same picture.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional

from evaluation.training_images import named

CHUNK = 1024  # images that moments are taken of at a time
ClassScores = Callable[[Tensor], Tensor]  # tokens of regions [R, D] -> how well each class fits them [R, C]


@dataclass(frozen=True)
class DiscriminantConfig:
    """How much the discriminants of the classes have to say."""

    weight: float = 0.0  # of one standard deviation, beside a class' cosine to the picture; 0: nothing
    region_weight: float = 0.0  # the same, beside a class' cosine to a region
    shrinkage: float = 0.6  # of the covariance, towards a multiple of the identity
    sources: tuple[str, ...] = ()  # of the corpus that they are learnt from; all of them when empty
    images: int = 50_000  # of these, about, in whole shards: every worker reads them; 0 for all

    def __post_init__(self) -> None:
        if min(self.weight, self.region_weight) < 0 or not 0 < self.shrinkage <= 1:
            raise ValueError(
                f"discriminants.weight={self.weight}, region_weight={self.region_weight}, shrinkage="
                f"{self.shrinkage}: a weight is 0 at least, a shrinkage lies in (0, 1]"
            )

    @property
    def asked(self) -> bool:
        """Whether there is anything to learn."""
        return self.weight > 0 or self.region_weight > 0


@dataclass(frozen=True, eq=False)
class Discriminants:
    """How much more than others an image, or a region of it, looks like what captions name by a class.

    Scores are standard deviations over the training images, or over their regions. A class that no caption
    names, or every caption, has 0.
    """

    mean_D: Tensor
    picture_DC: Tensor
    region_DC: Tensor

    def of_picture(self, regions_RD: Tensor) -> Tensor:
        """Scores of the classes [C] for the image of such regions, against the average image."""
        token_D = image_token(regions_RD)
        return (token_D - self.mean_D.to(token_D)) @ self.picture_DC.to(token_D)

    def of_regions(self, regions_RD: Tensor) -> Tensor:
        """Scores of the classes [R, C] for the regions of one picture, against the average of them."""
        away_RD = away_from_picture(regions_RD)
        return away_RD @ self.region_DC.to(away_RD)


def image_token(regions_RD: Tensor) -> Tensor:
    """What stands for an image: the mean of its regions' tokens, at unit length [D]."""
    return functional.normalize(regions_RD.float().mean(dim=0), dim=0)


def away_from_picture(regions_RD: Tensor) -> Tensor:
    """What sets a picture's regions apart: tokens at unit length, less their mean [R, D]."""
    unit_RD = functional.normalize(regions_RD.float(), dim=-1)
    return unit_RD - unit_RD.mean(dim=0)


def learn(
    images: Iterable[tuple[Tensor, Sequence[str]]],
    names: Sequence[Sequence[str]],
    class_scores: ClassScores,
    shrinkage: float,
) -> Discriminants:
    """Fisher's linear discriminants of classes that may appear together, of pictures and of regions.

    Of pictures: those whose captions name the class, against all. Of regions: in each of those pictures the
    one that the class fits best, against the others of the same picture. Covariances are those of all images
    and of all regions within their image, shrunk as by Friedman (*Regularized discriminant analysis*, JASA
    1989); the scores of every class are scaled to the same spread.

    Args:
        images: tokens of an image's regions [K, D], and the nouns of its caption. Read once, a chunk at a
            time: memory is that of the covariances, whatever their number.
        names: of each class.
        class_scores: how well each class fits regions.
        shrinkage: in (0, 1].
    """
    pictures, regions = _Moments(), _Moments()
    remaining = iter(images)
    while chunk := list(islice(remaining, CHUNK)):
        tokens, nouns = zip(*chunk, strict=True)
        named_NC = torch.from_numpy(named(nouns, names))
        pictures.add(torch.stack([image_token(own) for own in tokens]).double(), named_NC, ~named_NC)
        best_RC, others_RC = _best_regions(tokens, named_NC, class_scores(torch.cat(tokens).float()).cpu())
        regions.add(torch.cat([away_from_picture(own) for own in tokens]), best_RC, others_RC)
    return Discriminants(
        pictures.mean.float(), pictures.discriminants(shrinkage), regions.discriminants(shrinkage)
    )


def _best_regions(tokens: Sequence[Tensor], named_NC: Tensor, fit_RC: Tensor) -> tuple[Tensor, Tensor]:
    """Of images whose caption names a class, the region that it fits best, and the others: bool [R, C]."""
    image_R = torch.arange(len(tokens)).repeat_interleave(torch.tensor([len(own) for own in tokens]))
    lowest_NC = torch.full(named_NC.shape, -torch.inf, dtype=fit_RC.dtype)
    best_NC = lowest_NC.scatter_reduce(0, image_R[:, None].expand_as(fit_RC), fit_RC, "amax")
    best_RC = fit_RC == best_NC[image_R]
    return named_NC[image_R] & best_RC, named_NC[image_R] & ~best_RC


class _Moments:
    """Sums over rows: images, or regions."""

    def __init__(self) -> None:
        self.rows, self.sums = 0, [torch.zeros((), dtype=torch.float64)] * 6

    def add(self, token_RD: Tensor, is_RC: Tensor, is_not_RC: Tensor) -> None:
        """Rows by their tokens; which are examples of a class, and which are none."""
        token_DR, is_RC, is_not_RC = token_RD.T, is_RC.to(token_RD), is_not_RC.to(token_RD)
        more = [
            token_DR.sum(1),
            token_DR @ token_RD,
            is_RC.sum(0),
            token_DR @ is_RC,
            is_not_RC.sum(0),
            token_DR @ is_not_RC,
        ]
        self.sums = [total + part.double() for total, part in zip(self.sums, more, strict=True)]
        self.rows += len(token_RD)

    @property
    def mean(self) -> Tensor:
        """Of all rows [D]."""
        return self.sums[0] / self.rows

    def discriminants(self, shrinkage: float) -> Tensor:
        """Of all classes [D, C], by the covariance of all rows; scores have a standard deviation of 1."""
        _, square_DD, is_C, is_DC, is_not_C, is_not_DC = self.sums
        covariance_DD = square_DD / self.rows - self.mean.outer(self.mean)
        identity_DD = torch.eye(len(covariance_DD), dtype=torch.float64)
        variance = covariance_DD.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)  # of one region
        shrunk_DD = torch.lerp(covariance_DD, variance * identity_DD, shrinkage)
        away_DC = is_DC / is_C.clamp_min(1) - is_not_DC / is_not_C.clamp_min(1)
        weights_DC = torch.linalg.solve(shrunk_DD, away_DC)
        spread_C = (weights_DC * (covariance_DD @ weights_DC)).sum(dim=0).clamp_min(0).sqrt()
        telling_C = (is_C > 0) & (is_not_C > 0)
        return torch.where(telling_C, weights_DC / spread_C, 0).float()
