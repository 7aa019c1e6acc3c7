"""How likely a concept of an archive is in the picture, learnt from captions alone.

An image's own caption had no part in what its neighbours name, so it tells how often these are right. It does
not say all there is: of what a picture shows, a caption names a share, c. With x what the archive knows of a
concept,

    P(caption names it) = c · P(it is there),   P(it is there) = 1 / (1 + exp(-w·x - b))

and of what the caption leaves out, (1 - c) · P / (1 - c · P) is there, by Bayes' rule. This is learning from
positive and unlabelled examples (Elkan and Noto, *Learning classifiers from only positive and unlabeled
data*, KDD 2008), by maximum likelihood. No mask and no further caption is needed.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.optimize import minimize

from curation.ragged import Ragged, offsets_of
from storage.artifact import Artifact
from storage.errors import InputError

PAIRS = 65_536  # of names whose vectors are compared at a time
RIDGE = 1e-4  # on the weights, beside the mean log likelihood; features have a spread of 1
TINY = 1e-12
FEATURES = ("similarity", "global", "local", "donors", "frequency")


@dataclass(frozen=True, eq=False)
class Concepts:
    """What is known of concepts by their ids: unit vectors, and the share of captions that names each."""

    vectors_CD: NDArray[np.float32]
    frequency_C: NDArray[np.float64]

    @staticmethod
    def of(vocabulary: Artifact, images: int) -> "Concepts":
        """Those of a vocabulary, named by the captions of some images."""
        table = vocabulary.read("concepts", columns=["frequency", "vector"])
        vectors = table["vector"].combine_chunks()
        vectors_CD = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
        return Concepts(vectors_CD, table["frequency"].to_numpy() / max(images, 1))


@dataclass(frozen=True, eq=False)
class Candidates:
    """The concepts of some archives, ``A`` in all, as the image's own caption leaves them.

    Attributes:
        features_AF: `FEATURES`, of the neighbours that are other images.
        named_A: whether the image's own caption names the concept, or one that is nearly the same.
        others_A: neighbours whose captions name it, without the image itself.
    """

    features_AF: NDArray[np.float64]
    named_A: NDArray[np.bool_]
    others_A: NDArray[np.int64]

    @property
    def telling(self) -> NDArray[np.bool_]:
        """Those that another image's caption names: the rest is known from the own one alone."""
        return self.others_A > 0


@dataclass(frozen=True, eq=False)
class Presence:
    """How likely a concept of an archive is there."""

    mean_F: NDArray[np.float64]
    spread_F: NDArray[np.float64]
    weight_F: NDArray[np.float64]
    bias: float
    said: float  # share of what is there that captions name

    def before_reading(self, features_AF: NDArray[np.float64]) -> NDArray[np.float64]:
        """Whatever the image's own caption says: float64 ``[A]`` in [0, 1]."""
        standard_AF = (features_AF - self.mean_F) / self.spread_F
        return _sigmoid(standard_AF @ self.weight_F + self.bias)

    def __call__(self, candidates: Candidates) -> NDArray[np.float64]:
        """Where the caption has been read: float64 ``[A]``, 1 for what it names."""
        there_A = self.before_reading(candidates.features_AF)
        unsaid_A, absent_A = (1 - self.said) * there_A, 1 - there_A
        return np.where(candidates.named_A, 1.0, unsaid_A / np.maximum(unsaid_A + absent_A, TINY))


