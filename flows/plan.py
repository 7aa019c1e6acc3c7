"""What a run consists of: the stages the method declares, with the identity of each result.

The method is declared against handles, so the whole chain of fingerprints is known before anything runs.
``plan`` prints it, ``run`` executes what is missing of it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from storage.artifact import Artifact, Store
from storage.errors import ConfigError
from storage.fingerprint import canonical
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


@dataclass(frozen=True)
class Decision:
    """What a run will do about a node, and why."""

    node: Node
    reuse: bool
    reason: str


def decide(nodes: Iterable[Node]) -> list[Decision]:
    """For each node: reuse, or run because of the fields that differ from the nearest earlier artifact."""
    decisions = []
    for node in nodes:
        reuse = node.artifact.committed
        decisions.append(Decision(node, reuse, "" if reuse else _difference(node)))
    return decisions


def _difference(node: Node) -> str:
    if node.artifact.folder.exists("_progress"):
        return "interrupted: goes on where it stopped"
    store = Store(node.artifact.url.rsplit("/", 2)[0])
    earlier = [
        _fields(a.manifest.config, a.manifest.inputs, a.manifest.version)
        for a in store.artifacts(node.stage.name)
    ]
    if not earlier:
        return "never run"
    inputs = {k: i.fingerprint if isinstance(i, Artifact) else i for k, i in node.inputs.items()}
    own = _fields(canonical(node.config), inputs, node.stage.version)
    changes = min((_changed(own, other) for other in reversed(earlier)), key=len)
    return "; ".join(changes[:3]) + (f" and {len(changes) - 3} more" if len(changes) > 3 else "")


def _fields(config: Any, inputs: Mapping[str, str], version: int) -> dict[str, Any]:
    flat: dict[str, Any] = {"stage version": version}
    flat.update(_flat(config, ""))
    return {**flat, **{f"input {name}": value for name, value in inputs.items()}}


def _flat(value: Any, path: str) -> dict[str, Any]:
    if isinstance(value, dict):
        items = [_flat(item, f"{path}.{key}" if path else key) for key, item in value.items()]
        return {key: item for part in items for key, item in part.items()}
    return {path: value}


def _changed(own: dict[str, Any], other: dict[str, Any]) -> list[str]:
    keys = [key for key in dict.fromkeys([*own, *other]) if own.get(key) != other.get(key)]
    return [_change(key, other.get(key, "absent"), own.get(key, "absent")) for key in keys]


def _change(key: str, before: Any, after: Any) -> str:
    if key.startswith("input "):
        return (
            f"{key} differs"
            if "absent" not in (before, after)
            else f"{key} {'new' if before == 'absent' else 'gone'}"
        )
    return f"{key}: {before} → {after}"
