"""Where a training can be watched: TensorBoard's event files, and Weights & Biases when asked for."""

import math
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from storage.errors import ConfigError
from storage.files import Folder
from training.curve import Curve

EVENTS = "tensorboard"  # folder of the artifact
PACE = 20  # steps over which a speed is told


class Tracker(Protocol):
    """Is told of every step."""

    def begin(self, step: int) -> None:
        """A run begins, or goes on, at a step: points from there on are void."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of a step."""

    def flush(self) -> None:
        """Makes sure that what was told so far lasts."""

    def close(self) -> None:
        """The run has ended."""


def told(curve: Curve) -> dict[str, float]:
    """What is shown of the last step; speeds are those of the last few."""
    seconds = math.fsum(curve.seconds[-PACE:])
    return {
        "loss": curve.loss[-1],
        "rate": curve.rate[-1],
        "gradient_norm": curve.norm[-1],
        "skipped": float(curve.skipped[-1]),
        "samples_per_second": sum(curve.samples[-PACE:]) / seconds,
        "data_wait": math.fsum(curve.waited[-PACE:]) / seconds,
    }


class TensorBoard:
    """Event files in the artifact's folder ``tensorboard``; of a remote one, copies of local ones.

    TensorBoard drops the points that an earlier process wrote from step ``begin`` on.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder.folder(EVENTS)
        self.scratch = None if folder.is_local else tempfile.TemporaryDirectory()
        self.local = Path(self.scratch.name if self.scratch else self.folder.path())

    def begin(self, step: int) -> None:
        """Opens an event file."""
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - seconds, and training only

        self.writer = SummaryWriter(str(self.local), purge_step=step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A point of every curve."""
        for name, value in values.items():
            self.writer.add_scalar(f"train/{name}", value, step)

    def flush(self) -> None:
        """Writes what is buffered, and copies the file to where it belongs."""
        self.writer.flush()
        if self.scratch:
            for file in self.local.iterdir():
                self.folder.write(file.name, file.read_bytes())

    def close(self) -> None:
        """Flushes for the last time."""
        self.flush()
        self.writer.close()
        if self.scratch:
            self.scratch.cleanup()


class WeightsAndBiases:
    """A run of a project of wandb's, named by the artifact and gone on with after a restart.

    Raises:
        ConfigError: where the package is not installed.
    """

    def __init__(self, project: str, identity: str, config: Mapping[str, Any]) -> None:
        try:
            self.wandb = import_module("wandb")
        except ImportError as error:
            raise ConfigError(
                f"loop.wandb = '{project}' needs the package wandb: pip install wandb, or leave it out"
            ) from error
        self.project, self.identity, self.config = project, identity, dict(config)

    def begin(self, step: int) -> None:  # noqa: ARG002 - wandb itself drops steps it has seen
        """Opens the run, or goes on with it."""
        self.run = self.wandb.init(project=self.project, id=self.identity, resume="allow", config=self.config)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A point of every curve."""
        self.run.log(dict(values), step=step)

    def flush(self) -> None:
        """Is done by wandb's own process."""

    def close(self) -> None:
        """Ends the run."""
        self.run.finish()
