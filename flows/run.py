"""Executing a plan as a Prefect flow, and what is written at the end."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from curation import embed
from curation.encoder import load_encoder
from flows.claims import claim
from flows.config import Config, load_config
from flows.engine import ray_engine
from flows.forecast.prediction import beside_fact, load
from flows.pipeline import declare
from flows.plan import Node, Plan
from flows.prefect_server import quiet_prefect
from flows.progress import rich_progress, spinner
from flows.report import PAGE
from flows.report_curves import with_speeds
from flows.report_prediction import with_prediction
from flows.summary import prediction_beside_fact, summarise
from storage.artifact import Artifact, Store
from storage.errors import ConfigError
from storage.files import Folder
from storage.runtime import Runtime, local_engine, silent_progress
from training import precision
from training.train import GroupingTraining, GroupViTTraining

SUMMARY = "summary.json"
AnyTraining = TypeVar("AnyTraining", GroupViTTraining, GroupingTraining)


@dataclass(frozen=True)
class Results:
    """What a run has written for people and for tools."""

    folder: Folder  # <store>/runs/<name>
    summary: dict[str, Any]

    @property
    def location(self) -> str:
        """Path or URL of the summary."""
        return self.folder.path(SUMMARY) if self.folder.is_local else f"{self.folder.url}/{SUMMARY}"


def plan_run(
    config: Path, store: str, overrides: Sequence[str] = (), device: str = "auto"
) -> tuple[str, Plan]:
    """The name of a run and its declared stages."""
    return declared(load_config(config, overrides), store, device)


def declared(settings: Config, store: str, device: str = "auto") -> tuple[str, Plan]:
    """The name of a run and its declared stages, from a config that is already read."""
    plan = Plan(Store(store))
    declare(plan, decided(settings, device))
    return settings.name, plan


def decided(settings: Config, device: str = "auto") -> Config:
    """The same with every precision that is left to the machine decided, since it is part of identities."""
    given = settings.train
    train = replace(
        given,
        groupvit=_decided(given.groupvit, device) if given.groupvit else None,
        grouping=_decided(given.grouping, device) if given.grouping else None,
    )
    return replace(settings, embed=embed.decided(settings.embed, device), train=train)


def _decided(training: AnyTraining, device: str) -> AnyTraining:
    chosen = precision.decided(training.loop.precision, device)
    return replace(training, loop=replace(training.loop, precision=chosen))


def make_runtime(engine: str, workers: int, device: str, quiet: bool = False, processes: int = 1) -> Runtime:
    """Execution choices from the command line.

    Raises:
        ConfigError: for an engine or a device there is none of.
    """
    if engine not in ("local", "ray"):
        raise ConfigError(f"engine '{engine}' is unknown; there are local and ray")
    gpu = _uses_gpu(device, engine)
    chosen = ray_engine(workers, 1.0 if gpu else 0.0) if engine == "ray" else local_engine
    return Runtime(
        chosen, device, silent_progress if quiet else rich_progress, load_encoder, processes=processes
    )


def _uses_gpu(device: str, engine: str) -> bool:
    """Whether work goes to a GPU. On Ray a named GPU is a worker's affair, here it must be there."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ConfigError(f"device '{device}' is unknown; there are auto, cpu, cuda and cuda:<number>")
    if device == "cpu":
        return False
    import torch  # noqa: PLC0415

    if device != "auto" and engine == "local" and not torch.cuda.is_available():
        raise ConfigError(f"device '{device}': torch finds no GPU here; give --device cpu or auto")
    return device != "auto" or torch.cuda.is_available()


def execute(name: str, plan: Plan, until: str | None, runtime: Runtime) -> Results:
    """Runs what is missing of a plan and writes summary and report.

    When nothing is missing, no flow is started.

    Raises:
        CocuError: the first fault a person can mend.
    """
    nodes = plan.until(until)
    artifacts = [node.artifact for node in nodes]
    if not all(artifact.committed for artifact in artifacts):
        with claim(plan.store, name, artifacts):
            quiet_prefect()
            with spinner("starting Prefect"):
                from flows.flow import run_nodes  # noqa: PLC0415  (Prefect takes seconds to import)
            run_nodes(name, nodes, replace(runtime, locations=plan.locations))
    return write_results(name, plan)


def write_results(name: str, plan: Plan) -> Results:
    """``<store>/runs/<name>/summary.json`` of all that is finished, and the report where there is one."""
    folder = plan.store.folder.folder(f"runs/{name}")
    predicted = load(name, plan.store)
    rows = beside_fact(predicted, plan.nodes) if predicted else []
    summary = {**summarise(name, plan.nodes), "prediction": prediction_beside_fact(predicted, rows)}
    folder.write(SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
    for node in plan.nodes:
        if node.stage.name == "report" and node.artifact.committed:
            page = with_speeds(node.artifact.file(PAGE).read_bytes(), _models(node))
            folder.write(PAGE, with_prediction(page, predicted, rows) if predicted else page)
    return Results(folder, summary)


def _models(report: Node) -> dict[str, Artifact]:
    """The trained models that a report shows, by name."""
    named = {n.removeprefix("model "): item for n, item in report.inputs.items() if n.startswith("model ")}
    return {name: item for name, item in sorted(named.items()) if isinstance(item, Artifact)}
