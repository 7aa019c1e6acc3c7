"""AdamW with parameter groups, and a cosine schedule with warm-up."""

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from storage.errors import ConfigError

LISTS = ("embedding", "position", "token")  # in the names of parameters that are lists of vectors


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that learn differently. The first group whose pattern a name matches has it."""

    pattern: str  # of whole names, with wildcards: "text.*", "*.bias"
    rate: float = 1.0  # factor on the learning rate
    weight_decay: float | None = None  # None: as without the group


@dataclass(frozen=True)
class OptimConfig:
    """Of CoCu and GroupViT, except where a run is too short for them."""

    rate: float = 1.6e-3  # peak learning rate
    min_rate: float = 4e-5  # at the end of the cosine
    warmup: float = 0.05  # in warmup_unit
    warmup_unit: Literal["share", "epochs", "steps"] = "share"  # share: of all steps
    weight_decay: float = 0.05  # of matrices and kernels; not of biases, norms, tokens and temperatures
    clip: float = 5.0  # largest gradient norm
    beta2: float = 0.999
    groups: tuple[ParameterGroup, ...] = ()

    def __post_init__(self) -> None:
        if self.warmup < 0 or (self.warmup_unit == "share" and self.warmup > 1):
            raise ValueError(
                f"warmup is a share of all steps in [0, 1], not {self.warmup}; or set warmup_unit"
            )


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Groups by rate and decay; each group's ``factor`` multiplies the schedule's rate.

    Raises:
        ConfigError: for a pattern that no trained parameter matches.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for group in config.groups:
        if not any(fnmatchcase(name, group.pattern) for name in trained):
            raise ConfigError(
                f"optim.groups: no trained parameter matches '{group.pattern}'; there are, for example, "
                f"{', '.join(list(trained)[:5])}"
            )
    vectors = _vectors(model)
    found: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        usual = 0.0 if name in vectors else config.weight_decay
        key = (*_settings(name, usual, config), isinstance(parameter, DTensor))  # fused kernels mix neither
        found.setdefault(key, []).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": parameters, "factor": factor, "weight_decay": decay}
        for (factor, decay, _), parameters in found.items()
    ]
    return torch.optim.AdamW(groups, lr=config.rate, betas=(0.9, config.beta2), fused=True)


def _settings(name: str, usual: float, config: OptimConfig) -> tuple[float, float]:
    """Rate factor and decay of a parameter."""
    for group in config.groups:
        if fnmatchcase(name, group.pattern):
            return group.rate, usual if group.weight_decay is None else group.weight_decay
    return 1.0, usual


def _vectors(model: nn.Module) -> set[str]:
    """Names of parameters that do not decay: no matrix and no kernel, or a list of tokens or positions."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return {
        name
        for name, p in model.named_parameters()
        if p.ndim not in (2, 4) or id(p) in tables or any(word in name.rsplit(".", 1)[-1] for word in LISTS)
    }


def learning_rate(config: OptimConfig, step: int, steps: int, epochs: int) -> float:
    """Rate of a step: linear warm-up to ``rate``, then a half cosine to ``min_rate``.

    Worked example: rate 1.6e-3, min_rate 4e-5, 1,000 steps, warm-up 0.05: step 24 has 8e-4, step 49 the
    peak, step 999 is at 4e-5.
    """
    unit = {"share": steps, "epochs": steps / epochs, "steps": 1}[config.warmup_unit]
    warm = max(1, round(config.warmup * unit))
    if step < warm:
        return config.rate * (step + 1) / warm
    share = (step - warm) / max(1, steps - warm - 1)
    return config.min_rate + (config.rate - config.min_rate) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
