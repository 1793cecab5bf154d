"""The command ``captioner caption``: from its arguments to a run and its summary."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import logging
import os
import sys
from pathlib import Path

from captioner.batch import sources
from captioner.batch.formats import JsonLinesFormat
from captioner.batch.journal import Mode, RowFile
from captioner.batch.metadata import MetadataFolder
from captioner.batch.parts import is_merged, merge_parts, open_part, state_of_parts
from captioner.batch.progress import Progress
from captioner.batch.runner import run
from captioner.batch.sharding import Deal, Shard, Team, find_shard, is_restarted
from captioner.batch.sidecars import SidecarSink
from captioner.batch.sources import STDIN, count_photos, open_sources
from captioner.batch.strips import StripFolder
from captioner.batch.writers import Sink, open_sink
from captioner.cli.options import load_captioner, run_settings, search_options
from captioner.errors import ConfigError

logger = logging.getLogger(__name__)


def caption_command(arguments: argparse.Namespace) -> int:
    """Caption photos.

    Args:
        arguments: Those of `arguments.add_caption_arguments`.

    Returns:
        The exit status: 0, or 1 if a photo has no caption.

    Raises:
        CaptionerError: The options do not go together, or the output cannot be written.
    """
    if arguments.engine == "ray":
        if arguments.shard:
            raise ConfigError("Ray deals out the photos itself: leave --shard out")
        from captioner.batch.ray import ray_command

        return ray_command(arguments)
    if arguments.ray_address or arguments.ray_workers:
        raise ConfigError("--ray-address and --ray-workers need --engine ray")
    shard = find_shard(arguments.shard)
    if shard is not None:
        _check_shardable(arguments, shard)
    search = search_options(arguments)
    _check_outputs(arguments)
    mode: Mode = "new"
    if arguments.resume or arguments.overwrite:
        mode = "resume" if arguments.resume else "overwrite"
    if shard is not None and shard.launched and is_restarted():
        if is_merged(arguments.output):
            return 1  # the failure that ended the earlier attempt was that of photos
        mode = "resume"
    places = {"recursive": arguments.recursive, "image_root": arguments.image_root}
    columns = {"column": arguments.column, **places}
    items = open_sources(arguments.paths, null_separated=arguments.null, **columns)
    first = next(items, None)
    if first is None:
        hint = "" if arguments.recursive else "; --recursive searches subfolders too"
        raise ConfigError(f"no photos in {', '.join(arguments.paths)}{hint}")
    bare = [first.name] == arguments.paths and not (arguments.output or arguments.format)
    team = Team(shard) if shard is not None and shard.launched else None
    if team is not None and not team.leads:
        logging.getLogger(sources.__name__).setLevel(logging.ERROR)  # rank 0 warns for all
    deal = Deal(shard or Shard(0, 1), arguments.batch_size)
    looks = {"captions": search.get("num_captions", 1), "attention": arguments.attention_json}
    with contextlib.ExitStack() as on_failure:
        sink: Sink
        if shard is None or arguments.format == "sidecar":
            sink = open_sink(arguments.output, arguments.format, mode=mode, bare=bare, **looks)
        else:
            photos = repr((arguments.paths, arguments.recursive))  # may be many
            settings = {
                **looks,
                **run_settings(arguments, search),
                "sources": hashlib.sha256(photos.encode()).hexdigest()[:16],
            }
            sink = open_part(arguments.output, arguments.format, deal, settings, mode=mode)
        on_failure.callback(sink.close, complete=False)
        errors = None
        if arguments.errors and shard is None:  # those of shards are known when all are done
            # Written anew when resuming: the failures that were kept are in the output.
            path = Path(arguments.errors)
            errors = RowFile(path, JsonLinesFormat(), "new" if mode == "new" else "overwrite")
            on_failure.callback(errors.close, complete=False)
        strips = StripFolder(arguments.attention) if arguments.attention else None
        copies = None
        if arguments.write_metadata:
            copies = MetadataFolder(arguments.write_metadata, arguments.paths, mode, **places)
        captioner = load_captioner(arguments)
        on_failure.pop_all()  # from here on the run closes them

    sidecars = sink if isinstance(sink, SidecarSink) else None
    items = deal.items(itertools.chain([first], items), strips=strips, sidecars=sidecars)
    to_terminal = arguments.output is None and sys.stdout.isatty()  # a bar would be in the way
    quiet = arguments.quiet or bare or (team is not None and not team.leads)
    bar = not (quiet or to_terminal) and sys.stderr.isatty()

    def count() -> int | None:
        return deal.share(count_photos(arguments.paths, **columns))

    with Progress(bar, count, label=str(shard) if shard else None) as progress:
        summary = run(
            captioner,
            items,
            sink,
            batch_size=arguments.batch_size,
            workers=arguments.workers,
            strips=strips,
            copies=copies,
            errors=errors,
            fail_fast=arguments.fail_fast,
            progress=progress,
            **search,
        )
    if summary.stopped_by:
        how = how_to_go_on(arguments)
        logger.error("stopped at the first failure: %s%s", summary.stopped_by, how)
    elif team is not None:
        team.report(summary)
        if not team.leads:
            return 0  # rank 0 tells what failed; another status would end the others
        summary = team.gather()
        if arguments.output:
            merge_parts(arguments.output, arguments.errors)
    if not quiet:
        print(*summary.lines(), sep="\n", file=sys.stderr)
        if arguments.shard and arguments.output:
            print(f"{shard}: {state_of_parts(arguments.output)}", file=sys.stderr)
    return 0 if summary.ok else 1


def merge_command(arguments: argparse.Namespace) -> int:
    """Merge the results of shards.

    Args:
        arguments: Those of `arguments.add_merge_arguments`.

    Returns:
        The exit status: 0, or 1 if a photo has no caption.

    Raises:
        CaptionerError: The shards are not all done, do not belong together, or the output cannot
            be written.
    """
    summary = merge_parts(arguments.output, arguments.errors)
    if not arguments.quiet:
        print(*summary.lines(), sep="\n", file=sys.stderr)
    return 0 if summary.ok else 1


def how_to_go_on(arguments: argparse.Namespace) -> str:
    """For the end of a message about a run that stopped; empty if it cannot be resumed."""
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
    """Refuse to write over what is read, or two things into one file."""
    outputs = [path for path in (arguments.output, arguments.errors) if path is not None]
    if len({os.path.abspath(path) for path in outputs}) < len(outputs):
        raise ConfigError("-o and --errors name the same file")
    for output, source in itertools.product(outputs, arguments.paths):
        if os.path.isfile(output) and os.path.isfile(source) and os.path.samefile(output, source):
            raise ConfigError(f"{output} is among the sources: choose another output")
