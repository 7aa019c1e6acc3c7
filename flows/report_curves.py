"""The course of a training as the points of SVG lines."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flows.report_environment import environment
from storage.artifact import Artifact

WIDTH, HEIGHT = 250.0, 110.0  # pixels of the plot
POINTS = 240  # of a raw curve, at most: neighbours are averaged
SMOOTHED = 0.06  # width of the running mean, in shares of the curve
SPEEDS = b"<!-- speed of training -->"
Row = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One quantity over the steps."""

    title: str
    raw: str  # points "x,y x,y …" in the plot
    smooth: str
    ticks: list[tuple[float, str]]  # place on the y axis, value
    last: str  # smoothed value at the end
    last_y: float


@dataclass(frozen=True)
class Training:
    """One model's course."""

    name: str
    epochs: float
    steps: int
    skipped: int  # steps that gave no finite loss and gradient
    curves: list[Curve]


def training_curves(name: str, model: Artifact) -> Training:
    """Loss, rate and gradient norm of a ``train`` artifact: what repeats on every machine."""
    rows = model.read("losses")
    step_N, skipped_N = rows["step"].to_numpy(), rows["skipped"].to_numpy(zero_copy_only=False)
    plotted = [
        ("loss", "loss", ".2f"),
        ("rate", "learning rate", ".1e"),
        ("gradient_norm", "gradient norm", ".2f"),
    ]
    curves = [
        _curve(title, step_N[~skipped_N], rows[column].to_numpy()[~skipped_N], form)
        for column, title, form in plotted
        if not skipped_N.all()
    ]
    epochs = float(model.manifest.config["loop"]["epochs"])
    return Training(name, epochs, int(step_N[-1]) + 1, int(skipped_N.sum()), curves)  # steps count from 0


def with_speeds(page: bytes, models: Mapping[str, Artifact]) -> bytes:
    """A run's copy of the report with how fast its models were trained, which differs from run to run."""
    found = [Training(name, 0.0, 0, 0, _speeds(model)) for name, model in models.items()]
    section = environment().get_template("speed.html.j2").render(speeds=found)
    return page.replace(SPEEDS, section.encode(), 1)


def _speeds(model: Artifact) -> list[Curve]:
    rows = model.read("speeds")
    step_N = rows["step"].to_numpy()
    plotted = [
        ("samples_per_second", "samples a second", ",.0f"),
        ("data_wait", "share of time waiting for data", ".0%"),
    ]
    return [_curve(title, step_N, rows[column].to_numpy(), form) for column, title, form in plotted]


def _curve(title: str, steps: NDArray[np.integer], values: Row, form: str) -> Curve:
    step_N, value_N = _binned(steps), _binned(values)
    smooth_N = _smoothed(value_N)
    low, high = float(value_N.min()), float(value_N.max())
    span = (high - low) or 1.0
    y_N, smooth_y_N = (HEIGHT * (high - curve) / span for curve in (value_N, smooth_N))
    x_N = WIDTH * (step_N - step_N[0]) / max(step_N[-1] - step_N[0], 1)
    ticks = [(HEIGHT * (high - value) / span, format(value, form)) for value in (high, (low + high) / 2, low)]
    return Curve(
        title=title,
        raw=_points(x_N, y_N),
        smooth=_points(x_N, smooth_y_N),
        ticks=ticks,
        last=format(float(smooth_N[-1]), form),
        last_y=float(smooth_y_N[-1]),
    )


def _binned(values: NDArray[np.generic]) -> Row:
    pieces = np.array_split(values.astype(np.float64), min(POINTS, len(values)))
    return np.array([piece.mean() for piece in pieces])


def _smoothed(values_N: Row) -> Row:
    """Running mean; at the ends over what there is."""
    half = max(1, round(len(values_N) * SMOOTHED / 2))
    total_N = np.concatenate([[0.0], np.cumsum(values_N)])
    place_N = np.arange(len(values_N))
    first_N, end_N = np.maximum(place_N - half, 0), np.minimum(place_N + half + 1, len(values_N))
    return np.asarray((total_N[end_N] - total_N[first_N]) / (end_N - first_N))


def _points(x_N: Row, y_N: Row) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(x_N, y_N, strict=True))
