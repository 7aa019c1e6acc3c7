"""What a run is expected to take, as it was predicted, and beside it what it took."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flows.forecast.laws import NONE, Estimate, cost
from flows.plan import Node
from storage.artifact import Store
from storage.errors import StoreError

FILE = "prediction.json"


@dataclass(frozen=True)
class StagePrediction:
    """One stage of a run."""

    label: str
    fingerprint: str  # of the artifact that was planned then; empty where the corpus could not be read
    seconds: Estimate | None  # none: not calibrated
    memory: float | None  # bytes resident at most
    disk: float | None  # bytes written
    cost: Estimate | None
    formula: str
    basis: str
    committed: bool = False  # it was in the store already


@dataclass(frozen=True)
class Prediction:
    """A whole run."""

    name: str
    images: int
    price: float  # of an hour; 0 where none was given
    created: str  # ISO 8601, UTC
    machine: str
    spent: float  # seconds of the calibration
    basis: tuple[str, ...]
    stages: tuple[StagePrediction, ...]

    @property
    def calibrated(self) -> list[StagePrediction]:
        """Stages with a number."""
        return [stage for stage in self.stages if stage.seconds]

    @property
    def seconds(self) -> Estimate:
        """Of all of them."""
        return sum((stage.seconds for stage in self.stages if stage.seconds), NONE)

    @property
    def disk(self) -> float:
        """Bytes of all of them."""
        return sum(stage.disk or 0.0 for stage in self.stages)

    @property
    def memory(self) -> float:
        """Bytes of the one that needs most."""
        return max((stage.memory or 0.0 for stage in self.stages), default=0.0)

    @property
    def cost(self) -> Estimate:
        """Of all of them."""
        return cost(self.seconds, self.price)


@dataclass(frozen=True)
class Beside:
    """A stage's prediction and what it came to; no fact for one that did not run since."""

    predicted: StagePrediction
    seconds: float | None
    memory: float | None
    disk: float | None

    @property
    def ratio(self) -> float | None:
        """Seconds taken over seconds predicted."""
        if self.seconds is None or not self.predicted.seconds or not self.predicted.seconds.mid:
            return None
        return self.seconds / self.predicted.seconds.mid


def beside_fact(prediction: Prediction, nodes: Sequence[Node]) -> list[Beside]:
    """Each predicted stage with what its artifact says, if that was made after the prediction."""
    planned = {(node.label, node.artifact.fingerprint): node for node in nodes}
    rows = []
    for stage in prediction.stages:
        node = planned.get((stage.label, stage.fingerprint))
        manifest = node.artifact.manifest if node and node.artifact.committed else None
        if manifest is None or manifest.created < prediction.created:
            rows.append(Beside(stage, None, None, None))
        else:
            rows.append(Beside(stage, manifest.seconds, manifest.peak_bytes or None, manifest.bytes))
    return rows


def save(prediction: Prediction, store: Store) -> None:
    """Where a run of this name finds it."""
    text = json.dumps(dataclasses.asdict(prediction), indent=1) + "\n"
    store.folder.write(f"runs/{prediction.name}/{FILE}", text.encode())


def load(name: str, store: Store) -> Prediction | None:
    """The last prediction for a run; none if there was none.

    Raises:
        StoreError: for a file that is no prediction.
    """
    file = f"runs/{name}/{FILE}"
    if not store.folder.exists(file):
        return None
    try:
        fields = json.loads(store.folder.read(file))
        stages = tuple(_stage(row) for row in fields.pop("stages"))
        return Prediction(**{**fields, "basis": tuple(fields["basis"])}, stages=stages)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(f"{store.url}/{file} is not a prediction ({error}); remove it") from error


def _stage(row: dict[str, Any]) -> StagePrediction:
    ranges = {key: Estimate(**row[key]) if row[key] else None for key in ("seconds", "cost")}
    return StagePrediction(**{**row, **ranges})
