"""Processes that take every step together, each with its part of the batch.

The contrast is computed by every process from all features, so its gradients are the same everywhere. A
tower's gradients come from the process' own samples. Their sum is wanted, and an average of both is taken:
`training.step` passes on the features' gradients multiplied by the number of processes.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from storage.errors import CocuError
from training.threads import available_cores

PATIENCE = timedelta(minutes=10)  # with a process that does not come to a meeting point
BUCKET = 2**23  # numbers that are averaged in one message


class PeerLost(CocuError):
    """Another process of the training has ended, or does not answer."""


@dataclass(frozen=True)
class Peers:
    """This process among those of a training; by default it is alone."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and shows."""
        return self.rank == 0

    def gather(self, tensors: Sequence[Tensor]) -> list[tuple[Tensor, int]]:
        """The rows of all processes, in order of rank, and where this process' own begin.

        Args:
            tensors: [own rows, …]; rows may differ in number, and in nothing else. No gradient is recorded.

        Raises:
            PeerLost: when another process does not take part.
        """
        if self.world == 1:
            return [(tensor, 0) for tensor in tensors]
        with self._together():
            lengths = torch.tensor([len(tensor) for tensor in tensors], device=tensors[0].device)
            counts_WT = [torch.empty_like(lengths) for _ in range(self.world)]
            dist.all_gather(counts_WT, lengths)
            columns = zip(*(counts.tolist() for counts in counts_WT), strict=True)
            return [
                (_all_rows(rows, counts), sum(counts[: self.rank]))
                for rows, counts in zip(tensors, columns, strict=True)
            ]

    def gather_names(self, names: Sequence[str]) -> list[str]:
        """The names that all processes have, in order of rank.

        Raises:
            PeerLost: when another process does not take part.
        """
        if self.world == 1:
            return list(names)
        found: list[Any] = [None] * self.world
        with self._together():
            dist.all_gather_object(found, list(names))
        return [name for own in found for name in own]

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces every gradient by its average over all processes; one that is missing counts as zero.

        Those of sharded layers are left alone: averaging them was part of the backward pass.

        Raises:
            PeerLost: when another process does not take part.
        """
        if self.world == 1:
            return
        trained = [p for p in parameters if p.requires_grad and not isinstance(p, DTensor)]
        with self._together():
            for bucket in _buckets(self._with_gradient(trained)):
                flat = torch.cat([gradient.flatten() for gradient in bucket])
                dist.all_reduce(flat.div_(self.world))
                for gradient, mean in zip(
                    bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True
                ):
                    gradient.copy_(mean.view_as(gradient))

    def _with_gradient(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """Gradients of what any process has one of: a parameter that nobody used is left alone."""
        used = torch.tensor([p.grad is not None for p in parameters], device=parameters[0].device).int()
        dist.all_reduce(used, dist.ReduceOp.MAX)
        found = []
        for parameter, anywhere in zip(parameters, used.tolist(), strict=True):
            if anywhere:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                found.append(parameter.grad)
        return found

    def wait(self) -> None:
        """Returns when every process has come here.

        Raises:
            PeerLost: when one does not.
        """
        if self.world > 1:
            with self._together():
                dist.barrier()

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what gloo and nccl raise for a closed connection or a timeout
            reason = str(error).partition("\n")[0]
            raise PeerLost(
                f"process {self.rank} of {self.world} lost another one ({reason}): it has ended or hangs; "
                "what it said itself tells why, and the same command goes on from the last checkpoint"
            ) from error


ALONE = Peers()


def by_torchrun() -> bool:
    """Whether torchrun, or a scheduler that speaks its language, has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextmanager
def joined(device: torch.device, patience: timedelta = PATIENCE) -> Iterator[Peers]:
    """Meets the other processes that torchrun's variables speak of: by nccl on GPUs, else by gloo.

    Inside such a block it is the same meeting: a second one could find the addresses of the first.

    Args:
        device: of this process; a GPU each.
        patience: how long a process waits for the others at a meeting point.

    Raises:
        PeerLost: when they do not come.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    peers = Peers(rank, world)
    if dist.is_initialized():
        yield peers
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with peers._together():  # noqa: SLF001  (its own module)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=patience)
    try:
        yield peers
    finally:
        dist.destroy_process_group()


def own_cores() -> int:
    """Processor cores for this process, which may share its machine with others of the training."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def own_device(device: str) -> str:
    """The device of this process: the GPU with its number on this machine, where GPUs are asked for.

    Raises:
        CocuError: for one GPU by number, or more processes than GPUs.
    """
    if device == "cpu" or not torch.cuda.is_available():
        return "cpu"
    number, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if ":" in device or number >= found:
        raise CocuError(
            f"process {number} on this machine has no GPU of its own: device is '{device}' and there are "
            f"{found}; give device cuda, and as many processes as GPUs"
        )
    return f"cuda:{number}"


def _all_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    pieces = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(pieces, padded)
    return torch.cat([piece[:count] for piece, count in zip(pieces, counts, strict=True)])


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one type, some at a time: a message each would take longer than what it says."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        full = sum(g.numel() for g in bucket) + gradient.numel() > BUCKET
        if bucket and (full or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
