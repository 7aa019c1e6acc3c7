"""Cluster-guided sampling: which of an image's concepts are prompts in an epoch.

A cluster is drawn by the softmax of the clusters' mean scores, a concept in it by the softmax of its scores
(Xing et al., *Rewrite Caption Semantics*, 2023). Several draws are distinct concepts, from distinct
clusters while there are any. Greatest score / temperature plus Gumbel noise first is drawing by softmax
without replacement, so one sort draws for a whole batch.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.randomness import uniforms


def draw(
    sample_ids: Sequence[str],
    offsets: NDArray[np.int64],
    score_A: NDArray[np.floating[Any]],
    cluster_A: NDArray[np.integer[Any]],
    *,
    seed: int,
    epoch: int,
    count: int = 3,
    temperature: float = 1.0,
) -> NDArray[np.int64]:
    """Draws concepts for a batch of ``N`` images with ``A`` candidates in all.

    What an image draws is a function of (seed, sample_id, epoch) and its own archive, whatever the batch.
    To draw uniformly, pass equal scores and one cluster each.

    Args:
        sample_ids: of the images.
        offsets: of the images in ``score_A``, ``[N + 1]``.
        score_A: of the candidates.
        cluster_A: cluster of each candidate within its image, from 0.
        seed: of the run.
        epoch: of the run.
        count: draws per image.
        temperature: in units of the score; 1 is the paper's.

    Returns:
        Positions in ``score_A``, int64 ``[N, count]``, -1 where an image has fewer candidates.

    Raises:
        ValueError: for a temperature not above 0, or lengths that differ.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; a softmax needs one above 0 (1 is the paper's)")
    if len(sample_ids) != len(offsets) - 1 or not len(score_A) == len(cluster_A) == offsets[-1]:
        raise ValueError(
            f"{len(sample_ids)} sample ids, offsets of {len(offsets) - 1} images ending at {offsets[-1]}, "
            f"{len(score_A)} scores, {len(cluster_A)} clusters; all must describe the same archives"
        )
    sizes = np.diff(offsets)
    image_A = np.repeat(np.arange(len(sizes)), sizes)
    place_A = np.arange(len(image_A)) - offsets[image_A]
    stream_A = _streams(sample_ids, seed, epoch)[image_A]
    logit_A = np.asarray(score_A, np.float64) / temperature
    group_A, mean_A = _clusters(image_A, cluster_A, logit_A)
    cluster_key_A = mean_A + _gumbel(stream_A, 2 * np.asarray(cluster_A, np.int64))
    concept_key_A = logit_A + _gumbel(stream_A, 2 * place_A + 1)
    # first the best concept of every cluster, clusters by their keys, then the second best of each, …
    order = np.lexsort((-cluster_key_A, _places(group_A, concept_key_A), image_A))
    drawn = np.full((len(sizes), count), -1, np.int64)
    taken = place_A < count
    drawn[image_A[taken], place_A[taken]] = order[taken]
    return drawn


def best(offsets: NDArray[np.int64], score_A: NDArray[np.floating[Any]], count: int) -> NDArray[np.int64]:
    """Positions of each image's highest scores, int64 ``[N, count]``, -1 where it has fewer candidates.

    Equal scores keep their order.
    """
    sizes = np.diff(offsets)
    image_A = np.repeat(np.arange(len(sizes)), sizes)
    place_A = np.arange(len(image_A)) - offsets[image_A]
    order = np.lexsort((place_A, -np.asarray(score_A, np.float64), image_A))
    chosen = np.full((len(sizes), count), -1, np.int64)
    taken = place_A < count
    chosen[image_A[taken], place_A[taken]] = order[taken]
    return chosen


def _clusters(
    image_A: NDArray[np.int64], cluster_A: NDArray[np.integer[Any]], logit_A: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """A number per (image, cluster), and the mean logit of each concept's cluster."""
    span = int(cluster_A.max(initial=0)) + 1
    _, group_A = np.unique(image_A * span + cluster_A, return_inverse=True)
    return group_A, (np.bincount(group_A, logit_A) / np.bincount(group_A))[group_A]


def _places(group_A: NDArray[np.int64], key_A: NDArray[np.float64]) -> NDArray[np.int64]:
    """Place of each concept within its group, 0 for the greatest key."""
    order = np.lexsort((-key_A, group_A))
    sizes = np.bincount(group_A)
    place_A = np.empty(len(order), np.int64)
    place_A[order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return place_A


def _streams(sample_ids: Sequence[str], seed: int, epoch: int) -> NDArray[np.uint64]:
    """One 64-bit hash per image."""
    keys = (f"{seed}\n{epoch}\n{sample_id}".encode() for sample_id in sample_ids)
    digests = b"".join(hashlib.blake2b(key, digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def _gumbel(stream_A: NDArray[np.uint64], counter_A: NDArray[np.int64]) -> NDArray[np.float64]:
    """Gumbel noise of a stream and the place in it."""
    noise: NDArray[np.float64] = -np.log(-np.log(uniforms(stream_A, counter_A)))
    return noise
