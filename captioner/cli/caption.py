"""The commands `captioner caption` and `captioner merge`."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from captioner.backends.base import BATCH_SIZE
from captioner.batch import sources
from captioner.batch.formats import JsonLinesFormat
from captioner.batch.journal import Journal, Mode, PartFolder
from captioner.batch.metadata import MetadataFolder
from captioner.batch.runner import Progress, Summary, load_captioner, run
from captioner.batch.shard_files import is_merged, merge_shards, open_shard, state_of_shards
from captioner.batch.sharding import RankGroup, Shard, ShardAssignment, find_shard, is_restarted
from captioner.batch.sidecars import StripFolder
from captioner.batch.sources import STDIN, count_images, open_sources
from captioner.batch.writers import RowWriter, Writer, is_finished, open_writer
from captioner.cli.options import model_options, run_settings, search_options
from captioner.errors import ConfigError
from captioner.image.fonts import load_font
from captioner.utils.device import torchrun_process

logger = logging.getLogger(__name__)


def caption_command(arguments: argparse.Namespace) -> int:
    """Caption images.

    Returns:
        The exit status: 0, or 1 if an image has no caption.

    Raises:
        CaptionerError: The options contradict each other, or the output cannot be written.
    """
    if arguments.engine == "ray":
        return _caption_on_ray(arguments)
    if arguments.ray_address or arguments.ray_workers:
        raise ConfigError("--ray-address and --ray-workers need --engine ray")
    shard = find_shard(arguments.shard)
    if shard is not None:
        _check_shardable(arguments, shard)
    search = search_options(arguments)
    _check_outputs(arguments)
    mode = _mode(arguments)
    if shard is not None and shard.launched and is_restarted():
        if is_merged(arguments.output):
            return 1  # the earlier attempt merged everything, and ended with failed images
        mode = "resume"
    elif mode == "resume" and (
        is_merged(arguments.output)
        if shard is not None
        else is_finished(arguments.output, arguments.format)
    ):
        if not arguments.quiet:
            print(f"{arguments.output} is complete: --overwrite writes it anew", file=sys.stderr)
        return 0
    places = {"recursive": arguments.recursive, "image_root": arguments.image_root}
    columns = {"column": arguments.column, **places}
    left_out: Counter[str] = Counter()
    items = open_sources(
        arguments.paths, null_separated=arguments.null, left_out=left_out, **columns
    )
    first = next(items, None)
    if first is None:
        raise _no_images(arguments, left_out)
    bare = [first.name] == arguments.paths and not (arguments.output or arguments.format)
    group = RankGroup(shard) if shard is not None and shard.launched else None
    is_main = group is None or group.is_main
    if not is_main:
        logging.getLogger(sources.__name__).setLevel(logging.ERROR)  # rank 0 warns for all
    batch_size = arguments.batch_size
    if shard is not None:  # which must not depend on a machine's GPU
        batch_size = batch_size or BATCH_SIZE
    assignment = ShardAssignment(shard or Shard(0, 1), batch_size or BATCH_SIZE)
    looks = {"captions": search.get("num_captions", 1), "attention": arguments.attention_json}
    with contextlib.ExitStack() as on_failure:
        writer: Writer
        if shard is None or arguments.format == "sidecar":
            writer = open_writer(arguments.output, arguments.format, mode=mode, bare=bare, **looks)
        else:
            paths = repr((arguments.paths, arguments.recursive))  # may be many
            settings = {
                **looks,
                **run_settings(arguments, search),
                "sources": hashlib.sha256(paths.encode()).hexdigest()[:16],
            }
            writer = open_shard(arguments.output, arguments.format, assignment, settings, mode=mode)
        on_failure.callback(writer.close, complete=False)
        errors = None
        if arguments.errors and shard is None:  # those of shards are known when all are done
            # Written anew when resuming: the output holds the failures of the earlier run.
            how: Mode = "new" if mode == "new" else "overwrite"
            errors = RowWriter(Journal(Path(arguments.errors), JsonLinesFormat(), how))
            on_failure.callback(errors.close, complete=False)
        strips = None
        if arguments.attention:
            strips = StripFolder(
                arguments.attention, arguments.paths, arguments.image_root, arguments.font
            )
        copies = None
        if arguments.write_metadata:
            copies = MetadataFolder(arguments.write_metadata, arguments.paths, mode, **places)
        captioner = load_captioner(**model_options(arguments))
        if shard is None and isinstance(writer, RowWriter):
            models = [os.path.abspath(path) for path in arguments.model or []]
            backends = [backend.name for backend in captioner.backends]
            settings = {**search, **looks, "precision": arguments.precision}
            writer.journal.record_settings({**settings, "model": models, "backend": backends})
        on_failure.pop_all()  # from here on the run closes them

    items = assignment.items(itertools.chain([first], items))
    to_terminal = arguments.output is None and sys.stdout.isatty()  # a bar would be in the way
    quiet = arguments.quiet or bare or not is_main
    bar = not (quiet or to_terminal) and sys.stderr.isatty()

    def count() -> int | None:
        return assignment.share(count_images(arguments.paths, **columns))

    with Progress(bar, count, label=str(shard) if shard else None) as progress:
        summary = run(
            captioner,
            items,
            writer,
            batch_size=batch_size,
            workers=arguments.workers,
            strips=strips,
            copies=copies,
            errors=errors,
            fail_fast=arguments.fail_fast,
            progress=progress,
            **search,
        )
    if summary.stopped_by:
        how_on = how_to_go_on(arguments)
        logger.error("stopped at the first failure: %s%s", summary.stopped_by, how_on)
    elif group is not None:
        group.report(summary)
        if not is_main:
            return 0  # rank 0 reports failures; another status would end the other processes
        summary = group.gather()
        if arguments.output:
            merge_shards(arguments.output, arguments.errors)
    summary.left_out = left_out
    _print_summary(summary, quiet)
    if not quiet and arguments.shard and arguments.output:
        print(f"{shard}: {state_of_shards(arguments.output)}", file=sys.stderr)
    return 0 if summary.ok else 1


def _caption_on_ray(arguments: argparse.Namespace) -> int:
    """Caption images with `--engine ray`."""
    from captioner.batch.ray import caption_units, cluster, import_ray, plan

    search = search_options(arguments)
    _check_ray(arguments)
    _check_model(arguments, search)
    model = model_options(arguments)
    model["paths"] = [os.path.abspath(path) for path in model["paths"] or []]
    root = arguments.image_root and os.path.abspath(arguments.image_root)
    ray = import_ray(arguments.ray_address, arguments.verbose)
    summary, start = Summary(), time.monotonic()
    folder = Path(arguments.output)
    with contextlib.closing(
        PartFolder(folder, arguments.format or "jsonl", _mode(arguments))
    ) as parts:
        units = list(
            plan(
                arguments.paths,
                json.dumps(run_settings(arguments, search)),
                recursive=arguments.recursive,
                image_root=arguments.image_root,
                null_separated=arguments.null,
            )
        )
        if not units:
            raise _no_images(arguments)
        done = parts.begin([unit.name for unit in units])
        for name in sorted(done):
            for error in parts.previous_errors(name):
                summary.kept += 1
                summary.kept_failed += error is not None
        units = [unit for unit in units if unit.name not in done]
        if units:
            bar = not arguments.quiet and sys.stderr.isatty()
            counts = [unit.count for unit in units if unit.count is not None]
            total = sum(counts) if len(counts) == len(units) else None
            with (
                Progress(bar, lambda: total) as progress,
                cluster(ray, arguments.ray_address, arguments.verbose),
            ):

                def count(error: str | None) -> None:
                    summary.add(error)
                    progress.advance(summary.failed)

                caption_units(
                    ray,
                    units,
                    parts,
                    count,
                    model=model,
                    options={
                        "batch_size": arguments.batch_size or BATCH_SIZE,
                        "workers": arguments.workers,
                        **search,
                    },
                    sources={"image_root": root, "column": arguments.column},
                    attention=arguments.attention_json,
                    workers=arguments.ray_workers,
                )
    summary.seconds = time.monotonic() - start
    _print_summary(summary, arguments.quiet)
    return 0 if summary.ok else 1


def merge_command(arguments: argparse.Namespace) -> int:
    """Merge the results of shards.

    Returns:
        The exit status: 0, or 1 if an image has no caption.

    Raises:
        CaptionerError: The shards are not all done, do not belong together, or the output cannot
            be written.
    """
    summary = merge_shards(arguments.output, arguments.errors)
    _print_summary(summary, arguments.quiet)
    return 0 if summary.ok else 1


def how_to_go_on(arguments: argparse.Namespace) -> str:
    """Return the end of a message about an interrupted run; empty if it cannot be resumed."""
    if getattr(arguments, "output", None) is None and getattr(arguments, "format", "") != "sidecar":
        return ""
    return "; what was written is kept: the same command with --resume goes on"


def _check_shardable(arguments: argparse.Namespace, shard: Shard) -> None:
    """Refuse what several processes cannot do together."""
    if STDIN in arguments.paths:
        raise ConfigError("shards cannot share standard input: put the names into a file")
    if arguments.output is None and arguments.format != "sidecar":
        raise ConfigError("shards are merged into a file: add -o")
    if arguments.errors and not shard.launched:
        raise ConfigError("with --shard, failures are put together at the end: merge --errors FILE")
    if arguments.errors and arguments.format == "sidecar":
        raise ConfigError("--errors needs results that are merged: sidecars of shards are not")


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Refuse to overwrite a source, or to write two outputs into one file."""
    if arguments.font is not None:
        if arguments.attention is None:
            raise ConfigError("--font is for the words of --attention DIR: add it")
        load_font(20, arguments.font)  # complain before the work starts
    outputs = [path for path in (arguments.output, arguments.errors) if path is not None]
    if len({os.path.abspath(path) for path in outputs}) < len(outputs):
        raise ConfigError("-o and --errors name the same file")
    for output, source in itertools.product(outputs, arguments.paths):
        if os.path.isfile(output) and os.path.isfile(source) and os.path.samefile(output, source):
            raise ConfigError(f"{output} is among the sources: choose another output")


