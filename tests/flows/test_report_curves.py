"""The course of a training on the page: what repeats in the report, speeds in the run's copy alone."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from flows.report_curves import SPEEDS, training_curves, with_speeds
from storage.schemas import table_of

STEPS = 600


@dataclass(frozen=True)
class Trained:
    """As much of an artifact as the page reads."""

    skipped: tuple[int, ...] = ()

    @property
    def manifest(self) -> Any:
        return SimpleNamespace(config={"loop": {"epochs": 3}})

    def read(self, name: str) -> pa.Table:
        step = np.arange(STEPS)
        bad = np.isin(step, self.skipped)
        columns = {
            "step": step,
            "epoch": step / 200,
            "loss": np.where(bad, np.nan, 5.0 - step / STEPS),
            "rate": np.full(STEPS, 1e-3),
            "gradient_norm": np.where(bad, np.inf, 2.0),
            "skipped": bad,
            "samples_per_second": np.full(STEPS, 1234.0),
            "data_wait": np.full(STEPS, 0.25),
        }
        return table_of(name, columns)


def values(points: str) -> list[float]:
    return [float(point.split(",")[1]) for point in points.split()]


def test_curves_of_a_training_leave_out_steps_that_are_no_numbers() -> None:
    found = training_curves("model", Trained(skipped=(7, 300, 301)))  # type: ignore[arg-type]
    assert (found.steps, found.skipped, found.epochs) == (STEPS, 3, 3.0)
    loss, rate, norm = found.curves
    assert [curve.title for curve in found.curves] == ["loss", "learning rate", "gradient norm"]
    assert values(loss.raw) == sorted(values(loss.raw))  # the loss falls; y grows downwards
    assert len(values(loss.raw)) == 240
    assert (loss.last, rate.last, norm.last) == ("4.01", "1.0e-03", "2.00")


def test_curves_of_a_training_without_a_single_good_step_are_none() -> None:
    found = training_curves("model", Trained(skipped=tuple(range(STEPS))))  # type: ignore[arg-type]
    assert (found.curves, found.skipped) == ([], STEPS)


def test_speeds_are_put_into_the_runs_copy_of_the_page() -> None:
    page = b"<main>" + SPEEDS + b"</main>"
    told = with_speeds(page, {"groupvit_archive": Trained()}).decode()  # type: ignore[dict-item]
    assert "groupvit_archive" in told
    assert "1,234" in told
    assert "25%" in told
    assert with_speeds(page, {}) == b"<main></main>"
    assert with_speeds(b"<p>old</p>", {"model": Trained()}) == b"<p>old</p>"  # type: ignore[dict-item]
