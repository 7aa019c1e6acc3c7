"""From embeddings to archives, by the real stages, at growing sizes: seconds an image and peak memory.

Every size runs in a process of its own, so that its peak memory is its own. Run one by hand:
``python -m benchmarks.scale 250000``.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import corpora
from curation.archive import ARCHIVE, ArchiveConfig
from curation.index import EXPAND, INDEX, ExpandConfig, IndexConfig
from storage.artifact import Artifact, Store
from storage.runtime import Runtime
from storage.schemas import table_of, vector_column
from storage.stage import Job, Output, Stage, materialize

SHARD = 10_000  # images, img2dataset's default


def curve(sizes: tuple[int, ...] = (62_500, 125_000, 250_000, 500_000, 1_000_000)) -> list[dict[str, Any]]:
    """Measures each size."""
    return [_in_its_own_process(size) for size in sizes]


def _in_its_own_process(size: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.scale", str(size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)  # noqa: S603 - our own module
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def scaling(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Time an image at the largest size over that at a quarter of it (1: linear)."""
    large = points[-1]
    small = next(point for point in points if point["images"] * 4 == large["images"])
    ratio = large["us_per_image"] / small["us_per_image"]
    return {
        "case": "curate_scaling",
        "ours": large["us_per_image"],
        "peer": small["us_per_image"],
        "unit": "us/image",
        "ratio": ratio,
        "limit": small["us_per_image"],
        "limit_share": 1 / ratio,
        "note": f"{large['images']} images against {small['images']}; limit: linear time; "
        + "; ".join(map(_told, points)),
    }


def _told(point: dict[str, Any]) -> str:
    stages = ", ".join(f"{name} {1e6 * s / point['images']:.0f}" for name, s in point["seconds"].items())
    return f"{point['images']}: {point['us_per_image']:.0f} us ({stages}), {point['peak_gb']:.2f} GB"


def peak(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Peak resident memory at the largest size."""
    large = points[-1]
    vectors = large["images"] * corpora.WIDTH * 2 / 1e9
    return {
        "case": "curate_1m_peak_gb",
        "ours": large["peak_gb"],
        "peer": vectors,
        "unit": "GB",
        "ratio": large["peak_gb"] / vectors,
        "limit": 6.0,
        "limit_share": large["peak_gb"] / 6.0,
        "note": f"{large['images']} images; peer: the vectors alone, float16 on disk; limit: what is allowed",
    }


def measure(images: int) -> dict[str, Any]:
    """One size: seconds by stage, and the peak memory of the process."""
    runtime = Runtime(device="cpu")
    with tempfile.TemporaryDirectory(prefix="cocu-scale-") as scratch:
        store = Store(scratch)
        made = {name: _make(store, name, work, images) for name, work in WRITERS.items()}
        seconds: dict[str, float] = {}

        def run(stage: Stage[Any], config: Any, **inputs: Artifact) -> Artifact:
            started = time.perf_counter()
            artifact = materialize(stage, config, inputs, store, runtime)
            seconds[stage.name] = time.perf_counter() - started
            return artifact

        index = run(INDEX, IndexConfig(kind="ivf"), embeddings=made["embeddings"])
        neighbours = run(EXPAND, ExpandConfig(), embeddings=made["embeddings"], index=index)
        named = {name: made[name] for name in ("mentions", "vocabulary")}
        archive = run(ARCHIVE, ArchiveConfig(), neighbours=neighbours, index=index, **named)
        facts = index.manifest.facts
        peaks = [artifact.manifest.peak_bytes for artifact in (index, neighbours, archive)]
    return {
        "images": images,
        "seconds": seconds,
        "us_per_image": sum(seconds.values()) / images * 1e6,
        "peak_gb": max(peaks) / 1e9,
        "recall": facts["recall"],
        "cells": facts["cells"],
        "probes": facts["effort"],
    }


def _make(store: Store, name: str, work: Callable[[Job[int]], None], images: int) -> Artifact:
    return materialize(Stage(f"bench_{name}", 1, work), images, {}, store, Runtime(device="cpu"))


def _embeddings(job: Job[int]) -> None:
    blocks = corpora.image_blocks(job.config, size=SHARD)
    job.map_shards(lambda: partial(_embeddings_shard, blocks), _shards(job.config))


def _embeddings_shard(blocks: Any, shard: str) -> Output:
    vectors_ND = next(blocks)
    columns = {"sample_id": _ids(shard, len(vectors_ND)), "vector": vector_column(vectors_ND, pa.float16())}
    return Output(tables={"embeddings": table_of("embeddings", columns)})


def _mentions(job: Job[int]) -> None:
    named = corpora.mentions(job.config)
    job.map_shards(lambda: partial(_mentions_shard, named), _shards(job.config))


def _mentions_shard(named: Any, shard: str) -> Output:
    first = int(shard.partition("/")[2]) * SHARD
    part = named.take(np.arange(first, min(first + SHARD, len(named))))
    lists = pa.ListArray.from_arrays(part.offsets.astype(np.int32), pa.array(part.values, pa.int32()))
    columns = {"sample_id": _ids(shard, len(part)), "concept_ids": lists}
    return Output(tables={"mentions": table_of("mentions", columns)})


def _vocabulary(job: Job[int]) -> None:
    vectors_CD = corpora.concept_vectors()
    count = len(vectors_CD)
    columns = {
        "concept_id": np.arange(count),
        "name": [f"concept {n}" for n in range(count)],
        "source": ["gallery"] * count,
        "frequency": np.ones(count, np.int64),
        "vector": vector_column(vectors_CD, pa.float32()),
    }
    job.write(Output(tables={"concepts": table_of("concepts", columns)}))


WRITERS: dict[str, Callable[[Job[int]], None]] = {
    "embeddings": _embeddings,
    "mentions": _mentions,
    "vocabulary": _vocabulary,
}


def _shards(images: int) -> list[str]:
    return [f"s/{number:05d}" for number in range(-(-images // SHARD))]


def _ids(shard: str, count: int) -> list[str]:
    return [f"{shard}/{row:09d}" for row in range(count)]


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
