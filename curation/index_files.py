"""A searcher as files beside the vectors, and back."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.ivf import InvertedFile
from curation.ragged import Ragged
from curation.search import FaissProposer, Kind, Proposer, Searcher, faiss
from storage.artifact import Artifact

FAISS = "index.faiss"
CENTROIDS, CELLS, ROWS = "centroids.npy", "cells.npy", "rows.npy"
PLAN = "searcher.npy"  # effort and spare


def packed(searcher: Searcher, kind: Kind) -> dict[str, bytes]:
    """Contents by file name."""
    files = {PLAN: _array_bytes(np.array([searcher.effort, searcher.spare], np.int64))}
    if kind == "ivf":
        assert isinstance(searcher.proposer, InvertedFile)
        cells = searcher.proposer.cells
        arrays: dict[str, NDArray[Any]] = {
            CENTROIDS: searcher.proposer.centroids_KD,
            CELLS: cells.offsets,
            ROWS: cells.values,
        }
        return files | {name: _array_bytes(array) for name, array in arrays.items()}
    assert isinstance(searcher.proposer, FaissProposer)
    return files | {FAISS: faiss().serialize_index(searcher.proposer.index).tobytes()}


def unpacked(artifact: Artifact) -> Searcher | None:
    """The searcher of an index artifact; none if it is exact."""
    names = {part.name for part in artifact.parts(None)}
    if PLAN not in names:
        return None
    effort, spare = np.load(artifact.file(PLAN)).tolist()
    return Searcher(_proposer(artifact, names), effort, spare)


def _proposer(artifact: Artifact, names: set[str]) -> Proposer:
    if FAISS in names:
        flags = faiss().IO_FLAG_MMAP | faiss().IO_FLAG_READ_ONLY
        return FaissProposer(faiss().read_index(str(artifact.file(FAISS)), flags))
    centroids_KD, offsets, rows = (np.load(artifact.file(name)) for name in (CENTROIDS, CELLS, ROWS))
    return InvertedFile(centroids_KD, Ragged(offsets, rows))


def _array_bytes(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()
