"""Several processes that train one model: who they are, and the few things they tell each other.

``torchrun --nproc-per-node N -m captioner train CONFIG`` starts them; torch.distributed does the
rest (gloo between CPUs, NCCL between GPUs). Gradients are averaged by DistributedDataParallel, so
every loss here is scaled such that the mean over the ranks is the loss of the global batch.
"""

from __future__ import annotations

import contextlib
import importlib
import secrets
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from captioner.utils.device import resolve_device, torchrun_process


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def process_group(device_name: str) -> Iterator[None]:
    """Join the processes that torchrun started; without torchrun, nothing happens.

    What trains must be let go inside, at the end of a function: the group's threads end with the
    last object that holds it, and a thread still busy when Python exits aborts the process.

    Args:
        device_name: ``auto``, ``cpu``, ``cuda`` ..., as in the recipe.
    """
    device = resolve_device(device_name)
    if torchrun_process().world_size == 1 or dist.is_initialized():
        yield
        return
    # DistributedDataParallel imports this, and its functions keep, as the default of an argument,
    # the group of the moment of their import: for ever, were it not before there is one.
    importlib.import_module("torch.distributed.nn.functional")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, number, size = next(dist.rendezvous("env://"))
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=fresh_corner(store, number, size),
        rank=number,
        world_size=size,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def fresh_corner(store: dist.Store, number: int, size: int) -> dist.Store:
    """A part of torchrun's store that the processes of this attempt alone use.

    After a restart the store still holds the addresses of processes that are gone, and torchrun
    tells no number of the attempt on which several machines agree. So the first process names a
    new corner and answers each caller there; from the corners of the dead no answer comes.

    Args:
        store: That all processes of all attempts see.
        number: Of this process.
        size: How many there are.
    """
    me = secrets.token_hex(8)
    if number == 0:
        store.set("corner", me)
        corner = dist.PrefixStore(me, store)
        for other in range(1, size):
            caller = corner.get(f"caller {other}").decode()  # waits
            corner.set(f"answer to {caller}", "")
        return corner
    while True:
        corner = dist.PrefixStore(store.get("corner").decode(), store)
        corner.set(f"caller {number}", me)
        if corner.check([f"answer to {me}"]):
            return corner
        time.sleep(0.1)


def restarted() -> bool:
    """Whether torchrun started these processes again after a failure."""
    # It counts failures machine by machine: any of them may be the one that knows.
    return any(gather(torchrun_process().restarts > 0))


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes; no gradient flows through it."""
    values = values.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def gather(value: Any) -> list[Any]:
    """The plain values of all processes, in the order of their ranks."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def replicate(module: nn.Module) -> nn.Module:
    """A module whose gradients are averaged over all processes."""
    return DistributedDataParallel(module) if dist.is_initialized() else module
