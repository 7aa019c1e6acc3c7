"""In which precision a model computes its forward and backward passes."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

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
        """What a precision means on a device; "auto" is bfloat16 on a GPU that has it, else float32."""
        dtype = DTYPES[_decided(precision, device)]
        return cls(device, dtype, torch.amp.GradScaler(device.type, enabled=dtype == torch.float16))

    def autocast(self) -> AbstractContextManager[None]:
        """Where forward passes run."""
        lowered = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype if lowered else None, enabled=lowered)


def _decided(precision: Precision, device: torch.device) -> Precision:
    if precision != "auto":
        return precision
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "fp32"
