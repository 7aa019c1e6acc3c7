"""Loss and gradient of one step, the same however its batch is split.

A contrast needs the whole batch, a forward pass does not. So an objective has two parts: `encode` says of
every sample what it says alone, `contrast` makes the loss of all of them. A batch too large for one pass
is encoded piece by piece without a graph; the contrast of the merged features gives their gradients; and
each piece is encoded once more to pass its share on to the weights (gradient caching, Gao et al., 2021).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from storage.errors import ConfigError
from training.data import Batch
from training.distributed import ALONE, Peers
from training.precision import Arithmetic

Features = dict[str, Tensor]
"""What is known of some samples: tensors by name, whose rows depend on one sample each.

Features of several pieces are merged by laying their rows one after another, name by name. So a row never
refers to another by its number; what has several rows a sample says how many.
"""


class Objective(Protocol):
    """A model with the loss of a batch."""

    @property
    def model(self) -> nn.Module:
        """What is trained, in place."""

    @property
    def towers(self) -> Mapping[str, nn.Module]:
        """Of the model, what `encode` runs, by names for people."""

    def encode(self, batch: Batch) -> Features:
        """What the samples say, each by itself."""

    def contrast(self, features: Features) -> Tensor:
        """The loss of all samples together, a scalar to minimise; features are float32 or whole numbers."""


def backward(
    objective: Objective,
    batch: Batch,
    arithmetic: Arithmetic,
    micro_batch: int = 0,
    peers: Peers = ALONE,
) -> Tensor:
    """Gives the model, which has none, the gradients of a batch's loss, and returns the loss.

    Args:
        objective: model and loss.
        batch: this process' samples of one step.
        arithmetic: precision of the forward passes. The gradients carry its scale.
        micro_batch: samples of one forward pass; 0 for all of them. The last pass keeps its graph, so
            that k passes cost k - 1 more forward passes and no more memory than the largest.
        peers: whose samples are of the same step. All of them get the same loss and gradients.

    Returns:
        Scalar: the loss of all processes' samples together, detached and not scaled.

    Raises:
        ConfigError: for a batch in several pieces and a tower in which samples depend on each other.
        PeerLost: when another process does not take part.
    """
    *others, last = split(batch, micro_batch)
    if others or peers.world > 1:
        require_independent_samples(objective.towers)
    with torch.no_grad():
        pieces = [_encode(objective, other, arithmetic) for other in others]
    kept = _encode(objective, last, arithmetic)
    own = merge([*pieces, kept])
    gathered = peers.gather(list(own.values()))
    leaves = {name: _leaf(rows) for name, (rows, _) in zip(own, gathered, strict=True)}
    loss = objective.contrast(leaves)
    arithmetic.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    begins = {name: begin for name, (_, begin) in zip(own, gathered, strict=True)}
    *shares, share = _gradients(leaves, begins, [*pieces, kept], peers.world)
    _pass_on(kept, share)
    for other, gradients in zip(others, shares, strict=True):
        _pass_on(_encode(objective, other, arithmetic), gradients)
    peers.average_gradients(objective.model.parameters())
    return loss.detach()


def require_independent_samples(towers: Mapping[str, nn.Module]) -> None:
    """Refuses what makes a sample's features depend on the others, or on how often it is encoded.

    Raises:
        ConfigError: naming the first layer.
    """
    for tower, root in towers.items():
        for name, layer in root.named_modules():
            if layer.training and _mixes_samples(layer):
                raise ConfigError(
                    f"{tower}.{name} is a {type(layer).__name__} in training: a batch in several pieces "
                    "would have other gradients than in one; give micro_batch = 0 and one process, or train "
                    "less of the tower"
                )


def _mixes_samples(layer: nn.Module) -> bool:
    rates = (getattr(layer, name, 0.0) for name in ("p", "drop_prob", "dropout"))
    drops = any(isinstance(rate, float) and rate > 0 for rate in rates)
    return drops or isinstance(layer, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001  (their common class)


def split(batch: Batch, size: int) -> list[Batch]:
    """A batch in pieces of ``size`` samples (the last one may be smaller); 0 leaves it whole."""
    if size == 0:
        return [batch]
    starts = range(0, len(batch.sample_ids), size)
    return [piece(batch, slice(start, start + size)) for start in starts]


def piece(batch: Batch, rows: slice) -> Batch:
    """Some samples of a batch. Its fields list what is the samples' own, in order; numbers hold for all."""
    values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return dataclasses.replace(batch, **{n: v[rows] for n, v in values.items() if not isinstance(v, int)})


def merge(pieces: Sequence[Features]) -> Features:
    """Features of several pieces as those of one."""
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def _encode(objective: Objective, batch: Batch, arithmetic: Arithmetic) -> Features:
    with arithmetic.autocast():
        features = objective.encode(batch)
    return {name: rows.float() if rows.is_floating_point() else rows for name, rows in features.items()}


def _leaf(rows: Tensor) -> Tensor:
    """The same values, where a gradient stops."""
    return rows.detach().requires_grad_(rows.is_floating_point())


def _gradients(
    leaves: Features, begins: Mapping[str, int], pieces: Sequence[Features], factor: int
) -> list[Features]:
    """The gradients of this process' rows, by pieces; ``begins`` tells where its rows begin."""
    found: list[Features] = [{} for _ in pieces]
    for name, rows in leaves.items():
        if rows.grad is not None:
            lengths = [len(piece[name]) for piece in pieces]
            own = rows.grad[begins[name] :][: sum(lengths)] * factor
            for gradients, share in zip(found, torch.split(own, lengths), strict=True):
                gradients[name] = share
    return found


def _pass_on(features: Features, gradients: Features) -> None:
    names = [name for name in gradients if features[name].requires_grad]
    torch.autograd.backward([features[n] for n in names], [gradients[n] for n in names])
