"""Where to compute and in which precision, and which of torchrun's processes this one is."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Literal, NamedTuple

from captioner.errors import ConfigError

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "fp32", "bf16"]


class TorchrunProcess(NamedTuple):
    """The place of this process among those that `torchrun` started together.

    Attributes:
        rank: From 0, over all machines.
        world_size: Number of processes on all machines; 1 without `torchrun`.
        local_rank: From 0, on this machine; None without `torchrun`.
        restarts: How often `torchrun --max-restarts` has started the processes again.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int | None = None
    restarts: int = 0


def torchrun_process() -> TorchrunProcess:
    """Read what `torchrun` tells this process in the environment."""

    def read(name: str, default: int = 0) -> int:
        return int(os.environ.get(name, default))

    launched = "RANK" in os.environ  # some schedulers set WORLD_SIZE alone
    return TorchrunProcess(
        rank=read("RANK"),
        world_size=read("WORLD_SIZE", 1) if launched else 1,
        local_rank=read("LOCAL_RANK") if "LOCAL_RANK" in os.environ else None,
        restarts=read("TORCHELASTIC_RESTART_COUNT"),
    )


def available_cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def default_threads() -> int:
    """Return how many threads are to compute: OMP_NUM_THREADS as in PyTorch, else all cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(asked) if asked.isdecimal() and int(asked) else available_cores()


def resolve_device(name: str = "auto") -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:1` or `mps` into a device that is there.

    With `auto` and `cuda`, each process that `torchrun` starts on a machine gets its own GPU; if
    there are fewer GPUs than processes, they share them in turn.

    Raises:
        ConfigError: The device is unknown or absent.
    """
    import torch

    if name in ("auto", "cuda") and torch.cuda.is_available():
        local_rank = torchrun_process().local_rank
        if local_rank is None:
            return torch.device("cuda")
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    if name == "auto":
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used ({reason}); try auto or cpu") from None
    return device


def use_deterministic_algorithms() -> None:
    """Let this process compute with algorithms that give the same bits every time.

    Call it before the first product on a GPU: cuBLAS reads its workspace's size once.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # What it fills are memories that nothing reads before they are written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def fast_bf16(device: torch.device) -> bool:
    """Whether the device computes bf16 faster than fp32 (CPUs: avx512_bf16 or AMX)."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        if not hasattr(torch.cpu, "get_capabilities"):  # torch before 2.6
            return False
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def autocast(
    device: torch.device, precision: Precision = "auto"
) -> contextlib.AbstractContextManager[object]:
    """Mixed precision: bf16 where it is faster (`auto`) or where asked for, else plain fp32."""
    import torch

    bf16 = precision == "bf16" or (precision == "auto" and fast_bf16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)


def trunk_precision(precision: Precision) -> Precision:
    """Return the precision of the encoder when captioning: `auto` is fp32 there.

    Rounding in a deep CNN adds up: in bf16 it changes one caption in eight to twenty, while the
    decoder's changes one in fifty to 250 (`benchmarks/caption.py --agreement`).
    """
    return "fp32" if precision == "auto" else precision


def trunk_autocast(
    device: torch.device, precision: Precision = "auto"
) -> contextlib.AbstractContextManager[object]:
    """Mixed precision of the encoder when captioning."""
    return autocast(device, trunk_precision(precision))
