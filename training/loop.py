"""The training loop of both segmenters: steps, what is told of them, and exact resume.

A step depends on what a checkpoint holds (weights, optimiser, random state) and on its batch, which is
computed from (seed, epoch, step). So a training that was killed goes on as if nothing had happened.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field

import torch

from storage.errors import StoreError
from storage.files import Folder
from storage.fingerprint import stable_seed
from storage.runtime import Progress
from training.blocks import compile_blocks
from training.checkpoint import Checkpoints
from training.curve import Curve
from training.data import Batch
from training.distributed import ALONE, Peers
from training.divergence import Skips
from training.ema import Average
from training.optim import OptimConfig, adamw, learning_rate
from training.precision import Arithmetic, Precision
from training.sharding import clip, shard
from training.state import State, Tensors
from training.step import Objective, backward
from training.threads import deterministic
from training.tracking import Tracker, told

Batches = Callable[[int], Generator[Batch, None, None]]


@dataclass(frozen=True)
class LoopConfig:
    """How long, how exactly, and how often to save."""

    epochs: int = 30
    batch_size: int = 256  # samples, of all processes together
    micro_batch: int = field(default=0, metadata={"identity": False})  # of one pass, to save memory; 0: all
    precision: Precision = "auto"  # of the passes; auto: see `training.precision.decided`
    shard: bool = field(default=False, metadata={"identity": False})  # towers in parts on the processes
    compile: bool = False  # the towers' blocks, by torch.compile: for GPUs; the first step takes a minute
    open_shards: int = 8  # shards in memory for shuffling; as many are read ahead
    ema: float = 0.0  # decay of the weights' moving average, which is then the result; 0 for none
    seed: int = 0
    deterministic: bool = True  # to the last bit, on one thread; off for a large model on many cores
    optim: OptimConfig = field(default_factory=OptimConfig)
    checkpoint_every: int = field(default=200, metadata={"identity": False})  # steps
    keep_last: int = field(default=2, metadata={"identity": False})  # checkpoints, and the best beside them
    max_skipped: int = field(default=3, metadata={"identity": False})  # steps in a row that are no numbers
    wandb: str = field(default="", metadata={"identity": False})  # project to log to, where one is wanted

    def __post_init__(self) -> None:
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is a decay in [0, 1), such as 0.999, not {self.ema}")
        if self.keep_last < 1 or self.checkpoint_every < 1:
            raise ValueError("keep_last and checkpoint_every are 1 at least: without one there is no resume")
        if self.shard and self.precision == "fp16":
            raise ValueError("loop.shard works with fp32 and bf16: fp16's scale is not shared; give bf16")
        if self.shard and self.compile:
            raise ValueError(
                "loop.compile does not see through blocks that loop.shard lays in parts: give one"
            )


def train(
    objective: Objective,
    batches: Batches,
    steps: int,
    config: LoopConfig,
    folder: Folder,
    progress: Progress,
    title: str,
    trackers: Sequence[Tracker] = (),
    peers: Peers = ALONE,
) -> State:
    """Runs to step ``steps``, from the last checkpoint if an earlier run left one.

    Args:
        objective: model and loss; the model is trained in place.
        batches: gives the batches from a step on.
        steps: in all.
        config: schedule and checkpoints.
        folder: where checkpoints lie.
        progress: shows loss, rate, speed, and the share of time spent waiting for data.
        title: of the progress bar.
        trackers: are told every step.
        peers: who takes the same steps with other samples; the first of them writes.

    Raises:
        Diverged: when more than ``max_skipped`` steps in a row gave no finite loss and gradient.
        StoreError: when checkpoints cannot be read or written, or belong to another model.
    """
    torch.manual_seed(stable_seed("noise", config.seed))
    state, arithmetic = _start(objective, config, peers)
    exactly = deterministic(arithmetic.device) if config.deterministic else nullcontext()
    with ExitStack() as open_now, exactly, progress(title, steps) as bar:
        checkpoints = open_now.enter_context(closing(Checkpoints(folder, config.keep_last)))
        resume(state, checkpoints)
        bar.advance(state.step)
        for tracker in trackers:
            tracker.begin(state.step)
            open_now.callback(tracker.close)
        for _ in _steps(state, objective, arithmetic, batches, steps, config, folder, peers):
            bar.advance(note=note(state.curve))
            for tracker in trackers:
                tracker.log(state.curve.step[-1], told(state.curve))
            if state.step % config.checkpoint_every == 0 and state.step < steps:
                files = state.tensors()  # every process has its part in this
                if peers.is_first:
                    _save(state, files, checkpoints, trackers, steps // config.epochs)
        checkpoints.wait()
    assert state.step == steps, f"the loader gave batches up to step {state.step} of {steps}"
    return state


def _start(objective: Objective, config: LoopConfig, peers: Peers) -> tuple[State, Arithmetic]:
    model = objective.model
    model.train()
    if config.shard and peers.world > 1:
        shard(objective.towers)
    if config.compile:
        compile_blocks(objective.towers)
    arithmetic = Arithmetic.of(config.precision, next(model.parameters()).device)
    average = Average(model, config.ema) if config.ema else None
    return State(model, adamw(model, config.optim), average, arithmetic.scaler), arithmetic


def _save(
    state: State,
    files: Mapping[str, Tensors],
    checkpoints: Checkpoints,
    trackers: Sequence[Tracker],
    epoch_steps: int,
) -> None:
    for tracker in trackers:
        tracker.flush()  # a resumed run keeps the points before its checkpoint
    epoch, step = divmod(state.step, max(1, epoch_steps))
    checkpoints.save(files, state.step, state.curve.smoothed, {"epoch": epoch, "step": step})


def resume(state: State, checkpoints: Checkpoints) -> None:
    """Loads the last whole checkpoint, if there is one.

    Raises:
        StoreError: when it belongs to another model.
    """
    found = checkpoints.newest()
    if found is None:
        return
    facts, files = found
    try:
        state.load(files, facts.step)
    except (KeyError, ValueError, RuntimeError) as error:
        raise StoreError(
            f"the checkpoint is of another model ({error}); remove '{checkpoints.folder.path()}' "
            "to start again"
        ) from error


def _steps(
    state: State,
    objective: Objective,
    arithmetic: Arithmetic,
    batches: Batches,
    steps: int,
    config: LoopConfig,
    folder: Folder,
    peers: Peers,
) -> Iterator[None]:
    """Takes step after step, each noted in the curve."""
    skips, ended = Skips(folder, config.max_skipped, peers), time.perf_counter()
    with closing(batches(state.step)) as source:
        for batch in source:
            came = time.perf_counter()
            rate = learning_rate(config.optim, state.step, steps, config.epochs)
            loss, norm, skipped = _step(state, objective, batch, arithmetic, rate, config, peers)
            now = time.perf_counter()
            row = {"step": state.step, "loss": loss, "rate": rate, "norm": norm, "skipped": skipped}
            times = {"seconds": now - ended, "waited": came - ended, "ended": time.time()}
            state.curve.add(**row, samples=config.batch_size, **times)
            ended = now
            if skipped and not _overflow(loss, arithmetic):
                facts = {"step": state.step, "loss": loss, "gradient_norm": norm, "rate": rate}
                skips.bad(batch, state.curve.skipped_in_a_row, facts)
            elif not skipped:
                skips.good()
            state.step += 1
            yield


def _step(
    state: State,
    objective: Objective,
    batch: Batch,
    arithmetic: Arithmetic,
    rate: float,
    config: LoopConfig,
    peers: Peers,
) -> tuple[float, float, bool]:
    """Loss, gradient norm, and whether they were no numbers and the model was left as it was."""
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    buffers = [buffer.clone() for buffer in state.model.buffers()]
    state.optimizer.zero_grad(set_to_none=True)
    loss = float(backward(objective, batch, arithmetic, config.micro_batch, peers))
    arithmetic.scaler.unscale_(state.optimizer)
    norm = float(clip(state.model.parameters(), config.optim.clip))
    finite = math.isfinite(loss) and math.isfinite(norm)
    if finite:
        arithmetic.scaler.step(state.optimizer)
        if state.average:
            state.average.update()
    else:
        for buffer, before in zip(state.model.buffers(), buffers, strict=True):
            buffer.copy_(before)  # statistics of a batch that is not to count
    arithmetic.scaler.update()
    return loss, norm, not finite


def _overflow(loss: float, arithmetic: Arithmetic) -> bool:
    """Whether float16 gradients only need a smaller scale, which they have from now on."""
    scaler = arithmetic.scaler
    return scaler.is_enabled() and math.isfinite(loss) and scaler.get_scale() >= 1


def note(curve: Curve) -> str:
    """The end of the progress bar's line."""
    values = told(curve)
    return (
        f"loss {values['loss']:.3f}  lr {values['rate']:.1e}  {values['samples_per_second']:,.0f}/s  "
        f"data {values['data_wait']:.0%}"
    )
