"""The numbers of a run, for people and for tools."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from flows.forecast.prediction import Beside, Prediction
from flows.plan import Node
from storage.manifest import Manifest

CONCEPTS = ("caption_recall", "archive_recall", "union_recall", "archive_precision", "m")
MODELS = ("groupvit_caption", "groupvit_archive", "grouping_caption", "grouping_archive")


def summarise(name: str, nodes: Sequence[Node]) -> dict[str, Any]:
    """Concept metrics, mIoU, seconds and artifacts of the committed nodes.

    A number that a run did not measure is null: the keys are the same for every run.
    """
    done = [node for node in nodes if node.artifact.committed]
    manifests = {node.label: node.artifact.manifest for node in done}
    return {
        "name": name,
        "concepts": _concepts(done),
        "miou": _miou(done),
        "benchmarks": _benchmarks(done),
        "counts": {label: _counts(manifest) for label, manifest in manifests.items()},
        "seconds": {label: manifest.seconds for label, manifest in manifests.items()},
        "artifacts": {node.label: node.artifact.id for node in done},
    }


def prediction_beside_fact(predicted: Prediction | None, rows: Sequence[Beside]) -> dict[str, Any] | None:
    """What ``cocu plan --calibrate`` said and what it came to; null for stages that were reused."""
    if predicted is None:
        return None
    stages = {
        row.predicted.label: {
            "seconds": {"predicted": asdict(row.predicted.seconds), "fact": row.seconds, "ratio": row.ratio},
            "memory": {"predicted": row.predicted.memory, "fact": row.memory},
            "disk": {"predicted": row.predicted.disk, "fact": row.disk},
        }
        for row in rows
        if row.predicted.seconds
    }
    return {"images": predicted.images, "created": predicted.created, "stages": stages}


def _concepts(nodes: Sequence[Node]) -> dict[str, float | None]:
    facts = next((node.artifact.manifest.facts for node in nodes if node.stage.name == "recall"), {})
    numbers: dict[str, float | None] = {key: facts.get(key) for key in CONCEPTS}
    numbers |= {key: value for key, value in facts.items() if key not in CONCEPTS}
    if numbers["m"] is not None:
        numbers["m"] = int(numbers["m"])
    return numbers


def _evaluations(nodes: Sequence[Node]) -> list[Node]:
    return [node for node in nodes if node.stage.name == "evaluate"]


def _miou(nodes: Sequence[Node]) -> dict[str, float | None]:
    """Of the first benchmark."""
    found = _evaluations(nodes)
    first = found[0].config.benchmark.name if found else ""
    scores = {
        n.config.model: n.artifact.manifest.facts["miou"] for n in found if n.config.benchmark.name == first
    }
    return {**dict.fromkeys(MODELS), **scores}


def _benchmarks(nodes: Sequence[Node]) -> dict[str, dict[str, dict[str, float]]]:
    """Every score, by benchmark and model."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for node in _evaluations(nodes):
        benchmark = node.config.benchmark
        row = table.setdefault(f"{benchmark.name} ({benchmark.protocol})", {})
        row[node.config.model] = node.artifact.manifest.facts
    return table


def _counts(manifest: Manifest) -> dict[str, Any]:
    counts = manifest.counts
    return {"in": counts.seen, "kept": counts.kept, "rejected": counts.rejected, "rows": manifest.rows}
