"""Where to compute, and in which precision."""

from __future__ import annotations

import contextlib
import os
from typing import Literal

import torch

from captioner.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16"]


def resolve_device(name: str = "auto") -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps`` into a device that is there.

    With ``auto``, each of the processes that ``torchrun`` starts on a machine gets its own GPU:
    the one that ``LOCAL_RANK`` counts to, round and round if there are fewer GPUs.

    Raises:
        ConfigError: The device is unknown or absent.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        if "LOCAL_RANK" in os.environ:
            return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        return torch.device("cuda")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used ({reason}); try auto or cpu") from None
    return device


def fast_bf16(device: torch.device) -> bool:
    """Whether the device computes bf16 faster than fp32 (CPUs: avx512_bf16 or AMX)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        if not hasattr(torch.cpu, "get_capabilities"):  # older torch cannot tell
            return False
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def autocast(
    device: torch.device, precision: Precision = "auto"
) -> contextlib.AbstractContextManager[object]:
    """Mixed precision: bf16 where it pays (``auto``) or where asked for, else plain fp32."""
    bf16 = precision == "bf16" or (precision == "auto" and fast_bf16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)


def trunk_autocast(
    device: torch.device, precision: Precision = "auto"
) -> contextlib.AbstractContextManager[object]:
    """For the encoder when captioning: ``auto`` is fp32 here.

    Rounding in a deep CNN adds up: in bf16 it changes one caption in eight to twenty, while the
    decoder's changes one in fifty to 250 (``benchmarks/caption.py --agreement``).
    """
    return autocast(device, "fp32" if precision == "auto" else precision)
