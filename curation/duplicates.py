"""Stage ``duplicates``: images that are in the corpus already, as the same bytes or nearly the same picture.

Near-duplicates by embedding, within cells (SemDeDup: Abbas et al., 2023): the corpus is cut into cells around
centroids, and of two images of one cell whose cosine reaches the threshold the later one goes. Copies that
fall into different cells are not compared.
"""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from curation.exact import as_float32
from curation.index import VECTORS, pour_vectors
from curation.ivf import build_inverted_file
from curation.ragged import Ragged
from curation.threads import each_alone
from storage.errors import ConfigError
from storage.schemas import table_of
from storage.stage import Job, Output, Stage

BLOCK = 2048  # rows of a cell that are compared with all the rows before them at once
Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]  # rows that go, and the rows they repeat


@dataclass(frozen=True)
class DuplicatesConfig:
    """What counts as a copy."""

    bytes: bool = True  # the same file
    cosine: float = 0.0  # of two embeddings, from which on pictures count as the same; 0 compares none
    cell_size: int = 1000  # images that are compared with each other, on average
    memory_gb: float = 4.0  # to learn cells
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.cosine <= 1 or self.cell_size < 1:
            raise ConfigError(
                f"select.duplicates: cosine={self.cosine}, cell_size={self.cell_size}; a cosine lies in "
                "0 (off) to 1, 0.95 is a usual threshold; a cell holds at least one image"
            )


def find_duplicates(job: Job[DuplicatesConfig]) -> None:
    """Stage ``duplicates``: which samples to leave out, and the sample that each of them repeats."""
    config, corpus, embeddings = job.config, job.artifact("corpus"), job.artifact("embeddings")
    samples = cast("pl.DataFrame", pl.from_arrow(corpus.read("samples", columns=["sample_id", "sha256"])))
    found = [_same_bytes(samples)] if config.bytes else []
    if config.cosine:
        found.append(_near(config, embeddings))
    none = pl.DataFrame(schema=dict.fromkeys(("sample_id", "reason", "of"), pl.String))
    rows = pl.concat([none, *found])
    once = rows.unique("sample_id", keep="first", maintain_order=True)
    facts = {reason: float(count) for reason, count in once["reason"].value_counts().iter_rows()}
    table = table_of("duplicates", once.to_dict(as_series=False))
    job.write(Output(tables={"duplicates": table}, seen=len(samples), kept=len(samples), facts=facts))


def _same_bytes(samples: pl.DataFrame) -> pl.DataFrame:
    first = samples.with_columns(pl.col("sample_id").first().over("sha256").alias("of"))
    return first.filter(pl.col("of") != pl.col("sample_id")).select(
        "sample_id", pl.lit("duplicate_bytes").alias("reason"), "of"
    )


def _near(config: DuplicatesConfig, embeddings: Any) -> pl.DataFrame:
    ids = embeddings.read("embeddings", columns=["sample_id"])["sample_id"].to_numpy()
    with tempfile.TemporaryDirectory(prefix="cocu-duplicates-") as scratch:
        path = Path(scratch) / VECTORS
        with path.open("wb") as stream:
            pour_vectors(embeddings, len(ids), stream)
        vectors_MD = np.load(path, mmap_mode="r")
        cells = max(1, len(ids) // config.cell_size)
        parted = build_inverted_file(vectors_MD, cells, config.memory_gb * 1e9, config.seed).cells
        later, earlier = near_pairs(vectors_MD, parted, config.cosine)
    reason = ["near_duplicate"] * len(later)
    return pl.DataFrame({"sample_id": ids[later].tolist(), "reason": reason, "of": ids[earlier].tolist()})


def near_pairs(vectors_MD: NDArray[np.floating[Any]], cells: Ragged, cosine: float) -> Pairs:
    """Rows to leave out, ascending, each with the row it repeats.

    Row r goes if its cosine with an earlier row of its cell reaches the threshold; it repeats the earlier
    row of greatest cosine. That one may go as well: of a chain of near-copies the first is kept.

    Args:
        vectors_MD: unit length, may be a memory map.
        cells: the rows of each cell, ascending.
        cosine: threshold.
    """
    found = list(each_alone(lambda rows: _repeated(vectors_MD, rows, cosine), _parts(cells)))
    later, earlier = (np.concatenate([np.zeros(0, np.int64), *part]) for part in _columns(found))
    order = np.argsort(later)
    return later[order], earlier[order]


def _columns(pairs: Iterable[Pairs]) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    pairs = list(pairs)
    return [later for later, _ in pairs], [earlier for _, earlier in pairs]


def _parts(cells: Ragged) -> Iterator[NDArray[np.int64]]:
    return (cells[cell] for cell in np.flatnonzero(cells.lengths > 1).tolist())


def _repeated(vectors_MD: NDArray[np.floating[Any]], rows: NDArray[np.int64], cosine: float) -> Pairs:
    vectors = torch.from_numpy(as_float32(vectors_MD[rows]))
    later, earlier = [], []
    for start in range(0, len(rows), BLOCK):
        block = vectors[start : start + BLOCK]
        products = block @ vectors[: start + len(block)].T
        products = products.tril_(start - 1)  # with earlier rows only; what is left out becomes 0
        best, place = products.max(dim=1)
        hits = (best >= cosine).numpy()
        later.append(rows[start : start + BLOCK][hits])
        earlier.append(rows[place.numpy()[hits]])
    return np.concatenate(later), np.concatenate(earlier)


DUPLICATES = Stage("duplicates", 1, find_duplicates)
