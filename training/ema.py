"""The moving average of weights over a training."""

import torch
from torch import Tensor, nn


class Average:
    """Averages weights with exponentially falling shares, the first one's start-up bias taken out.

    After t steps with weights w_1 … w_t it holds Σ dᵗ⁻ⁱ w_i / Σ dᵗ⁻ⁱ, with d the decay. What the weights
    were before the first step has no share, so that a decay of 0.999 serves a run of 500 steps too.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.mean = {name: p.detach().float().clone() for name, p in self.trained.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights as they are now."""
        self.count += 1
        share = (1 - self.decay) / (1 - self.decay**self.count)
        for name, parameter in self.trained.items():
            self.mean[name].lerp_(parameter.detach().float(), share)

    def load(self, mean: dict[str, Tensor], count: int) -> None:
        """Goes on from an earlier run's average.

        Raises:
            KeyError: for a parameter that it lacks.
            RuntimeError: for one of another shape.
        """
        self.count = count
        for name, tensor in self.mean.items():
            tensor.copy_(mean[name])
