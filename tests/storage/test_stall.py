"""What a stage waited for: told beside its data, and no part of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from storage.artifact import Store
from storage.manifest import Counts, ShardRecord, shard_record
from storage.runtime import Runtime
from storage.stage import Job, Output, ShardFunction, Stage, materialize
from storage.stall import stall_report, verdict

KNOBS = {"read": "bring the tars nearer", "decode": "more cores"}


def record(shard: str, **timings: float) -> ShardRecord:
    return ShardRecord(shard, (), Counts(), {}, 1.0, timings)


@pytest.mark.parametrize(
    ("timings", "found"),
    [
        ({"read": 3.0, "decode": 2.0, "model": 1.0, "write": 0.5}, "read-bound"),
        ({"read": 1.0, "decode": 2.0, "model": 1.9, "write": 0.5}, "decode-bound"),
        ({"read": 0.0, "decode": 0.0, "model": 1e-4, "write": 0.0}, "model-bound"),
        ({"read": 0.1, "decode": 0.1, "model": 0.1, "write": 0.5}, "write-bound"),
    ],
)
def test_verdict_is_the_longest_phase(timings: Mapping[str, float], found: str) -> None:
    assert verdict(timings) == found


def test_stall_report_adds_shards_up_and_names_the_knob() -> None:
    records = [
        record("a", read=1, decode=4),
        record("b", read=2.5, decode=1),
        record("c"),
        record("d", decode=1),
    ]
    assert stall_report(records, KNOBS) == {
        "seconds": {"read": 3.5, "decode": 6.0},
        "verdict": "decode-bound",
        "knob": "more cores",
        "shards": {"decode-bound": 2, "read-bound": 1},
    }


def test_stage_without_timings_has_no_stall_report() -> None:
    assert stall_report([record("a"), record("b")], KNOBS) == {}


def _slow_reader() -> ShardFunction:
    return lambda shard: Output(
        files={shard: (b"x", 1)}, seen=1, kept=1, timings={"read": len(shard) * 100.0}
    )


def _stage(job: Job[None]) -> None:
    job.map_shards(_slow_reader, ["a", "bb"])


def test_timings_stand_in_the_manifest_with_what_writing_took(tmp_path: Path) -> None:
    stage: Stage[None] = Stage("timed", 1, _stage, knobs=lambda _: KNOBS)
    artifact = materialize(stage, None, {}, Store(str(tmp_path)), Runtime())
    manifest: Any = Store(str(tmp_path)).artifact("timed", artifact.fingerprint).manifest
    assert manifest.stall["verdict"] == "read-bound"
    assert manifest.stall["knob"] == "bring the tars nearer"
    assert manifest.stall["seconds"]["read"] == 300
    assert set(manifest.shard_timings["bb"]) == {"read", "write"}
    assert manifest.facts == {}
    assert shard_record(manifest, "bb").timings == manifest.shard_timings["bb"]
