"""Stages as tasks of a real Prefect flow run."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.claims import claim, claims
from flows.plan import Plan
from flows.prefect_server import server_fault
from storage.artifact import Store
from storage.errors import InputError, StoreError
from storage.runtime import Runtime
from storage.stage import Job, Output, Stage

pytestmark = pytest.mark.usefixtures("prefect_server")
Work = Callable[[Job[Any]], None]


def write(job: Job[Any]) -> None:
    quarantine = [{"sample_id": "s", "key": "k", "reason": "image_missing", "detail": ""}]
    job.write(Output(files={"data": (b"x", 1)}, quarantine=quarantine, seen=2, kept=1, facts={"share": 0.5}))


def two_stages(store: Path, first: Work = write, second: Work = write) -> Plan:
    plan = Plan(Store(str(store)))
    one = plan(Stage("first", 1, first), {}, "first of two")
    plan(Stage("second", 1, second), {}, one=one)
    return plan


def run(plan: Plan, name: str) -> None:
    from flows.flow import run_nodes

    run_nodes(name, plan.nodes, Runtime())


def recorded(name: str, expected: int) -> dict[str, Any]:
    """Task runs of the flow run of this name, by their own; the server learns of them in a moment."""
    import time

    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

    deadline = time.monotonic() + 60
    found: list[Any] = []
    with get_client(sync_client=True) as client:
        while len([run for run in found if run.state and run.state.is_final()]) < expected:
            assert time.monotonic() < deadline, found
            found = client.read_task_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])))
            time.sleep(0.1)
    return {run.name: run for run in found}


def test_run_makes_a_named_and_tagged_task_per_stage(tmp_path):
    plan = two_stages(tmp_path)
    run(plan, "named-and-tagged")
    tasks = recorded("named-and-tagged", 2)
    names = [f"{node.label} {node.artifact.fingerprint[:8]}" for node in plan.nodes]
    assert sorted(tasks) == sorted(names)
    assert set(tasks[names[0]].tags) == {"cocu", "first"}
    assert all(task.state.is_completed() for task in tasks.values())
    assert all(node.artifact.committed for node in plan.nodes)


def test_run_publishes_the_counts_of_each_stage(tmp_path):
    import json

    from prefect.artifacts import Artifact

    plan = two_stages(tmp_path)
    run(plan, "counts")
    published = Artifact.get("first-of-two")
    assert published is not None
    (row,) = json.loads(published.data)
    assert row["fingerprint"] == plan.nodes[0].artifact.fingerprint
    assert (row["in"], row["kept"], row["rejected: image_missing"], row["share"]) == (2, 1, 1, 0.5)
    assert published.description == f"first of two: {plan.nodes[0].artifact.id}"


def test_fault_of_a_stage_comes_out_of_the_flow_as_it_is_and_stops_it(tmp_path):
    def refuse(_job: Job[Any]) -> None:
        raise InputError("the corpus is broken")

    plan = two_stages(tmp_path, first=refuse)
    with pytest.raises(InputError, match="the corpus is broken"):
        run(plan, "stopped")
    (task,) = recorded("stopped", 1).values()
    assert task.run_count == 1  # not tried again
    assert not list(tmp_path.glob("second/*"))


def test_fault_of_a_network_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.tasks.RETRY_DELAYS", [0.0, 0.0])
    tries: list[int] = []

    def flaky(job: Job[Any]) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionResetError(errno.ECONNRESET, "connection reset")
        write(job)

    plan = two_stages(tmp_path, second=flaky)
    run(plan, "flaky")
    assert len(tries) == 3
    assert plan.nodes[-1].artifact.committed


def store_fault(cause: Exception) -> Exception:
    try:
        raise StoreError("cannot write") from cause
    except StoreError as error:
        return error


@pytest.mark.parametrize(
    ("fault", "again"),
    [
        (TimeoutError("no answer"), True),
        (store_fault(ConnectionResetError(errno.ECONNRESET, "reset")), True),
        (store_fault(OSError(errno.ENOSPC, "full")), False),
        (store_fault(PermissionError(errno.EACCES, "denied")), False),
        (FileNotFoundError(errno.ENOENT, "gone"), False),
        (InputError("wrong"), False),
        (ValueError("a bug"), False),
    ],
)
def test_only_faults_that_pass_are_tried_again(fault, again):
    from types import SimpleNamespace

    from flows.tasks import is_transient

    assert is_transient(None, None, SimpleNamespace(data=fault)) is again


def test_artifact_keys_are_what_prefect_allows():
    from flows.tasks import artifact_key

    assert artifact_key("evaluate grouping_caption on Größe") == "evaluate-grouping-caption-on-gr--e"


def test_claim_holds_while_the_process_lives_and_is_gone_after(tmp_path):
    plan = two_stages(tmp_path)
    artifacts = [node.artifact for node in plan.nodes]
    with claim(plan.store, "mine", artifacts):
        (found,) = claims(plan.store)
        assert found.pid == os.getpid()
        assert found.artifacts == tuple(artifact.id for artifact in artifacts)
    assert claims(plan.store) == []


def test_temporary_server_that_cannot_start_says_why(tmp_path, monkeypatch):
    from flows.temporary_server import temporary_server

    (tmp_path / "uvicorn.py").write_text("raise ImportError('uvicorn is broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(InputError, match="did not start.*uvicorn is broken.*cocu doctor"):
        temporary_server()


TWICE = """
import os, sys
from pathlib import Path
from flows.run import execute, make_runtime, plan_run
from flows.temporary_server import temporary_server

for seed in (0, 1):
    name, plan = plan_run(Path(sys.argv[1]), sys.argv[2], [f"corpus.sources.0.scenes.seed={seed}"])
    execute(name, plan, "corpus", make_runtime("local", 1, "cpu", quiet=True))
    print(plan.until("corpus")[-1].artifact.id)
print(temporary_server())
"""


def test_one_process_runs_twice_with_a_server_that_ends_with_it(tiny_config, tmp_path):
    """As a job does that keeps its Python process."""
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    command = [sys.executable, "-c", TWICE, str(tiny_config), str(tmp_path / "store")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    first, second, url = done.stdout.splitlines()
    assert first != second
    assert "Connect" not in done.stderr
    assert server_fault(url)
