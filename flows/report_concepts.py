"""Which concepts captions name, and which the archives add: counted shard by shard."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.artifact import Artifact

DEFAULT_TOP = 5  # concepts of an archive that count as named by it, where recall has not said otherwise
SHOWN, LISTED = 24, 300  # rows of the concept table at once, and at most
LARGEST = 8  # cluster sizes from here on are one bar
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class ConceptRow:
    """One concept over the whole corpus."""

    name: str
    captions: int  # images whose caption names it
    top: int  # images whose archive has it among its best
    new: int  # of those, images whose caption does not name it
    right: float | None  # share of the new ones that are true, where that is known
    donors: float | None  # neighbours that named it, mean over those images
    similarity: float | None  # cosine of image and concept, mean over those images
    cluster: float | None  # concepts in its cluster, mean over those images


@dataclass(frozen=True)
class Statistics:
    """Concepts of a corpus, by how many images name them one way or the other."""

    images: int
    rows: list[ConceptRow]
    concepts: int  # of the vocabulary that were named at all
    captions_mean: float  # concepts that a caption names
    archive_mean: float  # concepts in an archive
    new_mean: float  # among an archive's best, concepts its caption does not name
    clusters: list[tuple[str, int]]  # size, number of clusters

    @property
    def longest(self) -> int:
        """Of the table's bars, never 0."""
        return max((row.captions + row.new for row in self.rows), default=0) or 1

    @property
    def shown(self) -> list[ConceptRow]:
        """Rows at the top of the table."""
        return self.rows[:SHOWN]

    @property
    def folded(self) -> list[ConceptRow]:
        """Rows behind them."""
        return self.rows[SHOWN:LISTED]


@dataclass
class _Tally:
    """Sums by concept over the shards read so far."""

    concepts: int
    images: int = 0
    entries: int = 0

    def __post_init__(self) -> None:
        names = ("captions", "top", "new", "judged", "right")
        self.counts: dict[str, Counts] = {name: np.zeros(self.concepts, np.int64) for name in names}
        self.sums = {name: np.zeros(self.concepts) for name in ("donors", "similarity", "cluster")}
        self.sizes = np.zeros(LARGEST + 1, np.int64)

    def count(self, name: str, concept_E: Counts) -> None:
        self.counts[name] += np.bincount(concept_E, minlength=self.concepts)

    def add(self, name: str, concept_E: Counts, value_E: NDArray[Any]) -> None:
        self.sums[name] += np.bincount(concept_E, value_E, self.concepts)


def concept_statistics(
    archive: Artifact, mentions: Artifact, vocabulary: Artifact, recall: Artifact | None, top: int
) -> Statistics:
    """Counts over a whole archive.

    Args:
        archive: the concepts of each image, best first.
        mentions: those its caption names.
        vocabulary: the concepts' names.
        recall: where the true concepts of some images stand.
        top: concepts of an archive that count as named by it.
    """
    names = vocabulary.read("concepts", columns=["name"])["name"].to_pylist()
    truth = _truth(recall)
    tally = _Tally(len(names))
    for shard in archive.shards:
        _add_shard(
            tally, archive.read("archives", shard), mentions.read("mentions", shard), names, truth, top
        )
    return _statistics(tally, names)


def _truth(recall: Artifact | None) -> Mapping[str, list[str]]:
    if recall is None:
        return {}
    rows = recall.read("truth").to_pydict()
    return dict(zip(rows["sample_id"], rows["classes"], strict=True))


