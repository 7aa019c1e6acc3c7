"""What a run will do about each of its stages, and what has changed since the nearest earlier artifact."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from flows.plan import Node
from storage.artifact import Artifact, Store
from storage.fingerprint import canonical
from storage.manifest import Manifest
from storage.stage import PROGRESS, unchanged_shards

Action = Literal["reuse", "resume", "run"]
Change = tuple[str, Any, Any]  # name, before, after
ABSENT = "absent"
SHOWN = 3  # changes that are told; the others are counted


@dataclass(frozen=True)
class Decision:
    """What is done about a node, and why."""

    node: Node
    action: Action
    reasons: tuple[str, ...] = ()


def decide(nodes: Sequence[Node]) -> list[Decision]:
    """For each node: reuse it, resume it, or run it because of what differs from the nearest artifact."""
    history = _History({node.artifact.fingerprint: node for node in nodes})
    return [_decision(node, history) for node in nodes]


def as_rows(decisions: Iterable[Decision]) -> list[dict[str, Any]]:
    """Decisions as plain data."""
    return [
        {
            "label": decision.node.label,
            "stage": decision.node.stage.name,
            "fingerprint": decision.node.artifact.fingerprint,
            "action": decision.action,
            "reasons": list(decision.reasons),
        }
        for decision in decisions
    ]


def _decision(node: Node, history: "_History") -> Decision:
    if node.artifact.committed:
        return Decision(node, "reuse")
    finished = [name for name in node.artifact.folder.list(PROGRESS) if not name.startswith(".")]
    if finished:
        return Decision(node, "resume", (f"interrupted after {len(finished)} part(s)",))
    earlier = history.of_stage(node)
    if not earlier:
        return Decision(node, "run", ("never run",))
    return Decision(node, "run", (*history.reasons(node, _nearest(node, earlier)), *_saved(node)))


def _saved(node: Node) -> Iterable[str]:
    """How much of the work an earlier artifact has done, where that is known before anything runs."""
    taken_over = unchanged_shards(node.stage, node.config, node.inputs, _store(node))
    if taken_over:
        yield f"{len(taken_over)} shard(s) are as they were and are taken over, not made again"


@dataclass
class _History:
    """Earlier artifacts, each stage's manifests read once."""

    nodes: Mapping[str, Node]  # by fingerprint
    manifests: dict[str, list[Manifest]] = field(default_factory=dict)  # by stage, newest first

    def of_stage(self, node: Node) -> list[Manifest]:
        """Earlier artifacts of the node's stage, newest first."""
        name = node.stage.name
        if name not in self.manifests:
            self.manifests[name] = [a.manifest for a in reversed(_store(node).artifacts(name))]
        return self.manifests[name]

    def reasons(self, node: Node, earlier: Manifest) -> list[str]:
        """What differs: of the node itself, then of what it reads, back to where that came from."""
        own = [_told(change) for change in _config_changes(node, earlier)]
        causes: dict[str, list[str]] = {}
        for name, before, after in _input_changes(node, earlier):
            causes.setdefault(self._cause(name, before, after), []).append(name)
        return own + [f"{_plural(names)} {cause}" for cause, names in causes.items()]

    def _cause(self, name: str, before: str, after: str) -> str:
        roots = self.roots(name, before, after)
        return f"{_fate(before, after)} because {_listed(roots)}" if roots else _fate(before, after)

    def roots(self, name: str, before: str, after: str) -> list[str]:
        """The changes that led from the input ``before`` to ``after``; none for bytes from outside."""
        node = self.nodes.get(after)
        if node is None or before == ABSENT:
            return []
        earlier = next((m for m in self.of_stage(node) if m.fingerprint == before), None)
        if earlier is None:
            return [f"{name} is now {node.artifact.id}"]
        own = [f"{node.label}.{_told(change)}" for change in _config_changes(node, earlier)]
        inputs = _input_changes(node, earlier)
        deeper = [root for change in inputs for root in self.roots(*change) or [_leaf(node, change)]]
        return list(dict.fromkeys(own + deeper))


def _store(node: Node) -> Store:
    return Store(node.artifact.url.rsplit("/", 2)[0])


def _nearest(node: Node, earlier: Iterable[Manifest]) -> Manifest:
    """The manifest with the fewest other settings, then the fewest other inputs; the newest of equals."""
    return min(earlier, key=lambda m: (len(_config_changes(node, m)), len(_input_changes(node, m))))


def _config_changes(node: Node, earlier: Manifest) -> list[Change]:
    before = {"stage version": earlier.version, **_flat(earlier.config)}
    return _changes(before, {"stage version": node.stage.version, **_flat(canonical(node.config))})


def _input_changes(node: Node, earlier: Manifest) -> list[Change]:
    now = {k: i.fingerprint if isinstance(i, Artifact) else i for k, i in node.inputs.items()}
    return _changes(earlier.inputs, now)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    pairs = [(key, before.get(key, ABSENT), after.get(key, ABSENT)) for key in {**after, **before}]
    return [(key, was, now) for key, was, now in pairs if was != now]


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested tables as ``a.0.b`` -> value; lists of plain values stay whole."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        value = {str(number): item for number, item in enumerate(value)}
    if not isinstance(value, dict):
        return {path: value}
    parts = [_flat(item, f"{path}.{key}" if path else str(key)) for key, item in value.items()]
    return {key: item for part in parts for key, item in part.items()}


def _told(change: Change) -> str:
    name, before, after = change
    return f"{name}: {_short(before)} → {_short(after)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _leaf(node: Node, change: Change) -> str:
    name, before, after = change
    return f"{node.label} input {name} {_fate(before, after)}"


def _fate(before: str, after: str) -> str:
    if before == ABSENT:
        return "new"
    return "gone" if after == ABSENT else "changed"


def _plural(names: list[str]) -> str:
    return f"input{'s' if len(names) > 1 else ''} {_listed(names, ', ')}"


def _listed(items: Sequence[str], between: str = "; ") -> str:
    more = len(items) - SHOWN
    return between.join(items[:SHOWN]) + (f" and {more} more" if more > 0 else "")
