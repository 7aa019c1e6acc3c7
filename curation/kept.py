"""Archives in a corpus that gained or lost images: only those that are made of something else are made anew.

An archive is made of its image's neighbours in their order, their vectors and its own, what their captions
name, and the vectors of those concepts. Where all that is as it was, so is the archive, to the last bit:
ranking and clusters of an image depend on nothing beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curation.archive_inputs import Inputs, load_inputs
from curation.index import neighbour_rows
from curation.ragged import Ragged, offsets_of
from storage.artifact import Artifact
from storage.schemas import table_of
from storage.stage import Earlier


@dataclass(frozen=True)
class Before:
    """Archives of an earlier corpus, and what they were made of."""

    archives: Artifact
    neighbours: Artifact
    inputs: Inputs
    renumbered_C: NDArray[np.int32]  # today's number of each concept of then, -1 for one that has gone

    @cached_property
    def mentions(self) -> Ragged:
        """What each image of then named, in today's numbers."""
        return replace(self.inputs.mentions, values=self.renumbered_C[self.inputs.mentions.values])


def archives_before(earlier: Sequence[Earlier], inputs: Inputs) -> Before | None:
    """The newest earlier archives whose concepts, as far as they are still there, keep their order."""
    for found in earlier:
        then = load_inputs(*(found.inputs[name] for name in ("index", "mentions", "vocabulary")))
        renumbered_C = _renumbered(then, inputs)
        there_C = renumbered_C[renumbered_C >= 0]
        if len(there_C) and (np.diff(there_C) > 0).all():  # the order decides between equal scores
            return Before(found.artifact, found.inputs["neighbours"], then, renumbered_C)
    return None


def _renumbered(then: Inputs, now: Inputs) -> NDArray[np.int32]:
    """Today's number of each concept of then, -1 for one that has gone or has another vector."""
    number = {name: concept for concept, name in enumerate(now.names)}
    found_C = np.array([number.get(name, -1) for name in then.names], np.int32)
    if then.vectors_CD.shape[1] != now.vectors_CD.shape[1]:
        return np.full_like(found_C, -1)
    same_C = (then.vectors_CD == now.vectors_CD[found_C]).all(axis=1)
    return np.where(same_C, found_C, np.int32(-1))


def kept(before: Before, inputs: Inputs, neighbours: pa.Table, shard: str) -> NDArray[np.int64]:
    """For each image of a shard the row of its archive among those of then, -1 for one to be made anew."""
    place_N = np.full(len(neighbours), -1)
    if shard not in before.archives.shards:
        return place_N
    past = before.neighbours.read("neighbours", shard)
    at = {name: place for place, name in enumerate(past["sample_id"].to_pylist())}
    here = [(n, at[name]) for n, name in enumerate(neighbours["sample_id"].to_pylist()) if name in at]
    now_H, then_H = np.array(here, np.int64).reshape(-1, 2).T
    rows_HL = neighbour_rows(inputs.index, neighbours.take(now_H))
    alike_H = _same_lists(neighbours.take(now_H), past.take(then_H))
    anchors_H = inputs.index.rows_of(neighbours["sample_id"].take(now_H).to_pylist())
    rows_HA = np.column_stack([anchors_H, rows_HL])
    used, row_HA = np.unique(rows_HA, return_inverse=True)
    same_HA = _same_images(before, inputs, used)[row_HA].reshape(rows_HA.shape) | (rows_HA < 0)
    whole_H = alike_H & same_HA.all(axis=1)
    place_N[now_H[whole_H]] = then_H[whole_H]
    return place_N


def _same_lists(now: pa.Table, then: pa.Table) -> NDArray[np.bool_]:
    """Whether the neighbours are the same, in the same order, ``[N]``."""
    columns = (table["neighbour_ids"].to_pylist() for table in (now, then))
    return np.array([one == other for one, other in zip(*columns, strict=True)], bool)


def _same_images(before: Before, inputs: Inputs, rows_U: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether rows of the index are images that were there then, with the same vector and concepts."""
    names = inputs.index.names[rows_U]
    then_U = before.inputs.index.rows_of(cast("Sequence[str]", names.tolist()))
    there_U = (then_U >= 0) & (rows_U >= 0)
    was_S, is_S = then_U[there_U], rows_U[there_U]
    same_SD = before.inputs.index.vectors_MD[was_S] == inputs.index.vectors_MD[is_S]
    named_S = _same_rows(before.mentions.take(was_S), inputs.mentions.take(is_S))
    return np.isin(rows_U, is_S[same_SD.all(axis=1) & named_S])


def _same_rows(one: Ragged, other: Ragged) -> NDArray[np.bool_]:
    """Whether rows hold the same values in the same order, ``[N]``."""
    same_N: NDArray[np.bool_] = one.lengths == other.lengths
    rows = np.flatnonzero(same_N)
    left, right = one.take(rows), other.take(rows)
    same_N[rows[left.row_of[left.values != right.values]]] = False
    return same_N


def taken_over(before: Before, shard: str, rows_K: NDArray[np.int64]) -> pa.Table:
    """Archives of then, with today's numbers of the concepts."""
    table = before.archives.read("archives", shard).take(rows_K).combine_chunks()
    lists = table["concepts"].combine_chunks()
    records = lists.flatten()
    columns = {field.name: records.field(field.name) for field in records.type}
    numbers_A = before.renumbered_C[columns["concept_id"].to_numpy()]
    columns["concept_id"] = pa.array(numbers_A, pa.int32())
    renumbered = pa.StructArray.from_arrays(list(columns.values()), fields=list(records.type))
    offsets = pa.array(offsets_of(lists.value_lengths().to_numpy()), pa.int32())
    concepts = pa.ListArray.from_arrays(offsets, renumbered)
    return table_of("archives", {"sample_id": table["sample_id"], "concepts": concepts})
