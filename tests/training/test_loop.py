"""The training loop: exact resume, divergence, broken checkpoints, schedule."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from storage.errors import StoreError
from storage.files import Folder
from storage.runtime import silent_progress
from training.data import Batch
from training.loop import CHECKPOINT, Diverged, LoopConfig, Losses, train
from training.optim import OptimConfig, adamw, learning_rate
from training.step import Features

STEPS = 23
CONFIG = LoopConfig(checkpoint_every=5, seed=3, optim=OptimConfig(rate=0.05))


class Noisy:
    """Fits a line; its dropout makes every step depend on the random state."""

    def __init__(self, fail_at: int = -1, value: float = math.nan) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.step, self.fail_at, self.value = 0, fail_at, value

    @property
    def towers(self) -> dict[str, nn.Module]:
        return {"model": self.model}

    def encode(self, batch: Any) -> Features:
        return {"predicted_N1": self.model(batch), "true_N1": batch.sum(1, keepdim=True), "batch": batch}

    def contrast(self, features: Features) -> Tensor:
        failing = features["batch"][0, 0].item() == self.fail_at
        squares_N1 = (features["predicted_N1"] - features["true_N1"]) ** 2
        return squares_N1.mean() * (self.value if failing else 1)


def batches(step: int) -> Iterator[Batch]:
    """Batch ``n`` holds n in its first place, so that a skipped or repeated one shows."""
    for n in range(step, STEPS):
        batch: Any = torch.rand(6, 4, generator=torch.Generator().manual_seed(n))
        batch[0, 0] = n
        yield batch


def fit(folder: Path, objective: Noisy, source: Any = batches, config: LoopConfig = CONFIG) -> Losses:
    return train(objective, source, STEPS, config, Folder(str(folder)), silent_progress, "fit")


def weights(objective: Noisy) -> Tensor:
    return torch.cat([p.detach().flatten() for p in objective.model.parameters()])


@pytest.mark.parametrize("stop", [1, 5, 6, 14, 22])
def test_training_stopped_at_any_step_and_resumed_ends_with_the_same_weights(
    stop: int, tmp_path: Path
) -> None:
    whole, stopped, resumed = Noisy(), Noisy(), Noisy()
    expected = fit(tmp_path / "whole", whole)

    def breaking_off(step: int) -> Iterator[Batch]:
        for n, batch in enumerate(batches(step), step):
            if n == stop:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "broken", stopped, breaking_off)
    torch.manual_seed(99)
    torch.rand(7)
    found = fit(tmp_path / "broken", resumed)
    assert torch.equal(weights(resumed), weights(whole))
    assert found == expected
    assert found.step == list(range(STEPS))


class Wide(Noisy):
    """Sums long enough for torch to share them out among threads."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(4, 3000), nn.Linear(3000, 300), nn.Linear(300, 1))


def test_weights_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    before, found = torch.get_num_threads(), set()
    config = replace(CONFIG, optim=OptimConfig(rate=1e-3))
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            fitted = Wide()
            fit(tmp_path / str(threads), fitted, config=config)
            assert torch.get_num_threads() == threads
            found.add(weights(fitted).numpy().tobytes())
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


def test_training_begins_at_the_last_checkpoint(tmp_path: Path) -> None:
    asked = []

    def watched(step: int) -> Iterator[Batch]:
        asked.append(step)
        return batches(step)

    fit(tmp_path, Noisy(), watched)
    fit(tmp_path, Noisy(), watched)
    assert asked == [0, 20]


def test_training_falls_and_its_curve_has_the_schedules_rates(tmp_path: Path) -> None:
    losses = fit(tmp_path, Noisy())
    assert losses.rate == [learning_rate(CONFIG.optim, step, STEPS) for step in range(STEPS)]
    assert all(math.isfinite(loss) for loss in losses.loss)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_training_whose_loss_is_no_number_stops_and_names_step_and_remedy(
    value: float, tmp_path: Path
) -> None:
    with pytest.raises(Diverged, match=rf"the loss is {value} at step 7; lower the learning rate \(.*e-0"):
        fit(tmp_path, Noisy(fail_at=7, value=value))
    assert [path.name for path in (tmp_path / "_progress").iterdir()] == ["checkpoint.pt"]
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 5


def broken_checkpoints() -> dict[str, Any]:
    return {
        "empty": lambda _: b"",
        "cut": lambda data: data[: len(data) // 2],
        "text": lambda _: b"step 5",
        "pickle of code": lambda _: b"cos\nsystem\n(S'true'\ntR.",
    }


@pytest.mark.parametrize("damage", broken_checkpoints())
def test_broken_checkpoint_is_a_clear_fault_that_names_the_remedy(damage: str, tmp_path: Path) -> None:
    fit(tmp_path, Noisy())
    path = tmp_path / CHECKPOINT
    path.write_bytes(broken_checkpoints()[damage](path.read_bytes()))
    with pytest.raises(
        StoreError, match=r"the checkpoint is broken; remove '.*checkpoint\.pt' to start again"
    ):
        fit(tmp_path, Noisy())


@pytest.mark.parametrize("missing", ["model", "optimizer", "random", "step", "losses"])
def test_checkpoint_that_lacks_something_is_broken(missing: str, tmp_path: Path) -> None:
    fit(tmp_path, Noisy())
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    del state[missing]
    torch.save(state, tmp_path / CHECKPOINT)
    with pytest.raises(StoreError, match=f"the checkpoint is of another model .*{missing}.*; remove"):
        fit(tmp_path, Noisy())


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, Noisy())
    other = Noisy()
    other.model = nn.Sequential(nn.Linear(4, 9), nn.Dropout(0.5), nn.Linear(9, 1))
    with pytest.raises(StoreError, match=r"(?s)the checkpoint is of another model .*size mismatch"):
        fit(tmp_path, other)


def test_learning_rate_of_the_worked_example() -> None:
    config = OptimConfig(rate=1.6e-3, min_rate=4e-5, warmup=0.05)
    rates = [learning_rate(config, step, 1000) for step in range(1000)]
    assert (rates[24], rates[49], rates[999]) == pytest.approx((8e-4, 1.6e-3, 4e-5))
    assert rates[:50] == sorted(rates[:50])
    assert rates[49:] == sorted(rates[49:], reverse=True)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_learning_rate_of_a_run_of_few_steps_is_a_number(steps: int) -> None:
    rates = [learning_rate(OptimConfig(), step, steps) for step in range(steps)]
    assert all(0 < rate <= OptimConfig().rate for rate in rates)


def test_adamw_decays_matrices_only_and_leaves_frozen_weights_out() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[2].requires_grad_(False)
    groups = adamw(model.named_parameters(), OptimConfig(weight_decay=0.1)).param_groups
    shapes = [[tuple(p.shape) for p in group["params"]] for group in groups]
    assert shapes == [[(4, 3)], [(4,), (4,), (4,)]]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_gradients_are_clipped_to_the_configured_norm(tmp_path: Path) -> None:
    config = LoopConfig(optim=OptimConfig(clip=1e-9, weight_decay=0.0, rate=1e-3))
    objective = Noisy()
    before = weights(objective)
    fit(tmp_path, objective, config=config)
    norm = math.sqrt(
        sum(float((p.grad**2).sum()) for p in objective.model.parameters() if p.grad is not None)
    )
    assert norm <= 1e-9 * 1.01
    assert not torch.equal(before, weights(objective))
