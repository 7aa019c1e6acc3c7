import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import StoreError
from storage.manifest import (
    Counts,
    Manifest,
    Part,
    ShardRecord,
    manifest_from_json,
    merge_records,
    provenance,
    record_from_json,
    to_json,
)

REJECTED = st.dictionaries(st.sampled_from(["odd", "empty", "large"]), st.integers(0, 9))


@st.composite
def counts(draw: Any) -> Counts:
    kept, rejected = draw(st.integers(0, 99)), draw(REJECTED)
    return Counts(kept + sum(rejected.values()), kept, rejected)


def part(name: str, table: str | None = "samples", rows: int = 3) -> Part:
    return Part(name, table, name.split(".", maxsplit=1)[0], rows, 10, "0" * 64)


def manifest(*parts: Part) -> Manifest:
    return Manifest(
        stage="corpus", version=1, fingerprint="0" * 16, config={"a": 1}, inputs={"b": "c"}, parts=parts,
        counts=Counts(4, 3, {"odd": 1}), facts={"x": 0.5}, created="2026-01-01T00:00:00.000+00:00",
        seconds=1.5, shard_seconds={"a": 1.5}, provenance=provenance(),
    )  # fmt: skip


def test_manifest_survives_json() -> None:
    whole = manifest(part("a.samples.parquet"), part("a.tar", None))
    assert manifest_from_json(to_json(whole), "here") == whole


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"{}", b'{"parts": []}', b"null", b"\xff", b'{"parts": [{}], "counts": {}}']
)
def test_broken_manifest_is_named_with_the_remedy(data: bytes) -> None:
    with pytest.raises(StoreError, match=r"s3://x/manifest\.json is not a manifest .*remove it and run"):
        manifest_from_json(data, "s3://x/manifest.json")


def test_manifest_whose_counts_do_not_add_up_is_broken() -> None:
    fields = json.loads(to_json(manifest(part("a.samples.parquet"))))
    fields["counts"]["kept"] = 2
    with pytest.raises(StoreError, match="1 lost"):
        manifest_from_json(json.dumps(fields).encode(), "here")


def test_rows_are_those_of_tables_or_else_of_files() -> None:
    both = [part("a.samples.parquet", "samples", 3), part("a.quarantine.parquet", "quarantine", 2)]
    assert manifest(*both, part("a.tar", None, 3)).rows == 3
    assert manifest(part("a.tar", None, 4), part("b.tar", None, 5)).rows == 9
    assert manifest(*both).bytes == 20


@given(counts(), counts(), counts())
def test_counts_add_up_in_any_order(first: Counts, second: Counts, third: Counts) -> None:
    left, right = (first + second) + third, third + (second + first)
    assert left == right
    assert left.seen == left.kept + sum(left.rejected.values())


@given(st.integers(0, 50), st.integers(0, 50), REJECTED)
def test_counts_that_do_not_add_up_cannot_be_made(seen: int, kept: int, rejected: dict[str, int]) -> None:
    if seen != kept + sum(rejected.values()):
        with pytest.raises(AssertionError, match="lost"):
            Counts(seen, kept, rejected)


def test_merged_records_are_in_shard_order_whatever_order_they_finished_in() -> None:
    records = [
        ShardRecord(name, (part(f"{name}.samples.parquet"),), Counts(1, 1), {"x": 0.25}, 0.1)
        for name in ("a", "b", "c")
    ]
    assert merge_records(records[::-1]) == merge_records(records)
    parts, total, facts = merge_records(records)
    assert [item.shard for item in parts] == ["a", "b", "c"]
    assert (total, facts) == (Counts(3, 3), {"x": 0.75})


def test_shard_record_survives_json_and_a_torn_one_is_none() -> None:
    record = ShardRecord("a", (part("a.samples.parquet"),), Counts(2, 1, {"odd": 1}), {"x": 1.0}, 0.5)
    data = to_json(record)
    assert record_from_json(data) == record
    assert [record_from_json(data[:cut]) for cut in range(0, len(data) - 2, 7)].count(None) == len(
        range(0, len(data) - 2, 7)
    )
