"""Checkpoints: folders that are whole or not there, of which the last few and the best are kept.

A checkpoint is a folder of safetensors files. ``checkpoint.json`` is written last, with a checksum of each: a
folder without it, or with a file that is not what it says, is none. Nothing is unpickled.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from storage.errors import StoreError
from storage.files import Folder

CHECKPOINTS = "_progress/checkpoints"
MARKER = "checkpoint.json"
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Facts:
    """What ``checkpoint.json`` says."""

    step: int  # the next one
    loss: float  # smoothed; the lowest is the best
    position: dict[str, int]  # of the loader: epoch, and step in it
    files: dict[str, str]  # name -> SHA-256


class Checkpoints:
    """The checkpoints of one run. They are written by a thread, one at a time."""

    def __init__(self, folder: Folder, keep_last: int) -> None:
        self.folder, self.keep_last = folder.folder(CHECKPOINTS), keep_last
        self.writer = ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future[None] | None = None

    def save(self, files: Mapping[str, Tensors], step: int, loss: float, position: dict[str, int]) -> None:
        """Copies the tensors, and has them written while training goes on.

        Raises:
            StoreError: when the one before could not be written.
        """
        self.wait()
        copies = {name: {key: _copied(t) for key, t in tensors.items()} for name, tensors in files.items()}
        self.pending = self.writer.submit(partial(self._write, copies, step, loss, position))

    def wait(self) -> None:
        """Until the last one is written.

        Raises:
            StoreError: when it could not be.
        """
        pending, self.pending = self.pending, None
        if pending:
            pending.result()

    def close(self) -> None:
        """Lets a write that is under way end."""
        self.writer.shutdown()

    def newest(self) -> tuple[Facts, dict[str, Tensors]] | None:
        """The last whole checkpoint, with its tensors by file; None where none was ever written.

        One that is damaged is passed over with a warning.

        Raises:
            StoreError: when there are some, and all of them are damaged.
        """
        broken = []
        for name in reversed(self.folder.list()):
            if not self.folder.exists(f"{name}/{MARKER}"):
                continue  # never finished, or half removed
            if found := self._read(name):
                return found
            broken.append(name)
            place = self.folder.path(name)
            warnings.warn(f"checkpoint '{place}' is damaged; going on from the one before it", stacklevel=2)
        if broken:
            raise StoreError(
                f"every checkpoint is damaged; remove '{self.folder.path()}' to start again from step 0"
            )
        return None

    def _read(self, name: str) -> tuple[Facts, dict[str, Tensors]] | None:
        try:
            facts = Facts(**json.loads(self.folder.read(f"{name}/{MARKER}")))
            data = {file: self.folder.read(f"{name}/{file}") for file in facts.files}
            if any(hashlib.sha256(data[file]).hexdigest() != sha for file, sha in facts.files.items()):
                return None
            return facts, {file.removesuffix(".safetensors"): load_tensors(d) for file, d in data.items()}
        except (FileNotFoundError, ValueError, TypeError, AttributeError, SafetensorError):
            return None

    def _write(self, files: dict[str, Tensors], step: int, loss: float, position: dict[str, int]) -> None:
        name, sums = f"{step:09d}", {}
        for stem, tensors in files.items():
            file = f"{stem}.safetensors"
            sums[file] = self.folder.write(f"{name}/{file}", save_tensors(tensors))[1]
        facts = Facts(step, loss, position, sums)
        self.folder.write(f"{name}/{MARKER}", (json.dumps(asdict(facts), indent=1) + "\n").encode())
        self._thin_out()

    def _thin_out(self) -> None:
        """Removes all but the last and the best: the marker first, so that no torn one is ever taken up."""
        names = self.folder.list()
        losses = {name: loss for name in names if (loss := self._loss(name)) is not None}
        kept = {*sorted(losses)[-self.keep_last :], min(losses, key=lambda name: (losses[name], name))}
        for name in sorted(set(names) - kept):
            self.folder.remove(f"{name}/{MARKER}")
            self.folder.remove(name)

    def _loss(self, name: str) -> float | None:
        """Smoothed loss of a checkpoint; None for a folder that is none."""
        try:
            return float(json.loads(self.folder.read(f"{name}/{MARKER}"))["loss"])
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None


def _copied(tensor: Tensor) -> Tensor:
    """On the CPU, in memory of its own."""
    return tensor.detach().to("cpu", copy=True).contiguous()
