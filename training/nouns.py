"""Which nouns an image may be called by: those of its caption, of its archive, or the true ones.

Whatever the kind, an image has candidates with scores and clusters, and every epoch draws M of them.
Caption nouns and true nouns have no scores: each is its own cluster and equally likely.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from storage.artifact import Artifact
from training.draws import best, draw

Kind = Literal["caption", "archive", "truth"]


@dataclass(frozen=True)
class NounLists:
    """Nouns of the samples of a shard, row by row (ragged: row i is offsets[i]:offsets[i + 1])."""

    offsets: NDArray[np.int64]
    concept: NDArray[np.int64]
    score: NDArray[np.float32]
    cluster: NDArray[np.int64]

    @staticmethod
    def empty(rows: int) -> "NounLists":
        """No nouns for any row."""
        none = np.zeros(0, np.int64)
        return NounLists(np.zeros(rows + 1, np.int64), none, none.astype(np.float32), none)

    def rows(self, rows: Sequence[int] | NDArray[np.int64]) -> "NounLists":
        """The candidates of some rows, in the order given."""
        starts_N = self.offsets[np.asarray(rows, np.int64)]
        lengths_N = self.offsets[np.asarray(rows, np.int64) + 1] - starts_N
        offsets = np.concatenate([[0], np.cumsum(lengths_N)]).astype(np.int64)
        take = np.arange(offsets[-1]) + np.repeat(starts_N - offsets[:-1], lengths_N)
        return NounLists(offsets, self.concept[take], self.score[take], self.cluster[take])

    @property
    def lists(self) -> list[NDArray[np.int64]]:
        """The concepts of each row."""
        return np.split(self.concept, self.offsets[1:-1])


def concatenate(pieces: Sequence[NounLists]) -> NounLists:
    """Candidates of several groups of rows, one after the other."""
    lengths = np.concatenate([np.diff(piece.offsets) for piece in pieces])
    return NounLists(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        concept=np.concatenate([piece.concept for piece in pieces]),
        score=np.concatenate([piece.score for piece in pieces]),
        cluster=np.concatenate([piece.cluster for piece in pieces]),
    )


def union(one: NounLists, other: NounLists) -> list[NDArray[np.int64]]:
    """The concepts that each row has in either, ascending, each once."""
    rows = len(one.offsets) - 1
    owner_P = np.concatenate([np.repeat(np.arange(rows), np.diff(lists.offsets)) for lists in (one, other)])
    concept_P = np.concatenate([one.concept, other.concept])
    width = int(concept_P.max(initial=0)) + 1
    found_U = np.unique(owner_P * width + concept_P)
    return np.split(found_U % width, np.searchsorted(found_U, np.arange(1, rows) * width))


@dataclass(frozen=True)
class NounSource:
    """Reads candidates shard by shard, joined to the samples by their ids."""

    kind: Kind
    corpus: Artifact
    vocabulary: Artifact
    sidecar: Artifact  # mentions, archive, or the corpus itself for its truth
    least: float = -1.0  # similarity of an archive's concept to its image; those below are left out

    def shard(self, shard: str, sample_ids: Sequence[str]) -> "NounLists":
        """Candidates of the samples with these ids."""
        wanted = pl.DataFrame({"sample_id": list(sample_ids)})
        found = wanted.join(self._lists(shard), on="sample_id", how="left", maintain_order="left")
        lengths_N = found["concept"].list.len().fill_null(0).to_numpy().astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths_N)])
        concept = _flat(found["concept"]).astype(np.int64)
        if self.kind == "archive":
            score, cluster = (
                _flat(found["score"]).astype(np.float32),
                _flat(found["cluster"]).astype(np.int64),
            )
        else:
            score = np.zeros(len(concept), np.float32)
            cluster = np.arange(len(concept)) - np.repeat(offsets[:-1], lengths_N)
        return NounLists(offsets, concept, score, cluster)

    def _lists(self, shard: str) -> pl.DataFrame:
        """Columns sample_id and concept (a list); of archives, score and cluster too."""
        if self.kind == "archive":
            return _archive_lists(self.sidecar.read("archives", shard), self.least)
        if self.kind == "caption":
            return _frame(self.sidecar.read("mentions", shard)).rename({"concept_ids": "concept"})
        return self._truth(shard)

    def _truth(self, shard: str) -> pl.DataFrame:
        concepts = self.vocabulary.read("concepts", columns=["name", "concept_id"]).to_pydict()
        number = dict(zip(concepts["name"], concepts["concept_id"], strict=True))
        rows = self.sidecar.read("truth", shard).to_pydict()
        lists = [[number[name] for name in names if name in number] for names in rows["classes"]]
        return pl.DataFrame(
            {"sample_id": rows["sample_id"], "concept": lists},
            schema={"sample_id": pl.String, "concept": pl.List(pl.Int32)},
        )


def _frame(table: pa.Table) -> pl.DataFrame:
    return cast("pl.DataFrame", pl.from_arrow(table))


def _flat(lists: pl.Series) -> NDArray[np.generic]:
    return lists.explode(empty_as_null=False, keep_nulls=False).to_numpy()


def _archive_lists(table: pa.Table, least: float) -> pl.DataFrame:
    field = pl.element().struct.field
    parts = {"concept": "concept_id", "score": "score", "cluster": "cluster"}
    fits = pl.element().filter(field("anchor_similarity") >= least)
    kept = _frame(table).with_columns(pl.col("concepts").list.eval(fits))
    lists = {name: pl.col("concepts").list.eval(field(source)) for name, source in parts.items()}
    return kept.select("sample_id", **lists)


@dataclass(frozen=True)
class DrawConfig:
    """How nouns are drawn from an archive."""

    count: int = 3  # draws an image and epoch
    temperature: float = 1.0  # of the softmax over clusters and inside them; 1 is the paper's
    pick: Literal["draw", "best"] = "draw"  # best: the highest scores, the same in every epoch
    least: float = -1.0  # similarity to the image that an archive's concept must have

    def __post_init__(self) -> None:
        if self.pick not in ("draw", "best") or self.count < 1:
            raise ValueError(
                f"draws.pick={self.pick!r}, count={self.count}; pick 'draw' or 'best', 1 at least"
            )


def draw_nouns(
    candidates: NounLists, sample_ids: Sequence[str], config: DrawConfig, *, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Concept ids [N, M] drawn for each sample, -1 where it has no more candidates."""
    if config.pick == "best":
        places_NM = best(candidates.offsets, candidates.score, config.count)
        return np.append(candidates.concept, -1)[places_NM]
    places_NM = draw(
        sample_ids,
        candidates.offsets,
        candidates.score,
        candidates.cluster,
        seed=seed,
        epoch=epoch,
        count=config.count,
        temperature=config.temperature,
    )
    padded = np.append(candidates.concept, -1)
    return np.where(places_NM >= 0, padded[places_NM], -1)
