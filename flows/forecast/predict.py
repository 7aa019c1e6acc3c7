"""The law of each stage: how its seconds, memory and disk grow with the images of a corpus."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flows.forecast.laws import (
    Estimate,
    Law,
    about,
    fit,
    named_concepts,
    of_repeats,
    pace,
    warm_up,
)  # fmt: skip
from flows.forecast.measure import Measured

ID = 200  # bytes of a sample's id, in Arrow, polars and as a Python string
CANDIDATE = 1000  # bytes of a concept of an archive while it is written, with its donors


@dataclass(frozen=True)
class Scale:
    """What is predicted for."""

    images: int  # N
    shards: int  # S

    @property
    def shard(self) -> float:
        """Images of a shard."""
        return self.images / max(1, self.shards)

    def of(self, share: float) -> "Scale":
        """A part of the corpus."""
        return Scale(round(self.images * share), max(1, round(self.shards * share)))


@dataclass(frozen=True)
class Predicted:
    """What a stage will take."""

    seconds: Estimate | None
    memory: float | None
    disk: float | None
    formula: str
    basis: str


def not_calibrated(why: str) -> Predicted:
    """A stage without a number."""
    return Predicted(None, None, None, "not calibrated", why)


def by_shard(found: Measured, scale: Scale, held: float = 0.0) -> Predicted:
    """A stage that is done shard by shard: ``fixed + a·S + b·N``.

    Args:
        found: the sample.
        scale: N and S.
        held: bytes that it holds of the corpus at this scale, beyond what was measured.
    """
    law = pace(found.points)
    size = fit([(1.0, float(p.images)) for p in found.points], [float(p.bytes) for p in found.points])
    terms = (float(scale.shards), float(scale.images))
    fixed = found.outside + warm_up(found.points, law)
    return Predicted(
        seconds=about(fixed) + law.at(terms),
        memory=activations(found) + held,
        disk=size.at(terms).mid,
        formula=f"{duration(fixed)} + {scale.shards:,} shards × {duration(law.a)} + "
        f"{scale.images:,} × {duration(law.b)}",
        basis=f"{found.images:,} images in {len(found.points)} shards, {found.inside:.2f} s",
    )


def activations(found: Measured) -> float:
    """Peak memory at the config's own batch: what came on top of the loaded model grows with the batch."""
    return found.loaded + max(0.0, found.peak - found.loaded) * found.shrunk


def once(found: Measured) -> Predicted:
    """A stage that does not depend on the corpus."""
    basis = f"all of it, {found.seconds:.2f} s"
    return Predicted(
        about(found.seconds), float(found.peak), float(found.bytes), duration(found.seconds), basis
    )


