"""Stages as Prefect tasks: retried when a store or a network fails, never for a fault of the input."""

import errno
from collections.abc import Iterator
from typing import Any

from prefect import Task, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.plan import Node
from storage.artifact import Artifact, Store
from storage.manifest import Manifest
from storage.runtime import Runtime
from storage.stage import materialize

RETRY_DELAYS = [2.0, 20.0]  # seconds
LASTING = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
LASTING_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def stage_task(node: Node, runtime: Runtime) -> Task[[], Artifact]:
    """The task that materialises one stage and publishes its counts, named after its fingerprint."""

    @task(
        name=node.stage.name,
        task_run_name=f"{node.label} {node.artifact.fingerprint[:8]}",
        tags=["cocu", node.stage.name],
        retries=len(RETRY_DELAYS),
        retry_delay_seconds=RETRY_DELAYS,
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
    """Whether trying again may help: faults of a network pass, a full disk or a wrong path does not.

    What the store raises for people has the operating system's own error as its cause.
    """
    faults = [fault for fault in _chain(state.data) if isinstance(fault, OSError)]
    return bool(faults) and not any(
        isinstance(fault, LASTING) or fault.errno in LASTING_CODES for fault in faults
    )


def _chain(fault: object) -> Iterator[BaseException]:
    while isinstance(fault, BaseException):
        yield fault
        fault = getattr(fault, "cause", None) or fault.__cause__


def publish(label: str, manifest: Manifest) -> None:
    """A Prefect table artifact: what came in, what was kept, what was turned away and why."""
    counts = manifest.counts
    row: dict[str, Any] = {"fingerprint": manifest.fingerprint, "seconds": manifest.seconds}
    row |= {"in": counts.seen, "kept": counts.kept}
    row |= {f"rejected: {reason}": number for reason, number in counts.rejected.items()}
    row |= {name: round(value, 6) for name, value in manifest.facts.items()}
    row |= {name: manifest.stall[name] for name in ("verdict", "knob") if name in manifest.stall}
    description = f"{label}: {manifest.stage}/{manifest.fingerprint}"
    create_table_artifact(table=[row], key=artifact_key(label), description=description)


def artifact_key(label: str) -> str:
    """Lower-case letters, digits and dashes, as Prefect wants its keys."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in label.lower()).strip("-")
