"""What processes do in the tests of `training.launch`; they import it by its name, so it imports little."""

import os
import signal
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from storage.errors import InputError
from storage.stage import Job
from training.distributed import Peers


def meet(job: Job[Any], peers: Peers) -> None:
    """Gathers rows that say where they come from, averages gradients, and shows progress."""
    rows = torch.tensor([[10 * peers.rank, n] for n in range(peers.rank + 1)])
    (everything, begin), _ = peers.gather([rows, rows.float()])
    with job.runtime.progress(f"of {peers.rank}", 3) as bar:
        bar.advance(note="a")
        bar.advance(2, note="b")
    found = f"{everything.tolist()} {begin} {averaged(peers)}"
    job.folder.write(f"{peers.rank}.txt", found.encode())


def averaged(peers: Peers) -> list[float | None]:
    """Of one parameter that all processes use, one that the first does not, one that nobody does."""
    weights = [nn.Parameter(torch.zeros(())) for _ in range(3)]
    weights[0].grad = torch.tensor(1.0 + peers.rank)
    weights[1].grad = torch.tensor(1.5) if peers.rank else None
    peers.average_gradients(weights)
    return [w.grad.item() if w.grad is not None else None for w in weights]


def fail(job: Job[Any], peers: Peers) -> None:
    """The second process finds a fault while the first waits for it."""
    job.folder.write(f"{peers.rank}.txt", str(os.getpid()).encode())
    peers.wait()
    if peers.rank:
        raise InputError("process 1 cannot read")
    peers.wait()


def die(job: Job[Any], peers: Peers) -> None:
    """The second process is killed while the first waits for it."""
    job.folder.write(f"{peers.rank}.txt", str(os.getpid()).encode())
    peers.wait()
    if peers.rank:
        os.kill(os.getpid(), signal.SIGKILL)
    peers.wait()


def hang(job: Job[Any], peers: Peers) -> None:
    """The second process sleeps while the first waits for it, which it does for a second."""
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=1))
    if peers.rank:
        time.sleep(60)
    peers.wait()
