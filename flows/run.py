"""Executing a plan as a Prefect flow, and what is written at the end."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from curation.encoder import load_encoder
from flows.config import load_config
from flows.engine import ray_engine
from flows.pipeline import declare
from flows.plan import Node, Plan, decide
from flows.progress import rich_progress
from flows.report import PAGE
from flows.summary import summarise
from storage.artifact import Store
from storage.errors import CocuError
from storage.runtime import Runtime, local_engine


def plan_run(config: Path, store: str, overrides: Sequence[str] = ()) -> tuple[str, Plan]:
    """The name of a run and its declared stages."""
    settings = load_config(config, overrides)
    plan = Plan(Store(store))
    declare(plan, settings)
    return settings.name, plan


def make_runtime(engine: str, workers: int, device: str) -> Runtime:
    """Execution choices from the command line."""
    gpus = 1.0 if device.startswith("cuda") else 0.0
    chosen = ray_engine(workers, gpus) if engine == "ray" else local_engine
    return Runtime(chosen, device, rich_progress, load_encoder)


def execute(name: str, plan: Plan, until: str | None, runtime: Runtime) -> Path:
    """Runs what is missing of a plan and writes summary and report.

    When nothing is missing, no flow is started.

    Raises:
        CocuError: the first fault a person can mend.
    """
    nodes = plan.until(until)
    if not all(decision.reuse for decision in decide(nodes)):
        quiet_prefect()
        from flows.flow import run_nodes  # noqa: PLC0415  (Prefect takes seconds to import)

        run_nodes(name, nodes, replace(runtime, locations=plan.locations))
    return write_results(name, plan, nodes)


def quiet_prefect() -> None:
    """Settings of a run whose output is read by people: no analytics, no log lines between the bars."""
    quiet = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_FOREMAN_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    }
    for variable, value in quiet.items():
        os.environ.setdefault(variable, value)


def write_results(name: str, plan: Plan, nodes: Sequence[Node]) -> Path:
    """``<store>/runs/<name>/summary.json``, and the report where the run has one."""
    folder = plan.store.folder.folder(f"runs/{name}")
    summary = summarise(name, nodes)
    folder.write("summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    report = next((node.artifact for node in nodes if node.stage.name == "report"), None)
    if report is not None:
        folder.write(PAGE, report.file(PAGE).read_bytes())
    return Path(folder.path("summary.json"))


def first_fault(error: BaseException) -> CocuError | None:
    """The mendable fault behind an exception, also through the wrappers of Ray and Prefect."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, CocuError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
