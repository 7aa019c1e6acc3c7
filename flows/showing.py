"""An artifact, a plan, and a doctor's findings on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.decisions import Decision
from flows.doctor import Check
from flows.faults import one_line
from flows.terminal import cell, print_table, say, size

FACTS = ("location", "created", "seconds", "version", "rows", "bytes", "counts", "facts", "stall", "inputs")


def print_artifact(record: Mapping[str, Any]) -> None:
    """Facts, config, parts, and the first rows of each table (vectors in short)."""
    say(f"{record['stage']}/{record['fingerprint']}")
    shown = {**{name: record[name] for name in FACTS}, "bytes": size(record["bytes"])}
    print_table(("manifest", ""), _pairs(shown))
    print_table(("config", ""), _pairs(record["config"]))
    parts = [[part["name"], part["rows"], size(part["bytes"])] for part in record["parts"]]
    print_table(("part", "rows", "size"), parts)
    for table, rows in record["tables"].items():
        if rows:
            say(f"first rows of '{table}'")
            print_table(tuple(rows[0]), [list(row.values()) for row in rows])


def _pairs(tree: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """Nested tables as dotted names and values."""
    pairs: list[list[str]] = []
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            pairs += _pairs(value, f"{prefix}{name}.")
        else:
            pairs.append([f"{prefix}{name}", cell(value)])
    return pairs


def print_decisions(decisions: Sequence[Decision]) -> None:
    """What happens to each stage, and beneath it why."""
    width = max(len(decision.node.label) for decision in decisions)
    for decision in decisions:
        node = decision.node
        say(f"{decision.action:<7} {node.label:<{width}}  {node.artifact.fingerprint}")
        for reason in decision.reasons:
            say(f"        {one_line(reason)}")
    counts = {action: sum(d.action == action for d in decisions) for action in ("reuse", "resume", "run")}
    say(", ".join(f"{action} {number}" for action, number in counts.items() if number))


def print_checks(checks: Sequence[Check]) -> None:
    """What was found, and beneath it what to do."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        say(f"{check.status:<7} {check.name:<{width}}  {one_line(check.found)}")
        if check.remedy:
            say(f"        {'':<{width}}  → {one_line(check.remedy)}")
