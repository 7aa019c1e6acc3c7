"""The training loop: exact resume, steps that are no numbers, schedule, parameter groups, averages."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from storage.errors import ConfigError, StoreError
from storage.files import Folder
from storage.runtime import silent_progress
from training.curve import Curve
from training.divergence import REPORT, Diverged
from training.loop import LoopConfig, train
from training.optim import OptimConfig, ParameterGroup, adamw, learning_rate
from training.state import State
from training.step import Features

STEPS = 23
CONFIG = LoopConfig(epochs=1, checkpoint_every=5, seed=3, precision="fp32", optim=OptimConfig(rate=0.05))


@dataclass(frozen=True)
class Rows:
    """A batch of numbers."""

    sample_ids: list[str]
    values_N4: Tensor


class Noisy:
    """Fits a line; its dropout makes every step depend on the random state."""

    def __init__(self, fail_at: tuple[int, ...] = (), value: float = math.nan) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1)
        )
        self.fail_at, self.value, self.seen = fail_at, value, []

    @property
    def towers(self) -> dict[str, nn.Module]:
        return {"model": self.model}

    def encode(self, batch: Any) -> Features:
        values_N4 = batch.values_N4
        step = int(values_N4[0, 0])
        values_N4 = values_N4 * (self.value if step in self.fail_at else 1)
        self.seen.append(weights(self))
        return {"predicted_N1": self.model(values_N4), "true_N1": values_N4.sum(1, keepdim=True)}

    def contrast(self, features: Features) -> Tensor:
        return ((features["predicted_N1"] - features["true_N1"]) ** 2).mean()


def batches(step: int) -> Iterator[Any]:
    """Batch ``n`` holds n in its first place, so that a skipped or repeated one shows."""
    for n in range(step, STEPS):
        values_N4 = torch.rand(6, 4, generator=torch.Generator().manual_seed(n))
        values_N4[0, 0] = n
        yield Rows([f"{n}/{row}" for row in range(6)], values_N4)


def fit(folder: Path, objective: Noisy, source: Any = batches, config: LoopConfig = CONFIG) -> State:
    return train(objective, source, STEPS, config, Folder(str(folder)), silent_progress, "fit")


def untimed(curve: Curve) -> dict[str, Any]:
    """What two runs that are the same agree on."""
    return {name: getattr(curve, name) for name in ("step", "loss", "rate", "norm", "skipped")}


def weights(objective: Noisy) -> Tensor:
    return torch.cat([t.detach().flatten().float() for t in objective.model.state_dict().values()])


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("stop", [1, 5, 6, 14, 22])
def test_training_stopped_at_any_step_and_resumed_ends_with_the_same_weights(
    stop: int, ema: float, tmp_path: Path
) -> None:
    whole, stopped, resumed = (Noisy(fail_at=(3, 11)) for _ in range(3))
    config = replace(CONFIG, ema=ema)
    expected = fit(tmp_path / "whole", whole, config=config)

    def breaking_off(step: int) -> Iterator[Any]:
        for n, batch in enumerate(batches(step), step):
            if n == stop:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "broken", stopped, breaking_off, config)
    torch.manual_seed(99)
    torch.rand(7)
    found = fit(tmp_path / "broken", resumed, config=config)
    assert torch.equal(weights(resumed), weights(whole))
    for name, tensor in expected.weights().items():
        assert torch.equal(found.weights()[name], tensor), name
    assert repr(untimed(found.curve)) == repr(untimed(expected.curve))
    assert found.curve.step == list(range(STEPS))


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

    def watched(step: int) -> Iterator[Any]:
        asked.append(step)
        return batches(step)

    fit(tmp_path, Noisy(), watched)
    fit(tmp_path, Noisy(), watched)
    assert asked == [0, 20]


def test_curve_has_the_schedules_rates_and_finite_losses_and_norms(tmp_path: Path) -> None:
    curve = fit(tmp_path, Noisy()).curve
    assert curve.rate == [learning_rate(CONFIG.optim, step, STEPS, 1) for step in range(STEPS)]
    assert all(math.isfinite(value) and value > 0 for value in curve.loss + curve.norm)
    assert not any(curve.skipped)
    assert all(0 <= waited <= seconds for waited, seconds in zip(curve.waited, curve.seconds, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_step_that_is_no_number_leaves_weights_statistics_and_average_as_they_were(
    value: float, tmp_path: Path
) -> None:
    objective = Noisy(fail_at=(7, 8, 12), value=value)
    state = fit(tmp_path, objective, config=replace(CONFIG, ema=0.5, max_skipped=2))
    curve = state.curve
    assert [step for step, skipped in zip(curve.step, curve.skipped, strict=True) if skipped] == [7, 8, 12]
    assert torch.equal(objective.seen[7], objective.seen[8])
    assert torch.equal(objective.seen[8], objective.seen[9])
    assert not torch.equal(objective.seen[9], objective.seen[10])
    assert state.average is not None
    assert state.average.count == STEPS - 3
    assert all(torch.isfinite(tensor).all() for tensor in state.weights().values())


def test_training_with_too_many_bad_steps_in_a_row_stops_and_lists_the_samples(tmp_path: Path) -> None:
    bad = (3, 6, 7, 9, 10, 11)
    with pytest.raises(
        Diverged, match=rf"3 steps in a row .*step 11 \(loss nan.*listed in '.*{REPORT}'.*lower optim\.rate"
    ):
        fit(tmp_path, Noisy(fail_at=bad), config=replace(CONFIG, max_skipped=2))
    listed = json.loads((tmp_path / REPORT).read_text())
    assert [row["step"] for row in listed] == [9, 10, 11]
    assert listed[1]["sample_ids"] == [f"10/{row}" for row in range(6)]
    assert math.isnan(listed[1]["loss"])
    with pytest.raises(Diverged):  # the same again, from the last checkpoint
        fit(tmp_path, Noisy(fail_at=bad), config=replace(CONFIG, max_skipped=2))
    assert fit(tmp_path, Noisy(fail_at=bad)).step == STEPS  # more patience, same run


def test_average_is_the_weighted_mean_of_all_weights(tmp_path: Path) -> None:
    objective, decay = Noisy(), 0.8
    state = fit(tmp_path, objective, config=replace(CONFIG, ema=decay))
    after = [*objective.seen[1:], weights(objective)]
    shares = torch.tensor([decay ** (STEPS - 1 - n) for n in range(STEPS)])
    expected = (torch.stack(after) * (shares / shares.sum())[:, None]).sum(0)
    names, averaged = list(objective.model.state_dict()), state.weights()
    found = torch.cat([averaged[name].flatten().float() for name in names])
    trained = torch.cat(
        [torch.full((t.numel(),), name in state.average.mean) for name, t in averaged.items()]  # type: ignore[union-attr]
    )
    torch.testing.assert_close(found[trained], expected[trained])
    assert torch.equal(found[~trained], weights(objective)[~trained])  # statistics are the last ones
    assert not torch.allclose(found[trained], weights(objective)[trained])


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, Noisy())
    other = Noisy()
    other.model = nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.Dropout(0.5), nn.Linear(9, 1))
    with pytest.raises(StoreError, match=r"(?s)the checkpoint is of another model .*size mismatch.*remove"):
        fit(tmp_path, other)


def test_learning_rate_of_the_worked_example() -> None:
    config = OptimConfig(rate=1.6e-3, min_rate=4e-5, warmup=0.05)
    rates = [learning_rate(config, step, 1000, 1) for step in range(1000)]
    assert (rates[24], rates[49], rates[999]) == pytest.approx((8e-4, 1.6e-3, 4e-5))
    assert rates[:50] == sorted(rates[:50])
    assert rates[49:] == sorted(rates[49:], reverse=True)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_learning_rate_of_a_run_of_few_steps_is_a_number(steps: int) -> None:
    rates = [learning_rate(OptimConfig(), step, steps, 1) for step in range(steps)]
    assert all(0 < rate <= OptimConfig().rate for rate in rates)


@pytest.mark.parametrize(("unit", "warmup"), [("share", 0.2), ("epochs", 2), ("steps", 20)])
def test_warm_up_lasts_as_long_in_every_unit(unit: Any, warmup: float) -> None:
    config = OptimConfig(warmup=warmup, warmup_unit=unit)
    rates = [learning_rate(config, step, 100, 10) for step in range(100)]
    assert rates.index(config.rate) == 19


def test_warm_up_of_several_shares_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a share of all steps in \[0, 1\], not 2; or set warmup_unit"):
        OptimConfig(warmup=2)


class Parts(nn.Module):
    """One of each kind of parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.positional_embedding = nn.Parameter(torch.zeros(3, 4))
        self.body = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
        self.patches = nn.Conv2d(3, 4, 2)
        self.scale = nn.Parameter(torch.tensor(1.0))


