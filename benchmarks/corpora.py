"""Synthetic corpora: unit vectors in clouds around a common direction, as an encoder's are."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curation.ragged import Ragged

WIDTH, CONCEPTS, MENTIONS, CLOUDS = 512, 4000, 3, 2000


@dataclass(frozen=True, eq=False)
class Corpus:
    """M images with their mentions, and C concepts."""

    images_MD: NDArray[np.float16]
    concepts_CD: NDArray[np.float32]
    mentions: Ragged


def corpus(rows: int, width: int = WIDTH, seed: int = 0) -> Corpus:
    """A corpus in memory."""
    images_MD = np.concatenate(list(image_blocks(rows, width, seed)))
    return Corpus(images_MD, concept_vectors(width), mentions(rows, seed))


def image_blocks(
    rows: int, width: int = WIDTH, seed: int = 0, size: int = 10_000
) -> Iterator[NDArray[np.float16]]:
    """The images, some thousand at a time."""
    rng = np.random.default_rng(seed)
    clouds = rng.standard_normal((CLOUDS, width), dtype=np.float32)
    for start in range(0, rows, size):
        count = min(size, rows - start)
        points = clouds[rng.integers(0, CLOUDS, count)] + rng.standard_normal(
            (count, width), dtype=np.float32
        )
        points += np.float32(0.5)
        yield (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float16)


def concept_vectors(width: int = WIDTH) -> NDArray[np.float32]:
    """C unit vectors."""
    vectors = np.random.default_rng(1).standard_normal((CONCEPTS, width), dtype=np.float32) + np.float32(0.5)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def mentions(rows: int, seed: int = 0) -> Ragged:
    """Three concepts an image."""
    ids = np.random.default_rng(seed + 2).integers(0, CONCEPTS, MENTIONS * rows)
    return Ragged(np.arange(rows + 1) * MENTIONS, ids.astype(np.int32))
