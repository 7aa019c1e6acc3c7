from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.artifact import Artifact, Store
from storage.errors import StoreError
from storage.files import Folder
from storage.parquet import read_table, table_bytes
from storage.runtime import Runtime
from storage.schemas import SCHEMAS, conform, table_of, vector_column
from storage.stage import Job, Output, Stage, materialize


def embeddings(rows: int = 3, width: int = 4) -> pa.Table:
    vectors_ND = np.ones((rows, width), np.float16)
    columns = {
        "sample_id": [f"a/b/{n}" for n in range(rows)],
        "vector": vector_column(vectors_ND, pa.float16()),
    }
    return table_of("embeddings", columns)


def written(folder: Path, table: pa.Table) -> Artifact:
    """An artifact with one part of the table, as if the stage had not been checked."""
    store = Store(str(folder))

    def run(job: Job[None]) -> None:
        job.write(Output(tables={"embeddings": embeddings()}))

    artifact = materialize(Stage("embed", 1, run), None, {}, store, Runtime())
    pq.write_table(table, Path(artifact.url) / "all.embeddings.parquet")
    return artifact


@pytest.mark.parametrize("name", SCHEMAS)
def test_empty_table_of_every_schema_survives_parquet(name: str, tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write(f"all.{name}.parquet", table_bytes(SCHEMAS[name].empty_table(), name))
    assert read_table(folder, f"all.{name}.parquet").schema.names == SCHEMAS[name].names


def test_vectors_survive_parquet_as_plain_fixed_size_lists(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write("all.embeddings.parquet", table_bytes(embeddings(), "embeddings"))
    found = read_table(folder, "all.embeddings.parquet")
    assert found.equals(embeddings())
    assert found.schema.field("vector").type == pa.list_(pa.float16(), 4)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sample_id": ["a"]}, "columns ..sample_id.. where the table 'embeddings' has"),
        ({"sample_id": ["a"], "vector": [[1.0]], "row": [0]}, "columns .*'row'"),
        ({"vector": [[1.0]], "sample_id": ["a"]}, "columns"),
        ({"sample_id": [1], "vector": [[1.0]]}, "column 'sample_id' is int64"),
        ({"sample_id": ["a"], "vector": [[1.0]]}, "column 'vector' is list<"),
    ],
)
def test_table_of_other_columns_is_refused_on_write_and_on_read(
    columns: dict[str, list[object]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=message):
        table_bytes(pa.table(columns), "embeddings")
    artifact = written(tmp_path, pa.table(columns))
    with pytest.raises(StoreError, match=message):
        artifact.read("embeddings", columns=["sample_id"])


def test_vectors_of_another_precision_are_refused() -> None:
    wide = vector_column(np.ones((1, 4), np.float32), pa.float32())
    with pytest.raises(StoreError, match="the table 'embeddings' has fixed_size_list"):
        conform(pa.table({"sample_id": ["a"], "vector": wide}), "embeddings")


def test_stage_that_gives_a_wrong_table_commits_nothing(tmp_path: Path) -> None:
    def run(job: Job[None]) -> None:
        job.write(Output(tables={"mentions": embeddings()}))

    stage, store = Stage("mentions", 1, run), Store(str(tmp_path))
    with pytest.raises(StoreError, match="mentions: columns"):
        materialize(stage, None, {}, store, Runtime())
    assert store.artifacts() == []


def test_part_with_a_flipped_byte_cannot_be_read_and_names_the_remedy(tmp_path: Path) -> None:
    folder, name = Folder(str(tmp_path)), "all.embeddings.parquet"
    data = bytearray(table_bytes(embeddings(400), "embeddings"))
    data[len(data) // 3] ^= 0xFF
    folder.write(name, bytes(data))
    with pytest.raises(StoreError, match=rf"{name} cannot be read .*remove .* and run again"):
        read_table(folder, name)


def test_table_that_is_not_parquet_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "all.embeddings.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(StoreError, match="cannot be read"):
        read_table(Folder(str(tmp_path)), "all.embeddings.parquet")


def test_missing_part_of_an_artifact_names_the_remedy(tmp_path: Path) -> None:
    artifact = written(tmp_path, embeddings())
    (Path(artifact.url) / "all.embeddings.parquet").unlink()
    with pytest.raises(StoreError, match="run again"):
        artifact.read("embeddings")


def test_reading_a_table_the_artifact_has_no_part_of_gives_no_rows(tmp_path: Path) -> None:
    artifact = written(tmp_path, embeddings())
    assert artifact.read("quarantine").num_rows == 0
    assert artifact.read("quarantine", columns=["reason"]).column_names == ["reason"]
    assert artifact.read("embeddings", "no/such").num_rows == 0


def test_table_bytes_do_not_depend_on_how_the_table_is_chunked() -> None:
    whole = embeddings(6)
    pieces = pa.concat_tables([whole.slice(0, 2), whole.slice(2)])
    assert table_bytes(pieces, "embeddings") == table_bytes(whole, "embeddings")
