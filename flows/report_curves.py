"""Loss curves as the points of an SVG line."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.artifact import Artifact

WIDTH, HEIGHT = 250.0, 110.0  # pixels of the plot
POINTS = 240  # of a raw curve, at most: neighbours are averaged
SMOOTHED = 0.06  # width of the running mean, in shares of the curve


@dataclass(frozen=True)
class Curve:
    """One model's training."""

    name: str
    raw: str  # points "x,y x,y …" in the plot
    smooth: str
    ticks: list[tuple[float, str]]  # place on the y axis, loss
    epochs: float
    steps: int
    last: float  # smoothed loss at the end
    last_y: float


def loss_curve(name: str, model: Artifact) -> Curve:
    """The curve of a ``train`` artifact."""
    rows = model.read("losses")
    step_N, loss_N = _binned(rows["step"].to_numpy()), _binned(rows["loss"].to_numpy())
    smooth_N = _smoothed(loss_N)
    low, high = float(loss_N.min()), float(loss_N.max())
    span = (high - low) or 1.0
    y_N, smooth_y_N = (HEIGHT * (high - curve) / span for curve in (loss_N, smooth_N))
    x_N = WIDTH * (step_N - step_N[0]) / max(step_N[-1] - step_N[0], 1)
    ticks = [(HEIGHT * (high - value) / span, f"{value:.2f}") for value in (high, (low + high) / 2, low)]
    return Curve(
        name=name,
        raw=_points(x_N, y_N),
        smooth=_points(x_N, smooth_y_N),
        ticks=ticks,
        epochs=float(model.manifest.config["loop"]["epochs"]),
        steps=int(rows["step"][-1].as_py()) + 1,  # counted from 0
        last=float(smooth_N[-1]),
        last_y=float(smooth_y_N[-1]),
    )


def _binned(values: NDArray[np.generic]) -> NDArray[np.float64]:
    pieces = np.array_split(values.astype(np.float64), min(POINTS, len(values)))
    return np.array([piece.mean() for piece in pieces])


def _smoothed(values_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running mean; at the ends over what there is."""
    half = max(1, round(len(values_N) * SMOOTHED / 2))
    total_N = np.concatenate([[0.0], np.cumsum(values_N)])
    place_N = np.arange(len(values_N))
    first_N, end_N = np.maximum(place_N - half, 0), np.minimum(place_N + half + 1, len(values_N))
    return np.asarray((total_N[end_N] - total_N[first_N]) / (end_N - first_N))


def _points(x_N: Sequence[float] | NDArray[np.float64], y_N: NDArray[np.float64]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(x_N, y_N, strict=True))
