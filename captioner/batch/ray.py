"""Captioning on Ray, on the cores of this machine or on a cluster.

A *unit* is an archive, a table, or a few thousand loose images; its results become one part file.
A reader task yields the images of a unit piece by piece, a pool of actors with a model each
captions the pieces, and this process writes a part when all its pieces are there. Ray starts a dead
worker again and repeats its piece, so nothing is lost and nothing is written twice.

Images and model files are opened on the workers: on a cluster their paths must be the same on every
node, and captioner must be installed there.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import pickle
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from captioner.batch.formats import to_json, to_row
from captioner.batch.item import Item
from captioner.batch.journal import PartFolder, part_name
from captioner.batch.runner import caption_items, load_captioner
from captioner.batch.sources import expand, is_container, open_sources
from captioner.errors import CaptionerError, ConfigError
from captioner.utils.device import available_cores
from captioner.utils.parallel import batched

logger = logging.getLogger(__name__)

_UNIT_IMAGES = 4096  # of loose images; an archive or a table is one unit whatever its size
_PIECE_BATCHES = 8
_PIECE_BYTES = 128 * 1024**2  # of images that travel to the actor; the last one may exceed it
_CORES = 4  # of an actor on CPUs, at most: `Captioner.stream` computes four batches at once
_QUEUE = 2  # pieces per actor, so that it never waits for the next
_RETRIES = 3  # of a piece whose worker died
_FAILURES = 8  # units that may fail before the run is stopped
_PATIENCE_SECONDS = 1800.0  # without any result
_ANSWER_SECONDS = 10.0


@dataclass(eq=False)
class Unit:
    """What becomes one part file.

    Attributes:
        name: Of the part file, without its ending.
        path: Of the archive or table; None for loose images.
        items: Loose images, pickled to take less memory: there may be ten million.
        count: Number of images; None if it shows when they are read.
        pieces: Number of pieces read so far.
        rows: The JSON rows of each piece that has been captioned.
    """

    name: str
    path: str | None = None
    items: bytes = b""
    count: int | None = None
    pieces: int = 0
    rows: dict[int, list[str]] = field(default_factory=dict)


def plan(paths: Iterable[str], settings: str, **options: Any) -> Iterator[Unit]:
    """Yield the units of the sources, in order.

    Args:
        paths: As for `open_sources`.
        settings: What the results depend on besides the images; the units' names tell it.
        **options: Of `open_sources`.
    """
    recursive = options.get("recursive", False)
    files = itertools.chain.from_iterable(expand(path, recursive=recursive) for path in paths)
    numbers = itertools.count()
    for inside, group in itertools.groupby(files, is_container):
        if inside:
            for path in group:
                size = os.path.getsize(path) if os.path.exists(path) else 0
                yield Unit(part_name(next(numbers), [settings, path, str(size)]), path)
            continue
        for chunk in batched(open_sources(group, **options), _UNIT_IMAGES):
            name = part_name(next(numbers), [settings, *(item.name for item in chunk)])
            for at, item in enumerate(chunk):
                if isinstance(item.source, (str, os.PathLike)):  # workers have another directory
                    chunk[at] = replace(item, source=os.path.abspath(item.source))
            yield Unit(name, items=pickle.dumps(chunk), count=len(chunk))


def read_pieces(unit: Unit, folder: str, size: int, **options: Any) -> Iterator[list[Item]]:
    """Yield the images of a unit in pieces, in a task on a worker.

    Args:
        unit: The unit.
        folder: Working directory of the command.
        size: Images per piece; fewer if they are large.
        **options: Of `open_sources`.
    """
    full = "" if unit.path is None else os.path.join(folder, unit.path)
    items = pickle.loads(unit.items) if unit.path is None else open_sources([full], **options)
    piece: list[Item] = []
    carried = 0
    for item in items:
        if unit.path is not None and item.name.startswith(full):  # names as on the command line
            item = replace(item, name=unit.path + item.name[len(full) :])
        piece.append(item)
        carried += len(item.source) if isinstance(item.source, bytes) else 0
        if len(piece) == size or carried > _PIECE_BYTES:
            yield piece
            piece, carried = [], 0
    if piece:
        yield piece


class CaptionActor:
    """A worker process with a model.

    Args:
        model: Arguments of `load_captioner`.
        threads: Of PyTorch.
        attention: Add the attention maps to the rows.
        options: Of `caption_items`.
    """

    def __init__(
        self, model: Mapping[str, Any], threads: int, attention: bool, options: Mapping[str, Any]
    ):
        import torch

        torch.set_num_threads(threads)
        self.attention = attention
        self.options = options
        self.error: str | None = None
        try:
            self.captioner = load_captioner(**model)
        except CaptionerError as error:  # if it were raised, Ray would print pages of its own
            self.error = str(error)

    def caption(self, items: list[Item]) -> tuple[list[tuple[str, str | None]], str | None]:
        """Caption a piece.

        Returns:
            The JSON row and the error, if any, of each image; and why no actor can work, if so.
        """
        rows: list[tuple[str, str | None]] = []
        if self.error is None:
            try:
                for item, result in caption_items(self.captioner, items, **self.options):
                    row = to_row(item, result, attention=self.attention)
                    rows.append((to_json(row), row.get("error")))
            except CaptionerError as error:  # the device's memory is too small
                self.error = str(error)
        return rows, self.error


def import_ray(address: str | None, verbose: bool) -> Any:
    """Return the module `ray`, configured to send no usage statistics.

    Raises:
        ConfigError: It is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if not address:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # listen on 127.0.0.1 alone
    if not verbose:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray's log files have it all
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # without it, Ray warns
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "--engine ray needs the package ray: pip install 'captioner[ray]'"
        ) from None
    return ray


