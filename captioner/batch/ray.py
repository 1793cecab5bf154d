"""``captioner caption --engine ray``: captioning on Ray, on this machine's cores or on a cluster.

Ray Data carries the photos: tasks open archives and tables, a pool of actors with a model each
captions what they find, and this process collects the results into part files. A worker that dies
is started again and its photos are captioned again; a part is written when all its rows are there,
so nothing is lost and nothing is there twice. A run that is cut short goes on with ``--resume``.

Photos and model files are opened on the workers: on a cluster their paths must be the same on every
node, and captioner must be installed there.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.batch.formats import JsonLinesFormat
from captioner.batch.journal import Mode
from captioner.batch.progress import Progress
from captioner.batch.ray_cluster import Pool, choose_pool, cluster, first_line, import_ray
from captioner.batch.ray_parts import FORMATS, Collector, PartFolder, part_name
from captioner.batch.runner import Summary
from captioner.batch.sources import expand, holds_photos, open_sources
from captioner.cli.options import run_settings, search_options
from captioner.errors import CaptionerError, ConfigError
from captioner.utils.device import torchrun_process

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

_PART_PHOTOS = 4096  # of loose photos; an archive or a table is one part whatever its size
_CALL_BATCHES = 8  # batches that an actor is given at a time: they overlap, up to four on a CPU
_SPARE_BLOCKS = 8  # pieces of the work that may fail for good before the run is stopped


def ray_command(arguments: argparse.Namespace) -> int:
    """Caption photos on Ray.

    Args:
        arguments: Those of `arguments.add_caption_arguments`.

    Returns:
        The exit status: 0, or 1 if a photo has no caption.

    Raises:
        ConfigError: The options do not go together, or Ray is not installed.
        CaptionerError: The output cannot be written, or Ray cannot do the work.
    """
    search = search_options(arguments)
    _refuse(arguments)
    _check_model(arguments, search)
    ray = import_ray(arguments)
    mode: Mode = "resume" if arguments.resume else "overwrite" if arguments.overwrite else "new"
    start = time.monotonic()
    summary = Summary()
    parts = PartFolder(Path(arguments.output), arguments.format or "jsonl", mode)
    with contextlib.closing(parts):
        units = list(_plan(arguments, search))
        done = parts.begin([unit.name for unit in units])
        for unit in units:
            if unit.name in done:
                _count_kept(parts, unit, summary)
        work = [unit for unit in units if unit.name not in done]
        bar = not arguments.quiet and sys.stderr.isatty()
        if work:
            with Progress(bar, lambda: _total(work)) as progress, cluster(ray, arguments):
                _run(ray, arguments, search, work, parts, summary, progress)
    summary.seconds = time.monotonic() - start
    if not arguments.quiet:
        print(*summary.lines(), sep="\n", file=sys.stderr)
    return 0 if summary.ok else 1


# ---------------------------------------------------------------------------------- before the work


def _refuse(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go with Ray.

    Raises:
        ConfigError: There is one.
    """
    if arguments.output is None:
        raise ConfigError("--engine ray writes a folder of part files: add -o FOLDER")
    if arguments.format not in (None, *FORMATS):
        raise ConfigError(f"--engine ray writes {' or '.join(FORMATS)}, not {arguments.format}")
    instead = {
        "attention": "--attention-json puts the maps into the rows",
        "errors": "failures are rows with an 'error' in the part files",
        "fail_fast": "photos are captioned in many places at once",
        "write_metadata": "copies are written where the photos are, by the local engine",
    }
    for name, why in instead.items():
        if getattr(arguments, name, None):
            raise ConfigError(f"--{name.replace('_', '-')} does not go with --engine ray: {why}")
    if torchrun_process().world_size > 1:
        raise ConfigError(
            "torchrun and --engine ray are two ways to use many processes: choose one"
        )
    if arguments.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"--device {arguments.device} does not go with --engine ray, which gives each worker "
            "its GPU: say cuda, cpu or auto"
        )
    for path in arguments.paths:
        folders = os.path.isdir(path) and os.path.isdir(arguments.output)
        if folders and os.path.samefile(path, arguments.output):
            raise ConfigError(f"{path} is among the sources: choose another output")


def _check_model(arguments: argparse.Namespace, search: dict[str, Any]) -> None:
    """Find out before the work whether the model is there and knows the required words.

    Raises:
        CheckpointError: A model file is missing or cannot be used.
        ConfigError: The options do not go with its vocabulary.
    """
    from captioner.api import DEFAULT_WEIGHTS
    from captioner.checkpoint import read_header
    from captioner.decoding.options import decoding_options

    for path in arguments.model or [DEFAULT_WEIGHTS]:
        decoding_options(read_header(path).vocabulary, **search)


@dataclass
class Unit:
    """What becomes one part.

    Attributes:
        number: Its place among the units.
        name: Of its part file.
        tables: For `ray_tasks.read_units`.
        photos: How many there are; None if that shows when they are read.
        path: Of the archive or table.
    """

    number: int
    name: str
    tables: list[pa.Table]
    photos: int | None
    path: str | None = None


