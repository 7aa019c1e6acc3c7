"""Stages as Prefect tasks: retried when a store or a network fails, never for a fault of the input."""

from typing import Any

from prefect import Task, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.plan import Node
from storage.artifact import Artifact, Store
from storage.manifest import Manifest
from storage.runtime import Runtime
from storage.stage import materialize


def stage_task(node: Node, runtime: Runtime) -> Task[[], Artifact]:
    """The task that materialises one stage and publishes its counts, named after its fingerprint."""

    @task(
        name=node.stage.name,
        task_run_name=f"{node.label} {node.artifact.fingerprint[:8]}",
        tags=["cocu", node.stage.name],
        retries=2,
        retry_delay_seconds=[2, 20],
        retry_condition_fn=is_transient,
        cache_policy=NO_CACHE,  # the store decides what is done
        persist_result=False,
    )
    def run_stage() -> Artifact:
        store = Store(node.artifact.url.rsplit("/", 2)[0])
        artifact = materialize(node.stage, node.config, node.inputs, store, runtime)
        publish(node.label, artifact.manifest)
        return artifact

    return run_stage


def is_transient(_task: Any, _run: Any, state: Any) -> bool:
    """Whether trying again may help: faults of a network pass, faults of the input do not."""
    fault = state.data if isinstance(state.data, BaseException) else None
    return isinstance(fault, OSError)


def publish(label: str, manifest: Manifest) -> None:
    """A Prefect table artifact: what came in, what was kept, what was turned away and why."""
    counts = manifest.counts
    row: dict[str, Any] = {"fingerprint": manifest.fingerprint, "seconds": manifest.seconds}
    row |= {"in": counts.seen, "kept": counts.kept}
    row |= {f"rejected: {reason}": number for reason, number in counts.rejected.items()}
    row |= {name: round(value, 6) for name, value in manifest.facts.items()}
    description = f"{label}: {manifest.stage}/{manifest.fingerprint}"
    create_table_artifact(table=[row], key=artifact_key(label), description=description)


def artifact_key(label: str) -> str:
    """Lower-case letters, digits and dashes, as Prefect wants its keys."""
    return "".join(c if c.isalnum() else "-" for c in label.lower()).strip("-")
