"""Runs every case and writes ``bench.json``.

A list of ``{case, ours, peer, unit, ratio, limit, limit_share, note}``; a case that cannot run here has
nulls, and the reason in its note.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import (
    curation_vs_loop,
    embed_vs_decode,
    embed_vs_forward,
    groupvit_step_vs_transformers,
    ivf_vs_autofaiss,
    kmeans_groups_vs_sklearn,
    loader_vs_decode,
    read_vs_webdataset,
    region_pass_vs_k_passes,
    scale,
    search,
)

SIZES = (62_500, 125_000, 250_000, 500_000, 1_000_000)  # images; the last is four times the last but two


def cases() -> Iterator[dict[str, Any]]:
    """Each case in turn."""
    yield read_vs_webdataset.measure()
    yield embed_vs_forward.measure()
    yield embed_vs_decode.measure("exact")
    yield embed_vs_decode.measure("fast")
    yield search.exact()
    yield search.inverted_file()
    yield ivf_vs_autofaiss.measure()
    for case in curation_vs_loop.cases():
        yield case()
    yield from groupvit_step_vs_transformers.cases()
    yield loader_vs_decode.measure()
    yield kmeans_groups_vs_sklearn.measure()
    yield from region_pass_vs_k_passes.cases()
    points = scale.curve(SIZES)
    yield scale.scaling(points)
    yield scale.peak(points)


def main() -> None:
    """Measures, prints a table and writes ``bench.json``."""
    results = []
    for result in cases():
        print(json.dumps(result), flush=True)
        results.append(result)
    Path("bench.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    table = Table("case", "ours", "peer", "unit", "ratio", "share of limit")
    for result in results:
        if result["ratio"] is None:
            table.add_row(result["case"], result["note"])
            continue
        numbers = [f"{result[key]:.3g}" for key in ("ours", "peer")]
        share = f"{result['limit_share']:.2f}"
        table.add_row(result["case"], *numbers, result["unit"], f"{result['ratio']:.2f}", share)
    Console().print(table)


if __name__ == "__main__":
    main()