def by_step(found: Measured, steps: int, stretch: float = 1.0) -> Predicted:
    """A training: ``fixed + steps × a step``; the first step, which warms up, is left out of the pace.

    Args:
        found: some steps.
        steps: of the run.
        stretch: images of a step of the run over those of a measured one.
    """
    kept = found.steps[1:] or found.steps
    middle = -(-len(kept) // 2)
    halves = [sum(part) / len(part) for part in (kept[:middle], kept[middle:]) if part]
    step = of_repeats(halves).times(stretch)
    fixed = found.outside + max(0.0, found.steps[0] - step.mid / stretch)
    return Predicted(
        seconds=about(fixed) + step.times(steps),
        memory=activations(found),
        disk=float(found.bytes) if found.artifact else None,
        formula=f"{duration(fixed)} + {steps:,} steps × {duration(step.mid)}",
        basis=f"{len(found.steps)} steps, {sum(found.steps):.2f} s"
        + (f", each of 1/{stretch:.3g} of the batch" if stretch != 1 else ""),
    )


def packed(corpus: Predicted, seconds: float, size: float, tar: float) -> Predicted:
    """A corpus stage that first makes and packs what it then validates."""
    if corpus.seconds is None or not size:
        return corpus
    return Predicted(
        seconds=corpus.seconds + about(seconds),
        memory=(corpus.memory or 0.0) + 2 * tar,
        disk=(corpus.disk or 0.0) + size,
        formula=f"{corpus.formula} + {duration(seconds)} to pack",
        basis=corpus.basis,
    )


@dataclass(frozen=True)
class Captions:
    """What the sample's captions name."""

    frequencies: list[int]  # captions that name each concept
    captions: int
    most: float  # concepts there are; infinity without a gallery


def vocabulary(found: Measured, scale: Scale, named: Captions, text: float) -> Predicted:
    """``fixed + V(N) × a text + N × a caption``, with V by Heaps' law.

    Args:
        found: the sample.
        scale: N.
        named: what its captions name.
        text: seconds of one concept's text vector.
    """
    concepts = named_concepts(named.frequencies, named.captions, scale.images, named.most)
    here = max(1, sum(count > 0 for count in named.frequencies))
    fixed = max(0.0, found.outside - here * text)
    caption = sum(found.steps) / named.captions
    size = found.bytes / here
    return Predicted(
        seconds=about(fixed) + concepts.times(text) + about(caption * scale.images),
        memory=found.peak + concepts.mid * size * 2,
        disk=size * concepts.mid,
        formula=f"{duration(fixed)} + {concepts.mid:,.0f} concepts × {duration(text)} + "
        f"{scale.images:,} × {duration(caption)}",
        basis=f"{here:,} concepts of {named.captions:,} captions, {found.seconds:.2f} s",
    )


@dataclass(frozen=True)
class Rows:
    """Index and search at one number of rows."""

    rows: int
    index: Measured
    expand: Measured


@dataclass(frozen=True)
class Growth:
    """The terms of a kind of index: seconds to build it, and seconds a query."""

    build: Callable[[float], tuple[float, float]]
    query: Callable[[float], tuple[float, float]]
    told: tuple[str, str]


def _root(rows: float) -> float:
    return float(rows**0.5)


# exact: every row is compared. Cells: 2·√N of them, so that centroids and the rows of the probed cells both
# grow with √N; with a fixed number of cells the search is linear. A graph: log N a query.
LINEAR = Growth(lambda n: (1.0, n), lambda n: (1.0, n), ("a + b·N", "N·(a + b·N)"))
CELLS = Growth(lambda n: (n, n * _root(n)), lambda n: (1.0, _root(n)), ("N·(a + b·√N)", "N·(a + b·√N)"))
GRAPH = Growth(
    lambda n: (n, n * math.log(n + 1)),
    lambda n: (1.0, math.log(n + 1)),
    ("N·(a + b·log N)", "N·(a + b·log N)"),
)
GROWTH: Mapping[str, Growth] = {"exact": LINEAR, "ivf": CELLS, "ivfpq": CELLS, "hnsw": GRAPH}


@dataclass(frozen=True)
class Search:
    """What was measured of a kind of index, smallest first."""

    kind: str
    growth: Growth
    measured: list[Rows]
    vector: int  # bytes of a row
    trained: float = 0.0  # bytes of the rows that cells are learnt from, at the scale of the run
    told: str = field(default="")  # recall and effort, where they mean something

    @property
    def largest(self) -> Rows:
        """The one nearest to the real thing."""
        return self.measured[-1]

    def _basis(self, what: str) -> str:
        rows = " and ".join(f"{at.rows:,}" for at in self.measured)
        return f"{self.kind}{self.told}, {what} at {rows} rows spread around the sample's"

    def index(self, scale: Scale) -> Predicted:
        """The stage ``index``."""
        law = fit(
            [self.growth.build(at.rows) for at in self.measured], [at.index.seconds for at in self.measured]
        )
        seconds = law.at(self.growth.build(scale.images))
        grown = scale.images - self.largest.rows
        return Predicted(
            seconds=seconds,
            memory=self.largest.index.peak + max(0, grown) * ID + self.trained,
            disk=self.largest.index.bytes / self.largest.rows * scale.images,
            formula=f"{self.growth.told[0]}, {_terms(law)}",
            basis=self._basis("built"),
        )

    def expand(self, scale: Scale) -> Predicted:
        """The stage ``expand``."""
        paces = [sum(p.seconds for p in at.expand.points) / at.expand.images for at in self.measured]
        law = fit([self.growth.query(at.rows) for at in self.measured], paces)
        outside = fit(
            [(1.0, float(at.rows)) for at in self.measured], [at.expand.outside for at in self.measured]
        )
        query = law.at(self.growth.query(scale.images))
        written = sum(p.bytes for p in self.largest.expand.points) / self.largest.expand.images
        grown = max(0, scale.images - self.largest.rows)
        return Predicted(
            seconds=outside.at((1.0, float(scale.images))) + query.times(scale.images),
            memory=self.largest.expand.peak + grown * (ID + self.vector),
            disk=written * scale.images,
            formula=f"{self.growth.told[1]}, {_terms(law)}: {duration(query.mid)} an image",
            basis=self._basis("searched"),
        )


def _terms(law: Law) -> str:
    return f"a = {duration(law.a)}, b = {duration(law.b)}"


def duplicates(found: Measured, images: int, scale: Scale, cell: int, cosine: bool, pair: float) -> Predicted:
    """Linear, and with near copies the products of rows with centroids and within cells.

    Args:
        found: the sample.
        images: of the sample.
        scale: N.
        cell: rows of a cell.
        cosine: whether near copies are looked for.
        pair: seconds of one inner product of two rows.
    """
    linear = found.seconds / images
    cells = max(1, scale.images // cell)
    products = float(scale.images) * (cells + cell / 2) + 6 * 40 * cells * cells if cosine else 0.0
    return Predicted(
        seconds=about(linear * scale.images) + about(products * pair),
        memory=found.peak + scale.images * ID,
        disk=found.bytes / images * scale.images,
        formula=f"{scale.images:,} × {duration(linear)} + {products:.3g} products × {duration(pair)}",
        basis=f"the sample, {found.seconds:.2f} s, and the measured product rate",
    )


def duration(seconds: float) -> str:
    """In the unit that fits, from nanoseconds to hours."""
    if not seconds:
        return "0 s"
    for least, unit, size in (
        (3600, "h", 3600.0),
        (60, "min", 60.0),
        (1, "s", 1.0),
        (1e-3, "ms", 1e-3),
        (1e-6, "µs", 1e-6),
    ):
        if seconds >= least:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
