"""``captioner prepare``: a public data set, or captions of one's own, made ready for training."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from captioner.errors import ConfigError, DataError
from captioner.prepare.arguments import DATASETS
from captioner.utils.files import replacing

_SET_OPTIONS = ("root", "have", "url", "partial")
_OWN_OPTIONS = ("source", "images", "out", "overwrite", "val", "test", "seed", "max_words", "json")


def prepare(arguments: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        The exit status: 1 if photos of one's own had to be left out.

    Raises:
        ConfigError: Options that do not fit together.
        DataError: The data cannot be had, are incomplete or unusable.
    """
    is_set = arguments.what in DATASETS
    for name in _OWN_OPTIONS if is_set else _SET_OPTIONS:
        if getattr(arguments, name):
            option = {"have": "--from", "out": "--output", "source": str(arguments.source)}.get(
                name, "--" + name.replace("_", "-")
            )
            raise ConfigError(f"{option} is not for prepare {arguments.what}")
    bars = not arguments.quiet and sys.stderr.isatty()
    return _public(arguments, bars) if is_set else _own(arguments, bars)


def _public(arguments: argparse.Namespace, bars: bool) -> int:
    from captioner.prepare.fetch import fetch, unpack_found
    from captioner.prepare.file_index import FileIndex
    from captioner.prepare.registry import ARCHIVES, PHOTOS_ON_REQUEST, addresses
    from captioner.prepare.write import write_versions

    what = arguments.what
    if not arguments.root:
        raise ConfigError(f"prepare {what} needs --root DIR, where the data set is to be")
    root = Path(arguments.root)
    archives = ARCHIVES[what]
    if arguments.have:
        folders = [Path(arguments.have), root]
        if not folders[0].is_dir():
            raise DataError(f"no folder {folders[0]}")
        index = FileIndex(folders)
        if unpack_found(archives, index, root, bars):
            index = FileIndex(folders)
    else:
        fetch(archives, root, addresses(archives, arguments.url), bars=bars)
        index = FileIndex([root])
    if what == "flickr30k" and not index.match("*.jpg"):
        places = " and ".join(str(folder) for folder in index.folders)
        raise DataError(f"no photos in {places}: {PHOTOS_ON_REQUEST} and name it with --from DIR")
    if what.startswith("coco"):
        from captioner.prepare.coco import coco_versions

        versions = coco_versions(what.removeprefix("coco"), index)
    else:
        from captioner.prepare.flickr import flickr_versions

        versions = flickr_versions(what, index)
    for written in write_versions(versions, index, root, partial=arguments.partial):
        print(written.line())
    return 0


def _own(arguments: argparse.Namespace, bars: bool) -> int:
    from captioner.prepare.custom import check_and_split
    from captioner.prepare.report import Report
    from captioner.prepare.rows import read_folder, read_rows
    from captioner.prepare.write import write_captions

    if arguments.source is None:
        kind = "a CSV or JSONL file" if arguments.what == "csv" else "a folder"
        raise ConfigError(f"prepare {arguments.what} needs {kind}")
    source = Path(arguments.source)
    images = Path(arguments.images) if arguments.images else None
    report = Report()
    if arguments.what == "csv":
        beside = source.parent
        rows = list(read_rows(source))
    else:
        beside = images = images or source
        rows, report.strays = read_folder(source)
    out = Path(arguments.out) if arguments.out else beside / "captions.jsonl"
    if out.exists() and not arguments.overwrite:
        raise ConfigError(f"{out} exists: name another with -o or add --overwrite")
    if out.exists() and source.is_file() and out.samefile(source):
        raise ConfigError(f"{out} is what is read: name another output with -o")
    given = {
        name: value
        for name in ("val", "test", "seed", "max_words")
        if (value := getattr(arguments, name)) is not None
    }
    if set(given) & {"val", "test", "seed"} and any(row.split for row in rows):
        raise ConfigError(f"{source} names splits, and these are kept: leave --val and so on out")
    total = len({row.image for row in rows})
    with tqdm(total=total, unit=" photos", disable=not bars, file=sys.stderr) as bar:
        examples, report = check_and_split(
            rows, source, images, report=report, advance=bar.update, **given
        )
    written = write_captions(out, examples)
    if arguments.json:
        with replacing(arguments.json) as temporary:
            text = json.dumps(report.to_dict(), ensure_ascii=False, indent=1) + "\n"
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    text = "\n  ".join([f"{written.path}:", *report.lines()])
    print(text.encode("utf-8", "backslashreplace").decode())  # names need not be UTF-8
    return 1 if report.failed else 0
