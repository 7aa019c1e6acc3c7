"""Tables for people to read."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.faults import one_line

Row = Sequence[Any]


def print_json(value: Any) -> None:
    """Data on standard output, for other programs."""
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


def say(text: str = "") -> None:
    """A line on standard output, never wrapped."""
    sys.stdout.write(text + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Row], title: str = "") -> None:
    """Rows under their columns; numbers stand right."""
    listed = [list(row) for row in rows]
    table = Table(box=SIMPLE_HEAD, title=Text(title) if title else None, title_justify="left", pad_edge=False)
    for number, column in enumerate(columns):
        numeric = bool(listed) and all(isinstance(row[number], int | float) for row in listed)
        table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        table.add_row(*(Text(cell(value)) for value in row))
    Console().print(table)


def cell(value: Any, width: int = 160) -> str:
    """A value in short: vectors as their first numbers, archives as names with scores."""
    if value is None or value in ({}, [], ""):
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        text = _record(value)
    elif isinstance(value, list | tuple):
        text = _list(value)
    else:
        text = one_line(str(value))
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _record(value: Mapping[str, Any]) -> str:
    if {"name", "score"} <= set(value):
        return f"{cell(value['name'])} {value['score']:.2f}"
    return " ".join(f"{key}={cell(item)}" for key, item in value.items())


def _list(values: Sequence[Any]) -> str:
    shown = 3 if values and isinstance(values[0], float) else 8
    more = f" … {len(values)} in all" if len(values) > shown else ""
    return "[" + ", ".join(cell(item) for item in values[:shown]) + more + "]"


def size(number: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def print_results(summary: Mapping[str, Any]) -> None:
    """One table of what a run measured: concepts, mIoU by benchmark and model, seconds by stage."""
    table = Table(box=SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    for heading, unit, rows in _sections(summary):
        if rows:
            table.add_row(Text(heading, "bold"), Text(unit, "dim"))
            for name, value in rows:
                table.add_row(Text(f"  {one_line(name)}"), value)
            table.add_section()
    Console().print(table)


def _sections(summary: Mapping[str, Any]) -> Iterable[tuple[str, str, list[tuple[str, str]]]]:
    yield "Concepts of an image", "share", _concept_rows(summary["concepts"])
    for benchmark, scores in summary["benchmarks"].items():
        yield benchmark, "mIoU", [(model, f"{facts['miou']:.4f}") for model, facts in scores.items()]
    seconds = summary["seconds"]
    rows = [(label, f"{value:.1f}") for label, value in seconds.items()]
    yield "Stages", "seconds", [*rows, ("all together", f"{sum(seconds.values()):.1f}")] if rows else []
    yield "Predicted", "seconds → fact", _prediction_rows(summary.get("prediction"))


def _prediction_rows(prediction: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Stages that ran since they were predicted."""
    stages = prediction["stages"] if prediction else {}
    found = {label: stage["seconds"] for label, stage in stages.items()}
    return [
        (label, f"{row['predicted']['mid']:.1f} → {row['fact']:.1f}")
        for label, row in found.items()
        if row["fact"] is not None
    ]


def _concept_rows(concepts: Mapping[str, Any]) -> list[tuple[str, str]]:
    named = {
        "caption_recall": "recall of its caption",
        "archive_recall": f"recall of its archive's top {concepts['m']}",
        "union_recall": "recall of both together",
        "archive_precision": f"precision of the archive's top {concepts['m']}",
    }
    return [(text, f"{concepts[key]:.3f}") for key, text in named.items() if concepts.get(key) is not None]
