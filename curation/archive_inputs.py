"""What archives are made from: the vectors of images and concepts, and what each caption names."""

from dataclasses import dataclass
from typing import cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curation.index import Index, load_index
from curation.ragged import Ragged, offsets_of
from storage.artifact import Artifact


@dataclass(frozen=True)
class Inputs:
    """What every shard is ranked against."""

    index: Index
    mentions: Ragged  # concept ids by row of the index
    names: NDArray[np.object_]  # of the concepts
    vectors_CD: NDArray[np.float32]


def load_inputs(index_artifact: Artifact, mentions: Artifact, vocabulary: Artifact) -> Inputs:
    """Opens the index and joins the mentions to its rows."""
    index = load_index(index_artifact)
    concepts = vocabulary.read("concepts", columns=["name", "vector"])
    vectors = concepts["vector"].combine_chunks()
    vectors_CD = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, vectors.type.list_size)
    names = np.array(concepts["name"].to_pylist(), object)
    return Inputs(index, _mentions_by_row(index, mentions), names, vectors_CD)


def _mentions_by_row(index: Index, mentions: Artifact) -> Ragged:
    rows = cast("pl.DataFrame", pl.from_arrow(mentions.read("mentions")))
    joined = index.ids.join(rows, on="sample_id", how="left", maintain_order="left")
    lengths = joined["concept_ids"].list.len().fill_null(0).to_numpy().astype(np.int64)
    values = joined["concept_ids"].explode(empty_as_null=False, keep_nulls=False).to_numpy()
    return Ragged(offsets_of(lengths), values.astype(np.int32))
