"""Starting the processes of a training, and hearing from them: their progress, and the first fault."""

import contextlib
import os
import pickle
import queue
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import multiprocessing
from torch.multiprocessing.spawn import ProcessException, start_processes

from storage.errors import CocuError
from storage.runtime import Bar, Runtime, local_engine, silent_progress
from storage.stage import Job
from training.distributed import ALONE, PeerLost, Peers, by_torchrun, joined, own_cores, own_device

Work = Callable[[Job[Any], Peers], None]
FRESH = "forkserver"  # processes come from one that has the imports behind it, and neither threads nor a GPU


def together(work: Work, job: Job[Any]) -> None:
    """Does a job in as many processes as its runtime says, of which the first one shows progress.

    They are started here, unless torchrun has started this process: then it is one of them.

    Args:
        work: a function of a module, told the job and who takes part. Processes but the first write nothing.
        job: its config and inputs reach every process.

    Raises:
        PeerLost: when a process ends without a word.
        Exception: what the first process that failed has raised.
    """
    if by_torchrun():
        _take_part(work, job)
    elif job.runtime.processes > 1:
        _start(work, job)
    else:
        work(job, ALONE)


def _take_part(work: Work, job: Job[Any]) -> None:
    device = own_device(job.runtime.device)
    with joined(torch.device(device)) as peers:
        progress = job.runtime.progress if peers.is_first else silent_progress
        work(replace(job, runtime=replace(job.runtime, device=device, progress=progress)), peers)
        peers.wait()  # nobody leaves while another one still asks for something


def _start(work: Work, job: Job[Any]) -> None:
    context = multiprocessing.get_context(FRESH)
    context.set_forkserver_preload(["training.train"])
    messages = context.Queue()
    runtime = replace(job.runtime, engine=local_engine, progress=_Told(messages))
    port, world = _free_port(), job.runtime.processes
    started = start_processes(  # type: ignore[no-untyped-call]
        _worker,
        (work, replace(job, runtime=runtime), world, port, messages),
        world,
        join=False,
        start_method=FRESH,
    )
    shown = _Shown(job.runtime)
    try:
        while not started.join(timeout=0.05):
            shown.drain(messages)
    except ProcessException as error:
        shown.drain(messages)
        raise shown.fault(error) from None
    finally:
        for process in started.processes:
            process.kill()  # after a fault here, Ctrl-C among them; those that have ended do not mind
        shown.close()
    assert not shown.faults, "a process failed and ended well"


def _worker(rank: int, work: Work, job: Job[Any], world: int, port: int, messages: Any) -> None:
    """What a started process does."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    os.environ.update(WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(own_cores())
    try:
        _take_part(work, job)
    except Exception as error:
        messages.put(("fault", rank, _packed(error)))
        messages.close()
        messages.join_thread()
        raise


def _packed(error: Exception) -> bytes:
    """An exception as bytes; one that cannot be taken to pieces becomes its traceback."""
    told = CocuError(error.args[0]) if isinstance(error, CocuError) and not _survives(error) else error
    if _survives(told):
        return pickle.dumps(told)
    return pickle.dumps(RuntimeError("".join(traceback.format_exception(error))))


def _survives(error: Exception) -> bool:
    with contextlib.suppress(Exception):
        return type(pickle.loads(pickle.dumps(error))) is type(error)  # noqa: S301  (our own)
    return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True)
class _Told:
    """Progress that is told to the process which started this one."""

    messages: Any

    def __call__(self, title: str, total: int) -> AbstractContextManager[Bar]:
        return self._bar(title, total)

    @contextmanager
    def _bar(self, title: str, total: int) -> Iterator[Bar]:
        self.messages.put(("begin", title, total))
        yield _ToldBar(self.messages)
        self.messages.put(("end",))


@dataclass(frozen=True)
class _ToldBar:
    messages: Any

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.messages.put(("advance", steps, note))


class _Shown:
    """What the processes have told so far."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.open = runtime, ExitStack()
        self.bar: Bar | None = None
        self.faults: list[Exception] = []

    def drain(self, messages: Any) -> None:
        """Takes in what has come."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._take(messages.get(timeout=0.05))

    def _take(self, message: tuple[Any, ...]) -> None:
        match message:
            case ("begin", title, total):
                self.bar = self.open.enter_context(self.runtime.progress(title, total))
            case ("advance", steps, note) if self.bar:
                self.bar.advance(steps, note)
            case ("fault", _, packed):
                self.faults.append(pickle.loads(packed))  # noqa: S301  (from a process of our own)
            case ("end",):
                self.close()

    def fault(self, error: ProcessException) -> Exception:
        """Why a process ended: what one said for itself comes before what others say of it."""
        own = [fault for fault in self.faults if not isinstance(fault, PeerLost)]
        if own or self.faults:
            return (own or self.faults)[0]
        reason = str(error).strip().splitlines()[-1]
        return PeerLost(
            f"a process of the training ended without a word ({reason}), perhaps for want of memory: "
            "lower loop.micro_batch or --processes; the same command goes on from the last checkpoint"
        )

    def close(self) -> None:
        """Ends the bar."""
        self.open.close()
