"""Where the boxes and lines of the run's picture lie: columns by distance to the report, few crossings.

A line is left out where a longer way through other stages says the same. Lines that skip columns share
one bend per column and source.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from flows.report_lineage import Step

WIDTH, HEIGHT, BEND = 108, 52, 6  # pixels: of a box, and the room a passing line takes
GAP_X, GAP_Y, MARGIN = 20, 12, 8
SWEEPS = 8
Spot = tuple[str, int]  # a fingerprint and a column: a box in its own column, a bend in later ones


@dataclass(frozen=True)
class Box:
    """A stage in the picture. The report itself, not yet written, has no step."""

    fingerprint: str
    step: Step | None
    x: float
    y: float


@dataclass(frozen=True)
class Line:
    """From one box's right side to another's left, through the bends between."""

    source: str
    target: str
    path: str  # of an SVG path


@dataclass(frozen=True)
class Drawing:
    """A picture in pixels."""

    width: float
    height: float
    box_width: float
    box_height: float
    boxes: list[Box]
    lines: list[Line]


def draw(steps: Sequence[Step], report: str) -> Drawing:
    """Lays out the steps of a run; ``report`` is the fingerprint of the page being written."""
    parents = _reduced(steps, report)
    column = _columns(parents, report)
    spots = _spots(parents, column)
    links = _links(parents, column)
    columns = _ordered(spots, links)
    y = _heights(columns, links, column)
    known = {step.fingerprint: step for step in steps}
    boxes = [
        Box(name, known.get(name), MARGIN + at * (WIDTH + GAP_X), y[name, at] - HEIGHT / 2)
        for name, at in column.items()
    ]
    lines = [
        Line(source, target, _path(source, target, column, y))
        for target, sources in parents.items()
        for source in sources
    ]
    width = 2 * MARGIN + (max(column.values()) + 1) * (WIDTH + GAP_X) - GAP_X
    return Drawing(width, max(box.y for box in boxes) + HEIGHT + MARGIN, WIDTH, HEIGHT, boxes, lines)


def _reduced(steps: Sequence[Step], report: str) -> dict[str, list[str]]:
    """Inputs of each step that it does not also reach through another of its inputs."""
    every = {step.fingerprint: list(dict.fromkeys(step.inputs.values())) for step in steps}
    every[report] = list(every)
    above: dict[str, set[str]] = {}
    for name, inputs in every.items():  # steps come after their inputs
        above[name] = set(inputs).union(*(above[source] for source in inputs))
    return {
        name: [s for s in inputs if not any(s in above[other] for other in inputs)]
        for name, inputs in every.items()
    }


def _columns(parents: Mapping[str, Sequence[str]], report: str) -> dict[str, int]:
    """Column of each step: the report's is the last, every other lies just before its first reader."""
    distance = {report: 0}
    for name in reversed(list(parents)):
        for source in parents[name]:
            distance[source] = max(distance.get(source, 0), distance[name] + 1)
    last = max(distance.values())
    return {name: last - distance[name] for name in parents}


def _spots(parents: Mapping[str, Sequence[str]], column: Mapping[str, int]) -> list[list[Spot]]:
    """Boxes and bends of each column."""
    columns: list[list[Spot]] = [[] for _ in range(max(column.values()) + 1)]
    for name, at in column.items():
        columns[at].append((name, at))
    for source, reach in _reach(parents, column).items():
        for at in range(column[source] + 1, reach):
            columns[at].append((source, at))
    return columns


def _reach(parents: Mapping[str, Sequence[str]], column: Mapping[str, int]) -> dict[str, int]:
    """The last column a step's lines lead to."""
    reach: dict[str, int] = {}
    for name, sources in parents.items():
        for source in sources:
            reach[source] = max(reach.get(source, 0), column[name])
    return reach


