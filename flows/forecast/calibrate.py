"""``cocu plan --calibrate``: every stage of a config is run on a sample, and told for the whole corpus.

The stages are the real ones, declared by the real pipeline, in a store that is thrown away. A stage gets a
part of the time that is left, by its weight; what it does not need is left to those after it.
"""

import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from curation.encoder import pick_device
from flows.config import Config, EvaluateRun, load_config
from flows.forecast.laws import cost, share
from flows.forecast.measure import Bench
from flows.forecast.predict import Predicted, Scale
from flows.forecast.prediction import Prediction, StagePrediction, save
from flows.forecast.sample import Drawn, draw, draw_or_render
from flows.forecast.stages import Calibration
from flows.pipeline import declare
from flows.plan import Node, Plan
from storage.artifact import Store
from storage.errors import ConfigError, InputError
from storage.runtime import Runtime, silent_progress

BUDGET = 60.0  # seconds
IN_TIME = 0.85  # of it is dealt out: a stage may be late by a shard
DRAWING = 2.0
GROWING = (1, 1, 4, 4, 16, 16, 64)  # images of the sample's shards, times those of one batch a thread
BUSY = 0.5  # load of a CPU from which on other work counts
PAIRS = 64  # of a step of pre-training
BATCH = 16  # images of a batch at most without a GPU, where a larger one is no faster


@dataclass(frozen=True)
class Request:
    """What is asked."""

    images: int | None = None  # none: as many as the corpus has
    price: float = 0.0  # of an hour
    seconds: float = BUDGET

    def __post_init__(self) -> None:
        if self.images is not None and self.images < 1:
            raise ConfigError(f"--images {self.images}: give the number of images of the corpus, at least 1")
        if not 0 <= self.price < float("inf"):
            raise ConfigError(f"--price {self.price}: give the price of an hour of this machine, 0 or more")
        if not 0 < self.seconds < float("inf"):
            raise ConfigError(f"a calibration takes more than {self.seconds} seconds; give a positive number")


def calibrate_run(
    config: Path, store: str, overrides: Sequence[str], until: str | None, request: Request, runtime: Runtime
) -> Prediction:
    """What a run takes on this machine; kept where the run finds it, unless its corpus cannot be read.

    Raises:
        CocuError: the first fault a person can mend.
    """
    settings, plan = load_config(config, overrides), Plan(Store(store))
    try:
        declare(plan, settings)
    except InputError:  # a corpus that is not here; a number of images may stand for it
        if request.images is None:
            raise
        return calibrate(settings, (), until, request, runtime)
    predicted = calibrate(settings, plan.until(until), until, request, runtime)
    save(predicted, plan.store)
    return predicted


def calibrate(
    settings: Config, nodes: Sequence[Node], until: str | None, request: Request, runtime: Runtime
) -> Prediction:
    """What the stages of a run take on this machine.

    Args:
        settings: of the run.
        nodes: its stages, as far as it goes; none where the corpus cannot be read.
        until: how far it goes.
        request: images, price and the time that this may take.
        runtime: device and progress.

    Raises:
        ConfigError: if nothing is known about the corpus' size.
    """
    created, began = datetime.now(UTC).isoformat(timespec="milliseconds"), time.perf_counter()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="cocu-calibrate-") as scratch:
        work = _begin(settings, nodes, request, runtime, Path(scratch), began)
        wanted = {node.label: node for node in nodes} or {node.label: node for node in work.plan.until(until)}
        with runtime.progress("calibrate", len(wanted)) as bar:
            stages = []
            for label, node in wanted.items():
                bar.advance(0, note=label)
                stages.append(_told(label, node, work.predict(label), request, bool(nodes)))
                bar.advance()
    return Prediction(
        name=settings.name,
        images=work.scale.images,
        price=request.price,
        created=created,
        machine=_machine(runtime),
        spent=round(time.perf_counter() - began, 2),
        basis=(*work.basis, *_busy(load)),
        stages=tuple(stages),
    )