def _add_shard(
    tally: _Tally,
    archives: pa.Table,
    mentions: pa.Table,
    names: list[str],
    truth: Mapping[str, list[str]],
    top: int,
) -> None:
    ids = archives["sample_id"].to_pylist()
    named_E = _pairs(ids, dict(_lists(mentions, "concept_ids")), len(names))
    lists = archives["concepts"].combine_chunks()
    length_N = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    entries = lists.flatten()
    image_E = np.repeat(np.arange(len(ids)), length_N)
    rank_E = np.arange(len(image_E)) - np.repeat(np.cumsum(length_N) - length_N, length_N)
    concept_E = entries.field("concept_id").to_numpy(zero_copy_only=False).astype(np.int64)
    best_E = rank_E < top
    new_E = best_E & ~np.isin(image_E * len(names) + concept_E, named_E)
    tally.images, tally.entries = tally.images + len(ids), tally.entries + len(concept_E)
    tally.count("captions", named_E % len(names))
    tally.count("top", concept_E[best_E])
    tally.count("new", concept_E[new_E])
    size_E = _cluster_sizes(tally, image_E, entries)
    donors_E = entries.field("donors").value_lengths().to_numpy(zero_copy_only=False)
    similarity_E = entries.field("anchor_similarity").to_numpy(zero_copy_only=False)
    for name, value_E in (("donors", donors_E), ("similarity", similarity_E), ("cluster", size_E)):
        tally.add(name, concept_E[best_E], value_E[best_E])
    _judge(tally, ids, names, truth, image_E[new_E], concept_E[new_E])


def _lists(table: pa.Table, column: str) -> Iterable[tuple[str, list[int]]]:
    return zip(table["sample_id"].to_pylist(), table[column].to_pylist(), strict=True)


def _pairs(ids: list[str], concepts: Mapping[str, list[int]], total: int) -> Counts:
    """Image and concept as one number, for every concept of every image."""
    return np.array([n * total + c for n, name in enumerate(ids) for c in concepts.get(name, ())], np.int64)


def _cluster_sizes(tally: _Tally, image_E: Counts, entries: pa.StructArray) -> Counts:
    """Concepts in each entry's cluster; the clusters are counted by size on the way."""
    cluster_E = entries.field("cluster").to_numpy(zero_copy_only=False).astype(np.int64)
    pair_E = image_E * (int(cluster_E.max(initial=0)) + 1) + cluster_E
    _, inverse_E, size_K = np.unique(pair_E, return_inverse=True, return_counts=True)
    tally.sizes += np.bincount(np.minimum(size_K, LARGEST), minlength=LARGEST + 1)
    return np.asarray(size_K[inverse_E], np.int64)


def _judge(
    tally: _Tally,
    ids: list[str],
    names: list[str],
    truth: Mapping[str, list[str]],
    image_E: Counts,
    concept_E: Counts,
) -> None:
    """Counts how often a new concept is true: of images with known classes, for concepts that are one."""
    if not truth:
        return
    classes = set().union(*truth.values())
    known = {name: number for number, name in enumerate(names) if name in classes}
    true = {i: [known[c] for c in truth[i] if c in known] for i in ids if i in truth}
    judged_E = np.isin(concept_E, list(known.values())) & np.array([i in truth for i in ids], bool)[image_E]
    right_E = judged_E & np.isin(image_E * len(names) + concept_E, _pairs(ids, true, len(names)))
    tally.count("judged", concept_E[judged_E])
    tally.count("right", concept_E[right_E])


def _statistics(tally: _Tally, names: list[str]) -> Statistics:
    counts = tally.counts
    order = np.lexsort((np.arange(len(names)), -(counts["captions"] + counts["new"])))
    rows = [_row(tally, names, int(n)) for n in order if counts["captions"][n] + counts["top"][n]]
    images = max(tally.images, 1)
    sizes = [(f"{n}" if n < LARGEST else f"{n}+", int(tally.sizes[n])) for n in range(1, LARGEST + 1)]
    return Statistics(
        images=tally.images,
        rows=rows,
        concepts=len(rows),
        captions_mean=float(counts["captions"].sum()) / images,
        archive_mean=tally.entries / images,
        new_mean=float(counts["new"].sum()) / images,
        clusters=sizes,
    )


def _row(tally: _Tally, names: list[str], n: int) -> ConceptRow:
    top, judged = int(tally.counts["top"][n]), int(tally.counts["judged"][n])
    means = {name: float(total[n]) / top if top else None for name, total in tally.sums.items()}
    return ConceptRow(
        name=names[n],
        captions=int(tally.counts["captions"][n]),
        top=top,
        new=int(tally.counts["new"][n]),
        right=int(tally.counts["right"][n]) / judged if judged else None,
        **means,
    )
