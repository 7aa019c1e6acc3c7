"""What a run consists of: the stages the method declares, with the identity of each result.

The method is declared against handles, so the whole chain of fingerprints is known before anything runs.
``cocu plan`` prints it, ``cocu run`` executes what is missing of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from storage.artifact import Artifact, Store
from storage.errors import ConfigError
from storage.stage import Stage


@dataclass(frozen=True)
class Node:
    """One declared stage."""

    label: str  # the stage's name, with a qualifier where a run has several of it
    stage: Stage[Any]
    config: Any
    inputs: Mapping[str, Artifact | str]
    artifact: Artifact

    @property
    def upstream(self) -> list[Artifact]:
        """The artifacts it reads."""
        return [item for item in self.inputs.values() if isinstance(item, Artifact)]


@dataclass
class Plan:
    """Collects the declared stages, in order."""

    store: Store
    nodes: list[Node] = field(default_factory=list)
    locations: dict[str, Mapping[str, str]] = field(default_factory=dict)  # see Runtime

    def __call__(
        self, stage: Stage[Any], config: Any, label: str = "", /, **inputs: Artifact | None
    ) -> Artifact:
        """Declares a stage and returns the handle of its result.

        Args:
            stage: to run.
            config: its config.
            label: shown to people; the stage's name when empty.
            inputs: artifacts it reads; None for an optional one that this run does not have.
        """
        read: dict[str, Artifact | str] = {name: item for name, item in inputs.items() if item}
        read.update(stage.outside(config, self.store.folder))
        artifact = stage.artifact(self.store, config, read)
        if artifact not in (node.artifact for node in self.nodes):  # the same result is declared once
            self.nodes.append(Node(label or stage.name, stage, config, read, artifact))
        return artifact

    def until(self, name: str | None) -> list[Node]:
        """The nodes of a stage (by label or name) and all they need; every node when no name is given.

        Raises:
            ConfigError: for a stage that is not part of the run.
        """
        if name is None:
            return self.nodes
        wanted = {n.artifact.fingerprint for n in self.nodes if name in (n.label, n.stage.name)}
        if not wanted:
            labels = ", ".join(dict.fromkeys(node.stage.name for node in self.nodes))
            raise ConfigError(f"--until '{name}': this run has no such stage, it has {labels}")
        for node in reversed(self.nodes):
            if node.artifact.fingerprint in wanted:
                wanted |= {artifact.fingerprint for artifact in node.upstream}
        return [node for node in self.nodes if node.artifact.fingerprint in wanted]
