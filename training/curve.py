"""The record of a training: a row per step."""

import math
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

RECENT = 100  # steps that a smoothed loss is the mean of


@dataclass
class Curve:
    """Columns of equal length. The last three are times, and differ between two runs that are the same."""

    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)  # of the gradient, before it is clipped
    skipped: list[bool] = field(default_factory=list)  # not finite, so the weights stayed as they were
    samples: list[int] = field(default_factory=list)  # of the whole batch
    seconds: list[float] = field(default_factory=list)  # from the end of the last step to that of this one
    waited: list[float] = field(default_factory=list)  # of them for data
    ended: list[float] = field(default_factory=list)  # seconds since 1970

    def add(self, **row: float) -> None:
        """Appends a row; every column must be given."""
        for column in fields(self):
            getattr(self, column.name).append(row[column.name])

    @property
    def smoothed(self) -> float:
        """Mean loss of the last steps that counted; infinite where there is none."""
        applied = [loss for loss, skipped in self._tail() if not skipped]
        return sum(applied) / len(applied) if applied else math.inf

    @property
    def skipped_in_a_row(self) -> int:
        """Steps skipped since the last one that was not."""
        return next((n for n, skipped in enumerate(reversed(self.skipped)) if not skipped), len(self.skipped))

    def _tail(self) -> list[tuple[float, bool]]:
        return list(zip(self.loss[-RECENT:], self.skipped[-RECENT:], strict=True))

    def tensors(self) -> dict[str, Tensor]:
        """The columns as float64 [steps]."""
        return {
            column.name: torch.tensor(getattr(self, column.name), dtype=torch.float64)
            for column in fields(self)
        }

    @staticmethod
    def of(tensors: dict[str, Tensor]) -> "Curve":
        """The curve that these are the columns of."""
        columns = {column.name: tensors[column.name].tolist() for column in fields(Curve)}
        columns |= {name: [int(value) for value in columns[name]] for name in ("step", "samples")}
        return Curve(**{**columns, "skipped": [bool(value) for value in columns["skipped"]]})
