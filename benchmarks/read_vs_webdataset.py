"""Reading tars beside ``webdataset``, on the same files.

Run: ``python -m benchmarks.read_vs_webdataset``.
"""

import json
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import bytes_per_second, seconds
from storage.tars import Sample, read_tar, write_tar

ROUNDS = 5


def measure(shards: int = 8, samples: int = 2000, size: int = 30_000) -> dict[str, Any]:
    """Samples a second of both sides, raw bytes of image and caption."""
    with tempfile.TemporaryDirectory() as scratch:
        paths = [_write(Path(scratch) / f"{n:05d}.tar", n, samples, size) for n in range(shards)]
        total = sum(path.stat().st_size for path in paths)
        times = [(seconds(lambda: _ours(paths)), seconds(lambda: _webdataset(paths))) for _ in range(ROUNDS)]
    ours, peer = (shards * samples / statistics.median(side) for side in zip(*times, strict=True))
    limit = bytes_per_second() / (total / (shards * samples))
    return {
        "case": "read_vs_webdataset",
        "ours": ours,
        "peer": peer,
        "unit": "images/s",
        "ratio": statistics.median(theirs / mine for mine, theirs in times),
        "limit": limit,
        "limit_share": ours / limit,
        "note": f"{shards} tars of {samples} samples of {size} bytes, in the page cache, not decoded: "
        f"{ours / samples:.1f} shards/s against {peer / samples:.1f}; limit: a memory copy",
    }


def _write(path: Path, seed: int, samples: int, size: int) -> Path:
    rng = np.random.default_rng(seed)
    made = (
        Sample(f"{n:08d}", {"jpg": rng.bytes(size), "txt": b"a dog on the grass"}) for n in range(samples)
    )
    with path.open("wb") as stream:
        write_tar(stream, made)
    return path


def _ours(paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb") as stream:
            assert sum(1 for _ in read_tar(stream, ("jpg", "txt"))) > 0


def _webdataset(paths: list[Path]) -> None:
    import webdataset  # noqa: PLC0415 - slow to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = webdataset.WebDataset([str(path) for path in paths], shardshuffle=False)
        assert sum(1 for _ in read) > 0


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