def learn(features_AF: NDArray[np.float64], named_A: NDArray[np.bool_], said: float) -> Presence:
    """The most likely weights, from which concepts captions name.

    Args:
        features_AF: of the concepts of many archives.
        named_A: whether the image's own caption names each.
        said: share c of what is there that captions name, in (0, 1].

    Raises:
        InputError: if captions name none of these concepts, or all.
    """
    if not len(named_A) or named_A.all() or not named_A.any():
        raise InputError(
            f"captions name {int(named_A.sum())} of {len(named_A)} concepts that their neighbours name, so "
            "nothing tells likely ones from others; leave [presence] out, or give more images or neighbours"
        )
    mean_F, spread_F = features_AF.mean(axis=0), np.maximum(features_AF.std(axis=0), 1e-9)
    x_AF = np.column_stack([(features_AF - mean_F) / spread_F, np.ones(len(named_A))])

    def cost(w_F: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        there_A = _sigmoid(x_AF @ w_F)
        missed_A = np.maximum(1 - said * there_A, TINY)
        value = -np.where(named_A, np.log(np.maximum(said * there_A, 1e-300)), np.log(missed_A)).mean()
        slope_A = np.where(named_A, there_A - 1, said * there_A * (1 - there_A) / missed_A)
        away_F = np.append(w_F[:-1], 0)
        return value + RIDGE * (away_F**2).sum(), x_AF.T @ slope_A / len(named_A) + 2 * RIDGE * away_F

    found = minimize(cost, np.zeros(x_AF.shape[1]), jac=True, method="L-BFGS-B").x
    return Presence(mean_F, spread_F, found[:-1], float(found[-1]), said)


def candidates_of(archives: pa.Table, mentions: pa.Table, concepts: Concepts, alike: float) -> Candidates:
    """What is known of the concepts of a shard's archives, the image's own caption held back.

    Args:
        archives: table ``archives``; A concepts in all.
        mentions: table ``mentions`` with those images.
        concepts: of the vocabulary.
        alike: cosine from which two names are nearly the same.
    """
    lists = archives["concepts"].combine_chunks()
    record, sizes = lists.flatten(), lists.value_lengths().to_numpy()
    concept_A, image_A = record.field("concept_id").to_numpy(), np.repeat(np.arange(len(sizes)), sizes)
    said = _mentions(archives["sample_id"], mentions)
    named_A = _named(concept_A, image_A, said, concepts.vectors_CD, alike)
    counted_A, itself_A = _donors(record.field("donors"), archives["sample_id"].combine_chunks(), image_A)
    others_A = counted_A - itself_A
    similarity_A = record.field("anchor_similarity").to_numpy().astype(np.float64)
    local_A = _local_of_others(similarity_A, record.field("local_score").to_numpy(), counted_A, itself_A)
    features = {
        "similarity": similarity_A,
        "global": record.field("global_score").to_numpy(),
        "local": np.log(local_A),
        "donors": np.log1p(others_A),
        "frequency": np.log(np.maximum(concepts.frequency_C[concept_A], 1e-9)),
    }
    return Candidates(np.column_stack([features[name] for name in FEATURES]), named_A, others_A)


def _local_of_others(
    similarity_A: NDArray[np.float64],
    local_A: NDArray[np.float32],
    counted_A: NDArray[np.int64],
    itself_A: NDArray[np.int64],
) -> NDArray[np.float64]:
    """The local score without the image among its own donors, which would tell its caption."""
    total_A = similarity_A / local_A * (counted_A + 1)
    return similarity_A * (counted_A + 1 - itself_A) / (total_A - itself_A * similarity_A)


def _mentions(sample_ids: pa.ChunkedArray, mentions: pa.Table) -> Ragged:
    """Concept ids that the caption of each image names."""
    rows = pl.DataFrame({"sample_id": sample_ids.to_pylist()}, schema={"sample_id": pl.String})
    said = pl.from_arrow(mentions)
    assert isinstance(said, pl.DataFrame)
    joined = rows.join(said, on="sample_id", how="left", maintain_order="left")["concept_ids"]
    lengths = joined.list.len().fill_null(0).to_numpy().astype(np.int64)
    values = joined.explode(empty_as_null=False, keep_nulls=False).to_numpy()
    return Ragged(offsets_of(lengths), values.astype(np.int32))


def _named(
    concept_A: NDArray[np.int32],
    image_A: NDArray[np.int64],
    said: Ragged,
    vectors_CD: NDArray[np.float32],
    alike: float,
) -> NDArray[np.bool_]:
    """Whether an image's own caption names a concept, or one nearly the same."""
    pairs = said.take(image_A)
    asked_P = concept_A[pairs.row_of]
    code_U, pair_P = np.unique(asked_P.astype(np.int64) * len(vectors_CD) + pairs.values, return_inverse=True)
    one_U, other_U = np.divmod(code_U, len(vectors_CD))
    blocks = [slice(start, start + PAIRS) for start in range(0, len(code_U), PAIRS)]
    cosines = [np.einsum("ud,ud->u", vectors_CD[one_U[b]], vectors_CD[other_U[b]]) for b in blocks]
    cosine_P = np.concatenate([np.zeros(0, np.float32), *cosines])[pair_P]
    named_A = np.zeros(len(concept_A), bool)
    named_A[pairs.row_of[(asked_P == pairs.values) | (cosine_P >= alike)]] = True
    return named_A


def _donors(
    donors: pa.ListArray, sample_ids: pa.Array, image_A: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many donors each concept has, and whether the image itself is one (0 or 1)."""
    counted_A = donors.value_lengths().to_numpy().astype(np.int64)
    candidate_P = np.repeat(np.arange(len(counted_A)), counted_A)
    itself_P = pc.equal(donors.flatten(), sample_ids.take(pa.array(image_A[candidate_P])))
    itself_A = np.bincount(candidate_P[itself_P.to_numpy(zero_copy_only=False)], minlength=len(counted_A))
    return counted_A, itself_A.astype(np.int64)


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))
