import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.claims import PREFIX
from flows.garbage import find_garbage, remove
from flows.plan import Plan
from storage.artifact import Artifact, Store
from storage.errors import StoreError
from storage.runtime import Runtime
from storage.stage import Job, Output, Stage, materialize


def write(job: Job[Any]) -> None:
    job.write(Output(files={"data": (b"x" * 1000, 1)}, seen=1, kept=1))


def chain(store: Path, setting: int) -> list[Artifact]:
    """Two committed artifacts, the second made from the first."""
    plan = Plan(Store(str(store)))
    first = plan(Stage("first", 1, write), {"setting": setting})
    plan(Stage("second", 1, write), {}, first=first)
    return [materialize(n.stage, n.config, n.inputs, plan.store, Runtime()) for n in plan.nodes]


def summarise(store: Path, run: str, artifact: Artifact) -> None:
    folder = store / "runs" / run
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"artifacts": {"any": artifact.id}}))


def interrupted(store: Path) -> Path:
    folder = store / "second" / ("a" * 16)
    (folder / "_progress").mkdir(parents=True)
    (folder / "part").write_bytes(b"y" * 500)
    return folder


def claimed(store: Path, artifact: str, host: str, pid: int) -> None:
    record = {"host": host, "pid": pid, "started": "2026-01-01T00:00:00+00:00", "artifacts": [artifact]}
    (store / "runs" / "busy").mkdir(parents=True)
    (store / "runs" / "busy" / f"{PREFIX}{host}-{pid}.json").write_text(json.dumps(record))


def names(store: Path) -> set[str]:
    return {item.artifact.id for item in find_garbage(Store(str(store)))}


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_gc_keeps_what_a_summary_names_and_all_it_was_made_from(tmp_path):
    kept, unused = chain(tmp_path, 1), chain(tmp_path, 2)
    summarise(tmp_path, "mine", kept[-1])
    assert names(tmp_path) == {artifact.id for artifact in unused}


def test_gc_lists_unfinished_folders_with_their_size(tmp_path):
    folder = interrupted(tmp_path)
    (item,) = find_garbage(Store(str(tmp_path)))
    assert item.artifact.fingerprint == folder.name
    assert not item.finished
    assert 500 <= item.bytes < 20_000


def test_gc_removes_only_with_yes(cocu, tmp_path):
    kept, unused = chain(tmp_path, 1), chain(tmp_path, 2)
    folder = interrupted(tmp_path)
    summarise(tmp_path, "mine", kept[-1])
    listed = cocu("gc", "--store", tmp_path)
    assert "would remove 3 folders" in listed.out
    assert folder.exists()
    assert "removed 3 folders" in cocu("gc", "--store", tmp_path, "--yes").out
    assert not folder.exists()
    assert not any(artifact.committed for artifact in unused)
    assert all(artifact.committed for artifact in kept)
    assert "would remove 0 folders" in cocu("gc", "--store", tmp_path).out


def test_gc_json_is_data(cocu, tmp_path):
    chain(tmp_path, 1)
    found = json.loads(cocu("gc", "--store", tmp_path, "--json").out)
    assert found["removed"] is False
    assert found["bytes"] == sum(row["bytes"] for row in found["artifacts"]) > 2000
    assert {row["state"] for row in found["artifacts"]} == {"unused"}


def test_gc_leaves_alone_what_a_living_run_works_on(tmp_path):
    folder = interrupted(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        claimed(tmp_path, f"second/{folder.name}", platform.node(), process.pid)
        assert names(tmp_path) == set()
    assert names(tmp_path) == {f"second/{folder.name}"}  # it has died


def test_gc_believes_a_claim_of_another_host(tmp_path, dead_pid):
    folder = interrupted(tmp_path)
    claimed(tmp_path, f"second/{folder.name}", "elsewhere", dead_pid)
    assert names(tmp_path) == set()


def test_gc_refuses_when_a_summary_cannot_be_read(tmp_path):
    chain(tmp_path, 1)
    (tmp_path / "runs" / "torn").mkdir(parents=True)
    (tmp_path / "runs" / "torn" / "summary.json").write_text('{"artifacts": ')
    with pytest.raises(StoreError, match="is no summary"):
        find_garbage(Store(str(tmp_path)))


def test_gc_touches_no_folder_that_is_not_an_artifact(tmp_path):
    (tmp_path / "photos" / "holiday").mkdir(parents=True)
    (tmp_path / "photos" / "holiday" / "sea.jpg").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    assert names(tmp_path) == set()


def test_removal_takes_the_manifest_first(tmp_path, monkeypatch):
    chain(tmp_path, 1)
    store = Store(str(tmp_path))
    order: list[str] = []
    kind = type(store.folder)
    monkeypatch.setattr(kind, "remove", lambda _self, name="": order.append(name))
    remove(find_garbage(store))
    assert order == ["manifest.json", ""] * 2
