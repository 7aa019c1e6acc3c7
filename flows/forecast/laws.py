"""From what a stage cost for a few images to what it costs for many: arithmetic, and nothing else.

Every law has two terms, each of them zero or more. What was measured more often than a law has terms says how
far off the law is: the ends of an estimate are its middle times the worst ratios of measured to fitted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

ONCE = 1.3  # factor to either side of what was measured once: this machine's own speed varies so much
Pair = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its range."""

    low: float
    mid: float
    high: float

    def __add__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.low + other.low, self.mid + other.mid, self.high + other.high)

    def times(self, factor: float) -> "Estimate":
        """All three multiplied."""
        return Estimate(self.low * factor, self.mid * factor, self.high * factor)


NONE = Estimate(0.0, 0.0, 0.0)


def about(value: float, factor: float = ONCE) -> Estimate:
    """A value that was measured once."""
    return Estimate(value / factor, value, value * factor)


def of_repeats(values: Sequence[float]) -> Estimate:
    """The mean of what was measured several times, from the least to the greatest of the values.

    Of one value, `about` it.
    """
    mean = sum(values) / len(values)
    return Estimate(min(values), mean, max(values)) if len(values) > 1 else about(mean)


@dataclass(frozen=True)
class Law:
    """``y = a·f + b·g`` for two terms f and g of a size, with the worst ratios of measured to fitted."""

    a: float
    b: float
    low: float  # ratio
    high: float

    def at(self, terms: Pair) -> Estimate:
        """The law's value where its terms have these values."""
        mid = self.a * terms[0] + self.b * terms[1]
        return Estimate(mid * self.low, mid, mid * self.high)


def fit(terms: Sequence[Pair], values: Sequence[float]) -> Law:
    """The law with the least squares of relative errors, neither term below zero.

    Of one measurement all is put down to the second term: what was measured is then the rate.

    Args:
        terms: f and g of each measurement; g above zero.
        values: what was measured, above zero.
    """
    f, g, y = ([max(t[0], 0.0) for t in terms], [t[1] for t in terms], [max(v, 1e-9) for v in values])
    ff, gg, fg = (
        sum(p * q / v**2 for p, q, v in zip(*pair, y, strict=True)) for pair in ((f, f), (g, g), (f, g))
    )
    fy, gy = (sum(p / v for p, v in zip(term, y, strict=True)) for term in (f, g))
    determinant = ff * gg - fg * fg
    a = (fy * gg - gy * fg) / determinant if determinant > 1e-9 * ff * gg and len(y) > 1 else 0.0
    a = min(max(a, 0.0), fy / ff if ff else 0.0)
    b = max(0.0, (gy - a * fg) / gg)
    ratios = [v / (a * p + b * q) for p, q, v in zip(f, g, y, strict=True)]
    if len(y) <= 2:  # as many terms as measurements: the fit cannot be off
        return Law(a, b, min(*ratios, 1 / ONCE), max(*ratios, ONCE))
    return Law(a, b, min(ratios), max(ratios))


@dataclass(frozen=True)
class Point:
    """One shard as it was worked on."""

    images: int
    seconds: float
    bytes: int = 0


def pace(points: Sequence[Point]) -> Law:
    """Seconds of a shard as so much a shard and so much an image.

    The first is left out where there are others: it pays for what is done once, such as warming up.
    """
    kept = points[1:] or points
    return fit([(1.0, float(p.images)) for p in kept], [p.seconds for p in kept])


def warm_up(points: Sequence[Point], law: Law) -> float:
    """Seconds the first shard took beyond what the law gives it."""
    return max(0.0, points[0].seconds - law.at((1.0, float(points[0].images))).mid) if points else 0.0


def distinct(frequencies: Sequence[int], share: float) -> float:
    """How many of some things are expected in a share of the captions that named each so often."""
    return sum(1.0 - (1.0 - share) ** count for count in frequencies)


def named_concepts(frequencies: Sequence[int], captions: int, images: int, most: float) -> Estimate:
    """How many concepts the captions of a corpus name, by Heaps' law: V = k·N^β.

    β comes from the sample itself: from how many concepts are expected in a quarter of its captions.
    The range is from the sample's own number to ``most``.

    Args:
        frequencies: captions of the sample that name each concept.
        captions: of the sample.
        images: N.
        most: concepts there are in all; infinity where there is no list of them.
    """
    found = [count for count in frequencies if count]
    if not found or images <= captions:
        return of_repeats([float(len(found))] * 2)
    grown = float(len(found))
    quarter = distinct(found, 0.25)
    factor = (grown / quarter) ** math.log(images / captions, 4)
    mid = min(most, grown * factor)
    return Estimate(grown, mid, min(most, mid * factor))


def cost(seconds: Estimate, price: float) -> Estimate:
    """What machine time costs at a price per hour."""
    return seconds.times(price / 3600)


def share(weights: Sequence[float], seconds: float) -> float:
    """What the first of some works may take of the seconds that are left for all of them."""
    return max(0.0, seconds) * weights[0] / sum(weights)
