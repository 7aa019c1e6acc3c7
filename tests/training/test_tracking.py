"""What can be watched of a training: event files without double points, Weights & Biases when asked for."""

import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from storage.errors import ConfigError
from storage.files import Folder
from training.curve import Curve
from training.tracking import EVENTS, TensorBoard, Tracker, WeightsAndBiases, told


def values(step: int) -> dict[str, float]:
    return {"loss": 10.0 - step, "rate": 0.5}


def log(tracker: Tracker, first: int, end: int, flushed: int) -> None:
    """Steps of one process, of which the points before ``flushed`` are sure to last."""
    tracker.begin(first)
    for step in range(first, end):
        tracker.log(step, values(step))
        if step + 1 == flushed:
            tracker.flush()


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_resumed_run_shows_every_point_once(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    for first, end in ((0, 9), (5, 12), (10, 15)):  # each begins at the checkpoint before the end
        tracker = TensorBoard(folder)
        log(tracker, first, end, flushed=end)
        tracker.close()
        time.sleep(1.1)  # TensorBoard orders its files by the second they were begun in
    found = points(tmp_path / EVENTS)
    assert found == {
        "train/loss": [(step, 10.0 - step) for step in range(15)],
        "train/rate": [(step, 0.5) for step in range(15)],
    }


def test_events_of_a_remote_store_are_copied_there_at_every_flush(tmp_path: Path) -> None:
    folder = Folder("memory://tracked")
    tracker = TensorBoard(folder)
    log(tracker, 0, 4, flushed=3)
    for stage in (3, 4):
        (name,) = folder.list(EVENTS)
        (tmp_path / name).write_bytes(folder.read(f"{EVENTS}/{name}"))
        assert [step for step, _ in points(tmp_path)["train/loss"]] == list(range(stage))
        if stage == 3:
            tracker.close()


def test_speeds_are_those_of_the_last_steps() -> None:
    curve = Curve()
    for step in range(30):
        slow = 1.0 if step < 10 else 0.5
        times = {"samples": 8, "seconds": slow, "waited": slow / 4, "ended": 0.0}
        curve.add(step=step, loss=2.0, rate=0.1, norm=3.0, skipped=step == 29, **times)
    assert told(curve) == {
        "loss": 2.0, "rate": 0.1, "gradient_norm": 3.0, "skipped": 1.0,
        "samples_per_second": 16.0, "data_wait": 0.25,
    }  # fmt: skip


def test_weights_and_biases_that_is_not_installed_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"loop\.wandb = 'cocu' needs the package wandb: pip install wandb"):
        WeightsAndBiases("cocu", "0123", {})


def test_weights_and_biases_gets_a_run_of_the_artifacts_name_and_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("finished")
    )

    def init(**options: Any) -> Any:
        calls.append(options)
        return run

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    tracker = WeightsAndBiases("cocu", "0123", {"nouns": "archive"})
    log(tracker, 2, 4, flushed=4)
    tracker.close()
    options = {"project": "cocu", "id": "0123", "resume": "allow", "config": {"nouns": "archive"}}
    assert calls == [options, (2, values(2)), (3, values(3)), "finished"]
