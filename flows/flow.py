"""The Prefect flow: one task per stage, in the order the method declares them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

from flows.plan import Node
from flows.prefect_server import require_server
from flows.progress import spinner
from flows.tasks import stage_task
from flows.temporary_server import temporary_server
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

    with a_server():
        method()


@contextmanager
def a_server() -> Iterator[None]:
    """The Prefect server that is configured, or this process' own.

    Raises:
        InputError: when it does not answer.
    """
    url = get_current_settings().api.url
    if url:
        require_server(url)
        yield
        return
    with spinner("starting a Prefect server for this run"):
        url = temporary_server()
    with temporary_settings({PREFECT_API_URL: url}):
        yield


@flow(name="cocu-run", persist_result=False)
def scheduled(
    config: str,
    store: str,
    engine: str = "local",
    workers: int = 1,
    device: str = "auto",
    until: str | None = None,
    overrides: list[str] | None = None,
) -> str:
    """A whole run from a config file: what ``cocu serve`` deploys. Returns where the summary lies."""
    from flows.run import execute, make_runtime, plan_run  # noqa: PLC0415  (they import this module)

    name, plan = plan_run(Path(config), store, overrides or (), device)
    runtime = make_runtime(engine, workers, device, quiet=True)
    return execute(name, plan, until, runtime).location
