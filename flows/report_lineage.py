"""The run a report belongs to, found again from the fingerprints that manifests name as their inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from storage.artifact import Artifact, Store
from storage.fingerprint import is_fingerprint
from storage.manifest import Manifest


@dataclass(frozen=True)
class Step:
    """One artifact of the run."""

    artifact: Artifact
    qualifier: str  # what tells it from others of its stage
    inputs: Mapping[str, str]  # name -> fingerprint of an artifact

    @property
    def fingerprint(self) -> str:
        """Its identity."""
        return self.artifact.fingerprint

    @property
    def manifest(self) -> Manifest:
        """The record beside its data."""
        return self.artifact.manifest

    @property
    def quarantined(self) -> int:
        """Samples that were turned away."""
        return sum(self.manifest.counts.rejected.values())

    @property
    def rows(self) -> int:
        """Samples that were kept, or rows where a stage does not count samples."""
        return self.manifest.counts.kept or self.manifest.rows


@dataclass(frozen=True)
class Lineage:
    """All artifacts a report goes back to, each after those it was made from."""

    steps: list[Step]

    @cached_property
    def seconds(self) -> float:
        """Of all stages, one after the other."""
        return sum(step.manifest.seconds for step in self.steps)

    @property
    def quarantined(self) -> int:
        """Samples that were turned away anywhere."""
        return sum(step.quarantined for step in self.steps)

    @property
    def rejections(self) -> list[dict[str, Any]]:
        """Stage, reason, number and one example of each kind of rejection, most frequent first."""
        rows = [
            {"step": step, "reason": reason, "number": number, "example": _example(step, reason)}
            for step in self.steps
            for reason, number in step.manifest.counts.rejected.items()
        ]
        return sorted(rows, key=lambda row: -row["number"])

    @property
    def hosts(self) -> list[dict[str, Any]]:
        """Distinct machines and library versions, with the stages that ran there."""
        found: list[dict[str, Any]] = []
        for step in self.steps:
            facts = step.manifest.provenance
            host = next((host for host in found if host["facts"] == facts), None)
            if host is None:
                found.append(host := {"facts": facts, "steps": []})
            host["steps"].append(step)
        return found


def _example(step: Step, reason: str) -> dict[str, str]:
    for part in step.artifact.parts("quarantine"):
        rows: list[dict[str, str]] = step.artifact.read("quarantine", part.shard).to_pylist()
        found = next((row for row in rows if row["reason"] == reason), None)
        if found:
            return found
    return {"sample_id": "", "detail": ""}


def trace(inputs: Mapping[str, Artifact], models: Mapping[str, Artifact]) -> Lineage:
    """Follows the manifests' inputs upstream until nothing is left.

    Args:
        inputs: artifacts the report reads, by name; all of one store.
        models: those of them that are trained models, by the model's name.
    """
    names = {artifact.fingerprint: name for name, artifact in models.items()}
    ordered = [artifact for _, artifact in sorted(inputs.items())]
    store = Store(ordered[0].url.rsplit("/", 2)[0])
    stages = _stages(store)
    steps: dict[str, Step] = {}

    def visit(artifact: Artifact) -> None:
        if artifact.fingerprint not in steps:
            named = artifact.manifest.inputs
            upstream = {name: found for name, found in named.items() if found in stages}
            for fingerprint in upstream.values():
                visit(store.artifact(stages[fingerprint], fingerprint))
            steps[artifact.fingerprint] = Step(artifact, _qualifier(artifact, names), upstream)

    for artifact in ordered:
        visit(artifact)
    return Lineage(list(steps.values()))


def _stages(store: Store) -> dict[str, str]:
    """The stage of every fingerprint in a store; inputs that are not among them are digests of files."""
    found = ((stage, name) for stage in store.folder.list() for name in store.folder.list(stage))
    return {name: stage for stage, name in found if is_fingerprint(name)}


def _qualifier(artifact: Artifact, models: Mapping[str, str]) -> str:
    config = artifact.manifest.config
    if artifact.stage == "corpus":
        return ", ".join(source["name"] for source in config["sources"])
    if artifact.stage == "train":
        return models.get(artifact.fingerprint, config["nouns"])
    measured = config.get("segmenter", config)
    return str(measured["model"]) if artifact.stage in ("evaluate", "preview") else ""
