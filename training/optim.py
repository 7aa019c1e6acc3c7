"""AdamW with the usual parameter groups, and a cosine schedule with warm-up."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class OptimConfig:
    """Of CoCu and GroupViT, except where a run is too short for them."""

    rate: float = 1.6e-3  # peak learning rate
    min_rate: float = 4e-5  # at the end of the cosine
    warmup: float = 0.05  # share of all steps
    weight_decay: float = 0.05  # of matrices and kernels; not of biases, norms, tokens and temperatures
    clip: float = 5.0  # largest gradient norm
    beta2: float = 0.999


def adamw(parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> torch.optim.AdamW:
    """Decays matrices and kernels. What has one or three dimensions is a vector, or a list of tokens."""
    trained = [(name, p) for name, p in parameters if p.requires_grad]
    matrices = [p for _, p in trained if p.ndim in (2, 4)]
    others = [p for _, p in trained if p.ndim not in (2, 4)]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.rate, betas=(0.9, config.beta2), fused=True)


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Rate of a step: linear warm-up to ``rate``, then a half cosine to ``min_rate``.

    Worked example: rate 1.6e-3, min_rate 4e-5, 1,000 steps, warm-up 0.05: step 24 has 8e-4, step 49 the
    peak, step 999 is at 4e-5.
    """
    warm = max(1, round(config.warmup * steps))
    if step < warm:
        return config.rate * (step + 1) / warm
    share = (step - warm) / max(1, steps - warm - 1)
    return config.min_rate + (config.rate - config.min_rate) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
