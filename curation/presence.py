"""Stage ``presence``: archives of the concepts that are more likely in the picture than not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from curation.presence_model import FEATURES, Candidates, Concepts, Presence, candidates_of, learn
from curation.ragged import offsets_of
from storage.artifact import Artifact
from storage.errors import ConfigError
from storage.schemas import table_of
from storage.stage import Job, Output, ShardFunction, Stage


@dataclass(frozen=True)
class PresenceConfig:
    """Which concepts stay."""

    least: float = 0.5  # probability of being there
    said: float = 0.4  # share of what a picture shows that its caption names
    alike: float = 1.0  # cosine of two names from which a caption with one names the other
    images: int = 20_000  # that the probability is learnt from, half of them to measure it

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1 or not 0 < self.said <= 1 or not 0 < self.alike <= 1 or self.images < 2:
            raise ConfigError(
                f"presence: least={self.least} lies in [0, 1], said={self.said} and alike={self.alike} in "
                f"(0, 1], and images={self.images} are 2 at least"
            )


def keep_likely(job: Job[PresenceConfig]) -> None:
    """Stage ``presence``: archives of the likely concepts, and the probability of every one."""
    archive, mentions, vocabulary = map(job.artifact, ("archive", "mentions", "vocabulary"))
    concepts = Concepts.of(vocabulary, mentions.manifest.counts.kept)
    presence, facts = _learnt(job.config, archive, mentions, concepts)
    job.write(Output(facts=facts), shard="learnt")
    job.map_shards(
        partial(_make_shard_function, job.config, archive, mentions, concepts, presence), archive.shards
    )


def _learnt(
    config: PresenceConfig, archive: Artifact, mentions: Artifact, concepts: Concepts
) -> tuple[Presence, dict[str, float]]:
    """Learnt from every other image; how well it tells concepts of the others apart."""
    halves = list(_halves(config, archive, mentions, concepts))
    fit, held = (_telling(half) for half in zip(*halves, strict=True))
    presence = learn(*fit, config.said)
    expected_A, named_A = config.said * presence.before_reading(held[0]), held[1]
    likely_A = expected_A >= config.said * config.least
    facts = {f"weight_{name}": float(w) for name, w in zip(FEATURES, presence.weight_F, strict=True)}
    if named_A.any() and not named_A.all():
        facts["auc"] = float(roc_auc_score(named_A, expected_A))
    if likely_A.any():  # two shares that agree where the probabilities are right
        facts["likely_expected"] = float(expected_A[likely_A].mean())
        facts["likely_named"] = float(named_A[likely_A].mean())
    return presence, facts


def _halves(
    config: PresenceConfig, archive: Artifact, mentions: Artifact, concepts: Concepts
) -> Iterator[tuple[Candidates, Candidates]]:
    """Every other image of shards that lie evenly among all, and those between them."""
    shards = archive.shards
    rows = {part.shard: part.rows for part in archive.parts("archives")}
    wanted = max(1, round(len(shards) * min(1.0, config.images / max(sum(rows.values()), 1))))
    for place in np.linspace(0, len(shards) - 1, wanted).round().astype(int):
        table, said = archive.read("archives", shards[place]), mentions.read("mentions", shards[place])
        even, odd = (
            candidates_of(table.take(np.arange(first, len(table), 2)), said, concepts, config.alike)
            for first in (0, 1)
        )
        yield even, odd


def _telling(pieces: Sequence[Candidates]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Features and labels of the concepts that other images name."""
    return (
        np.concatenate([piece.features_AF[piece.telling] for piece in pieces]),
        np.concatenate([piece.named_A[piece.telling] for piece in pieces]),
    )


def _make_shard_function(
    config: PresenceConfig, archive: Artifact, mentions: Artifact, concepts: Concepts, presence: Presence
) -> ShardFunction:
    return lambda shard: likely_shard(
        config, archive.read("archives", shard), mentions.read("mentions", shard), concepts, presence
    )


def likely_shard(
    config: PresenceConfig, archives: pa.Table, mentions: pa.Table, concepts: Concepts, presence: Presence
) -> Output:
    """Archives of one shard with their likely concepts, in the order they had."""
    candidates = candidates_of(archives, mentions, concepts, config.alike)
    probability_A = presence(candidates).astype(np.float32)
    lists = archives["concepts"].combine_chunks()
    offsets = offsets_of(lists.value_lengths().to_numpy())
    kept_A = probability_A >= config.least
    kept_offsets = np.append(0, np.cumsum(kept_A))[offsets]
    left = pa.ListArray.from_arrays(
        pa.array(kept_offsets, pa.int32()), lists.flatten().filter(pa.array(kept_A))
    )
    probabilities = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(probability_A))
    ids = archives["sample_id"]
    return Output(
        tables={
            "archives": table_of("archives", {"sample_id": ids, "concepts": left}),
            "presence": table_of("presence", {"sample_id": ids, "probabilities": probabilities}),
        },
        seen=len(archives),
        kept=len(archives),
        facts={
            "concepts_before": float(len(kept_A)),
            "concepts": float(kept_A.sum()),
            "empty_archives": float((np.diff(kept_offsets) == 0).sum()),
        },
    )


PRESENCE = Stage("presence", 1, keep_likely)