@contextlib.contextmanager
def cluster(ray: Any, address: str | None, verbose: bool) -> Iterator[None]:
    """Connect to the cluster at an address, or start Ray on this machine, while the block runs.

    Raises:
        CaptionerError: It cannot be reached or started.
    """
    level = logging.INFO if verbose else logging.ERROR
    options: dict[str, Any] = {"logging_level": level, "log_to_driver": verbose}
    failure = f"no Ray cluster answers at {address}" if address else "cannot start Ray"
    try:
        if address:
            host, _, port = address.removeprefix("ray://").rpartition(":")
            if port.isdecimal():  # Ray itself would try for minutes
                socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
            options["address"] = address
        else:
            options |= {"address": "local", "num_cpus": available_cores()}
            options["include_dashboard"] = False
        ray.init(**options)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        raise CaptionerError(f"{failure}: {_first_line(error)}") from None
    try:
        yield
    finally:
        ray.shutdown()


class Pool(NamedTuple):
    """The actors: how many, and the cores and GPUs of each."""

    size: int
    cpus: float
    gpus: int = 0


def choose_pool(nodes: list[dict[str, float]], device: str, workers: int | None) -> Pool:
    """Share a cluster among actors: one per GPU, or on CPUs one per four cores.

    Args:
        nodes: Resources of each node, such as `{"CPU": 8, "GPU": 1}`.
        device: `cpu`, `cuda` or `auto`.
        workers: Number of actors; None takes as many as fit.

    Raises:
        ConfigError: `device` is `cuda` and there is no GPU.
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


def caption_units(
    ray: Any,
    units: list[Unit],
    parts: PartFolder,
    count: Callable[[str | None], None],
    *,
    model: Mapping[str, Any],
    options: Mapping[str, Any],
    sources: Mapping[str, Any],
    attention: bool = False,
    workers: int | None = None,
) -> None:
    """Caption units into parts, on the cluster that Ray is connected to.

    Args:
        ray: The module.
        units: From `plan`.
        parts: Takes the results.
        count: Called for each image with its error, None if it has a caption.
        model: Arguments of `load_captioner`, with absolute paths.
        options: Of `caption_items`.
        sources: Options of `open_sources` for archives and tables, with absolute paths.
        attention: Add the attention maps.
        workers: Number of actors; None takes as many as fit.

    Raises:
        CaptionerError: Ray cannot do the work, or a part cannot be completed or written.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    pool = choose_pool(nodes, model["device"], workers)
    logger.info("%d workers with %g cores and %d GPUs each", *pool)
    model = {**model, "device": "cuda" if pool.gpus else "cpu"}
    spawn = ray.remote(CaptionActor).options(
        num_cpus=pool.cpus, num_gpus=pool.gpus, max_restarts=-1, max_task_retries=_RETRIES
    )
    given = (model, max(1, int(pool.cpus)), attention, dict(options))
    queued = {spawn.remote(*given): 0 for _ in range(pool.size)}  # actor -> pieces it has
    read = ray.remote(read_pieces).options(
        num_cpus=0, num_returns="streaming", _generator_backpressure_num_objects=_QUEUE
    )
    size = _PIECE_BATCHES * options["batch_size"]
    waiting = deque(units)
    reading: dict[Any, Unit] = {}  # generator of pieces -> unit
    tasks: dict[Any, tuple[Unit, int, Any]] = {}  # result -> unit, number of the piece, actor
    failed: dict[str, str] = {}  # name of the part -> why
    while waiting or reading or tasks:
        while waiting and len(reading) < max(2, pool.size):
            unit = waiting.popleft()
            reading[read.remote(unit, os.getcwd(), size, **sources)] = unit
            unit.items = b""  # Ray has them now
        actor = min(queued, key=queued.__getitem__)
        candidates = [*tasks, *(reading if queued[actor] < _QUEUE else ())]
        ready, _ = ray.wait(candidates, timeout=_PATIENCE_SECONDS, fetch_local=False)
        if not ready or len(failed) > _FAILURES:
            why = next(iter(failed.values()), "nothing has moved for 30 minutes")
            raise CaptionerError(f"Ray gave up: {why}; finished parts are kept: --resume goes on")
        if ready[0] in reading:
            unit = reading[ready[0]]
            try:
                piece = next(ready[0])
            except StopIteration:
                del reading[ready[0]]
            else:
                tasks[actor.caption.remote(piece)] = (unit, unit.pieces, actor)
                unit.pieces += 1
                queued[actor] += 1
        else:
            unit, number, actor = tasks.pop(ready[0])
            queued[actor] -= 1
            try:
                rows, error = ray.get(ready[0])
            except ray.exceptions.RayError as problem:
                logger.debug("%s failed", unit.name, exc_info=problem)
                failed[unit.name] = _first_line(problem)
                continue
            if error is not None:
                raise CaptionerError(error)
            unit.rows[number] = [row for row, _ in rows]
            for _, error in rows:
                count(error)
        if unit not in reading.values() and len(unit.rows) == unit.pieces:
            parts.write(unit.name, itertools.chain(*map(unit.rows.pop, sorted(unit.rows))))
            if not unit.pieces:
                logger.warning("no photos in %s", unit.path)
    if failed:
        raise CaptionerError(
            f"{len(failed):,} of {len(units):,} part files could not be completed, "
            f"{next(iter(failed))} first (-v tells why); the others are kept: "
            "the same command with --resume tries again"
        )


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