def _busy(load: float) -> list[str]:
    """A word about other work, when there is much of it."""
    cpus = os.cpu_count() or 1
    if load < BUSY * cpus:
        return []
    return [
        f"other work kept this machine busy (load {load:.1f} on {cpus} CPUs): expect less when it is idle"
    ]


def _machine(runtime: Runtime) -> str:
    device = pick_device(runtime.device)
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    return f"{platform.node()}: {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, {named}"


def _told(label: str, node: Node, found: Predicted, request: Request, real: bool) -> StagePrediction:
    return StagePrediction(
        label=label,
        fingerprint=node.artifact.fingerprint if real else "",
        seconds=found.seconds,
        memory=found.memory,
        disk=found.disk,
        cost=cost(found.seconds, request.price) if found.seconds else None,
        formula=found.formula,
        basis=found.basis,
        committed=real and node.artifact.committed,
    )


def _begin(
    settings: Config, nodes: Sequence[Node], request: Request, runtime: Runtime, folder: Path, began: float
) -> Calibration:
    """Draws the samples and declares the run on them."""
    deadline = began + IN_TIME * request.seconds
    seconds = share([DRAWING, 20.0], request.seconds)
    batch = _batch(settings, runtime)
    known = request.images or _counted(nodes)
    sizes = [times * batch for times in GROWING]
    sample = draw_or_render(settings.corpus, sizes, folder / "sample", seconds, request.images)
    fitted = None
    if settings.pretrain:
        pairs = min(settings.pretrain.fit.batch_size, PAIRS)
        fitted = draw(settings.pretrain.corpus, [pairs, pairs, pairs], folder / "pairs", seconds)
    plan = Plan(Store(str(folder / "store")))
    declare(plan, _on_sample(settings, sample, fitted, batch if runtime_on_cpu(runtime) else None))
    images = known or sample.images
    scale = Scale(images, max(1, round(sample.shards * images / sample.images)))
    bench = Bench(
        plan.store, replace(runtime, locations=plan.locations, progress=silent_progress), sample.sizes
    )
    return Calibration(settings, sample, fitted, plan, bench, scale, deadline)


def runtime_on_cpu(runtime: Runtime) -> bool:
    """Whether models run on the processor."""
    return pick_device(runtime.device).type == "cpu"


def _batch(settings: Config, runtime: Runtime) -> int:
    """Images that keep every thread busy with one batch, or a GPU with one."""
    largest = max(settings.embed.batch_size, settings.groups.batch_size, settings.regions.batch_size)
    return min(largest, BATCH) * torch.get_num_threads() if runtime_on_cpu(runtime) else largest


def _counted(nodes: Sequence[Node]) -> int | None:
    """Images of the corpus, where it has been read before."""
    found = next((node for node in nodes if node.label == "corpus"), None)
    return found.artifact.manifest.counts.seen if found and found.artifact.committed else None


def _on_sample(settings: Config, sample: Drawn, fitted: Drawn | None, batch: int | None) -> Config:
    """The same run on other data, with batches that a sample fills."""
    most = BATCH if batch else 1 << 30
    smaller = {
        name: replace(stage, batch_size=min(stage.batch_size, most))
        for name, stage in (
            ("embed", settings.embed),
            ("groups", settings.groups),
            ("regions", settings.regions),
        )
    }
    pretrain = settings.pretrain
    if pretrain and fitted:
        pairs = min(pretrain.fit.batch_size, PAIRS, max(1, fitted.drawn // 3))
        fit = replace(pretrain.fit, epochs=1, batch_size=pairs)
        pretrain = replace(pretrain, corpus=fitted.config, fit=fit)
    changed: dict[str, Any] = {**smaller, "pretrain": pretrain, "corpus": sample.config}
    index = replace(settings.index, kind="exact")
    return replace(settings, **changed, index=index, recall=None, evaluate=EvaluateRun())
