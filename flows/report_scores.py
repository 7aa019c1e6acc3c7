"""How well the segmenters did: by benchmark, by model, by class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from storage.artifact import Artifact

ENDS = 3  # classes named as the best, and as the worst


@dataclass(frozen=True)
class Score:
    """One model on one benchmark."""

    model: str
    benchmark: str
    protocol: str
    ceiling: bool  # it is told the truth: no model can be expected to reach it
    trained: bool
    miou: float
    miou_present: float
    pixel_accuracy: float
    images: int
    artifact: Artifact

    @property
    def classes(self) -> list[dict[str, Any]]:
        """Rows of its ``metrics`` table."""
        found: list[dict[str, Any]] = self.artifact.read("metrics").to_pylist()
        return found


def score_of(artifact: Artifact) -> Score:
    """Reads an ``evaluate`` artifact."""
    config, facts = artifact.manifest.config, artifact.manifest.facts
    return Score(
        model=config["model"],
        benchmark=config["benchmark"]["name"],
        protocol=config["benchmark"]["protocol"],
        ceiling=config["subject"] == "oracle",
        trained="model" in artifact.manifest.inputs,
        miou=facts["miou"],
        miou_present=facts["miou_present"],
        pixel_accuracy=facts["pixel_accuracy"],
        images=artifact.manifest.counts.kept,
        artifact=artifact,
    )


@dataclass(frozen=True)
class Benchmark:
    """All models on one benchmark under one protocol."""

    name: str
    protocol: str
    scores: list[Score]

    @property
    def best(self) -> Score:
        """The highest mIoU that was not told the truth."""
        return max(self.scores, key=lambda score: (not score.ceiling, score.miou))

    @property
    def highest(self) -> float:
        """The longest bar, never 0."""
        return max(score.miou for score in self.scores) or 1.0


def benchmarks_of(scores: Sequence[Score]) -> list[Benchmark]:
    """Scores grouped; numbers of two protocols never stand together."""
    groups: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.benchmark, score.protocol), []).append(score)
    return [Benchmark(name, protocol, found) for (name, protocol), found in groups.items()]


@dataclass(frozen=True)
class ClassTable:
    """IoU of every class by every model of a benchmark; classes by falling IoU of the best model."""

    benchmark: Benchmark
    rows: list[tuple[str, bool, list[float | None]]]  # name, in the truth, IoU by model
    best: list[tuple[str, float]]
    worst: list[tuple[str, float]]


def per_class(benchmark: Benchmark) -> ClassTable:
    """The class table of a benchmark."""
    columns = [score.classes for score in benchmark.scores]
    leader = columns[benchmark.scores.index(benchmark.best)]
    order = sorted(range(len(leader)), key=lambda n: (-(leader[n]["iou"] or 0.0), n))
    rows = [
        (leader[n]["class_name"], leader[n]["present"], [column[n]["iou"] for column in columns])
        for n in order
    ]
    known = [(leader[n]["class_name"], leader[n]["iou"] or 0.0) for n in order if leader[n]["present"]]
    return ClassTable(benchmark, rows, known[:ENDS], known[::-1][:ENDS])
