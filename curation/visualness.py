"""Visualness: how well a concept's text vector tells the images whose captions name it from the others.

It is the AUC of cosines: the probability that an image which names the concept fits it better than an image
which does not (Mann and Whitney's U over the number of pairs). "dog" comes near 1, "idea" near ½.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from storage.errors import ConfigError

BITS = 20  # of fixed-point vectors: their cosines are multiples of 2⁻⁴⁰, whatever the order of summation
_CONCEPTS, _PAIRS = 256, 4096  # at once
_APART = 1 << 42  # between the keys of two concepts: more than cosines times 2⁴⁰ span
_HALVINGS = 40  # until the bounds of an interval are known to 2⁻⁴⁰
Vectors = NDArray[np.float64]  # fixed-point, see curation.exact
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class VisualnessConfig:
    """Which concepts count as visual, and by how many images that is judged."""

    minimum: float = 0.6  # AUC; a concept that surely lies below is dropped
    confidence: float = 0.98  # of the two-sided interval that says what is sure
    named: int = 1000  # about so many of the images that name a concept; all where there are fewer
    others: int = 4000  # about so many images of the corpus to set against them
    seed: int = 0

    def __post_init__(self) -> None:
        shares = (self.minimum, self.confidence)
        if not all(0 < share < 1 for share in shares) or min(self.named, self.others) < 1:
            raise ConfigError(
                f"vocabulary.visualness: minimum={self.minimum} and confidence={self.confidence} lie between "
                f"0 and 1, named={self.named} and others={self.others} are at least 1"
            )


@dataclass(frozen=True)
class Pairs:
    """Pairs of a concept and an image that names it: the concept, and the cosine times 2⁴⁰, ``[P]``."""

    concept_P: Integers
    cosine_P: Integers

    def between(self, first: int, end: int) -> "Pairs":
        """Those of concepts from ``first`` to ``end``, which is left out, counted from ``first``."""
        chosen = (self.concept_P >= first) & (self.concept_P < end)
        return Pairs(self.concept_P[chosen] - first, self.cosine_P[chosen])

    @property
    def keys(self) -> Integers:
        """Numbers ``[P]`` that order pairs by concept, then by cosine."""
        return self.concept_P * _APART + self.cosine_P


def joined(parts: Sequence[Pairs]) -> Pairs:
    """All pairs."""
    empty = Pairs(np.empty(0, np.int64), np.empty(0, np.int64))
    columns = zip(*((part.concept_P, part.cosine_P) for part in (empty, *parts)), strict=True)
    return Pairs(*map(np.concatenate, columns))


def pairs_of(concepts_CD: Vectors, images_ND: Vectors, concept_P: Integers, image_P: Integers) -> Pairs:
    """Pairs with their cosines, which are exact."""
    starts = range(0, len(concept_P), _PAIRS)
    slices = [slice(start, start + _PAIRS) for start in starts]
    cosines = [np.vecdot(concepts_CD[concept_P[s]], images_ND[image_P[s]]) for s in slices]
    return Pairs(concept_P, _integers(np.concatenate([np.empty(0), *cosines])))


def _integers(cosines: NDArray[np.float64]) -> Integers:
    return np.asarray(cosines * 2.0 ** (2 * BITS), np.int64)


@dataclass(frozen=True)
class Visualness:
    """AUC of each concept and its confidence interval, ``[C]``; NaN, 0 and 1 where nothing is known."""

    auc: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def visualness(
    concepts_CD: Vectors, others_SD: Vectors, named: Pairs, among: Pairs, confidence: float
) -> Visualness:
    """How visual each concept is.

    Args:
        concepts_CD: text vectors, fixed-point to `BITS`.
        others_SD: images to set against those that name a concept, likewise.
        named: pairs of a concept and an image that names it.
        among: the pairs of all images in ``others_SD``: one that names a concept is no other image for it.
        confidence: of the two-sided interval.
    """
    count = len(concepts_CD)
    named_C = np.bincount(named.concept_P, minlength=count)
    others_C = len(others_SD) - np.bincount(among.concept_P, minlength=count)
    won_C = np.zeros(count)
    for first in range(0, count, _CONCEPTS):
        block = slice(first, min(first + _CONCEPTS, count))
        in_block = [pairs.between(block.start, block.stop) for pairs in (named, among)]
        won_C[block] = _won(concepts_CD[block], others_SD, *in_block)
    known = (named_C > 0) & (others_C > 0)
    auc_C = np.divide(won_C, named_C * others_C, where=known, out=np.full(count, np.nan))
    return Visualness(auc_C, *interval(auc_C, named_C, others_C, confidence))


def _won(concepts_CD: Vectors, others_SD: Vectors, named: Pairs, among: Pairs) -> NDArray[np.float64]:
    """Per concept, how many pairs of images the one that names it wins; ties are halves."""
    cosines_CS = _integers(concepts_CD @ others_SD.T)
    rows = np.repeat(np.arange(len(concepts_CD)), len(others_SD))
    everyone = np.sort(Pairs(rows, cosines_CS.ravel()).keys)
    below_P = _below(everyone, named) - _below(np.sort(among.keys), named)
    return np.asarray(np.bincount(named.concept_P, below_P, len(concepts_CD)), np.float64)


def _below(sorted_keys: Integers, pairs: Pairs) -> NDArray[np.float64]:
    """For each pair, how many keys of its concept are smaller; equal ones are halves."""
    left, right = (np.searchsorted(sorted_keys, pairs.keys, side) for side in ("left", "right"))
    start = np.searchsorted(sorted_keys, pairs.concept_P * _APART - _APART // 2)
    return (left + right) / 2 - start


def interval(
    auc_C: NDArray[np.float64], named_C: Integers, others_C: Integers, confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Confidence interval of an AUC: method 5 of Newcombe (Statistics in Medicine 25, 2006).

    The bounds are the θ with (AUC − θ)² = z²·V(θ), as in Wilson's interval of a proportion, where V is
    Hanley and McNeil's variance (Radiology 143, 1982) with both sample sizes replaced by their mean. Unlike
    AUC ± z·SE it is wide for a few images also when each of them wins.

    Returns:
        The bounds ``[C]``: 0 and 1 where the AUC is NaN.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    sizes = (z**2, np.maximum(named_C, 1), np.maximum(others_C, 1))
    known_C = ~np.isnan(auc_C)
    centre_C = np.where(known_C, auc_C, 0.5)
    low_C, high_C = (_bound(centre_C, end, *sizes) for end in (0.0, 1.0))
    return np.where(known_C, low_C, 0.0), np.where(known_C, high_C, 1.0)


def _bound(
    auc_C: NDArray[np.float64], end: float, z2: float, named_C: Integers, others_C: Integers
) -> NDArray[np.float64]:
    outside_C, inside_C = np.full_like(auc_C, end), auc_C
    for _ in range(_HALVINGS):
        middle_C = (outside_C + inside_C) / 2
        beyond_C = (auc_C - middle_C) ** 2 > z2 * _variance(middle_C, named_C, others_C)
        outside_C = np.where(beyond_C, middle_C, outside_C)
        inside_C = np.where(beyond_C, inside_C, middle_C)
    return inside_C


def _variance(auc_C: NDArray[np.float64], named_C: Integers, others_C: Integers) -> NDArray[np.float64]:
    """Hanley and McNeil's, with (named + others) / 2 for both sizes."""
    spread_C = (1 - auc_C) / (2 - auc_C) + auc_C / (1 + auc_C)
    more_C = (named_C + others_C) / 2 - 1
    return auc_C * (1 - auc_C) * (1 + more_C * spread_C) / (named_C * others_C)
