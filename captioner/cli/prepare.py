"""`captioner prepare`: a public data set, or captions of one's own, made ready for training."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from captioner.errors import ConfigError, DataError
from captioner.utils.files import replacing

DATASETS = ("coco2014", "coco2017", "flickr8k", "flickr30k")
OWN = ("csv", "folder")
_SET_OPTIONS = ("root", "have", "url", "partial")
_OWN_OPTIONS = ("source", "images", "out", "overwrite", "val", "test", "seed", "max_words", "json")


def add_prepare_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `captioner prepare`."""
    parser.usage = (
        "captioner prepare {coco2014,coco2017,flickr8k,flickr30k} --root DIR [--from DIR] ...\n"
        "       captioner prepare csv FILE [-o FILE] ...\n"
        "       captioner prepare folder DIR [-o FILE] ..."
    )
    add = parser.add_argument
    add("what", choices=(*DATASETS, *OWN), metavar="WHAT", help=f"{', '.join((*DATASETS, *OWN))}")
    add("source", nargs="?", metavar="PATH", help="of csv: CSV or JSONL; of folder: the folder")
    sets = parser.add_argument_group("public data sets")
    sets.add_argument("--root", metavar="DIR", help="folder of the data set")
    sets.add_argument(
        "--from", dest="have", metavar="DIR", help="use these files, download nothing"
    )
    sets.add_argument(
        "--url",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="other address of an archive: train2014=http://...; or set CAPTIONER_URL_TRAIN2014",
    )
    sets.add_argument("--partial", action="store_true", help="use an incomplete data set as it is")
    own = parser.add_argument_group("your own captions")
    own.add_argument("--images", metavar="DIR", help="folder of the photos (beside the file)")
    own.add_argument(
        "-o",
        "--output",
        dest="out",
        metavar="FILE",
        help="default: captions.jsonl beside the photos",
    )
    own.add_argument("--overwrite", action="store_true", help="replace an existing output")
    own.add_argument(
        "--val", type=float, metavar="SHARE", help="share of the photos for validation (0.1)"
    )
    own.add_argument(
        "--test", type=float, metavar="SHARE", help="share of the photos for testing (0)"
    )
    own.add_argument("--seed", type=int, metavar="N", help="random seed of the split (0)")
    own.add_argument("--max-words", type=int, metavar="N", help="report longer captions (30)")
    own.add_argument("--json", metavar="FILE", help="write the whole report here")
    add("-q", "--quiet", action="store_true", help="no progress bar")


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
    from captioner.prepare.public_sets import coco_versions, flickr_versions
    from captioner.prepare.registry import ARCHIVES, IMAGES_ON_REQUEST, FileIndex, addresses
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
        raise DataError(f"no photos in {places}: {IMAGES_ON_REQUEST} and name it with --from DIR")
    if what.startswith("coco"):
        versions = coco_versions(what.removeprefix("coco"), index)
    else:
        versions = flickr_versions(what, index)
    for written in write_versions(versions, index, root, partial=arguments.partial):
        print(written.line())
    return 0


def _own(arguments: argparse.Namespace, bars: bool) -> int:
    from tqdm import tqdm

    from captioner.prepare.custom import Report, check_and_split, read_folder, read_table
    from captioner.prepare.write import write_captions

    if arguments.source is None:
        kind = "a CSV or JSONL file" if arguments.what == "csv" else "a folder"
        raise ConfigError(f"prepare {arguments.what} needs {kind}")
    source = Path(arguments.source)
    images = Path(arguments.images) if arguments.images else None
    report = Report()
    if arguments.what == "csv":
        beside = source.parent
        rows = read_table(source)
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
