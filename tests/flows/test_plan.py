import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flows.decisions import Decision, as_rows, decide
from flows.plan import Node, Plan
from storage.artifact import Artifact, Store
from storage.errors import ConfigError
from storage.files import Folder
from storage.runtime import Runtime
from storage.stage import Job, Output, Stage, materialize


@dataclass(frozen=True)
class Inner:
    depths: tuple[int, ...] = (1, 2)
    rate: float = 0.5


@dataclass(frozen=True)
class Settings:
    size: int = 3
    name: str = "a"
    inner: Inner = field(default_factory=Inner)
    parts: tuple[Inner, ...] = (Inner(), Inner())


def write(job: Job[Settings]) -> None:
    job.write(Output(files={"data": (b"x" * job.config.size, 1)}, seen=1, kept=1))


def outside(config: Settings, _store: Folder) -> dict[str, str]:
    return {"file": config.name}


READ, SPLIT, JOIN = Stage("read", 1, write), Stage("split", 1, write), Stage("join", 1, write)


def declare(store: Path, read=Settings(), split=Settings(), join=Settings()) -> Plan:
    """read ─► left, right (both ``split``) ─► join."""
    do = Plan(Store(str(store)))
    source = do(READ, read)
    left = do(SPLIT, split, "left", source=source)
    right = do(SPLIT, dataclasses.replace(split, name="right"), "right", source=source)
    do(JOIN, join, left=left, right=right, absent=None)
    return do


def run(plan: Plan) -> Plan:
    for node in plan.nodes:
        materialize(node.stage, node.config, node.inputs, plan.store, Runtime())
    return plan


def told(plan: Plan) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {d.node.label: (d.action, d.reasons) for d in decide(plan.nodes)}


def test_plan_knows_every_fingerprint_before_anything_runs(tmp_path):
    plan = declare(tmp_path)
    assert not any(node.artifact.committed for node in plan.nodes)
    assert len({node.artifact.fingerprint for node in plan.nodes}) == 4
    declared = [node.artifact for node in plan.nodes]
    assert declared == [node.artifact for node in run(plan).nodes]
    assert all(artifact.committed for artifact in declared)


def test_optional_input_that_is_absent_is_no_part_of_the_identity(tmp_path):
    join = declare(tmp_path).nodes[-1]
    assert set(join.inputs) == {"left", "right"}


def test_until_takes_a_stage_or_a_label_and_all_they_need(tmp_path):
    plan = declare(tmp_path)
    assert [n.label for n in plan.until("left")] == ["read", "left"]
    assert [n.label for n in plan.until("split")] == ["read", "left", "right"]
    assert plan.until(None) == plan.nodes


def test_until_an_unknown_stage_lists_those_there_are(tmp_path):
    with pytest.raises(ConfigError, match="it has read, split, join"):
        declare(tmp_path).until("merge")


def test_decide_in_an_empty_store_runs_everything(tmp_path):
    assert set(told(declare(tmp_path)).values()) == {("run", ("never run",))}


def test_decide_after_a_run_reuses_everything(tmp_path):
    run(declare(tmp_path))
    assert set(told(declare(tmp_path)).values()) == {("reuse", ())}


def test_decide_names_the_setting_that_differs_and_traces_it_downstream(tmp_path):
    run(declare(tmp_path))
    found = told(declare(tmp_path, split=Settings(size=5)))
    assert found["read"] == ("reuse", ())
    assert found["left"] == ("run", ("size: 3 → 5",))
    assert found["right"] == ("run", ("size: 3 → 5",))
    action, reasons = found["join"]
    assert action == "run"
    assert reasons == (
        "input left changed because left.size: 3 → 5",
        "input right changed because right.size: 3 → 5",
    )


def test_decide_tells_one_cause_of_several_inputs_once(tmp_path):
    run(declare(tmp_path))
    found = told(declare(tmp_path, read=Settings(inner=Inner(rate=0.25))))
    assert found["read"] == ("run", ("inner.rate: 0.5 → 0.25",))
    assert found["left"][1] == ("input source changed because read.inner.rate: 0.5 → 0.25",)
    assert found["join"][1] == ("inputs left, right changed because read.inner.rate: 0.5 → 0.25",)


