"""In which precision a model computes its forward and backward passes."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

from storage.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Arithmetic:
    """Autocast to a type on a device, and for float16 the scale that keeps small gradients above zero.

    Losses belong outside `autocast`. After the backward pass: ``scaler.unscale_(optimizer)``, clip,
    ``scaler.step(optimizer)``, ``scaler.update()``; without float16 the scaler passes everything through.
    """

    device: torch.device
    dtype: torch.dtype
    scaler: torch.amp.GradScaler

    @classmethod
    def of(cls, precision: Precision, device: torch.device) -> "Arithmetic":
        """What a precision means on a device.

        Raises:
            ConfigError: for "auto", which does not say what the weights will be.
        """
        if precision == "auto":
            raise ConfigError(
                "loop.precision 'auto' says nothing of the weights: name fp32, bf16 or fp16, or let "
                "training.precision.decided choose for this machine before the stage is declared"
            )
        dtype = DTYPES[precision]
        return cls(device, dtype, torch.amp.GradScaler(device.type, enabled=dtype == torch.float16))

    def autocast(self) -> AbstractContextManager[None]:
        """Where forward passes run."""
        lowered = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype if lowered else None, enabled=lowered)


def decided(precision: Precision, device: str = "auto") -> Precision:
    """``auto`` replaced by what suits a run: bfloat16 on a GPU that has it, else float32.

    Weights are known by the precision they were trained in, so it is decided where a run is declared.
    """
    if precision != "auto":
        return precision
    there = device != "cpu" and torch.cuda.is_available()
    return "bf16" if there and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
