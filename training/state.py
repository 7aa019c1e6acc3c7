"""What a step changes, and the next one depends on: taken out for a checkpoint, and put back."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from training.curve import Curve
from training.ema import Average
from training.sharding import spread, whole

Tensors = dict[str, Tensor]


@dataclass
class State:
    """Of a training, at the end of some step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average | None
    scaler: torch.amp.GradScaler
    curve: Curve = field(default_factory=Curve)
    step: int = 0  # the next one

    def tensors(self) -> dict[str, Tensors]:
        """Everything, by file of a checkpoint. Of a sharded model every process must ask."""
        files = {
            "model": whole(self.model.state_dict()),
            "optimizer": whole(self._moments()),
            "random": _random_state(),
            "curve": self.curve.tensors(),
        }
        if self.average:
            files["ema"] = whole(self.average.mean)
        if self.scaler.is_enabled():
            values = self.scaler.state_dict().items()
            files["scaler"] = {name: torch.tensor(value, dtype=torch.float64) for name, value in values}
        return files

    def load(self, files: dict[str, Tensors], step: int) -> None:
        """Goes on from an earlier run.

        Raises:
            KeyError, ValueError, RuntimeError: for the tensors of another model.
        """
        self.model.load_state_dict(spread(files["model"], self.model.state_dict()))
        self._load_moments(files["optimizer"])
        self.curve, self.step = Curve.of(files["curve"]), step
        if self.average:
            self.average.load(spread(files["ema"], self.average.mean), self.curve.skipped.count(False))
        if self.scaler.is_enabled():
            self.scaler.load_state_dict({name: value.item() for name, value in files["scaler"].items()})
        _set_random_state(files["random"])

    def weights(self) -> Tensors:
        """Of the artifact: those of the model, or their averages where there are any."""
        weights = dict(self.model.state_dict())
        for name, mean in self.average.mean.items() if self.average else ():
            weights[name] = mean.to(weights[name].dtype)
        return {name: tensor.detach().contiguous() for name, tensor in whole(weights).items()}

    def _moments(self) -> Tensors:
        """The optimiser's tensors as ``<parameter>.<which>``; its settings come from the config."""
        return {
            f"{name}.{key}": torch.as_tensor(value)
            for name, parameter in self._trained()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }

    def _load_moments(self, tensors: Tensors) -> None:
        found: dict[str, Tensors] = {}
        for path, tensor in tensors.items():
            name, _, key = path.rpartition(".")
            found.setdefault(name, {})[key] = tensor
        number = {id(p): n for n, p in enumerate(_of_groups(self.optimizer))}
        state = {
            number[id(p)]: spread(moments, dict.fromkeys(moments, p))
            for name, p in self._trained()
            if (moments := found.pop(name, None))
        }
        if found:
            raise KeyError(f"no parameter '{next(iter(found))}'")
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]


def _of_groups(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _random_state() -> Tensors:
    cuda = {f"cuda.{n}": state for n, state in enumerate(torch.cuda.get_rng_state_all())}
    return {"cpu": torch.get_rng_state(), **cuda}


def _set_random_state(tensors: Tensors) -> None:
    torch.set_rng_state(tensors["cpu"])
    for device in range(torch.cuda.device_count()):
        if f"cuda.{device}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda.{device}"], device)