def test_decide_names_list_elements_by_number_and_plain_lists_whole(tmp_path):
    run(declare(tmp_path))
    other = Settings(parts=(Inner(), Inner(depths=(1, 3))))
    assert told(declare(tmp_path, join=other))["join"][1] == ("parts.1.depths: [1, 2] → [1, 3]",)


def test_decide_compares_with_the_nearest_artifact_not_the_newest(tmp_path):
    run(declare(tmp_path, join=Settings(size=4)))
    run(declare(tmp_path, join=Settings(size=9, name="b", inner=Inner(rate=0.1))))
    assert told(declare(tmp_path, join=Settings(size=5)))["join"][1] == ("size: 4 → 5",)


def test_decide_after_going_back_still_says_what_led_to_the_earlier_input(tmp_path):
    run(declare(tmp_path))
    run(declare(tmp_path, read=Settings(size=8), join=Settings(size=8)))
    found = told(declare(tmp_path, join=Settings(size=8)))  # read as at first, join as later
    assert found["read"] == found["left"] == ("reuse", ())
    assert found["join"][1] == ("inputs left, right changed because read.size: 8 → 3",)


def test_decide_tells_bytes_from_outside_and_a_new_version(tmp_path):
    reads = Stage("read", 1, write, outside)
    first, second = Plan(Store(str(tmp_path))), Plan(Store(str(tmp_path)))
    first(reads, Settings())
    run(first)
    second(dataclasses.replace(reads, version=2), Settings(name="b"))
    (reasons,) = (decision.reasons for decision in decide(second.nodes))
    assert reasons == ("stage version: 1 → 2", "name: a → b", "input file changed")


def test_decide_tells_inputs_that_are_new_or_gone(tmp_path):
    do = run(declare(tmp_path))
    left, right = (node.artifact for node in do.nodes[1:3])
    other = Plan(Store(str(tmp_path)))
    other(JOIN, Settings(), left=left, extra=right)
    (decision,) = decide(other.nodes)
    assert decision.reasons == ("input extra new", "input right gone")


def test_decide_resumes_what_was_interrupted(tmp_path):
    plan = declare(tmp_path)
    node = plan.nodes[0]
    READ.run(Job(node.config, node.inputs, Runtime(), node.artifact.folder, "read"))  # no manifest yet
    assert told(plan)["read"] == ("resume", ("interrupted after 1 part(s)",))


def test_decide_reads_each_manifest_of_a_stage_once(tmp_path, monkeypatch):
    for size in range(3):
        run(declare(tmp_path, split=Settings(size=size)))
    reads: list[str] = []
    original = Folder.read
    monkeypatch.setattr(
        Folder, "read", lambda self, name: reads.append(f"{self.url}/{name}") or original(self, name)
    )
    decide(declare(tmp_path, split=Settings(size=7)).nodes)
    assert len(reads) == len(set(reads)) == 6 + 3  # of split and of join; read is reused


def test_decisions_as_rows_are_plain_data(tmp_path):
    artifact = Artifact("read", "f" * 16, str(tmp_path))
    node = Node("read it", READ, Settings(), {}, artifact)
    assert as_rows([Decision(node, "run", ("never run",))]) == [
        {
            "label": "read it",
            "stage": "read",
            "fingerprint": "f" * 16,
            "action": "run",
            "reasons": ["never run"],
        }
    ]


def test_plan_command_tells_the_changed_field_and_its_consequences(cocu, tiny_config, tiny_store):
    outcome = cocu("plan", tiny_config, "--store", tiny_store, "--set", "expand.neighbours=5")
    lines = [line.split() for line in outcome.out.splitlines()]
    assert ["neighbours:", "8", "→", "5"] in lines
    assert "changed because expand.neighbours: 8 → 5" in outcome.out
    actions = {line[1]: line[0] for line in lines if line[0] in ("run", "reuse")}
    assert actions["embed"] == "reuse"
    assert actions["expand"] == actions["archive"] == "run"


def test_plan_command_starts_nothing_and_its_json_is_data(cocu, tiny_config, tiny_store):
    import json

    rows = json.loads(cocu("plan", tiny_config, "--store", tiny_store, "--json").out)
    assert {row["action"] for row in rows} == {"reuse"}
    assert all(set(row) == {"label", "stage", "fingerprint", "action", "reasons"} for row in rows)
