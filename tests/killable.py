"""Work in processes that can be killed. Those that start them import it by its name."""

import multiprocessing
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from curation.encoder import load_encoder
from flows.run import plan_run
from storage.runtime import Runtime
from storage.stage import materialize

# A process is forked from one that has the slow imports behind it, and has no threads and no work of its own.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.killable", "training.train"])


class Killable:
    """A function with its arguments, called in a process of its own as often as it takes."""

    def __init__(self, work: Callable[..., Any], *arguments: Any) -> None:
        self.work, self.arguments = work, arguments

    def run(self, until: Callable[[float], bool] | None = None) -> tuple[bool, float]:
        """Whether it came to its end, and the seconds it was at work; it is killed -9 once ``until``.

        Args:
            until: told when the work began, in seconds of the monotonic clock.
        """
        ready, told = FORKS.Pipe(duplex=False)
        process = FORKS.Process(target=_work, args=(told, self.work, *self.arguments))
        process.start()
        told.close()
        assert ready.recv() == "ready"
        begun = time.monotonic()
        if until:
            while process.is_alive() and not until(begun):
                time.sleep(0.002)
            process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), f"it ended with {process.exitcode}"
        return process.exitcode == 0, time.monotonic() - begun

    def run_for(self, seconds: float) -> bool:
        """Whether it came to its end before it was killed."""
        return self.run(lambda begun: time.monotonic() - begun >= seconds)[0]


def _work(told: Connection, work: Callable[..., Any], *arguments: Any) -> None:
    told.send("ready")
    work(*arguments)


def run_stages(config: Path, store: Path, *stages: str) -> None:
    """What a config declares, up to some stages."""
    _, plan = plan_run(config, str(store))
    runtime = Runtime(device="cpu", load_encoder=load_encoder, locations=plan.locations)
    for stage in stages:
        for node in plan.until(stage):
            materialize(node.stage, node.config, node.inputs, plan.store, runtime)
