"""Stage ``export``: self-contained shards with the bytes as they came."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from curation.archive import ARCHIVE
from curation.export import EXPORT, ExportConfig
from storage.artifact import Artifact, Store
from storage.reader import CorpusReader
from storage.runtime import Runtime
from storage.schemas import table_of
from storage.stage import Job, Output, materialize
from storage.tars import Sample, read_tar


def samples(export: Artifact, shard: str) -> list[Sample]:
    with export.file(f"{shard.replace('/', '.')}.tar").open("rb") as stream:
        return [item for item in read_tar(stream) if isinstance(item, Sample)]


def exported(run: Any, config: ExportConfig, archive: Artifact | None = None) -> Artifact:
    inputs = {"corpus": run["corpus"], "archive": archive or run["archive"]}
    return materialize(EXPORT, config, inputs, run.plan.store, Runtime(device="cpu"))


def test_export_holds_every_sample_with_its_bytes_caption_and_archive(curated: Any) -> None:
    corpus, reader = curated["corpus"], CorpusReader(curated["corpus"])
    assert curated["export"].shards == corpus.shards
    for shard in corpus.shards:
        captions = dict(reader.samples(shard).select("sample_id", "caption").iter_rows())
        archives = curated["archive"].read("archives", shard).to_pydict()
        listed = dict(zip(archives["sample_id"], archives["concepts"], strict=True))
        originals = list(reader.members(shard, ("jpg",)))
        found = samples(curated["export"], shard)
        assert [sample.key for sample in found] == [sample.key for _, sample in originals]
        for sample, (sample_id, original) in zip(found, originals, strict=True):
            assert set(sample.members) == {"jpg", "txt", "archive.json"}
            assert sample.members["jpg"] == original.members["jpg"]
            assert sample.members["txt"].decode() == captions[sample_id]
            told = json.loads(sample.members["archive.json"])
            assert told == {"sample_id": sample_id, "concepts": listed[sample_id]}


def test_export_of_the_top_concepts_keeps_the_best(curated: Any) -> None:
    whole, top = curated["export"], exported(curated, ExportConfig(top=2))
    assert top.fingerprint != whole.fingerprint
    shard = whole.shards[1]
    for short, long in zip(samples(top, shard), samples(whole, shard), strict=True):
        best = json.loads(long.members["archive.json"])["concepts"][:2]
        assert json.loads(short.members["archive.json"])["concepts"] == best


def test_export_counts_samples_per_part(curated: Any) -> None:
    manifest = curated["export"].manifest
    assert [part.rows for part in manifest.parts] == [30, 30, 30]
    assert (manifest.counts.seen, manifest.counts.kept) == (90, 90)


@pytest.mark.parametrize("lost", [[0], [3, 29]])
def test_export_leaves_out_what_was_not_archived_with_a_reason(
    lost: list[int], curated: Any, tmp_path: Path
) -> None:
    shards = curated["corpus"].shards

    def shorten(job: Job[None]) -> None:
        for shard in shards:
            table = curated["archive"].read("archives", shard)
            rows = [n for n in range(len(table)) if shard != shards[0] or n not in lost]
            kept = table_of("archives", {name: table[name].take(rows) for name in table.column_names})
            job.write(Output(tables={"archives": kept}, seen=len(rows), kept=len(rows)), shard)

    stage = dataclasses.replace(ARCHIVE, run=shorten, version=100 + lost[0])  # each has its own export
    archive = materialize(stage, None, {}, Store(str(tmp_path)), Runtime())  # type: ignore[arg-type]
    export = exported(curated, ExportConfig(), archive)
    ids = curated["corpus"].read("samples", shards[0])["sample_id"].to_pylist()
    quarantine = export.read("quarantine").to_pydict()
    assert quarantine["sample_id"] == [ids[n] for n in lost]
    assert set(quarantine["reason"]) == {"not_archived"}
    assert [f"{shards[0]}/{key}" for key in quarantine["key"]] == quarantine["sample_id"]
    assert export.manifest.counts.rejected == {"not_archived": len(lost)}
    assert len(samples(export, shards[0])) == 30 - len(lost)
