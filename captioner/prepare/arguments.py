"""The arguments of ``captioner prepare``."""

from __future__ import annotations

import argparse

DATASETS = ("coco2014", "coco2017", "flickr8k", "flickr30k")
OWN = ("csv", "folder")


def add_prepare_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``captioner prepare`` takes."""
    parser.usage = (
        "captioner prepare {coco2014,coco2017,flickr8k,flickr30k} --root DIR [--from DIR] ...\n"
        "       captioner prepare csv FILE [-o FILE] ...\n"
        "       captioner prepare folder DIR [-o FILE] ..."
    )
    add = parser.add_argument
    add("what", choices=(*DATASETS, *OWN), metavar="WHAT", help=f"{', '.join((*DATASETS, *OWN))}")
    add("source", nargs="?", metavar="PATH", help="of csv: CSV or JSONL; of folder: the folder")
    sets = parser.add_argument_group("public data sets")
    sets.add_argument("--root", metavar="DIR", help="where the data set is to be")
    sets.add_argument(
        "--from", dest="have", metavar="DIR", help="use these files, download nothing"
    )
    sets.add_argument(
        "--url",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="another address of an archive, train2014=http://...; also CAPTIONER_URL_TRAIN2014",
    )
    sets.add_argument("--partial", action="store_true", help="take what is there if not complete")
    own = parser.add_argument_group("your own captions")
    own.add_argument("--images", metavar="DIR", help="folder of the photos (beside the file)")
    own.add_argument(
        "-o",
        "--output",
        dest="out",
        metavar="FILE",
        help="default: captions.jsonl beside the photos",
    )
    own.add_argument("--overwrite", action="store_true", help="replace an output")
    own.add_argument("--val", type=float, metavar="SHARE", help="of the photos, to validate (0.1)")
    own.add_argument("--test", type=float, metavar="SHARE", help="of the photos, to test (0)")
    own.add_argument("--seed", type=int, metavar="N", help="of the split (0)")
    own.add_argument("--max-words", type=int, metavar="N", help="report longer captions (30)")
    own.add_argument("--json", metavar="FILE", help="write the whole report here")
    add("-q", "--quiet", action="store_true", help="no progress bar")
