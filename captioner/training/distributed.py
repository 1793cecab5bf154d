"""Training in several processes: joining the group, and what its processes exchange.

`torchrun --nproc-per-node N -m captioner train CONFIG` starts them, and torch.distributed connects
them (gloo between CPUs, NCCL between GPUs). DistributedDataParallel averages the gradients, so
every loss is scaled such that its mean over the ranks is the loss of the global batch.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import secrets
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from captioner.errors import CaptionerError
from captioner.utils.device import resolve_device, torchrun_process


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def process_group(device_name: str) -> Iterator[None]:
    """Join the processes that torchrun started; do nothing without torchrun.

    Use the trainer in a function of its own inside the block: the group's threads end with the last
    object that refers to it, and a thread still busy when Python exits aborts the process.

    Args:
        device_name: `auto`, `cpu`, `cuda` ..., as in the recipe.
    """
    device = resolve_device(device_name)
    if torchrun_process().world_size == 1 or dist.is_initialized():
        yield
        return
    # DistributedDataParallel imports this module, whose functions keep the group that exists at
    # import as a default argument: imported before there is one, they keep none.
    importlib.import_module("torch.distributed.nn.functional")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, number, size = next(dist.rendezvous("env://"))
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=fresh_store(store, number, size),
        rank=number,
        world_size=size,
    )
    try:
        yield
    finally:
        gc.collect()  # parts of a trainer refer to each other, and keep the group's threads
        dist.destroy_process_group()


def fresh_store(store: dist.Store, number: int, size: int, *, timeout: float = 300.0) -> dist.Store:
    """Agree on a part of torchrun's store that only the processes of this attempt use.

    After a restart the store still holds the addresses of the processes before it, and torchrun's
    count of restarts may differ between machines. So the first process publishes a new random
    prefix, and answers each process that calls there; prefixes of earlier attempts never answer.

    Args:
        store: The store that all processes of all attempts share.
        number: Rank of this process.
        size: Number of processes.
        timeout: Seconds to wait for the others.

    Raises:
        CaptionerError: The first process does not answer in time.
    """
    token = secrets.token_hex(8)
    if number == 0:
        store.set("prefix", token)
        fresh = dist.PrefixStore(token, store)
        for other in range(1, size):
            caller = fresh.get(f"caller {other}").decode()  # waits, as long as the store's time-out
            fresh.set(f"answer to {caller}", "")
        return fresh
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        fresh = dist.PrefixStore(store.get("prefix").decode(), store)
        fresh.set(f"caller {number}", token)
        if fresh.check([f"answer to {token}"]):
            return fresh
        time.sleep(0.1)
    raise CaptionerError(
        f"process {number} of {size}: the first one did not answer in {timeout:g} s"
    )


def restarted() -> bool:
    """Return whether torchrun started these processes again after a failure."""
    # Each machine counts its own failures: any of them may have the one that matters.
    return any(gather(torchrun_process().restarts > 0))


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes; no gradient flows through it."""
    values = values.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def gather(value: Any) -> list[Any]:
    """Return the plain values of all processes, in the order of their ranks."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def replicate(module: nn.Module) -> nn.Module:
    """Wrap a module so that its gradients are averaged over all processes."""
    return DistributedDataParallel(module) if dist.is_initialized() else module