def _plan(arguments: argparse.Namespace, search: dict[str, Any]) -> Iterator[Unit]:
    """The units of the sources, in order; their names tell the settings of the run as well.

    Raises:
        ConfigError: There are no photos.
    """
    from captioner.batch.ray_tasks import Photo, chunks, encode_file, encode_photos

    places = {"recursive": arguments.recursive, "image_root": arguments.image_root}
    files = itertools.chain.from_iterable(
        expand(path, recursive=arguments.recursive) for path in arguments.paths
    )
    numbers = itertools.count()
    rows = _CALL_BATCHES * arguments.batch_size
    settings = json.dumps(run_settings(arguments, search))
    number = -1
    for inside, group in itertools.groupby(files, holds_photos):
        if inside:
            for path in group:
                number = next(numbers)
                size = os.path.getsize(path) if os.path.exists(path) else 0
                name = part_name(number, [settings, path, str(size)])
                yield Unit(number, name, [encode_file(number, path)], None, path)
            continue
        items = open_sources(group, null_separated=arguments.null, **places)
        for chunk in chunks(items, _PART_PHOTOS):
            number = next(numbers)
            photos = [Photo(number, row, item) for row, item in enumerate(chunk)]
            photos.append(Photo(number, len(chunk), None))
            pieces = [photos[at : at + rows] for at in range(0, len(photos), rows)]
            name = part_name(number, [settings, *(item.name for item in chunk)])
            yield Unit(number, name, [encode_photos(piece) for piece in pieces], len(chunk))
    if number < 0:
        hint = "" if arguments.recursive else "; --recursive searches subfolders too"
        raise ConfigError(f"no photos in {', '.join(arguments.paths)}{hint}")


def _count_kept(parts: PartFolder, unit: Unit, summary: Summary) -> None:
    for error in parts.kept(unit.name):
        summary.kept += 1
        summary.kept_failed += error is not None


def _total(units: list[Unit]) -> int | None:
    counts = [unit.photos for unit in units if unit.photos is not None]
    return sum(counts) if len(counts) == len(units) else None


# ------------------------------------------------------------------------------------------- on Ray


def _run(
    ray: Any,
    arguments: argparse.Namespace,
    search: dict[str, Any],
    units: list[Unit],
    parts: PartFolder,
    summary: Summary,
    progress: Progress,
) -> None:
    """Caption units into parts.

    Raises:
        CaptionerError: Ray cannot do the work, or a part cannot be completed or written.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    pool = choose_pool(nodes, arguments.device, arguments.ray_workers)
    logger.info("%d workers with %g cores and %d GPUs each", pool.size, pool.cpus, pool.gpus)
    results = _dataset(ray, arguments, search, units, pool)
    left = {unit.number: unit for unit in units}
    collector = Collector()
    for number, row, text in _rows(ray, results):
        if text is not None and collector.is_new(number, row):
            error = JsonLinesFormat().decode(text).error
            summary.captioned += error is None
            if error is not None:
                summary.add(error)
            progress.advance(summary.failed)
        rows = collector.add(number, row, text)
        if rows is not None:
            unit = left.pop(number)
            parts.write(unit.name, rows)
            if not rows:
                logger.warning("no photos in %s", unit.path)
    if left:
        first = next(iter(left.values())).name
        raise CaptionerError(
            f"{len(left):,} of {len(units):,} part files could not be completed, {first} first "
            "(-v tells why); the others are kept: the same command with --resume tries again"
        )


def _rows(ray: Any, results: Any) -> Iterator[tuple[int, int, str | None]]:
    """The rows of a data set as they are ready: unit, row, JSON.

    Raises:
        CaptionerError: Ray cannot do the work.
    """
    from ray.data import exceptions

    from captioner.batch.ray_tasks import STOPPED

    kinds = [ray.exceptions.RayError, exceptions.SystemException]
    if hasattr(exceptions, "ExecutionTimeoutError"):  # older versions wait forever
        kinds.append(exceptions.ExecutionTimeoutError)
    try:
        for table in results.iter_batches(batch_size=None, batch_format="pyarrow"):
            for unit, row, text in zip(*table.to_pydict().values(), strict=True):
                if unit == STOPPED:
                    raise CaptionerError(text)
                yield unit, row, text
    except tuple(kinds) as error:
        message = f"Ray gave up: {first_line(error)}; finished parts are kept: --resume goes on"
        raise CaptionerError(message) from None


def _dataset(
    ray: Any, arguments: argparse.Namespace, search: dict[str, Any], units: list[Unit], pool: Pool
) -> Any:
    """The results of units as a data set of Ray's, computed as it is read."""
    from captioner.batch.ray_tasks import CaptionActor, read_units

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = _SPARE_BLOCKS
    root = arguments.image_root and os.path.abspath(arguments.image_root)
    tables = [table for unit in units for table in unit.tables]
    for unit in units:
        unit.tables.clear()  # Ray has them now; of ten million names that is a gigabyte
    model = argparse.Namespace(
        model=[os.path.abspath(path) for path in arguments.model or []] or [None],
        device="cuda" if pool.gpus else "cpu",
        precision=arguments.precision,
    )
    options = {"batch_size": arguments.batch_size, "workers": arguments.workers, **search}
    photos = ray.data.from_arrow(tables).map_batches(
        read_units,
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs={"image_root": root, "column": arguments.column},
        num_cpus=0,  # mostly waits; the actors have all cores
        concurrency=min(max(2, pool.size), len(tables)),
    )
    return photos.map_batches(
        CaptionActor,
        fn_constructor_args=(model, max(1, int(pool.cpus)), arguments.attention_json, options),
        batch_size=_CALL_BATCHES * arguments.batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=pool.size),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )  # Ray Data starts a dead actor again, and its work, without being asked
