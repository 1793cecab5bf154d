"""Where Ray runs, on this machine or a cluster, and how its cores and GPUs are shared."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from captioner.errors import CaptionerError, ConfigError

_CORES = 4  # most of an actor on CPUs: as many batches as `Captioner.stream` has in work at once
_ANSWER_SECONDS = 10.0


def import_ray(arguments: argparse.Namespace) -> Any:
    """The module ``ray``, with ``ray.data``, told to send nothing anywhere.

    Args:
        arguments: Of the command.

    Raises:
        ConfigError: It is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if not arguments.ray_address:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # listen on 127.0.0.1 alone
    if not arguments.verbose:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its files still tell the story
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns about it
    try:
        import ray
        import ray.data
    except ImportError:
        raise ConfigError(
            "--engine ray needs the package ray: pip install 'captioner[ray]'"
        ) from None
    return ray


@contextlib.contextmanager
def cluster(ray: Any, arguments: argparse.Namespace) -> Iterator[None]:
    """Ray while the block runs: the cluster of ``--ray-address``, else one of this machine alone.

    Raises:
        CaptionerError: It cannot be reached or started.
    """
    level = logging.INFO if arguments.verbose else logging.ERROR
    options: dict[str, Any] = {"logging_level": level, "log_to_driver": arguments.verbose}
    if arguments.ray_address:
        _check_address(arguments.ray_address)
        options["address"] = arguments.ray_address
    else:
        affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
        options |= {
            "address": "local",  # whatever RAY_ADDRESS says
            "num_cpus": len(affinity(0)) if affinity else os.cpu_count(),
            "include_dashboard": False,
        }
    try:
        ray.init(**options)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        where = arguments.ray_address or "this machine"
        raise CaptionerError(f"cannot use Ray on {where}: {first_line(error)}") from None
    logging.getLogger("ray.data").setLevel(level)
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Find out whether anything answers: Ray itself tries for minutes.

    Raises:
        CaptionerError: Nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise CaptionerError(f"no Ray cluster answers at {address} ({error})") from None


@dataclass(frozen=True)
class Pool:
    """The actors.

    Attributes:
        size: How many.
        cpus: Cores of each.
        gpus: Of each.
    """

    size: int
    cpus: float
    gpus: int = 0


def choose_pool(nodes: list[dict[str, float]], device: str, workers: int | None) -> Pool:
    """Share a cluster among actors: one per GPU, or on CPUs one per four cores.

    Args:
        nodes: What each node has, ``{"CPU": 8, "GPU": 1}``.
        device: ``cpu``, ``cuda`` or ``auto``.
        workers: Actors that the user wants; None takes as many as fit.

    Raises:
        ConfigError: GPUs are asked for and there are none.
    """
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
    if device == "cuda" and not with_gpu:
        raise ConfigError("--device cuda: Ray has no GPU here; try --device cpu or auto")
    if with_gpu and device != "cpu":
        share = min(int(node.get("CPU", 0) // node["GPU"]) for node in with_gpu)
        gpus = sum(int(node["GPU"]) for node in with_gpu)
        return Pool(workers or gpus, min(share, 2 * _CORES), 1)
    cores = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1] or [1]
    smallest, total = min(cores), sum(cores)
    if workers is None:
        each = smallest // -(-smallest // _CORES)
        return Pool(sum(count // each for count in cores), each)
    if workers > total:
        return Pool(workers, int(100 * total / workers) / 100)  # rounded down, so that all fit
    return Pool(workers, min(smallest, total // workers))


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
