"""Stage ``export``: the curated corpus as self-contained WebDataset shards for any other trainer.

Each sample has its original image bytes, its caption as ``txt`` and its archive as ``archive.json``.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from storage.artifact import Artifact
from storage.reader import IMAGE_EXTENSIONS, CorpusReader
from storage.stage import Job, Output, ShardFunction, Stage, file_stem
from storage.tars import Sample, write_tar


@dataclass(frozen=True)
class ExportConfig:
    """What goes out."""

    top: int = 0  # concepts of each archive, best first; 0 for all


def export(job: Job[ExportConfig]) -> None:
    """Stage ``export``: one tar per shard."""
    reader = CorpusReader(job.artifact("corpus"), job.runtime.locations)
    job.map_shards(partial(_make_shard_function, job.config, reader, job.artifact("archive")), reader.shards)


def _make_shard_function(config: ExportConfig, reader: CorpusReader, archive: Artifact) -> ShardFunction:
    return lambda shard: _export_shard(config, reader, archive, shard)


def _export_shard(config: ExportConfig, reader: CorpusReader, archive: Artifact, shard: str) -> Output:
    captions = dict(reader.samples(shard).select("sample_id", "caption").iter_rows())
    table = archive.read("archives", shard).to_pydict()
    archives = dict(zip(table["sample_id"], table["concepts"], strict=True))
    quarantine = [_unarchived(shard, name) for name in captions if name not in archives]
    samples = partial(_samples, config, reader, shard, captions, archives)
    return Output(
        files={f"{file_stem(shard)}.tar": (lambda stream: write_tar(stream, samples()), len(archives))},
        quarantine=quarantine,
        seen=len(captions),
        kept=len(captions) - len(quarantine),
    )


def _samples(
    config: ExportConfig,
    reader: CorpusReader,
    shard: str,
    captions: dict[str, str],
    archives: dict[str, list[dict[str, Any]]],
) -> Iterator[Sample]:
    for sample_id, sample in reader.members(shard, IMAGE_EXTENSIONS):
        if sample_id in archives:
            concepts = archives[sample_id][: config.top or None]
            text = json.dumps({"sample_id": sample_id, "concepts": concepts}, ensure_ascii=False)
            members = {**sample.members, "txt": captions[sample_id].encode(), "archive.json": text.encode()}
            yield Sample(sample.key, members)


def _unarchived(shard: str, sample_id: str) -> dict[str, str]:
    key = sample_id.removeprefix(f"{shard}/")
    return {"sample_id": sample_id, "key": key, "reason": "not_archived", "detail": "it was not embedded"}


EXPORT = Stage("export", 1, export, by_shard=("corpus", "archive"))