def _links(parents: Mapping[str, Sequence[str]], column: Mapping[str, int]) -> list[tuple[Spot, Spot]]:
    """Pairs of spots in neighbouring columns that a line joins."""
    links: dict[tuple[Spot, Spot], None] = {}
    for name, sources in parents.items():
        for source in sources:
            for at in range(column[source], column[name] - 1):
                links[(source, at), (source, at + 1)] = None
            links[(source, column[name] - 1), (name, column[name])] = None
    return list(links)


def _neighbours(links: Iterable[tuple[Spot, Spot]]) -> tuple[dict[Spot, list[Spot]], dict[Spot, list[Spot]]]:
    before: dict[Spot, list[Spot]] = {}
    after: dict[Spot, list[Spot]] = {}
    for left, right in links:
        before.setdefault(right, []).append(left)
        after.setdefault(left, []).append(right)
    return before, after


def _ordered(columns: list[list[Spot]], links: Iterable[tuple[Spot, Spot]]) -> list[list[Spot]]:
    """Each column by the mean place of what its spots are joined to, left to right and back (Sugiyama)."""
    before, after = _neighbours(links)
    for sweep in range(SWEEPS):
        joined = before if sweep % 2 == 0 else after
        for spots in columns if sweep % 2 == 0 else columns[::-1]:
            place = {spot: n / max(len(c) - 1, 1) for c in columns for n, spot in enumerate(c)}
            centre = {
                spot: fmean(place[other] for other in joined[spot]) if spot in joined else place[spot]
                for spot in spots
            }
            spots.sort(key=lambda spot: centre[spot])
    return columns


def _heights(
    columns: Sequence[Sequence[Spot]], links: Iterable[tuple[Spot, Spot]], column: Mapping[str, int]
) -> dict[Spot, float]:
    """Middle of each spot in pixels: near what it is joined to, in order, without overlap."""
    before, after = _neighbours(links)
    y: dict[Spot, float] = {}
    for spots in columns:
        stacked = _apart([0.0] * len(spots), spots, column)
        y.update(zip(spots, stacked, strict=True))
    for sweep in range(SWEEPS):
        for spots in columns if sweep % 2 else columns[::-1]:
            wanted = [fmean(y[o] for o in [*before.get(s, []), *after.get(s, []), s]) for s in spots]
            y.update(zip(spots, _apart(wanted, spots, column), strict=True))
    top = min(y[spot] - _room(spot, column) / 2 for spot in y)
    return {spot: value - top + MARGIN for spot, value in y.items()}


def _room(spot: Spot, column: Mapping[str, int]) -> float:
    name, at = spot
    return HEIGHT if column[name] == at else BEND


def _apart(wanted: Sequence[float], spots: Sequence[Spot], column: Mapping[str, int]) -> list[float]:
    """The middles nearest to those wanted that keep order and distance (pooling adjacent violators)."""
    offsets = [0.0]
    for above, below in pairwise(spots):
        offsets.append(offsets[-1] + (_room(above, column) + _room(below, column)) / 2 + GAP_Y)
    blocks: list[tuple[float, int]] = []  # mean, members
    for value, offset in zip(wanted, offsets, strict=True):
        mean, members = value - offset, 1
        while blocks and blocks[-1][0] > mean:
            earlier, number = blocks.pop()
            mean = (mean * members + earlier * number) / (members + number)
            members += number
        blocks.append((mean, members))
    means = [mean for mean, members in blocks for _ in range(members)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


def _path(source: str, target: str, column: Mapping[str, int], y: Mapping[Spot, float]) -> str:
    """Straight through columns, an S between them."""
    start, end = column[source], column[target]
    height = y[source, start]
    path = f"M{_left(start) + WIDTH:.0f} {height:.1f}"
    for at in range(start + 1, end + 1):
        following = y[(target, at) if at == end else (source, at)]
        before, into = _left(at) - GAP_X, _left(at)
        middle = (before + into) / 2
        path += f"C{middle:.0f} {height:.1f} {middle:.0f} {following:.1f} {into:.0f} {following:.1f}"
        path += f"H{into + WIDTH:.0f}" if at < end else ""
        height = following
    return path


def _left(column: int) -> float:
    return float(MARGIN + column * (WIDTH + GAP_X))
