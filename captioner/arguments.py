"""The arguments of the longer commands of the command line."""

from __future__ import annotations

import argparse

FORMATS = ("text", "jsonl", "csv", "json", "coco", "sidecar")


def add_caption_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``captioner caption`` takes."""
    add = parser.add_argument
    add(
        "paths",
        nargs="+",
        metavar="PATH",
        help="photo, folder, glob, list of photos (.txt .csv .jsonl .json), .tar archive, "
        "or - for names on standard input",
    )
    add("-o", "--output", metavar="FILE", help="default: standard output")
    add("--format", choices=FORMATS, help="default: by the output's ending, or text")
    add("-r", "--recursive", action="store_true", help="search subfolders too")
    add("-0", "--null", action="store_true", help="names on standard input end in NUL")
    add("--image-root", metavar="DIR", help="folder that names in lists are relative to")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with an output")
    again.add_argument("--overwrite", action="store_true", help="replace an output")
    add("--attention", metavar="DIR", help="also draw what each word looked at: a PNG per photo")
    add("--attention-json", action="store_true", help="put the attention maps into JSON output")
    add("--errors", metavar="FILE", help="write failures here too: JSON Lines, itself a valid PATH")
    add("--fail-fast", action="store_true", help="stop at the first photo that fails")
    add("--workers", type=_positive, metavar="N", help="threads that read photos")
    _add_model_arguments(parser)
    add("--num-captions", type=_positive, metavar="N", help="captions per photo (1)")
    add("--min-length", type=_positive, metavar="N", help="fewest words (1)")
    add("--max-length", type=_positive, metavar="N", help="most words (24)")
    add("--length-penalty", type=float, metavar="A", help="above 0 favours longer captions (0)")


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``captioner evaluate`` takes."""
    add = parser.add_argument
    _add_reference_arguments(parser, required=True)
    add("--results", metavar="FILE", help="score these captions: COCO results, JSONL or CSV")
    add("--images", metavar="DIR", help="folder of the photos (default: beside the captions)")
    add(
        "--instances",
        nargs="+",
        default=[],
        metavar="FILE",
        help="COCO objects: measure attention, and objects named that are not there",
    )
    add("--training", metavar="FILE", help="captions of the training set: find copies")
    add("--official", action="store_true", help="also METEOR and SPICE by the official Java tools")
    add(
        "--faithfulness",
        nargs="?",
        type=_positive,
        const=300,
        default=0,
        metavar="N",
        help="on N photos (300), delete what was attended: does the word's probability drop?",
    )
    add("--json", metavar="FILE", help="write all figures and the scores of each photo here")
    add("--results-out", metavar="FILE", help="write the captions here, as COCO results JSON")
    add("--report", metavar="DIR", help="write a page to look at here: DIR/index.html")
    _add_model_arguments(parser)
    add("--min-length", type=_positive, metavar="N", help="fewest words (1)")
    add("--max-length", type=_positive, metavar="N", help="most words (24)")
    add("--length-penalty", type=float, metavar="A", help="above 0 favours longer captions (0)")


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``captioner compare`` takes."""
    add = parser.add_argument
    add("a", metavar="A", help="what evaluate --json wrote; with --references a file of captions")
    add("b", metavar="B", help="the same for the other model")
    _add_reference_arguments(parser, required=False)
    add("--seed", type=int, default=0, metavar="N", help="of the random resamples (0)")
    add("--json", metavar="FILE", help="write all figures here")


def _add_reference_arguments(parser: argparse.ArgumentParser, required: bool) -> None:
    add = parser.add_argument
    add(
        "--captions",
        "--references",
        required=required,
        metavar="FILE",
        help="what people wrote: COCO JSON, Karpathy JSON or JSONL",
    )
    add("--split", metavar="NAME", help="only this split of the file")


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-m", "--model", metavar="FILE", help="default: the shipped model")
    add("--beam", type=_positive, metavar="K", help="beam width (3); 1 is greedy")
    add("--batch-size", type=_positive, default=32, metavar="N", help="photos at a time (32)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    add("-q", "--quiet", action="store_true", help="no progress bar, no summary")


def _positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


_positive.__name__ = "whole number"  # argparse: "invalid whole number value: 'x'"
