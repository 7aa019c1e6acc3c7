"""The training loop of both segmenters: steps, checkpoints, and exact resume.

A checkpoint holds everything the next step depends on: weights, optimiser, random state, losses so far.
The loader needs none: its order is computed from (seed, epoch, step).
"""

import io
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from storage.errors import CocuError, StoreError
from storage.files import Folder
from storage.runtime import Progress
from training.data import Batch
from training.optim import OptimConfig, adamw, learning_rate
from training.precision import Arithmetic, Precision
from training.step import Objective, backward
from training.threads import deterministic

CHECKPOINT = "_progress/checkpoint.pt"


@dataclass(frozen=True)
class LoopConfig:
    """How long, and how often to save."""

    epochs: int = 30
    batch_size: int = 256  # samples
    micro_batch: int = field(default=0, metadata={"identity": False})  # of one pass, to save memory; 0: all
    precision: Precision = "auto"  # of the passes: bf16 on a GPU that has it, else fp32
    open_shards: int = 8  # shards in memory for shuffling
    checkpoint_every: int = 200  # steps
    seed: int = 0
    deterministic: bool = True  # to the last bit, on one thread; off for a large model on many cores
    optim: OptimConfig = field(default_factory=OptimConfig)


@dataclass
class Losses:
    """The curve of a run."""

    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)


class Diverged(CocuError):
    """The loss is no number any more."""


def train(
    objective: Objective,
    batches: Callable[[int], Iterator[Batch]],
    steps: int,
    config: LoopConfig,
    folder: Folder,
    progress: Progress,
    title: str,
) -> Losses:
    """Runs to step ``steps``, from the last checkpoint if an earlier run left one.

    Args:
        objective: model and loss; the model is trained in place.
        batches: gives the batches from a step on.
        steps: in all.
        config: schedule and checkpoints.
        folder: where the checkpoint lies.
        progress: shows loss, rate and speed.
        title: of the progress bar.

    Raises:
        Diverged: when the loss is not finite; the message names step and remedy.
    """
    torch.manual_seed(config.seed)
    optimizer = adamw(objective.model.named_parameters(), config.optim)
    step, losses = restore(folder, objective.model, optimizer)
    objective.model.train()
    device = next(objective.model.parameters()).device
    arithmetic = Arithmetic.of(config.precision, device)
    exactly = deterministic(device) if config.deterministic else nullcontext()
    with exactly, progress(title, steps) as bar:
        bar.advance(step)
        for batch in batches(step):
            rate = learning_rate(config.optim, step, steps)
            loss = _step(objective, optimizer, arithmetic, batch, rate, config, step)
            losses.step.append(step)
            losses.loss.append(loss)
            losses.rate.append(rate)
            step += 1
            bar.advance(note=f"loss {loss:.3f}")
            if step % config.checkpoint_every == 0 and step < steps:
                save(folder, objective.model, optimizer, step, losses)
    assert step == steps, f"the loader gave batches up to step {step} of {steps}"
    return losses


def _step(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    arithmetic: Arithmetic,
    batch: Batch,
    rate: float,
    config: LoopConfig,
    step: int,
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    value = float(backward(objective, batch, arithmetic, config.micro_batch))
    if not math.isfinite(value):
        raise Diverged(
            f"the loss is {value} at step {step}; lower the learning rate ({rate:.2e}) or raise the warm-up"
        )
    arithmetic.scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(objective.model.parameters(), config.optim.clip)
    arithmetic.scaler.step(optimizer)
    arithmetic.scaler.update()
    return value


def save(
    folder: Folder, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, losses: Losses
) -> None:
    """Writes a checkpoint in place of the last one, whole or not at all."""
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all(),
        "step": step,
        "losses": {"step": losses.step, "loss": losses.loss, "rate": losses.rate},
    }
    stream = io.BytesIO()
    torch.save(state, stream)
    folder.write(CHECKPOINT, stream.getvalue())


def restore(folder: Folder, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, Losses]:
    """Loads the last checkpoint into model, optimiser and random state; step 0 where there is none.

    Raises:
        StoreError: for a checkpoint that cannot be read or belongs to another model.
    """
    try:
        data = folder.read(CHECKPOINT)
    except FileNotFoundError:
        return 0, Losses()
    state, remedy = _load(data), f"remove '{folder.path(CHECKPOINT)}' to start again"
    if state is None:
        raise StoreError(f"the checkpoint is broken; {remedy}")
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        for device, random in zip(range(torch.cuda.device_count()), state["random_cuda"], strict=False):
            torch.cuda.set_rng_state(random, device)
        return int(state["step"]), Losses(**state["losses"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise StoreError(f"the checkpoint is of another model ({error}); {remedy}") from error


def _load(data: bytes) -> dict[str, Any] | None:
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # torch raises many kinds for a file that is no checkpoint
        return None
    return state if isinstance(state, dict) else None
