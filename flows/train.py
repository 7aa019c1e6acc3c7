"""``torchrun … -m flows.train CONFIG``: what a config trains, in processes that torchrun starts.

For several machines, or a scheduler that starts processes itself. Everything else must be in the store
already, which all processes share; on one machine ``cocu run --processes`` does both.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import typer

from flows.claims import claim
from flows.cli import Device, Overrides, StoreUrl, fail
from flows.faults import told
from flows.plan import Node, Plan
from flows.run import make_runtime, plan_run
from storage.errors import CocuError, ConfigError, InputError
from storage.runtime import Runtime
from storage.stage import Job, materialize
from training.distributed import by_torchrun, joined, own_device


def main(config: Path, store: StoreUrl = "store", device: Device = "auto", set_: Overrides = None) -> None:
    """Train what CONFIG declares, as one of the processes that torchrun has started.

    Example: `torchrun --nproc-per-node 8 -m flows.train my.toml --store ./store`
    """
    try:
        if not by_torchrun():
            raise ConfigError("flows.train is for torchrun; `cocu run CONFIG --processes N` needs none")
        name, plan = plan_run(config, store, set_ or (), device)
        runtime = make_runtime("local", 1, device)
        train(name, plan, replace(runtime, locations=plan.locations))
    except CocuError as error:
        fail(told(error), 1)


def train(name: str, plan: Plan, runtime: Runtime) -> None:
    """Takes part in every training of a plan that is not finished, in order.

    Raises:
        InputError: when a training reads what the store does not have yet.
    """
    nodes = [node for node in plan.nodes if node.stage.name == "train" and not node.artifact.committed]
    _require_inputs(nodes)
    artifacts = [node.artifact for node in nodes]
    with joined(torch.device(own_device(runtime.device))) as peers:
        with claim(plan.store, name, artifacts) if peers.is_first else nullcontext():
            for node in nodes:
                if peers.is_first:
                    materialize(node.stage, node.config, node.inputs, plan.store, runtime)
                else:
                    job = Job(node.config, node.inputs, runtime, node.artifact.folder, node.stage.name)
                    node.stage.run(job)
        peers.wait()


def _require_inputs(nodes: Sequence[Node]) -> None:
    missing = [a.stage for node in nodes for a in node.upstream if not a.committed]
    if missing:
        raise InputError(
            f"training reads '{missing[0]}', which is not in the store yet: `cocu run CONFIG --until "
            f"{missing[0]}` makes it"
        )


if __name__ == "__main__":
    typer.run(main)
