"""The Prefect flow: one task per stage, in the order the method declares them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.plan import Node
from flows.tasks import stage_task
from storage.runtime import Runtime


def run_nodes(name: str, nodes: Sequence[Node], runtime: Runtime) -> None:
    """Materialises every node in a flow run of this name; a stage waits for those it reads.

    Raises:
        CocuError: of the first stage that fails.
    """

    @flow(name="cocu", flow_run_name=name, persist_result=False)
    def method() -> None:
        states: dict[str, State[Any]] = {}
        for node in nodes:
            upstream = [states[a.fingerprint] for a in node.upstream if a.fingerprint in states]
            state = stage_task(node, runtime)(wait_for=upstream, return_state=True)
            state.result()
            states[node.artifact.fingerprint] = state

    method()


@flow(name="cocu-run")
def scheduled(config: str, store: str, engine: str = "local", workers: int = 1, device: str = "auto") -> str:
    """A whole run from a config file: what ``cocu serve`` deploys. Returns the summary's path."""
    from flows.run import execute, make_runtime, plan_run  # noqa: PLC0415  (they import this module)

    name, plan = plan_run(Path(config), store)
    return str(execute(name, plan, None, make_runtime(engine, workers, device)))