def settings(model: nn.Module, config: OptimConfig) -> dict[str, tuple[float, float]]:
    """Rate factor and decay by name."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = adamw(model, config).param_groups
    return {names[id(p)]: (g["factor"], g["weight_decay"]) for g in groups for p in g["params"]}


def test_adamw_decays_matrices_and_kernels_only_and_leaves_frozen_weights_out() -> None:
    model = Parts()
    model.body[2].requires_grad_(False)
    found = settings(model, OptimConfig(weight_decay=0.1))
    assert {name for name, (_, decay) in found.items() if decay} == {"body.0.weight", "patches.weight"}
    assert {decay for _, decay in found.values()} == {0.0, 0.1}
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}


def test_first_parameter_group_that_matches_sets_rate_and_decay() -> None:
    groups = (ParameterGroup("body.*.bias", 0.5), ParameterGroup("body.*", 0.1, 0.3))
    found = settings(Parts(), OptimConfig(weight_decay=0.05, groups=groups))
    assert found["body.0.bias"] == (0.5, 0.0)
    assert found["body.0.weight"] == found["body.1.weight"] == (0.1, 0.3)
    assert found["patches.weight"] == (1.0, 0.05)


def test_parameter_group_scales_the_rate_of_its_parameters(tmp_path: Path) -> None:
    groups = (ParameterGroup("0.*", 0.0),)
    objective = Noisy()
    before = objective.model[0].weight.clone()  # type: ignore[index]
    fit(tmp_path, objective, config=replace(CONFIG, optim=OptimConfig(rate=0.05, groups=groups)))
    assert torch.equal(objective.model[0].weight, before)  # type: ignore[index]
    assert not torch.equal(objective.seen[0], weights(objective))


def test_parameter_group_that_nothing_matches_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no trained parameter matches 'txt\.\*'; there are, .*words"):
        adamw(Parts(), OptimConfig(groups=(ParameterGroup("txt.*"),)))


def test_gradients_are_clipped_to_the_configured_norm(tmp_path: Path) -> None:
    config = LoopConfig(epochs=1, precision="fp32", optim=OptimConfig(clip=1e-9, weight_decay=0.0, rate=1e-3))
    objective = Noisy()
    before = weights(objective)
    fit(tmp_path, objective, config=config)
    norm = math.sqrt(
        sum(float((p.grad**2).sum()) for p in objective.model.parameters() if p.grad is not None)
    )
    assert norm <= 1e-9 * 1.01
    assert not torch.equal(before, weights(objective))


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"ema": 1.0}, "such as 0.999"),
        ({"keep_last": 0}, "1 at least"),
        ({"shard": True, "precision": "fp16"}, "give bf16"),
        ({"shard": True, "compile": True}, "give one"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        LoopConfig(**settings)
