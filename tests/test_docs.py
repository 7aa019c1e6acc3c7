"""The docs against the code: files and tables they name exist, and the stage they show runs."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from storage.artifact import Artifact, Store
from storage.runtime import Runtime
from storage.schemas import SCHEMAS, table_of
from storage.stage import Job, Output, Stage, materialize

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text("utf-8")


def table_rows(heading: str) -> dict[str, str]:
    """First and last column of the table under a heading."""
    section = ARCHITECTURE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return {row[0]: row[-1] for row in rows[1:]}


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_docs_name_files_that_exist(document: Path) -> None:
    text = document.read_text("utf-8").replace("curation/novelty.py", "")
    named = set(re.findall(r"`((?:\w+/)+\w+\.(?:py|md|toml))`", text))
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []


def test_docs_tables_have_the_columns_of_the_schemas() -> None:
    assert table_rows("Tables") == {name: ", ".join(schema.names) for name, schema in SCHEMAS.items()}


def test_docs_list_every_stage() -> None:
    sources = [path.read_text("utf-8") for path in ROOT.glob("*/*.py") if path.parent.name != "tests"]
    stages = [
        name for text in sources for name in re.findall(r'^[A-Z]+ = Stage\(\s*"(\w+)"', text, re.MULTILINE)
    ]
    assert sorted(table_rows("Stages")) == sorted(stages)


def _made(store: Store, name: str, columns: dict[str, Any]) -> Artifact:
    def write(job: Job[None]) -> None:
        table = table_of(name, columns)
        job.write(Output({name: table}, seen=table.num_rows, kept=table.num_rows), shard="web/00000")

    return materialize(Stage(name, 1, write), None, {}, store, Runtime())


def test_docs_added_stage_runs_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", ARCHITECTURE, re.DOTALL) if "NOVELTY" in block
    )
    schema = pa.schema([("sample_id", pa.string()), ("share", pa.float32())])
    monkeypatch.setitem(SCHEMAS, "novelty", schema)
    module: dict[str, Any] = {"__name__": "novelty"}
    exec(compile(code, "docs/architecture.md", "exec"), module)  # noqa: S102  (our own documentation)

    record = {field.name: None for field in SCHEMAS["archives"].field("concepts").type.value_type}
    ids = ["web/00000/a", "web/00000/b"]
    concepts = [[{**record, "concept_id": 3}, {**record, "concept_id": 7}], []]
    store = Store(str(tmp_path))
    inputs = {
        "archive": _made(store, "archives", {"sample_id": ids, "concepts": concepts}),
        "mentions": _made(store, "mentions", {"sample_id": ids[::-1], "concept_ids": [[], [7, 9]]}),
    }
    novelty = materialize(module["NOVELTY"], module["NoveltyConfig"](), inputs, store, Runtime())

    assert novelty.read("novelty").to_pydict() == {"sample_id": ids, "share": [0.5, 0.0]}
    assert [part.name for part in novelty.manifest.parts] == ["web.00000.novelty.parquet"]
