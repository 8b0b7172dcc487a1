"""The device and the number format that the encoder computes in."""

from contextlib import AbstractContextManager
from typing import Literal

import torch

from ner_cl.errors import ConfigError, first_line

__all__ = ["Precision", "autocast", "has_gpu", "resolve_device", "resolve_precision"]

Precision = Literal["auto", "fp32", "bf16"]


def has_gpu() -> bool:
    """Whether there is an accelerator that computes in fp64 too, which Apple's do not."""
    return _accelerator() is not None


def _accelerator() -> torch.device | None:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return None if found is None or found.type == "mps" else found


def resolve_device(device: str | torch.device) -> torch.device:
    """Resolves `auto` to the GPU, if there is one that training would use, else to the CPU.

    Raises:
        ConfigError: if torch does not know the device or cannot use it here.
    """
    if device == "auto":
        return _accelerator() or torch.device("cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled for the device
        raise ConfigError(f"device: {str(device)!r} cannot be used ({first_line(error)}); try 'cpu'") from error
    return chosen


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """Resolves `auto` to bf16 if the device supports it natively, else to fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bf16" if has_bf16 else "fp32"
    return "fp32"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """The context for forward passes; weights and the computations of heads are fp32 in either precision."""
    enabled = resolve_precision(precision, device) == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
