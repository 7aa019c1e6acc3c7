"""Runs every case and writes ``bench.json``.

A list of ``{case, ours, peer, unit, ratio, limit, limit_share, note}``.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import archive_vs_loop, embed_vs_forward

CASES: tuple[Callable[[], dict[str, Any]], ...] = (
    archive_vs_loop.measure,
    partial(archive_vs_loop.measure, clusters=False, loop_images=300),
    embed_vs_forward.measure,
)


def main() -> None:
    """Measures, prints a table and writes ``bench.json``."""
    results = [case() for case in CASES]
    Path("bench.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    table = Table("case", "ours", "peer", "unit", "ratio", "share of limit")
    for result in results:
        numbers = [f"{result[key]:.3g}" for key in ("ours", "peer")]
        share = f"{result['limit_share']:.2f}"
        table.add_row(result["case"], *numbers, result["unit"], f"{result['ratio']:.2f}", share)
    Console().print(table)


if __name__ == "__main__":
    main()