def _mode(arguments: argparse.Namespace) -> Mode:
    return "resume" if arguments.resume else "overwrite" if arguments.overwrite else "new"


def _print_summary(summary: Summary, quiet: bool) -> None:
    if not quiet:
        print(*summary.lines(), sep="\n", file=sys.stderr)


def _no_images(
    arguments: argparse.Namespace, left_out: Mapping[str, int] = MappingProxyType({})
) -> ConfigError:
    hint = "" if arguments.recursive else "; --recursive searches subfolders too"
    if left_out:
        hint = f", only files of other kinds ({', '.join(sorted(left_out)[:10])}){hint}"
    if any(ending in left_out for ending in (".tar", ".tgz", ".gz", ".parquet")):
        hint += "; name archives and tables themselves, such as FOLDER/*.tar"
    return ConfigError(f"no photos in {', '.join(arguments.paths)}{hint}")


def _check_ray(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go with Ray."""
    if arguments.shard:
        raise ConfigError("Ray deals out the photos itself: leave --shard out")
    if arguments.output is None:
        raise ConfigError("--engine ray writes a folder of part files: add -o FOLDER")
    if arguments.format not in (None, "jsonl", "parquet"):
        raise ConfigError(f"--engine ray writes jsonl or parquet, not {arguments.format}")
    instead = {
        "font": "it draws no attention strips",
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
    """Find out before Ray starts whether the model exists and knows the required words."""
    from captioner.api import DEFAULT_WEIGHTS
    from captioner.backends.load import installed
    from captioner.checkpoint import read_header
    from captioner.decoding.options import decoding_options

    for path in arguments.model or [installed(DEFAULT_WEIGHTS) or DEFAULT_WEIGHTS]:
        decoding_options(read_header(path).vocabulary, **search)
